"The command `dreamer4` as a user meets it: processes, exit codes, one line for an error"

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save
from test_recordings import DAMAGES, make

import dreamer4_nb
from dreamer4_nb.cli import COMMANDS, main
from dreamer4_nb.config import named
from dreamer4_nb.files import with_checksum
from dreamer4_nb.run.load import load
from dreamer4_nb.training import memory

DREAMER4 = Path(sysconfig.get_path("scripts")) / "dreamer4"
SMOKE = ("--size", "smoke")  # a run of seconds


def call(*args):
    "The command with these arguments, in a process of its own"
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    return subprocess.run(
        [DREAMER4, *map(str, args)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )


def call_here(*args):
    "The same in this process, which has PyTorch already"
    out, error = io.StringIO(), io.StringIO()
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        patch.setattr(memory, "keep_freed_memory", lambda: True)  # not of this process
        try:
            main([str(word) for word in args])
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(args, code, out.getvalue(), error.getvalue())


def assert_error(done, *words, code=1):
    "One line of error that has the words, no traceback"
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == code, done.stderr[-2000:]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    for word in words:
        assert word in lines[0], lines[0]


def assert_usage(done, *words):
    "Exit code 2 and a message with the words, which may stand in a box"
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    text = " ".join(done.stderr.replace("│", " ").split())
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name):
    done = call(name, "--help")
    assert done.returncode == 0
    assert f"usage: dreamer4 {name}" in done.stdout
    assert "--dynamics.depth" not in done.stdout


def test_help_of_all_commands():
    done = call("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


def test_version():
    done = call("--version")
    assert done.returncode == 0
    assert done.stdout == f"dreamer4_nb {dreamer4_nb.__version__}\n"
    assert "--version" in call("--help").stdout


def test_help_of_settings():
    done = call("train", "--help-settings", *SMOKE)
    assert done.returncode == 0
    assert "--dynamics.width INT" in done.stdout
    assert "(default: 32)" in done.stdout


def test_help_does_not_wait_for_torch():
    code = "import sys; from dreamer4_nb import cli; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def done_stages(out):
    "The stages that a run's folder says are done"
    file = out / "run.json"
    return json.loads(file.read_text())["stages"] if file.exists() else {}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A smoke run that was killed twice on its way"
    out = tmp_path_factory.mktemp("cli") / "run"
    command = [DREAMER4, "demo", *SMOKE, "--out", str(out)]
    for stage in ("record", "dynamics"):
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while stage not in done_stages(out) and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = call("demo", *SMOKE, "--out", out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "report:" in done.stdout
    assert "wood" in done.stdout
    assert "dreamer4 play --pretrained" in done.stdout
    return out


def test_demo_leaves_its_files(run):
    for name in ("run.json", "results.json", "report.html"):
        assert (run / name).stat().st_size > 100
    assert list(run.rglob(".tmp-*")) == []


@pytest.mark.slow
def test_a_first_look_shows_something(tmp_path):
    "What a newcomer runs: frames that can be recognised, and what more training would add"
    done = call("demo", "--size", "demo_smoke", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["tokenizer_psnr"] > 25
    assert "What the laptop's run adds" in (tmp_path / "run" / "report.html").read_text()


def test_demo_again_changes_nothing(run):
    before = (run / "results.json").read_bytes()
    assert call("demo", *SMOKE, "--out", run).returncode == 0
    assert (run / "results.json").read_bytes() == before


def test_check_reports_what_has_not_been_learned(run, tmp_path):
    done = call("check", run)
    written = json.loads((run / "check.json").read_text())
    assert done.returncode == 1
    assert written["format"] == "dreamer4_nb.check"
    status = {check["name"]: check["status"] for check in written["checks"]}
    assert status["actions are known"] == "pass"
    assert status["the tokenizer reconstructs"] == "fail"
    assert_error(call_here("check", tmp_path / "nothing"), "nothing")


def test_another_configuration_for_the_same_folder(run):
    assert_error(call_here("demo", *SMOKE, "--seed", 1, "--out", run), "run.json", "--out")


def test_a_changed_setting_is_named(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    options = ("--imagination.iterations", 3, "--upto", "record")
    done = call("train", copy, *SMOKE, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    line = "imagination.iterations: 2 -> 3: continues imagination; then evaluate, report"
    assert line in done.stdout
    assert (copy / "earlier" / "1" / "results.json").exists()
    assert (copy / "imagination" / "checkpoint").exists()


def test_fields_are_options(tmp_path):
    options = "--imagination.gamma .95 --dynamics.soft-cap 30 --data.seed 3".split()
    options += ["--agent.reward-importance", "--agent-training.patience", "5"]
    done = call("train", tmp_path / "run", *SMOKE, "--upto", "record", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["imagination"]["gamma"] == 0.95
    assert config["dynamics"]["soft_cap"] == 30.0
    assert config["agent"]["reward_importance"] is True
    assert config["agent_training"]["patience"] == 5
    assert config["data"]["seed"] == 3


def test_options_beside_a_file(tmp_path):
    file = tmp_path / "mine.json"
    named("smoke").change({"name": "mine", "dynamics.width": 64}).save(file)
    out = tmp_path / "run"
    options = ("--upto", "record", "--data.episodes", "3")
    done = call("train", out, "--config", file, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["name"] == "mine"
    assert config["dynamics"]["width"] == 64
    assert config["data"]["episodes"] == 3


WRONG_ARGUMENTS = [
    (("demo", "--size", "huge"), ("huge", "laptop")),
    (
        ("demo", "--size", "huge"),
        ("('smoke', 'demo_smoke', 'laptop', 'laptop_pmpo', 'gpu', 'paper')",),
    ),
    (("demo", "--task", "treechopp"), ("'treechopp' is unknown", "'treechop'")),
    (("train", "out", "--task", "mine"), ("'mine' is unknown", "collect_wood")),
    (("demo", "--world", "gymnasium:CartPol-v1"), ("CartPol-v1", "CartPole-v1")),
    (("record", "out", "--world", "no_such_package:A-v0"), ("no_such_package",)),
    (("demo", "--players", "weka"), ("weka", "weak")),
    (("record", "out", "--players", "nowhere:somebody"), ("nowhere",)),
    (("demo", "--seed", "many"), ("--seed", "many")),
    (("demo", "--seed", "-1"), ("--seed -1", "0 or more")),
    (("demo", "--processes", "0"), ("--processes 0", "1 or more")),
    (("train", "out", "--processes", "two"), ("--processes", "two")),
    (("demo", "--device", "gpu"), ("--device", "'gpu'", "'cpu' always is")),
    (("demo", "--size", "gpu", "--config", "c.json"), ("--size gpu", "--config")),
    (("trian", "out"), ("trian", "train")),
    ((), ("train", "demo")),
    (("train",), ("OUT", "folder of the run")),
    (("train", "out", "--dynamics.widht", "64"), ("Perhaps you meant", "--dynamics.width")),
    (
        ("train", "out", "--dynamics.width", "97"),
        ("parsing dynamics: dynamics.width = 97", "multiple of"),
    ),
    (("train", "out", "--upto", "the end"), ("--upto the end", "imagination")),
    (("train", "out", "--task", "recordings"), ("--recordings",)),
    (("demo", "--data.task", "recordings"), ("no world to play in",)),
    (("convert", "somewhere", "elsewhere", "--event", "fly"), ("--event fly", "mine_log")),
    (("play",), ("RUN (none)", "--pretrained")),
    (("play", "run", "--pretrained"), ("--pretrained run",)),
    (("claim", "--seeds", "1;2"), ("--seeds 1;2", "0,1,2")),
    (("bench", "--only", "nothing"), ("--only nothing", "tokenizer")),
]


@pytest.mark.parametrize("args, words", WRONG_ARGUMENTS)
def test_wrong_arguments(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_usage(call_here(*args), *words)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_end_a_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_usage(call("demo", "--size", "huge"), "huge", "laptop")


def test_missing_and_empty_folders(tmp_path):
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_error(call_here("convert", tmp_path / "nothing", out), "nothing")
    assert_error(call_here("convert", empty, out), "empty")
    assert_error(call_here("evaluate", tmp_path / "nothing"), "run.json")
    assert_error(call("play", tmp_path / "nothing"), "nothing", "--pretrained")
    assert_error(call_here("train", out, "--recordings", empty), "empty")
    (empty / "MineRLTreechop-v0.zip").write_bytes(b"PK")
    assert_error(call_here("convert", empty, out), "MineRLTreechop-v0.zip", "unzip")
    assert not out.exists()


BROKEN = [
    "truncated video",
    "object array",
    "lengths",
    "NaN reward",
    "unknown action",
    "frames of another size",
]


def test_broken_recordings(tmp_path):
    "Each is set aside with its reason; where nothing else is there, that is an error"
    source = tmp_path / "source"
    for number, kind in enumerate(BROKEN):
        damage, _ = DAMAGES[kind]
        damage(make(source, f"bad{number}"))
    alone = tmp_path / "alone"
    assert_error(call_here("convert", source, alone), "source")
    assert not (alone / "dataset.json").exists()
    assert list(tmp_path.rglob(".tmp-*")) == []
    make(source, "good")
    done = call("convert", source, tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "1 recording in" in done.stdout
    for number, kind in enumerate(BROKEN):
        lines = [line for line in done.stdout.splitlines() if f"v3_bad{number}:" in line]
        assert len(lines) == 1
        for word in DAMAGES[kind][1]:
            assert word in lines[0], lines[0]


def test_configuration_with_a_mistake(tmp_path):
    file = tmp_path / "c.json"
    out = tmp_path / "run"
    file.write_text('{"version": 1, "dynamics": {"widht": 64}}')
    assert_error(call_here("train", out, "--config", file), "c.json", "widht", "'width'")
    file.write_text('{"version": 1, "dynamics": {"width": -64}}')
    assert_error(call_here("train", out, "--config", file), "c.json", "width", "1 or more")
    assert_error(call_here("train", out, "--config", "laptop"), "--size laptop")
    assert not out.exists()


def test_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        assert_error(call("demo", *SMOKE, "--out", disk / "run"), "could not be written")
        assert list(disk.rglob(".tmp-*")) == []
    finally:
        subprocess.run(["umount", str(disk)])


def damaged(run, tmp_path, name, content):
    "A copy of the run with one file replaced and its later stages to be done again"
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / name).write_bytes(content)
    state = json.loads((run / "run.json").read_text())
    if name != "run.json":
        for stage in ("imagination", "evaluate", "report"):
            state["stages"].pop(stage)
        (copy / "run.json").write_text(json.dumps(with_checksum(state)))
    return copy


def test_corrupt_run_file(run, tmp_path):
    copy = damaged(run, tmp_path, "run.json", b'{"format": ')
    assert_error(call_here("demo", *SMOKE, "--out", copy), "run.json")


@pytest.mark.parametrize(
    "name", ["policies/bc.safetensors", "agent/checkpoint/model.safetensors"]
)
def test_corrupt_weights(run, tmp_path, name):
    copy = damaged(run, tmp_path, name, b"\0" * 40)
    assert_error(call_here("demo", *SMOKE, "--out", copy), name)


def test_weights_of_another_size(run, tmp_path):
    name = "policies/bc.safetensors"
    tensors = load_file(run / name)
    smaller = save({k: tensor[..., :-1].contiguous() for k, tensor in tensors.items()})
    copy = damaged(run, tmp_path, name, smaller)
    assert_error(call_here("demo", *SMOKE, "--out", copy), "bc.safetensors", "shape")


def test_load_and_act(run):
    policy = load(run)
    action = policy.act(np.zeros((64, 64, 3), np.uint8))
    assert action["action"] in ("noop", "left", "right", "up", "down", "do")
    with pytest.raises(ValueError, match="frame"):
        policy.act(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("options", "players"),
    [
        ((), "weak"),
        (("--players", "mixed"), "mixed"),
        (("--data.players", "mixed"), "mixed"),
        (("--task", "drink"), None),
        (("--task", "collect_wood+drink"), None),
    ],
)
def test_whom_a_demo_learns_from(options, players, tmp_path, monkeypatch):
    "From weak players where nothing else is said, in the task that has them"

    class Started(Exception):
        pass

    def demo(config, out, device, processes):
        raise Started(config.data.players)

    monkeypatch.setattr("dreamer4_nb.pipeline.demo", demo)
    monkeypatch.setattr("dreamer4_nb.training.memory.keep_freed_memory", lambda: True)
    with pytest.raises(Started) as started:
        main(["demo", *SMOKE, "--out", str(tmp_path / "run"), *options])
    assert started.value.args == (players,)

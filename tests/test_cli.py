"The console scripts as a user meets them: processes, exit codes, one line for an error."

import json
import os
import signal
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest
from dreamer4_nb.config import named
from dreamer4_nb.files import with_checksum
from test_recordings import damage, make

bin = Path(sysconfig.get_path("scripts"))
scripts = [
    "record",
    "convert",
    "train",
    "evaluate",
    "demo",
    "claim",
    "experiment",
    "check",
    "bench",
    "play",
]

# a run of seconds; the demo's own `--size smoke` takes a minute, so that there is something to see
kept = tempfile.TemporaryDirectory()
tiny = ("--config", str(named("smoke").save(Path(kept.name) / "tiny.json")))


def call(name, *args, **kw):
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    return subprocess.run(
        [bin / f"dreamer4_{name}", *map(str, args)],
        capture_output=True,
        text=True,
        env=env,
        timeout=600,
        **kw,
    )


def refused(done, *words, code=1):
    "One line of error that holds the words, no traceback"
    lines = [l for l in done.stderr.splitlines() if l.startswith("error:")]
    assert done.returncode == code and len(lines) == 1 and "Traceback" not in done.stderr, (
        done.stderr[-2000:]
    )
    for w in words:
        assert w in lines[0], lines[0]


@pytest.mark.parametrize("name", scripts)
def test_help(name):
    done = call(name, "--help")
    assert done.returncode == 0 and "usage" in done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A smoke run that was killed twice on its way"
    out = tmp_path_factory.mktemp("cli") / "run"
    command = [bin / "dreamer4_demo", *tiny, "--out", str(out)]
    for seconds in (7, 12):
        p = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(seconds)
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
    done = call("demo", *tiny, "--out", out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "report:" in done.stdout
        and "wood" in done.stdout
        and "dreamer4_play --pretrained" in done.stdout
    )
    return out


def test_demo_leaves_what_it_says(run):
    for name in ("run.json", "results.json", "report.html"):
        assert (run / name).stat().st_size > 100
    assert not [p for p in run.rglob(".tmp-*")]


@pytest.mark.slow
def test_a_first_look_shows_something(tmp_path):
    "What a newcomer runs: frames that can be recognised, and what more training would add"
    done = call("demo", "--size", "smoke", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["tokenizer_psnr"] > 25
    assert "What the laptop's run adds" in (tmp_path / "run" / "report.html").read_text()


def test_demo_again_changes_nothing(run):
    before = (run / "results.json").read_bytes()
    assert call("demo", *tiny, "--out", run).returncode == 0
    assert (run / "results.json").read_bytes() == before


def test_check_says_what_has_not_been_learned(run, tmp_path):
    done = call("check", run)
    found = json.loads((run / "check.json").read_text())
    assert done.returncode == 1 and found["format"] == "dreamer4_nb.check"
    status = {c["name"]: c["status"] for c in found["checks"]}
    assert (
        status["actions are known"] == "pass"
        and status["the tokenizer reconstructs"] == "fail"
    )
    refused(call("check", tmp_path / "nothing"), "nothing")


def test_other_configuration_is_refused(run):
    refused(call("demo", *tiny, "--seed", 1, "--out", run), "run.json", "--out")


def test_wrong_arguments():
    refused(call("demo", "--size", "huge"), "--size", "laptop", code=2)
    assert call("demo", "--seed", "many").returncode == 2
    refused(
        call("convert", "somewhere", "elsewhere", "--event", "fly"),
        "--event",
        "mine_log",
        code=2,
    )


def test_missing_and_empty_folders(tmp_path):
    refused(call("convert", tmp_path / "nothing", tmp_path / "out"), "nothing")
    (tmp_path / "empty").mkdir()
    refused(call("convert", tmp_path / "empty", tmp_path / "out"), "empty")
    refused(call("evaluate", tmp_path / "nothing"), "run.json")
    (tmp_path / "empty" / "MineRLTreechop-v0.zip").write_bytes(b"PK")
    refused(
        call("convert", tmp_path / "empty", tmp_path / "out"), "MineRLTreechop-v0.zip", "unzip"
    )
    assert not (tmp_path / "out" / "dataset.json").exists()


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
    for i, what in enumerate(BROKEN):
        spoil, _ = damage(what)
        spoil(make(tmp_path / "source", f"bad{i}")[0])
    done = call("convert", tmp_path / "source", tmp_path / "alone")
    refused(done, "source")
    assert not (tmp_path / "alone" / "dataset.json").exists() and not list(
        tmp_path.rglob(".tmp-*")
    )
    make(tmp_path / "source", "good")
    done = call("convert", tmp_path / "source", tmp_path / "data")
    assert done.returncode == 0 and "1 recordings" in done.stdout, done.stderr
    for i, what in enumerate(BROKEN):
        (line,) = [l for l in done.stdout.splitlines() if f"v3_bad{i}:" in l]
        for w in damage(what)[1]:
            assert w in line, line


def test_configuration_with_a_typo(tmp_path):
    (tmp_path / "c.json").write_text('{"version": 1, "dynamics": {"widht": 64}}')
    refused(
        call("train", tmp_path / "run", "--config", tmp_path / "c.json"),
        "c.json",
        "'widht'",
        "'width'",
    )
    (tmp_path / "c.json").write_text('{"version": 1, "dynamics": {"width": -64}}')
    refused(
        call("train", tmp_path / "run", "--config", tmp_path / "c.json"),
        "c.json",
        "width",
        "at least 1",
    )
    refused(call("train", tmp_path / "run", "--config", "laptop"), "--size laptop")
    assert not (tmp_path / "run").exists()


def test_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        refused(call("demo", *tiny, "--out", disk / "run"), "could not be written")
        assert not list(disk.rglob(".tmp-*"))
    finally:
        subprocess.run(["umount", str(disk)])


def damaged(run, tmp_path, name, content):
    "A copy of the run with one file replaced and its later stages to be done again"
    import shutil

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
    refused(
        call("demo", *tiny, "--out", damaged(run, tmp_path, "run.json", b'{"format": ')),
        "run.json",
    )


def test_corrupt_policy(run, tmp_path):
    refused(
        call(
            "demo",
            *tiny,
            "--out",
            damaged(run, tmp_path, "policies/bc.safetensors", b"\0" * 40),
        ),
        "bc.safetensors",
    )


def test_corrupt_checkpoint(run, tmp_path):
    name = "agent/checkpoint/model.safetensors"
    refused(call("demo", *tiny, "--out", damaged(run, tmp_path, name, b"\0" * 40)), name)


def test_checkpoint_of_another_size(run, tmp_path):
    from safetensors.torch import load_file, save

    name = "policies/bc.safetensors"
    smaller = save({k: v[..., :-1].contiguous() for k, v in load_file(run / name).items()})
    refused(
        call("demo", *tiny, "--out", damaged(run, tmp_path, name, smaller)),
        "bc.safetensors",
        "shape",
    )


def test_load_and_act(run):
    import numpy as np
    from dreamer4_nb.run.load import load

    pilot = load(run)
    action = pilot.act(np.zeros((64, 64, 3), np.uint8))
    assert action["action"] in ("noop", "left", "right", "up", "down", "do")
    with pytest.raises(ValueError, match="frame"):
        pilot.act(np.zeros((32, 32, 3), np.uint8))

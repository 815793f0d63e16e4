"A run whose stages are shared by two processes: what happens when one of them is killed, and that it goes on afterwards"

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
import psutil
import pytest
import torch
from dreamer4_nb.config import named
from dreamer4_nb.data.windows import SequenceSampler
from dreamer4_nb.run.run import Run
from dreamer4_nb.training.callbacks import read_training_log
from dreamer4_nb.training.checkpoint import read_tensors
from training_job import QUIET, learner, quiet, recordings

bin = Path(sysconfig.get_path("scripts"))
pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")


@pytest.fixture
def start(tmp_path):
    "Starts a run whose tokenizer trains for long"
    config, started = (
        named("smoke")
        .change({"name": "long", "tokenizer_training.steps": 5000})
        .save(tmp_path / "config.json"),
        [],
    )

    def call():
        env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | dict(
            OMP_NUM_THREADS="1"
        )
        p = subprocess.Popen(
            [
                bin / "dreamer4_train",
                str(tmp_path / "run"),
                "--config",
                str(config),
                "--upto",
                "tokenizer",
                "--unchecked",
            ],
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=env,
        )
        started.append(p)
        return p

    yield call
    for p in started:
        p.poll() is None and p.kill()


def last_step(out):
    log = out / "tokenizer" / "log.jsonl"
    rows = (
        [json.loads(l) for l in log.read_text().splitlines() if l.endswith("}")]
        if log.exists()
        else []
    )
    return rows[-1]["step"] if rows else 0


def helper_of(p):
    for child in psutil.Process(p.pid).children():
        try:
            if any("dreamer4_nb.run" in a for a in child.cmdline()):
                return child
        except psutil.Error:
            pass  # it has just ended


def training(p, out, since=0):
    "Wait until the stage has gone beyond a step; gives the helper process"
    for _ in range(900):
        time.sleep(0.1)
        assert p.poll() is None, p.stderr.read()[-2000:]
        helper = helper_of(p)
        if helper and last_step(out) > since:
            return helper
    raise AssertionError(f"not beyond step {since} in 90 seconds")


def test_a_killed_helper_ends_the_run_with_one_line(start, tmp_path):
    p = start()
    training(p, tmp_path / "run").kill()
    error = p.communicate(timeout=60)[1]
    lines = [l for l in error.splitlines() if l.startswith("error:")]
    assert (
        p.returncode == 1
        and len(lines) == 1
        and "helpers.log" in lines[0]
        and "run the same command again" in lines[0]
    ), error[-2000:]


def test_an_interrupted_run_goes_on_and_a_killed_one_takes_its_helper_along(start, tmp_path):
    p, out = start(), tmp_path / "run"
    training(p, out)
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=60)
    assert p.returncode == 1
    saved = json.loads((out / "tokenizer" / "checkpoint" / "state.json").read_text())["step"]
    assert saved >= 25
    again = start()
    helper = training(
        again, out, since=saved
    )  # later log lines are written only by a run that went on from there
    again.send_signal(signal.SIGKILL)
    again.wait()
    assert not psutil.wait_procs([helper], timeout=60)[1], "the helper lives on"
    assert (
        json.loads((out / "tokenizer" / "checkpoint" / "state.json").read_text())["step"]
        >= saved
    )


def test_two_processes_update_as_one_does(tmp_path):
    "The sets of PMPO are those of all dreams together"
    job, env = (
        Path(__file__).with_name("phase3_job.py"),
        {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        | dict(OMP_NUM_THREADS="1"),
    )
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    for command in (
        [job, one],
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", job, two],
    ):
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=180,
            env=env,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads(p.read_text()) for p in (one, two))
    assert 0 < one["positive"] < 1 and one["kl"] > 0 and one["marginal_kl"] > 0
    one.pop("noise")
    assert len(set(two.pop("noise"))) == 2  # each dreams with noise of its own
    assert two == pytest.approx(one, rel=1e-4, abs=1e-6)


# --- training by hand under torchrun: rows of a batch are shared, so the number of processes changes nothing

FSDP = dict(
    ACCELERATE_USE_FSDP="true", FSDP_VERSION="2"
)  # what accelerate launch sets for its configuration
clean = {
    k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "IN_TEST")
} | dict(OMP_NUM_THREADS="1")


def torchrun(out, steps, seconds=0, *more, **env):
    job = Path(__file__).with_name("training_job.py")
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            job,
            str(out),
            str(steps),
            str(seconds),
            "quiet",
            *more,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean | env,
    )


def on_two(out, steps, *more, **env):
    p = torchrun(out, steps, 0, *more, **env)
    error = p.communicate(timeout=600)[1]
    assert p.returncode == 0, error[-3000:]


def on_one(out, steps, **kw):
    job = learner(out, steps, **QUIET, **kw)
    job.loss_fn = quiet
    job.fit(resume=True)


def curve(out):
    return np.array([r["loss"] for r in read_training_log(out)])


def test_the_number_of_processes_changes_nothing(tmp_path):
    one, two, back, forth = (tmp_path / n for n in ("one", "two", "back", "forth"))
    on_one(one, 40)
    on_two(two, 20)
    shutil.copytree(two, back)
    on_two(two, 40)
    on_one(back, 40)  # two began, one goes on
    on_one(forth, 20)
    on_two(forth, 40)  # one began, two go on
    assert len(curve(one)) == 40
    for other in (two, back, forth):
        np.testing.assert_allclose(curve(other), curve(one), rtol=1e-4)


def test_sliced_training_is_the_same_training(tmp_path):
    "FSDP, at first and again in the end, with one process in between"
    one, cut = tmp_path / "one", tmp_path / "cut"
    on_one(one, 30, layers=True)
    on_two(cut, 10, "layers", **FSDP)
    on_one(cut, 20, layers=True)
    on_two(cut, 30, "layers", **FSDP)
    assert len(curve(one)) == 30
    np.testing.assert_allclose(curve(cut), curve(one), rtol=1e-4)
    for name in ("model", "ema", "optimizer"):
        a, b = (read_tensors(o / "checkpoint" / f"{name}.safetensors") for o in (one, cut))
        assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}


@pytest.mark.slow
def test_slices_of_plain_processes_muon_and_bf16(tmp_path):
    for more in ([], ["muon"], ["bf16"]):
        plain, cut = tmp_path / f"plain{more}", tmp_path / f"cut{more}"
        on_two(plain, 10, "layers", *more)
        shutil.copytree(plain, cut)
        on_two(plain, 20, "layers", *more)
        on_two(cut, 20, "layers", *more, **FSDP)
        np.testing.assert_allclose(curve(cut), curve(plain), rtol=1e-3 if more else 1e-4)


def test_a_first_version_of_fsdp_is_refused(tmp_path):
    error = torchrun(tmp_path, 5, **FSDP | dict(FSDP_VERSION="1")).communicate(timeout=600)[1]
    assert "Hint: set fsdp_version: 2" in error, error[-2000:]


def test_a_killed_worker_leaves_a_checkpoint_for_any_number(tmp_path):
    out, whole = tmp_path / "run", tmp_path / "whole"
    p = torchrun(out, 40, 0.2)
    saved = lambda: (
        json.loads((out / "checkpoint" / "state.json").read_text())["step"]
        if (out / "checkpoint" / "state.json").exists()
        else 0
    )
    for _ in range(600):
        time.sleep(0.1)
        if saved() >= 5:
            break
    worker = next(
        c for c in psutil.Process(p.pid).children() if c.environ().get("RANK") == "1"
    )
    worker.kill()
    assert p.wait(timeout=300) != 0 and 5 <= saved() < 40
    shutil.copytree(out, tmp_path / "again")
    on_one(out, 40)
    on_two(tmp_path / "again", 40)
    on_one(whole, 40)
    for other in (out, tmp_path / "again"):
        np.testing.assert_allclose(curve(other), curve(whole), rtol=1e-4)


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_rows_are_shared_without_overlap_or_loss(processes):
    stream = lambda: SequenceSampler(
        recordings(), 12, [(8, 3), (24, 1)], single_image_fraction=0.3, seed=3
    )
    whole, shares = stream(), [stream().shard(r, processes) for r in range(processes)]
    for _ in range(6):
        rows = [next(s) for s in shares]
        assert len({len(r["start"]) for r in rows}) == 1
        b = next(whole)
        if len(b["start"]) % processes:
            continue  # rounded up, so that all have as many
        for k in b:
            assert torch.equal(torch.stack([r[k] for r in rows], 1).flatten(0, 1), b[k])


# --- the whole command, started several times over by a launcher


def launched(*args, **env):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "--no-python",
            bin / "dreamer4_train",
            *map(str, args),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean | env,
    )


def finish(p, code=0):
    said, error = p.communicate(timeout=300)
    assert (p.returncode == 0) == (code == 0), error[-3000:]
    return said, error


STAGES = ["record", "convert", "tokenizer", "encode", "dynamics", "agent", "imagination"]


def files(out):
    "What a run has learned, byte for byte: the clock stands in its logs and states only"
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in out.rglob("*")
        if p.suffix in (".safetensors", ".npy", ".npz", ".mp4")
    }


def test_the_whole_command_under_torchrun(tmp_path):
    out = tmp_path / "run"
    said, _ = finish(launched(out, "--size", "smoke"))
    assert said.splitlines() == [f"[{i + 1}/9] {s}" for i, s in enumerate(STAGES)] + [
        f"{out}: done up to imagination"
    ]
    state = json.loads((out / "run.json").read_text())
    assert list(state["stages"]) == STAGES and state["machine"]["processes"] == 2
    assert not [
        p for p in out.rglob("*") if p.name.startswith(".") or p.suffix in (".tmp", ".old")
    ]
    for s in ("tokenizer", "dynamics", "agent"):
        assert [r["step"] for r in read_training_log(out / s)] == [4]
    before, run = files(out), Run(out, named("smoke"), progress=False)
    assert (
        run.processes == 1 and run.run_all("imagination") and files(out) == before
    )  # one process finds all of it done
    assert all(run.policy(n, run.trained("agent")) for n in ("bc", "bc_all", "imagination"))


def test_each_stage_has_its_precision(tmp_path):
    half = {f"{s}_training.mixed_precision": "bf16" for s in ("tokenizer", "dynamics")}
    config = named("smoke").change(half | {"name": "half"}).save(tmp_path / "config.json")
    finish(launched(tmp_path / "half", "--config", config, "--upto", "agent", "--unchecked"))
    finish(launched(tmp_path / "full", "--size", "smoke", "--upto", "agent"))
    a, b = (
        read_training_log(tmp_path / n / "tokenizer")[-1]["loss"] for n in ("half", "full")
    )
    assert a != b and abs(a / b - 1) < 0.01


@pytest.mark.slow
def test_compiled_stages_learn_the_same(tmp_path):
    fast = {f"{s}_training.compile": True for s in ("tokenizer", "dynamics", "agent")}
    for name, changes in (("plain", {}), ("fast", fast)):
        Run(
            tmp_path / name, named("smoke").change(changes), processes=2, progress=False
        ).run_all("agent")
    for s in ("tokenizer", "dynamics", "agent"):
        np.testing.assert_allclose(
            curve(tmp_path / "fast" / s), curve(tmp_path / "plain" / s), rtol=1e-3
        )


@pytest.mark.slow
def test_a_launcher_and_helpers_learn_the_same(tmp_path):
    two, helped, cut = (tmp_path / n for n in ("two", "helped", "cut"))
    finish(launched(two, "--size", "smoke"))
    finish(launched(cut, "--size", "smoke", **FSDP))
    Run(helped, named("smoke"), processes=2, progress=False).run_all("imagination")
    assert files(two) == files(helped)
    for s in ("tokenizer", "dynamics", "agent"):
        np.testing.assert_allclose(curve(cut / s), curve(two / s), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("env", [{}, FSDP])
def test_an_interrupted_launch_goes_on_with_another_number(tmp_path, env):
    out, config = (
        tmp_path / "run",
        named("smoke")
        .change({"name": "long", "tokenizer_training.steps": 600})
        .save(tmp_path / "config.json"),
    )
    args = out, "--config", config, "--upto", "tokenizer", "--unchecked"
    step = lambda: (
        read_training_log(out / "tokenizer")[-1]["step"]
        if (out / "tokenizer" / "log.jsonl").exists() and read_training_log(out / "tokenizer")
        else 0
    )

    def until(p, since):
        for _ in range(900):
            time.sleep(0.1)
            assert p.poll() is None, p.communicate()
            if step() > since:
                return

    p = launched(*args, **env)
    until(p, 50)
    p.send_signal(signal.SIGINT)
    said, error = finish(p, 1)
    saved = json.loads((out / "tokenizer" / "checkpoint" / "state.json").read_text())["step"]
    assert (
        saved > 50
        and f"interrupted: step {saved} saved" in said
        and said.count("interrupted:") == 1
        and "stopped; run the same command" in error
    ), error[-3000:]
    p = launched(*args, **env)
    until(p, saved)
    next(
        c
        for c in psutil.Process(p.pid).children(recursive=True)
        if c.environ().get("RANK") == "1"
    ).kill()
    finish(p, 1)
    done = subprocess.run(
        [bin / "dreamer4_train", *map(str, args)],
        capture_output=True,
        text=True,
        env=clean,
        timeout=300,
    )
    assert done.returncode == 0 and step() == 600, done.stderr[-2000:]


def test_an_error_of_a_launched_command_is_one_line(tmp_path):
    (tmp_path / "run.json").write_text("{")
    said, error = finish(launched(tmp_path, "--size", "smoke"), 1)
    lines = [l for l in error.splitlines() if "error: " in l]
    assert len(lines) == 1 and "run.json: not readable" in lines[0], error[-3000:]

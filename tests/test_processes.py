"Runs that are shared by two processes, also when one of them fails"

import errno
import json
import os
import re
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
import rank_job
import torch
from training_job import QUIET, learner, quiet, recordings

from dreamer4_nb.config import named
from dreamer4_nb.data.windows import SequenceSampler
from dreamer4_nb.pipeline import demo, run_all, train
from dreamer4_nb.run import launch
from dreamer4_nb.run.folder import RunError
from dreamer4_nb.run.run import STAGES, Run
from dreamer4_nb.training.callbacks import read_training_log
from dreamer4_nb.training.learner import NonFiniteLoss

COMMAND = Path(sysconfig.get_path("scripts")) / "dreamer4"
JOBS = Path(__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# what accelerate launch sets for its configuration
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
PATIENCE = 300  # seconds until a process that is awaited is given up: a machine may be busy
pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")


def environment(**more):
    "The environment of a command: not that of a test, nor of one process of several"
    removed = ("RANK", "WORLD_SIZE", "IN_TEST")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    return kept | {"OMP_NUM_THREADS": "1"} | more


started = []


@pytest.fixture(autouse=True)
def no_process_is_left():
    "Whatever a test has started ends with it, also where the test fails"
    yield
    while started:
        process = started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start_process(*command, **more_environment):
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(**more_environment),
    )
    started.append(process)
    return process


def finish(process, succeeds=True):
    "Wait for the end of a process; returns its output and its errors"
    output, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode == 0) == succeeds, error[-3000:]
    return output, error


def last_step(out):
    "The last step in a training log, whose last line may be half written"
    log = out / "log.jsonl"
    rows = read_training_log(out) if log.exists() else []
    return rows[-1]["step"] if rows else 0


def saved_step(out):
    "The step of the checkpoint in a folder; 0 if there is none"
    path = out / "checkpoint" / "state.json"
    return json.loads(path.read_text())["step"] if path.exists() else 0


def wait_until(process, condition, what):
    "Wait for a condition while a process runs; returns its value"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()
        value = condition()
        if value:
            return value
    raise AssertionError(f"{what}: not in {PATIENCE} seconds")


def losses(out):
    return np.array([row["loss"] for row in read_training_log(out)])


# --- functions in two ranks that `launch` starts


def test_ranks_know_each_other_and_leave_the_parent_as_it_was():
    before = dict(os.environ)
    result = launch.launch(rank_job.talk, processes=2)
    assert result["ranks"] == [0.0, 1.0]
    assert result["total"] == 1.0
    assert result["main"] == "rank 0 of 2"
    assert result["threads"] <= os.cpu_count() // 2
    assert result["variables"] == dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2")
    assert dict(os.environ) == before


def test_a_rank_keeps_freed_memory_before_it_meets_the_others(monkeypatch):
    calls = []
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # so that it is restored
    monkeypatch.setattr(launch, "keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr(launch, "join_processes", lambda device, place: calls.append(place))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: calls.append(n))
    launch._become_rank(1, 2, "cpu", "/store")
    assert calls == [1, "keep", "file:///store"]
    assert os.environ["RANK"] == "1"


FAILURES = {
    "killed": (
        "kill",
        1,
        RunError,
        r"^process 1 of 2 was killed \(SIGKILL\), .* memory\. Hint:",
    ),
    "memory": (
        "lack_memory",
        1,
        RunError,
        r"^process 1: out of memory\. Hint: smaller batches",
    ),
    "disk": ("fill_disk", 0, OSError, r"No space left on device: 'runs/a/run.json'"),
}


@pytest.mark.parametrize("how, which, kind, line", FAILURES.values(), ids=FAILURES)
def test_a_failing_rank_is_one_line(how, which, kind, line):
    start = time.monotonic()
    with pytest.raises(kind, match=line) as caught:
        launch.launch(rank_job.fail, (how, which), processes=2)
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - start < rank_job.ALONE
    assert "Hint: " in str(caught.value) or caught.value.errno == errno.ENOSPC


def is_rank(process):
    "Whether a process is one that `launch` has started"
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return False


def test_a_rank_that_computes_alone_ends_with_the_others():
    "A loss that is not finite keeps its kind and its windows"
    start = time.monotonic()
    with pytest.raises(NonFiniteLoss, match="step 3: mse = nan") as caught:
        launch.launch(rank_job.fail, ("lose_track", 1, True), processes=2)
    assert time.monotonic() - start < rank_job.ALONE
    assert caught.value.windows == [(0, 7)]
    children = [child for child in psutil.Process().children(recursive=True) if is_rank(child)]
    _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert not alive


def test_ctrl_c_reaches_each_rank_once(tmp_path):
    "A terminal sends it to all processes of the command at the same time"
    job = JOBS / "rank_job.py"
    process = start_process(sys.executable, job, "count_interrupts", tmp_path)
    ready = [tmp_path / "ready0", tmp_path / "ready1"]
    wait_until(process, lambda: all(path.exists() for path in ready), "two ranks")
    os.killpg(process.pid, signal.SIGINT)
    _, error = finish(process, succeeds=False)
    assert error.count("Traceback") == 1, error
    assert error.strip().endswith("KeyboardInterrupt")
    for rank in range(2):
        assert (tmp_path / str(rank)).read_text() == "interrupted\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_starts_nothing(monkeypatch):
    monkeypatch.setattr(launch, "start_processes", None)
    with pytest.raises(ValueError, match="^device: 'cuda', but PyTorch finds no GPU here"):
        launch.launch(rank_job.talk, processes=2, device="cuda")


def test_a_lock_ends_with_its_holder(tmp_path):
    code = (
        "import sys, time\n"
        "from dreamer4_nb.run.launch import run_lock\n"
        "with run_lock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    holder = start_process(sys.executable, "-c", code, tmp_path)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"run.lock: process {holder.pid} on .* Hint: wait"):
        with launch.run_lock(tmp_path):
            pass
    holder.kill()
    holder.communicate()
    with launch.run_lock(tmp_path):
        assert (tmp_path / "run.lock").exists()
    assert not list(tmp_path.iterdir())


def can_trace():
    "Whether strace is here and may be used"
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"]).returncode == 0


@pytest.mark.skipif(not can_trace(), reason="no strace, or it may not trace")
def test_no_name_server_is_asked_and_no_connection_leaves_the_machine(tmp_path):
    calls = tmp_path / "calls"
    names = "trace=connect,sendto,sendmsg,sendmmsg,openat"
    trace = ["strace", "-f", "-qq", "-e", names, "-o", calls]
    out = tmp_path / "out"
    finish(start_process(*trace, sys.executable, JOBS / "rank_job.py", "train_a_little", out))
    assert last_step(out) == 2
    text = calls.read_text()
    reached = [line for line in text.splitlines() if "sa_family=AF_INET" in line]
    assert reached, "the ranks have not met?"
    for line in reached:
        assert re.search(r'inet_addr\("127\.|"::1"', line), line
        assert "htons(53)" not in line, line
    assert "/etc/resolv.conf" not in text


# --- a run that starts its ranks by itself
@pytest.fixture
def start_run(tmp_path):
    "Starts a run whose tokenizer trains for long"
    changes = {"name": "long", "tokenizer_training.steps": 50_000}
    config = named("smoke").change(changes).save(tmp_path / "config.json")

    def start():
        return start_process(
            COMMAND,
            "train",
            tmp_path / "run",
            "--config",
            config,
            "--upto",
            "tokenizer",
            "--unchecked",
        )

    return start


def ranks_of(process):
    "The ranks that a command has started, in order"
    ranks = []
    for child in psutil.Process(process.pid).children():
        try:
            if any("spawn_main" in word for word in child.cmdline()):
                ranks.append(child)
        except psutil.Error:
            pass  # it has just ended
    return sorted(ranks, key=lambda child: child.create_time())


def wait_for_training(process, out, since=0):
    "Wait until the tokenizer has been trained beyond a step; returns the ranks"

    def ranks_beyond():
        ranks = ranks_of(process)
        return ranks if len(ranks) == 2 and last_step(out / "tokenizer") > since else None

    return wait_until(process, ranks_beyond, f"a step beyond {since}")


def error_lines(error):
    return [line for line in error.splitlines() if "error: " in line]


def test_a_second_command_and_a_killed_rank_get_one_line(start_run, tmp_path):
    process = start_run()
    _, second = wait_for_training(process, tmp_path / "run")
    _, error = finish(start_run(), succeeds=False)
    assert error.startswith(f"error: {tmp_path}/run/run.lock: process {process.pid} on")
    assert len(error.splitlines()) == 1
    second.kill()
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, error[-2000:]
    lines = error_lines(error)
    assert len(lines) == 1, error[-2000:]
    assert "process 1 of 2 was killed" in lines[0]
    assert "run the same command again" in lines[0]
    assert "Traceback" not in error


def test_an_interrupted_run_continues_and_a_killed_one_ends_its_ranks(start_run, tmp_path):
    out = tmp_path / "run"
    process = start_run()
    wait_for_training(process, out)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "stopped; run the same command" in error
    assert "Traceback" not in error
    saved = saved_step(out / "tokenizer")
    assert saved >= 25
    again = start_run()
    # later lines of the log are written only by a run that continued from there
    ranks = wait_for_training(again, out, since=saved)
    again.send_signal(signal.SIGKILL)
    again.wait()
    _, alive = psutil.wait_procs(ranks, timeout=PATIENCE)
    assert not alive, "a rank lives on"
    assert saved_step(out / "tokenizer") >= saved


def test_slices_need_two_processes(tmp_path):
    arguments = (tmp_path / "run", "--size", "smoke", "--upto", "tokenizer")
    _, error = finish(start_process(COMMAND, "train", *arguments, **FSDP), succeeds=False)
    lines = error_lines(error)
    assert len(lines) == 1, error[-2000:]
    assert "FSDP slices a model between processes" in lines[0]
    assert "Hint: start two or more" in lines[0]


@pytest.mark.slow
def test_two_processes_write_the_files_of_one_run(tmp_path):
    "Every stage; nothing temporary is left"
    run = demo(named("smoke"), tmp_path / "run", progress=False, processes=2)
    assert [stage for stage in STAGES if run.done(stage)] == STAGES
    assert (run.out / "results.json").exists()
    assert temporary_files(run.out) == []
    assert "WORLD_SIZE" not in os.environ


# --- phase 3 and training by hand: rows of a batch are shared, so the number of processes
# --- changes nothing


def run_job(*command, **more_environment):
    finish(start_process(sys.executable, *command, **more_environment))


def test_two_processes_update_as_one_does(tmp_path):
    "The sets of PMPO are those of all rollouts together"
    job = JOBS / "phase3_job.py"
    run_job(job, tmp_path / "one.json")
    run_job(*TORCHRUN, job, tmp_path / "two.json")
    one = json.loads((tmp_path / "one.json").read_text())
    two = json.loads((tmp_path / "two.json").read_text())
    assert 0 < one["positive"] < 1
    assert one["kl"] > 0
    assert one["marginal_kl"] > 0
    one.pop("noise")
    assert len(set(two.pop("noise"))) == 2  # each process has noise of its own
    assert two == pytest.approx(one, rel=1e-4, abs=1e-6)


def start_on_two(out, steps, *more, seconds=0, **more_environment):
    "Start the training job under torchrun"
    job = JOBS / "training_job.py"
    command = (sys.executable, *TORCHRUN, job, out, steps, seconds, "quiet", *more)
    return start_process(*command, **more_environment)


def train_on_two(out, steps, *more, **more_environment):
    finish(start_on_two(out, steps, *more, **more_environment))


def train_on_one(out, steps, **keywords):
    learner(out, steps, loss_fn=quiet, **QUIET, **keywords).fit(resume=True)


def test_the_number_of_processes_changes_nothing(tmp_path):
    one = tmp_path / "one"
    two = tmp_path / "two"
    train_on_one(one, 40)
    train_on_two(two, 20)
    two_then_one = shutil.copytree(two, tmp_path / "two_then_one")
    one_then_two = tmp_path / "one_then_two"
    train_on_two(two, 40)
    train_on_one(two_then_one, 40)
    train_on_one(one_then_two, 20)
    train_on_two(one_then_two, 40)
    assert len(losses(one)) == 40
    for other in (two, two_then_one, one_then_two):
        np.testing.assert_allclose(losses(other), losses(one), rtol=1e-4)


def test_sliced_training_is_the_same_training(tmp_path):
    "FSDP, at first and again later, with one process in between and in the end"
    one = tmp_path / "one"
    sliced = tmp_path / "sliced"
    train_on_one(one, 32, layers=True)
    train_on_two(sliced, 10, "layers", **FSDP)
    train_on_one(sliced, 20, layers=True)
    train_on_two(sliced, 30, "layers", **FSDP)
    train_on_one(sliced, 32, layers=True)
    assert len(losses(one)) == 32
    np.testing.assert_allclose(losses(sliced), losses(one), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["muon"], ["bf16"]], ids=str)
def test_slices_of_plain_processes_muon_and_bf16(tmp_path, more):
    plain = tmp_path / "plain"
    train_on_two(plain, 10, "layers", *more)
    sliced = shutil.copytree(plain, tmp_path / "sliced")
    train_on_two(plain, 20, "layers", *more)
    train_on_two(sliced, 20, "layers", *more, **FSDP)
    np.testing.assert_allclose(losses(sliced), losses(plain), rtol=1e-3 if more else 1e-4)


def test_the_first_version_of_fsdp_is_an_error(tmp_path):
    process = start_on_two(tmp_path, 5, **FSDP | {"FSDP_VERSION": "1"})
    _, error = finish(process, succeeds=False)
    assert "FSDP_VERSION: 1" in error, error[-2000:]
    assert "fsdp_version: 2" in error, error[-2000:]


def worker(process, rank):
    "The process of that rank under a launcher"
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no process of rank {rank}")


def test_a_killed_worker_leaves_a_checkpoint_for_any_number(tmp_path):
    killed = tmp_path / "killed"
    whole = tmp_path / "whole"
    process = start_on_two(killed, 40, seconds=0.2)
    wait_until(process, lambda: saved_step(killed) >= 5, "a checkpoint")
    worker(process, 1).kill()
    assert process.wait(timeout=PATIENCE) != 0
    assert 5 <= saved_step(killed) < 40
    again = shutil.copytree(killed, tmp_path / "again")
    train_on_one(killed, 40)
    train_on_two(again, 40)
    train_on_one(whole, 40)
    for other in (killed, again):
        np.testing.assert_allclose(losses(other), losses(whole), rtol=1e-4)


def sampler():
    lengths = [(8, 3), (24, 1)]
    return SequenceSampler(recordings(), 12, lengths, single_image_fraction=0.3, seed=3)


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_rows_are_shared_without_overlap_or_loss(processes):
    whole = sampler()
    parts = [sampler().shard(rank, processes) for rank in range(processes)]
    for _ in range(6):
        batches = [next(part).tensors() for part in parts]
        assert len({len(batch["start"]) for batch in batches}) == 1
        expected = next(whole).tensors()
        if len(expected["start"]) % processes:
            continue  # rounded up, so that all have as many
        for name, tensor in expected.items():
            rows = torch.stack([batch[name] for batch in batches], 1)
            assert torch.equal(rows.flatten(0, 1), tensor)


# --- the whole command, started several times over by a launcher


def start_launched(*arguments, **more_environment):
    command = (sys.executable, *TORCHRUN, "--no-python", COMMAND, "train", *arguments)
    return start_process(*command, **more_environment)


def learned_files(out):
    "What a run has learned, byte for byte: the clock is in its logs and states only"
    kinds = (".safetensors", ".npy", ".npz", ".mp4")
    files = [path for path in out.rglob("*") if path.suffix in kinds]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def temporary_files(out):
    files = []
    for path in out.rglob("*"):
        if path.name.startswith(".") or path.suffix in (".tmp", ".old"):
            files.append(path)
    return files


@pytest.fixture(scope="module")
def launched_run(tmp_path_factory):
    "A smoke run of two launched processes: its folder, and what the command printed"
    out = tmp_path_factory.mktemp("launched") / "run"
    output, _ = finish(start_launched(out, "--size", "smoke"))
    return out, output


def test_the_whole_command_under_torchrun(launched_run):
    out, output = launched_run
    stages = STAGES[: STAGES.index("imagination") + 1]
    expected = [f"[{number}/9] {stage}" for number, stage in enumerate(stages, 1)]
    assert output.splitlines() == [*expected, f"{out}: done up to imagination"]
    state = json.loads((out / "run.json").read_text())
    assert list(state["stages"]) == stages
    assert state["machine"]["processes"] == 2
    assert temporary_files(out) == []
    for stage in ("tokenizer", "dynamics", "agent"):
        assert [row["step"] for row in read_training_log(out / stage)] == [4]


def test_one_process_finds_all_of_it_done(launched_run):
    out, _ = launched_run
    before = learned_files(out)
    run = Run(out, named("smoke"), progress=False)
    assert run.processes == 1
    run_all(run, "imagination")
    assert learned_files(out) == before
    agent = run.trained("agent")
    for name in ("bc", "bc_all", "imagination", "value"):
        run.policy(name, agent)


def test_each_stage_has_its_precision(tmp_path):
    changes = {
        "name": "half",
        "tokenizer_training.mixed_precision": "bf16",
        "dynamics_training.mixed_precision": "bf16",
    }
    config = named("smoke").change(changes).save(tmp_path / "config.json")
    upto = ("--upto", "agent", "--unchecked")
    finish(start_launched(tmp_path / "half", "--config", config, *upto))
    finish(start_launched(tmp_path / "full", "--size", "smoke", *upto))
    half, full = (losses(tmp_path / name / "tokenizer")[-1] for name in ("half", "full"))
    assert half != full
    assert half == pytest.approx(full, rel=0.01)


@pytest.mark.slow
def test_compiled_stages_learn_the_same(tmp_path):
    stages = ("tokenizer", "dynamics", "agent")
    compiled = {f"{stage}_training.compile": True for stage in stages}
    for name, changes in {"plain": {}, "compiled": compiled}.items():
        config = named("smoke").change(changes)
        train(config, None, tmp_path / name, upto="agent", progress=False, processes=2)
    for stage in stages:
        np.testing.assert_allclose(
            losses(tmp_path / "compiled" / stage),
            losses(tmp_path / "plain" / stage),
            rtol=1e-3,
        )


@pytest.mark.slow
def test_both_ways_of_starting_learn_the_same(tmp_path):
    launched = tmp_path / "launched"
    sliced = tmp_path / "sliced"
    inside = tmp_path / "inside"
    finish(start_launched(launched, "--size", "smoke"))
    finish(start_launched(sliced, "--size", "smoke", **FSDP))
    train(named("smoke"), None, inside, progress=False, processes=2)
    assert learned_files(launched) == learned_files(inside)
    for stage in ("tokenizer", "dynamics", "agent"):
        np.testing.assert_allclose(losses(sliced / stage), losses(launched / stage), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sliced", [{}, FSDP], ids=["plain", "FSDP"])
def test_an_interrupted_launch_continues_with_another_number(tmp_path, sliced):
    out = tmp_path / "run"
    changes = {"name": "long", "tokenizer_training.steps": 600}
    config = named("smoke").change(changes).save(tmp_path / "config.json")
    arguments = (out, "--config", config, "--upto", "tokenizer", "--unchecked")
    process = start_launched(*arguments, **sliced)
    wait_until(process, lambda: last_step(out / "tokenizer") > 50, "50 steps")
    process.send_signal(signal.SIGINT)
    output, error = finish(process, succeeds=False)
    saved = saved_step(out / "tokenizer")
    assert saved > 50
    assert f"interrupted: step {saved} saved" in output
    assert output.count("interrupted:") == 1
    assert "stopped; run the same command" in error, error[-3000:]
    process = start_launched(*arguments, **sliced)
    wait_until(process, lambda: last_step(out / "tokenizer") > saved, "more steps")
    worker(process, 1).kill()
    finish(process, succeeds=False)
    finish(start_process(COMMAND, "train", *arguments))
    assert last_step(out / "tokenizer") == 600


def test_an_error_of_a_launched_command_is_one_line(tmp_path):
    (tmp_path / "run.json").write_text("{")
    _, error = finish(start_launched(tmp_path, "--size", "smoke"), succeeds=False)
    lines = error_lines(error)
    assert len(lines) == 1, error[-3000:]
    assert "run.json: not readable" in lines[0]

"""What a machine does to a run: damaged files, kill -9, a full disk, no network, many steps.

A sample by default, all of it with --full."""

import json
import os
import pickle
import random
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

pytest.importorskip("av")
pytest.importorskip("crafter")
import mutations

from dreamer4_nb.config import named
from dreamer4_nb.data.dataset import LatentStore
from dreamer4_nb.data.recordings import read_episode
from dreamer4_nb.policy.advantages import Monitor
from dreamer4_nb.run import imagination, stages
from dreamer4_nb.run.load import load
from dreamer4_nb.run.run import STAGES, Run
from dreamer4_nb.training.callbacks import Callback
from dreamer4_nb.training.checkpoint import read_tensors
from dreamer4_nb.training.learner import Learner

HERE = Path(__file__).parent
DREAMER4 = Path(sysconfig.get_path("scripts")) / "dreamer4"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"


def print_table(capsys, head, rows):
    with capsys.disabled():
        print()
        for first, *others in [head, *rows]:
            print("  ".join([f"{first:>18}", *(f"{cell!s:>14}" for cell in others)]))


# --- damaged files

surveyed = {}  # kind -> counts, for the table

# these carry a checksum; of the others, a changed number is another number: other people's
# videos and logs, raw memory maps, what people write
CHECKED = [
    kind
    for kind in mutations.KINDS
    if kind in ("mp4", "npz", "dataset.json", "run.json", "state.json")
    or kind.endswith(("header", "tensors"))
]


def survey_in_process(kind, count, seed, folder):
    "A native reader of videos could end the process"
    command = [sys.executable, HERE / "mutations.py", kind, str(count), str(seed), folder]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", mutations.KINDS)
def test_mutations(kind, tmp_path, full):
    "Rejected in one line that names the file, or read"
    count, seed = (500, 1) if full else (20, 0)
    survey = survey_in_process if "mp4" in kind else mutations.survey
    surveyed[kind] = survey(kind, count, seed, tmp_path)
    if kind in CHECKED:
        assert not surveyed[kind]["other"]


def test_mutations_table(capsys):
    if surveyed:
        head = ["damaged", "rejected", "read unharmed", "read otherwise"]
        rows = [[kind, *counts.values()] for kind, counts in surveyed.items()]
        print_table(capsys, head, rows)


class Payload:
    "Its pickle writes a file when it is loaded"

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_malicious_files_run_nothing(tmp_path):
    trap = tmp_path / "trap"
    evil = np.empty(1, object)
    evil[0] = Payload(trap)
    folder = mutations.make_recording(tmp_path / "source")
    np.savez(folder / "rendered.npz", reward=evil)
    pickled = tmp_path / "model.safetensors"
    pickled.write_bytes(pickle.dumps(Payload(trap)))
    saved = tmp_path / "torch.safetensors"
    torch.save({"w": torch.zeros(1), "x": Payload(trap)}, saved)
    (tmp_path / "latents").mkdir()
    np.save(tmp_path / "latents" / "a.npy", evil, allow_pickle=True)
    with pytest.raises(ValueError):
        read_episode(folder)
    for path in (pickled, saved):
        with pytest.raises(ValueError):
            read_tensors(path)
    with pytest.raises(ValueError):
        LatentStore(tmp_path / "latents")["a"]
    assert not trap.exists()
    pickle.loads(pickle.dumps(Payload(trap))).close()
    assert trap.exists()  # it would have worked


# --- kill -9


def start_demo(out):
    return subprocess.Popen(
        [DREAMER4, "demo", "--size", "smoke", "--out", out],
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=ENVIRONMENT,
    )


def finish(process):
    error = process.communicate(timeout=500)[1]
    assert process.returncode == 0, error[-2000:]


def stages_of(out):
    try:
        return json.loads((out / "run.json").read_text())["stages"]
    except (OSError, ValueError):
        return {}


def results_of(out):
    "All that a run has written, but for times"
    results = json.loads((out / "results.json").read_text())
    results.pop("minutes")
    history = json.loads((out / "imagination" / "history.json").read_text())
    arrays = {}
    for path in sorted(out.rglob("*.safetensors")):
        arrays[str(path.relative_to(out))] = read_tensors(path)
    for path in sorted(out.rglob("*.npy")):
        arrays[str(path.relative_to(out))] = np.load(path, allow_pickle=False)
    return arrays | dict(results=results, history=history)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run that nobody interrupted"
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start_demo(out))
    return out


def has_reached(out, stage):
    done = stages_of(out)
    i = STAGES.index(stage)
    if i == 0:
        return stage in done or (out / "run.json").exists()
    return stage in done or STAGES[i - 1] in done


def kill_in(stage, out, seconds):
    "Start a run, wait for a stage, kill the run some time later; returns its exit code"
    process = start_demo(out)
    deadline = time.time() + 500
    while not has_reached(out, stage) and process.poll() is None:
        assert time.time() < deadline, f"{stage} not reached"
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    return process.wait()


def test_killed_at_random_moments(whole, tmp_path, full, capsys):
    "Stages in turn, each at a random moment; the run continues and ends with the same bits"
    rng = random.Random(None if full else 0)
    out = tmp_path / "run"
    order = (STAGES * 3)[:20] if full else ["tokenizer", "imagination"]
    rows = []
    for stage in sorted(order, key=STAGES.index):
        seconds = rng.random() * 60 * stages_of(whole)[stage]["minutes"]
        ended = kill_in(stage, out, seconds)
        unfinished = [s for s in STAGES if s not in stages_of(out)]
        how = "killed" if ended == -signal.SIGKILL else "was done"
        rows.append([stage, unfinished[0] if unfinished else "none", how])
    finish(start_demo(out))
    assert mutations.same(results_of(whole), results_of(out))
    assert not list(out.rglob(".tmp-*"))
    print_table(capsys, ["aimed at", "killed in", "how"], rows)


@pytest.mark.slow
def test_full_disk_at_every_size(whole, tmp_path):
    "A disk that grows: each try ends in one line, the last with the same bits"
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")

    def resize(kilobytes):
        options = f"remount,size={int(kilobytes)}k"
        subprocess.run(["mount", "-o", options, disk], check=True)

    try:
        used = sum(f.stat().st_size for f in whole.rglob("*") if f.is_file()) // 1024
        for fraction in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            resize(used * fraction)
            process = start_demo(disk / "run")
            error = process.communicate(timeout=500)[1]
            assert process.returncode == 1, error[-2000:]
            assert "Traceback" not in error, error[-2000:]
            lines = [line for line in error.splitlines() if line.startswith("error:")]
            assert len(lines) == 1, error[-2000:]
            assert str(disk) in lines[0]
        resize(used * 3)
        finish(start_demo(disk / "run"))
        assert mutations.same(results_of(whole), results_of(disk / "run"))
    finally:
        subprocess.run(["umount", "-l", disk])


# --- memory


class MemoryAt(Callback):
    "Resident bytes at some steps"

    order = 99

    def __init__(self, steps):
        self.steps = steps
        self.resident = []

    def measure(self, step):
        if step in self.steps:
            self.resident.append(psutil.Process().memory_info().rss)

    def grown(self):
        first, last = self.resident
        return last - first

    def after_step(self, learner):
        self.measure(learner.step)


class MeasuringMonitor(Monitor):
    def __init__(self, memory, **options):
        super().__init__(**options)
        self.memory = memory

    def __call__(self, trainer, metrics):
        super().__call__(trainer, metrics)
        self.memory.measure(trainer.iteration)


def measure_stages(run, steps, monkeypatch):
    "Bytes by which each stage with steps grows between two of them"
    grown = {}
    for name in STAGES[: STAGES.index("imagination") + 1]:
        memory = MemoryAt(steps)

        def make_learner(*args, memory=memory, callbacks=(), **options):
            return Learner(*args, callbacks=[*callbacks, memory], **options)

        def make_monitor(memory=memory, **options):
            return MeasuringMonitor(memory, **options)

        with monkeypatch.context() as patch:
            patch.setattr(stages, "Learner", make_learner)
            patch.setattr(imagination, "Monitor", make_monitor)
            getattr(run, name)()
        if memory.resident:
            grown[name] = memory.grown()
    return grown


def test_memory_stays_flat_in_every_stage(tmp_path, full, capsys, monkeypatch):
    steps = 1000 if full else 60
    changes = {f"{s}_training.steps": steps for s in ("tokenizer", "dynamics", "agent")}
    changes |= {"name": "long", "imagination.iterations": steps, "agent.bc_windows": 8}
    config = named("smoke").change(changes)
    measured = (steps // 2, steps)
    run = Run(tmp_path / "run", config, progress=False)
    grown = measure_stages(run, measured, monkeypatch)
    policy = load(tmp_path / "run")
    memory = MemoryAt(measured)
    for i in range(1, steps + 1):
        policy.act(np.zeros((64, 64, 3), np.uint8))
        memory.measure(i)
    grown["acting"] = memory.grown()
    rows = [[k, steps - steps // 2, f"{v / 1e6:.2f} MB"] for k, v in grown.items()]
    print_table(capsys, ["stage", "steps", "grown by"], rows)
    assert len(grown) == 5
    assert max(grown.values()) < 8e6


# --- no network

HOOK = """
import os
import sys

CONNECTING = ("socket.connect", "socket.sendto", "socket.sendmsg")
RESOLVING = ("socket.getaddrinfo", "socket.gethostbyname")
LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0")


def deny(event, args):
    if event in CONNECTING:
        address = args[1]
        if not isinstance(address, tuple):
            return  # a socket of this machine
        host = address[0]
    elif event in RESOLVING:
        host = args[0]
    else:
        return
    if str(host or "localhost") not in LOCAL:
        with open(os.environ["NETWORK_LOG"], "a") as log:
            log.write(f"{event} {host}\\n")
        raise PermissionError(f"network: {event} {host}")


sys.addaudithook(deny)
"""
RUN = """
import sys
from dreamer4_nb.config import named
from dreamer4_nb.pipeline import demo

demo(named("smoke"), sys.argv[1], progress=False, processes=2)
"""


def connected_addresses(pid):
    "The other ends of all connections of a process and its children"
    addresses = set()
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in family:
            addresses |= {c.raddr.ip for c in process.net_connections() if c.raddr}
    except psutil.Error:
        pass  # it has just ended
    return addresses


def is_local(address):
    return address == "::1" or address.removeprefix("::ffff:").startswith("127.")


def test_no_network(tmp_path):
    "Python's sockets are denied, and the connections of native code observed"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    log = tmp_path / "network.log"
    path = os.pathsep.join([str(tmp_path / "hook"), str(HERE.parent)])
    hooked = ENVIRONMENT | dict(NETWORK_LOG=str(log), PYTHONPATH=path)
    connect = 'import socket; socket.create_connection(("192.0.2.1", 9), 1)'
    check = subprocess.run(
        [sys.executable, "-c", connect], capture_output=True, text=True, env=hooked
    )
    assert "PermissionError: network" in check.stderr
    assert log.exists()  # the hook works
    log.unlink()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, tmp_path / "run"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=hooked,
    )
    addresses = set()
    while process.poll() is None:
        addresses |= connected_addresses(process.pid)
        time.sleep(0.02)
    assert process.wait() == 0, process.stderr.read()[-3000:]
    assert not log.exists(), log.read_text()
    assert all(map(is_local, addresses)), addresses

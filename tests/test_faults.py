"""What a machine does to a run: damaged files, kill -9, a full disk, no network, a thousand steps. A sample by default, all of it with --full."""

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
from dreamer4_nb.run.load import load
from dreamer4_nb.run.run import STAGES, Run
from dreamer4_nb.training.callbacks import Callback
from dreamer4_nb.training.checkpoint import read_tensors
from dreamer4_nb.training.learner import Learner
from test_cli import tiny

here, bin = Path(__file__).parent, Path(sysconfig.get_path("scripts"))
env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | dict(OMP_NUM_THREADS="1")


def table(capsys, head, rows):
    with capsys.disabled():
        print()
        print("  ".join(f"{h:>{14 if i else 18}}" for i, h in enumerate(head)))
        for r in rows:
            print("  ".join(f"{x!s:>{14 if i else 18}}" for i, x in enumerate(r)))


# --- damaged files

found = {}


@pytest.mark.parametrize("kind", mutations.KINDS)
def test_mutations(kind, tmp_path, full):
    "Refused in one line that names the file, or read; videos in a process of their own, since a native reader could take it along"
    count, seed = (500, 1) if full else (20, 0)
    if "mp4" in kind:
        done = subprocess.run(
            [sys.executable, here / "mutations.py", kind, str(count), str(seed), tmp_path],
            capture_output=True,
            text=True,
            timeout=600,
            env=env,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    else:
        found[kind] = mutations.survey(kind, count, seed, tmp_path)
    if kind in CHECKED:
        assert not found[kind]["other"]


# these carry a checksum; of the others, a changed number is another number: other people's videos and logs, raw memory maps, what people write
CHECKED = [
    k
    for k in mutations.KINDS
    if k in ("mp4", "npz", "dataset.json", "run.json", "state.json")
    or k.endswith(("header", "tensors"))
]


def test_mutations_table(capsys):
    if found:
        table(
            capsys,
            ["damaged", "refused", "read unharmed", "read otherwise"],
            [[k, *v.values()] for k, v in found.items()],
        )


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_malicious_files_run_nothing(tmp_path):
    "Each holds a pickle that would make a file"
    trap, evil = tmp_path / "trap", np.empty(1, object)
    evil[0] = Payload(trap)
    e = mutations.films(tmp_path / "source")
    np.savez(e / "rendered.npz", reward=evil)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Payload(trap)))
    torch.save({"w": torch.zeros(1), "x": Payload(trap)}, tmp_path / "torch.safetensors")
    (tmp_path / "latents").mkdir()
    np.save(tmp_path / "latents" / "a.npy", evil, allow_pickle=True)
    for read in (
        lambda: read_episode(e),
        lambda: read_tensors(tmp_path / "model.safetensors"),
        lambda: read_tensors(tmp_path / "torch.safetensors"),
        lambda: LatentStore(tmp_path / "latents")["a"],
    ):
        with pytest.raises(ValueError):
            read()
    assert not trap.exists()
    pickle.loads(pickle.dumps(Payload(trap))).close()
    assert trap.exists()  # it would have worked


# --- kill -9


def demo(out, **kw):
    return subprocess.Popen(
        [bin / "dreamer4_demo", *tiny, "--out", str(out)],
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=env,
        **kw,
    )


def stages_of(out):
    try:
        return json.loads((out / "run.json").read_text())["stages"]
    except (OSError, ValueError):
        return {}


def made_by(out):
    "All that a run has made, but for times"
    results = json.loads((out / "results.json").read_text())
    results.pop("minutes")
    made = {
        p.relative_to(out): read_tensors(p) for p in sorted(out.rglob("*.safetensors"))
    } | {
        p.relative_to(out): np.load(p, allow_pickle=False) for p in sorted(out.rglob("*.npy"))
    }
    return made | dict(
        results=results, history=json.loads((out / "imagination" / "history.json").read_text())
    )


def finish(p):
    error = p.communicate(timeout=500)[1]
    assert p.returncode == 0, error[-2000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run that nobody touched"
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(demo(out))
    return out


def reached(out, stage):
    i, done = STAGES.index(stage), stages_of(out)
    return stage in done or (STAGES[i - 1] in done if i else (out / "run.json").exists())


def test_killed_at_random_moments(whole, tmp_path, full, capsys):
    "Stages in turn, each at a random moment; the run goes on and ends with the same bits"
    rng, out, rows = random.Random(None if full else 0), tmp_path / "run", []
    order = (STAGES * 3)[:20] if full else ["tokenizer", "imagination"]
    for stage in sorted(order, key=STAGES.index):
        p, deadline = demo(out), time.time() + 500
        while not reached(out, stage) and p.poll() is None:
            assert time.time() < deadline, f"{stage} not reached"
            time.sleep(0.005)
        time.sleep(rng.random() * 60 * stages_of(whole)[stage]["minutes"])
        p.kill()
        ended = p.wait()
        rows.append(
            [
                stage,
                next((s for s in STAGES if s not in stages_of(out)), "none"),
                "killed" if ended == -signal.SIGKILL else "was done",
            ]
        )
    finish(demo(out))
    assert mutations.same(made_by(whole), made_by(out)) and not list(out.rglob(".tmp-*"))
    table(capsys, ["aimed at", "killed in", "how"], rows)


@pytest.mark.slow
def test_full_disk_at_every_size(whole, tmp_path):
    "A disk that grows from too small to large enough: each try ends in one line, the last with the same bits"
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        used = sum(f.stat().st_size for f in whole.rglob("*") if f.is_file()) // 1024
        for share in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            subprocess.run(
                ["mount", "-o", f"remount,size={int(used * share)}k", disk], check=True
            )
            p = demo(disk / "run")
            error = p.communicate(timeout=500)[1]
            lines = [l for l in error.splitlines() if l.startswith("error:")]
            assert (
                p.returncode == 1
                and len(lines) == 1
                and "Traceback" not in error
                and str(disk) in lines[0]
            ), error[-2000:]
        subprocess.run(["mount", "-o", f"remount,size={used * 3}k", disk], check=True)
        finish(demo(disk / "run"))
        assert mutations.same(made_by(whole), made_by(disk / "run"))
    finally:
        subprocess.run(["umount", "-l", disk])


# --- memory


class Memory(Callback):
    "Resident bytes at some steps"

    order = 99

    def __init__(self, at):
        self.at, self.seen = at, []

    def look(self, step):
        if step in self.at:
            self.seen.append(psutil.Process().memory_info().rss)

    def after_step(self, learner):
        self.look(learner.step)


class Watched(Monitor):
    def __init__(self, memory):
        super().__init__()
        self.memory = memory

    def __call__(self, phase, metrics):
        super().__call__(phase, metrics)
        self.memory.look(phase.iteration)


def test_memory_stays_flat_in_every_stage(tmp_path, full, capsys, monkeypatch):
    steps = 1000 if full else 60
    stage = {f"{s}_training.steps": steps for s in ("tokenizer", "dynamics", "agent")}
    config = named("smoke").change(
        stage | {"name": "long", "imagination.iterations": steps, "agent.clone_windows": 8}
    )
    run, grown = Run(tmp_path / "run", config, progress=False, processes=1), {}
    at = (steps // 2, steps)
    for name in STAGES[: STAGES.index("imagination") + 1]:
        memory = Memory(at)
        with monkeypatch.context() as m:
            m.setattr(
                runs,
                "Learner",
                lambda *a, callbacks=(), **kw: Learner(
                    *a, callbacks=[*callbacks, memory], **kw
                ),
            )
            m.setattr(runs, "Monitor", lambda: Watched(memory))
            getattr(run, name)()
        if memory.seen:
            grown[name] = memory.seen[1] - memory.seen[0]
    pilot, memory, frame = load(tmp_path / "run"), Memory(at), np.zeros((64, 64, 3), np.uint8)
    for i in range(1, steps + 1):
        pilot.act(frame)
        memory.look(i)
    grown["acting"] = memory.seen[1] - memory.seen[0]
    table(
        capsys,
        ["stage", "steps", "grown by"],
        [[k, at[1] - at[0], f"{v / 1e6:.2f} MB"] for k, v in grown.items()],
    )
    assert len(grown) == 5 and max(grown.values()) < 8e6


# --- no network

HOOK = """
import os, sys
def watch(event, args):
    if event not in ('socket.connect', 'socket.sendto', 'socket.sendmsg', 'socket.getaddrinfo', 'socket.gethostbyname'): return
    address = args[1] if event.startswith(('socket.connect', 'socket.send')) else args[0]
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(address, tuple) or not event.startswith(('socket.connect', 'socket.send')):
        if str(host or 'localhost') not in ('127.0.0.1', '::1', 'localhost', '0.0.0.0'):
            open(os.environ['NETWORK_LOG'], 'a').write(f'{event} {args[1:] if event.startswith("socket.connect") else args}\\n')
            raise PermissionError(f'network: {event} {address}')
sys.addaudithook(watch)
"""


def test_no_network(tmp_path):
    "Python's sockets are denied, and the connections of native code looked at, in the run and in its helper process"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    log, hooked = (
        tmp_path / "network.log",
        env
        | dict(
            NETWORK_LOG=str(tmp_path / "network.log"),
            PYTHONPATH=os.pathsep.join([str(tmp_path / "hook"), str(here.parent)]),
        ),
    )
    code = f'from dreamer4_nb.run import Run; from dreamer4_nb.config import named; Run({str(tmp_path / "run")!r}, named("smoke"), progress=False, processes=2).run_all()'
    check = subprocess.run(
        [sys.executable, "-c", 'import socket; socket.create_connection(("192.0.2.1", 9), 1)'],
        capture_output=True,
        text=True,
        env=hooked,
    )
    assert "PermissionError: network" in check.stderr and log.exists()  # the net is tight
    log.unlink()
    p, outside = (
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=hooked,
        ),
        set(),
    )
    while p.poll() is None:
        try:
            family = [psutil.Process(p.pid), *psutil.Process(p.pid).children(recursive=True)]
        except psutil.Error:
            break
        for o in family:
            try:
                outside |= {c.raddr.ip for c in o.net_connections() if c.raddr}
            except psutil.Error:
                pass
        time.sleep(0.02)
    assert p.wait() == 0, p.stderr.read()[-3000:]
    assert not log.exists(), log.read_text()
    assert all(
        ip.removeprefix("::ffff:").startswith("127.") or ip == "::1" for ip in outside
    ), outside

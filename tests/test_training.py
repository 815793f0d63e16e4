"Training as processes: killed and resumed, interrupted, on a full disk, in two processes."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from dreamer4_nb.training.callbacks import read_training_log
from dreamer4_nb.training.checkpoint import find_checkpoint, load_model, read_tensors
from training_job import learner

job = Path(__file__).with_name("training_job.py")
files = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"]


def start(*args):
    return subprocess.Popen(
        [sys.executable, str(job), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def step_of(out):
    try:
        return json.loads((Path(out) / "checkpoint" / "state.json").read_text())["step"]
    except (OSError, ValueError):
        return 0


def wait_for(process, out, step, seconds=120):
    end = time.time() + seconds
    while step_of(out) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.time() < end, f"no checkpoint of step {step} in {seconds} s"
        time.sleep(0.005)


def assert_same(a, b):
    for name in files:
        x, y = [read_tensors(Path(o) / "checkpoint" / name) for o in (a, b)]
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    learner(out, 120).fit()
    return out


def test_killed_and_resumed_is_bit_equal(tmp_path, whole, full):
    for i in range(6 if full else 2):
        process = start(tmp_path, 120, 0.01)
        wait_for(process, tmp_path, step_of(tmp_path) + 5)
        time.sleep(0.003 * i)
        process.kill()
        process.wait()
    assert 0 < step_of(tmp_path) < 120
    learner(tmp_path, 120).fit(resume=True)
    assert_same(whole, tmp_path)
    assert [r["step"] for r in read_training_log(tmp_path)] == [
        r["step"] for r in read_training_log(whole)
    ]
    assert {o.name for o in tmp_path.iterdir()} == {"checkpoint", "log.jsonl"}


def test_ctrl_c_saves_and_ends(tmp_path, whole):
    process = start(tmp_path, 120, 0.02)
    wait_for(process, tmp_path, 5)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and f"interrupted: step {step_of(tmp_path)} saved" in said
    learner(tmp_path, 120).fit(resume=True)
    assert_same(whole, tmp_path)


def test_full_disk_keeps_the_last_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        out = disk / "run"
        learner(out, 10, width=400).fit()
        before = {n: (out / "checkpoint" / n).read_bytes() for n in files}
        for spare in (0, 40_000, 90_000):
            stat = os.statvfs(disk)
            (disk / "junk").write_bytes(bytes(max(stat.f_bavail * stat.f_frsize - spare, 0)))
            again = learner(out, 30, width=400)
            with pytest.raises(OSError) as error:
                again.fit(resume=True)
            assert (
                len(str(error.value).splitlines()) == 1
                and str(out) in str(error.value)
                and "free some space" in str(error.value)
            )
            assert {o.name for o in out.iterdir()} <= {"checkpoint", "log.jsonl"}
            assert before == {n: (out / "checkpoint" / n).read_bytes() for n in files}
            (disk / "junk").unlink()
        assert learner(out, 30, width=400).fit(resume=True).step == 30
    finally:
        subprocess.run(["umount", "-l", disk])


@pytest.mark.parametrize(
    "spoil,error,words",
    [
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:100]
            ),
            ValueError,
            "model.safetensors: damaged",
        ),
        (
            lambda f: (f / "optimizer.safetensors").unlink(),
            FileNotFoundError,
            "optimizer.safetensors: no such",
        ),
        (
            lambda f: (f / "state.json").write_text('{"step": 1'),
            ValueError,
            "state.json: damaged",
        ),
        (
            lambda f: (f / "state.json").write_text('{"schema_version": 99}'),
            ValueError,
            "schema_version 99",
        ),
    ],
)
def test_damaged_checkpoint(tmp_path, spoil, error, words):
    learner(tmp_path, 5).fit()
    spoil(tmp_path / "checkpoint")
    with pytest.raises(error, match=words) as e:
        learner(tmp_path, 10).fit(resume=True)
    assert len(str(e.value).splitlines()) == 1


def test_checkpoint_of_another_size(tmp_path):
    learner(tmp_path, 5).fit()
    with pytest.raises(
        ValueError, match=r"tensor '0.weight' has shape \(32, 16\), the model \(64, 16\)"
    ):
        learner(tmp_path, 10, width=64).fit(resume=True)
    with pytest.raises(FileExistsError, match="resume=True goes on"):
        learner(tmp_path, 10).fit()
    assert learner(tmp_path, 10).fit(overwrite=True).step == 10
    assert find_checkpoint(tmp_path / "checkpoint") and load_model(
        tmp_path, learner(None, 1).model
    )


def test_memory_stays_flat(tmp_path):
    resource = pytest.importorskip("resource")
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    learner(tmp_path / "warm", 300).fit()
    before = peak()
    learner(tmp_path / "long", 1500, save_every=100).fit()
    assert peak() - before < 8_000  # KB


def test_two_processes_end_with_the_same_parameters(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(f"""import sys; sys.path.insert(0, {str(job.parent)!r})
from training_job import learner
l = learner({str(tmp_path / "run")!r}, 20).fit()
import torch
flat = torch.cat([p.detach().flatten() for p in l.model.parameters()])
both = [torch.zeros_like(flat) for _ in range(2)]
torch.distributed.all_gather(both, flat)
assert torch.equal(*both) and l.accelerator.num_processes == 2
""")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(script),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | dict(OMP_NUM_THREADS="1"),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert step_of(tmp_path / "run") == 20


def test_training_goes_on_without_a_compiler(tmp_path):
    "A machine without C++, on which nothing has been compiled before"
    code = f"import sys; sys.path.insert(0, {str(job.parent)!r}); from training_job import learner; from dreamer4_nb.training import Compile; learner({str(tmp_path / 'run')!r}, 20, callbacks=[Compile()]).fit()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | dict(CXX="/nowhere/c++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and step_of(tmp_path / "run") == 20, done.stderr[-2000:]
    assert (
        "torch.compile does not work here (InductorError" in done.stderr
        and "training goes on without" in done.stderr
    )

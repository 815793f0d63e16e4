"Training as processes: killed and resumed, interrupted, on a full disk, in two processes"

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_job import learner

from dreamer4_nb.training.callbacks import (
    Callback,
    Compile,
    EarlyStopping,
    StopTraining,
    TensorBoard,
    read_training_log,
)
from dreamer4_nb.training.checkpoint import (
    find_checkpoint,
    load_model,
    model_tensors,
    read_tensors,
    save_checkpoint,
)
from dreamer4_nb.training.distributed import make_accelerator
from dreamer4_nb.training.fit import fit_head, random_indices
from dreamer4_nb.training.learner import FiniteCheck, NonFiniteLoss, StepCheck
from dreamer4_nb.training.optim import learning_rate, make_optimizers

JOB = Path(__file__).with_name("training_job.py")
FILES = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"]


def start(*args):
    return subprocess.Popen(
        [sys.executable, str(JOB), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_code(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(JOB.parent)!r})\n{code}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
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
    for name in FILES:
        x = read_tensors(Path(a) / "checkpoint" / name)
        y = read_tensors(Path(b) / "checkpoint" / name)
        assert x.keys() == y.keys()
        assert all(torch.equal(x[k], y[k]) for k in x), name


def logged_steps(out):
    return [row["step"] for row in read_training_log(out)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run that nothing happened to"
    out = tmp_path_factory.mktemp("whole")
    learner(out, 120).fit()
    return out


# --- interruptions


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
    assert logged_steps(tmp_path) == logged_steps(whole)
    assert {o.name for o in tmp_path.iterdir()} == {"checkpoint", "log.jsonl"}


def test_ctrl_c_saves_and_ends(tmp_path, whole):
    process = start(tmp_path, 120, 0.02)
    wait_for(process, tmp_path, 5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"interrupted: step {step_of(tmp_path)} saved" in output
    learner(tmp_path, 120).fit(resume=True)
    assert_same(whole, tmp_path)


def test_interrupted_before_the_first_step(tmp_path, whole):
    def interrupted_loss(model, batch, generator):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner(tmp_path, 120, loss_fn=interrupted_loss).fit()
    assert step_of(tmp_path) == 0
    learner(tmp_path, 120).fit(resume=True)
    assert_same(whole, tmp_path)


def test_a_parameter_without_gradient_so_far_resumes_the_same(tmp_path):
    "Its optimiser state does not exist when the checkpoint is written"

    class Late(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.early = torch.nn.Linear(16, 16)
            self.late = torch.nn.Linear(16, 16)

    def make(out, steps):
        schedule = dict(decay="constant")
        job = learner(out, steps, loss_fn=late_loss, schedule=schedule, callbacks=())
        job.model = Late()
        job.optimizers = make_optimizers(job.model, lr=1e-2)
        job._steppers = job.optimizers
        for optimizer in job.optimizers:
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]
        job.parameters = list(job.model.parameters())
        jobs.append(job)
        return job

    def late_loss(model, batch, generator):
        x = batch.frames.flatten(2).float() / 255
        y = model.early(x)
        if jobs[-1].step >= 10:
            y = y + model.late(x)
        return dict(pixels=(y - x).square().mean())

    jobs = []
    one = make(tmp_path / "one", 20).fit()
    make(tmp_path / "two", 8).fit()
    two = make(tmp_path / "two", 20).fit(resume=True)
    for name, tensor in model_tensors(one.model).items():
        assert torch.equal(tensor, model_tensors(two.model)[name]), name


def test_full_disk_keeps_the_last_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        out = disk / "run"
        learner(out, 10, width=400).fit()
        before = {n: (out / "checkpoint" / n).read_bytes() for n in FILES}
        for spare in (0, 40_000, 90_000):
            stat = os.statvfs(disk)
            filler = max(stat.f_bavail * stat.f_frsize - spare, 0)
            (disk / "junk").write_bytes(bytes(filler))
            again = learner(out, 30, width=400)
            with pytest.raises(OSError) as error:
                again.fit(resume=True)
            message = str(error.value)
            assert len(message.splitlines()) == 1
            assert str(out) in message and "free some space" in message
            assert {o.name for o in out.iterdir()} <= {"checkpoint", "log.jsonl"}
            assert before == {n: (out / "checkpoint" / n).read_bytes() for n in FILES}
            (disk / "junk").unlink()
        assert learner(out, 30, width=400).fit(resume=True).step == 30
    finally:
        subprocess.run(["umount", "-l", disk])


# --- checkpoints that do not fit


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def flip_a_bit(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lose_the_optimizer(folder):
    (folder / "optimizer.safetensors").unlink()


def cut_the_state(folder):
    (folder / "state.json").write_text('{"step": 1')


def change_the_step(folder):
    path = folder / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(step=3)))


def age_the_state(folder):
    (folder / "state.json").write_text('{"schema_version": 99}')


@pytest.mark.parametrize(
    "spoil,error,words",
    [
        (cut_short, ValueError, "model.safetensors: damaged"),
        (flip_a_bit, ValueError, "model.safetensors: crc32"),
        (lose_the_optimizer, FileNotFoundError, "optimizer.safetensors: no such"),
        (cut_the_state, ValueError, "state.json: not readable"),
        (change_the_step, ValueError, "state.json: crc32"),
        (age_the_state, ValueError, "schema_version 99"),
    ],
)
def test_damaged_checkpoint(tmp_path, spoil, error, words):
    learner(tmp_path, 5).fit()
    spoil(tmp_path / "checkpoint")
    with pytest.raises(error, match=words) as e:
        learner(tmp_path, 10).fit(resume=True)
    assert len(str(e.value).splitlines()) == 1
    assert "Hint: " in str(e.value)


def test_checkpoint_of_another_size(tmp_path):
    learner(tmp_path, 5).fit()
    words = r"tensor '0.weight' has shape \(32, 16\), the model \(64, 16\)"
    with pytest.raises(ValueError, match=words):
        learner(tmp_path, 10, width=64).fit(resume=True)


def test_a_new_run_does_not_replace_an_old_one(tmp_path):
    learner(tmp_path, 5).fit()
    with pytest.raises(FileExistsError, match="holds step 5 .*resume=True continues it"):
        learner(tmp_path, 10).fit()
    assert learner(tmp_path, 10).fit(overwrite=True).step == 10
    assert find_checkpoint(tmp_path / "checkpoint")
    assert load_model(tmp_path, learner(None, 1).model)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint here. Hint: train first"):
        load_model(tmp_path / "nowhere", torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "tensors,words",
    [
        (dict(weight=torch.zeros(1, 1)), "tensor 'bias' is missing"),
        (
            dict(weight=torch.zeros(1, 1), bias=torch.zeros(1), extra=torch.zeros(1)),
            "tensor 'extra' is unknown",
        ),
    ],
)
def test_tensors_of_another_model(tmp_path, tensors, words):
    state = dict(schema_version=1, step=0)
    save_checkpoint(tmp_path / "checkpoint", {"model.safetensors": tensors}, state)
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path, torch.nn.Linear(1, 1))


def test_a_checkpoint_lost_between_two_renames_is_found(tmp_path):
    learner(tmp_path, 5).fit()
    os.replace(tmp_path / "checkpoint", tmp_path / ".old-checkpoint")
    assert learner(tmp_path, 10).fit(resume=True).step == 10


# --- wrong arguments


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: learning_rate(0, 1, decay="late"), "decay: 'late' is not"),
        (lambda: make_optimizers(torch.nn.Linear(1, 1), "adam"), "optimizer: 'adam' is not"),
        (lambda: make_accelerator("cpu", "fp8"), "mixed_precision: 'fp8' is not"),
        (
            lambda: fit_head(torch.nn.Linear(1, 1), None, random_indices(1)),
            "either steps or seconds",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match="device: 'cuda', but PyTorch finds no GPU here"):
        make_accelerator("cuda")


def test_batches_that_cannot_be_resumed(tmp_path):
    learner(tmp_path, 5).fit()
    job = learner(tmp_path, 10)
    job.batches = iter([])
    with pytest.raises(ValueError, match="batches: no load_state_dict"):
        job.fit(resume=True)


# --- losses that are not finite


def bad_step(number, finite=False):
    terms = dict(good=torch.tensor(1.0), bad=torch.tensor(float("nan")))
    batch = dict(episode=torch.arange(20), start=torch.full((20,), 7))
    return StepCheck(torch.tensor(finite), number, terms, batch)


def test_a_bad_loss_names_its_windows(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"step 4: bad = nan; .* 0:7 1:7 .*\.\.\.") as e:
        FiniteCheck(torch.device("cpu"), tmp_path).check(bad_step(4))
    assert e.value.windows == [(i, 7) for i in range(20)]
    assert "keeps the last good step. Hint: " in str(e.value)


def test_a_gpu_is_judged_one_step_later():
    check = FiniteCheck(torch.device("cuda"), None)
    check.check(bad_step(1))
    with pytest.raises(NonFiniteLoss, match="step 1: "):
        check.check(bad_step(2, finite=True))
    check.check(bad_step(3))
    with pytest.raises(NonFiniteLoss, match="step 3: "):
        check.check_pending()
    check.check_pending()


# --- callbacks


def test_early_stopping_ends_a_run_and_stays_ended(tmp_path):
    stopper = EarlyStopping(lambda job: 1.0, every=5, patience=2)
    job = learner(tmp_path, 100, callbacks=[stopper]).fit()
    assert job.step == 15
    assert job.stopped == "held_out: no progress below 1 for 2 measurements"
    assert logged_steps(tmp_path)[-1] <= 15
    again = EarlyStopping(lambda job: 1.0, every=5, patience=2)
    assert learner(tmp_path, 100, callbacks=[again]).fit(resume=True).step == 15


def test_any_callback_may_stop_a_run(tmp_path):
    class Stop(Callback):
        def after_step(self, learner):
            if learner.step == 7:
                raise StopTraining("seven")

    job = learner(tmp_path, 100, callbacks=[Stop()]).fit()
    assert (job.step, job.stopped) == (7, "seven")
    assert step_of(tmp_path) == 7


def test_tensorboard_has_the_rows_of_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    learner(tmp_path, 20, callbacks=[TensorBoard()]).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = read_training_log(tmp_path)
    scalars = events.Scalars("loss")
    assert [s.step for s in scalars] == [row["step"] for row in rows]
    assert [s.value for s in scalars] == pytest.approx([row["loss"] for row in rows])


def test_tensorboard_needs_a_folder():
    pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match="TensorBoard: no folder"):
        learner(None, 5, callbacks=[TensorBoard()]).fit()


def test_training_continues_without_a_compiler(tmp_path):
    "A machine without C++, on which nothing has been compiled before"
    code = (
        "from training_job import learner\n"
        "from dreamer4_nb.training.callbacks import Compile\n"
        f"learner({str(tmp_path / 'run')!r}, 20, callbacks=[Compile()]).fit()"
    )
    cache = str(tmp_path / "cache")
    done = run_code(code, CXX="/nowhere/c++", TORCHINDUCTOR_CACHE_DIR=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    assert step_of(tmp_path / "run") == 20
    assert "torch.compile does not work here (InductorError" in done.stderr
    assert "training continues without it" in done.stderr


def test_compile_leaves_the_model_as_it_was():
    job = learner(None, 3, callbacks=[Compile()]).fit()
    assert "forward" not in vars(job.model)


# --- memory and processes


def test_memory_stays_flat(tmp_path):
    resource = pytest.importorskip("resource")

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    learner(tmp_path / "warm", 300).fit()
    before = peak()
    learner(tmp_path / "long", 1500, save_every=100).fit()
    assert peak() - before < 8_000  # KB


TWO = """
import os
import torch
from training_job import learner
job = learner({out!r}, 20).fit()
flat = torch.cat([p.detach().flatten() for p in job.model.parameters()])
both = [torch.zeros_like(flat) for _ in range(2)]
torch.distributed.all_gather(both, flat)
assert torch.equal(*both) and job.accelerator.num_processes == 2
torch.distributed.barrier()
os._exit(0)  # not through the teardown of gloo's threads, which may abort
"""


def test_two_processes_end_with_the_same_parameters(tmp_path):
    script = tmp_path / "two.py"
    code = TWO.format(out=str(tmp_path / "run"))
    script.write_text(f"import sys\nsys.path.insert(0, {str(JOB.parent)!r})\n{code}")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | dict(OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert step_of(tmp_path / "run") == 20

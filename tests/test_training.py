"Training as processes: killed and resumed, interrupted, on a full disk, in two processes"

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_device
import numpy as np
import pytest
import torch
from fake_device import DEVICE
from torch._subclasses.fake_tensor import DataDependentOutputException
from training_job import QUIET, learner, quiet

from dreamer4_nb.training import learner as learner_module
from dreamer4_nb.training.callbacks import (
    EMA,
    Callback,
    Compile,
    EarlyStopping,
    StopTraining,
    Tracker,
    read_training_log,
)
from dreamer4_nb.training.checkpoint import (
    find_checkpoint,
    load_model,
    model_tensors,
    read_tensors,
    save_checkpoint,
)
from dreamer4_nb.training.distributed import Average, make_accelerator
from dreamer4_nb.training.fit import fit_head, random_indices
from dreamer4_nb.training.learner import FiniteCheck, Learner, NonFiniteLoss, StepCheck
from dreamer4_nb.training.memory import set_matmul_precision
from dreamer4_nb.training.optim import learning_rate, make_optimizers

JOB = Path(__file__).with_name("training_job.py")
FILES = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"]
# what accelerate launch sets for its configuration
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def start(*args):
    return subprocess.Popen(
        [sys.executable, str(JOB), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_on(processes, out, steps, *options, **environment):
    "The training job under torchrun"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return subprocess.Popen(
        [sys.executable, *launcher, str(processes), str(JOB), str(out), str(steps), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS="1") | environment,
    )


def train_on(*args, **environment):
    process = start_on(*args, **environment)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]


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


def wait_for(process, out, step, seconds=300):
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


def assert_same_losses(a, b, tolerance=1e-4):
    rows = [[row["loss"] for row in read_training_log(out)] for out in (a, b)]
    np.testing.assert_allclose(rows[0], rows[1], rtol=tolerance)


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
        process = start(tmp_path, 120, 0.05)
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
    process = start(tmp_path, 120, 0.05)
    wait_for(process, tmp_path, 5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
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

    def make(out, steps):
        job = learner(out, steps, idle=True, loss_fn=quiet, callbacks=(), **QUIET)
        job.model.use_late = lambda: job.step >= 10
        return job

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


def test_a_failed_save_is_raised_by_the_next(tmp_path):
    "The old checkpoint stays, and nothing temporary"
    learner(tmp_path, 10).fit()
    job = learner(tmp_path, 100, save_every=1)
    calls = []

    class Spoil(Callback):
        def after_step(self, learner):
            calls.append(learner.step)
            if learner.step == 12:
                learner.writer.path = tmp_path / "log.jsonl" / "checkpoint"

    job.callbacks.insert(0, Spoil())
    with pytest.raises(OSError, match="could not be written .* Hint: free some space"):
        job.fit(resume=True)
    assert calls[-1] == 13
    assert step_of(tmp_path) == 11


def test_a_process_killed_while_it_saves_slices_leaves_the_checkpoint(tmp_path):
    out = tmp_path / "run"
    process = start_on(2, out, 12, "0", "quiet", "layers", "killed", **FSDP)
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert step_of(out) == 5
    for name, steps in ((out, 12), (tmp_path / "whole", 12)):
        learner(name, steps, layers=True, loss_fn=quiet, **QUIET).fit(resume=True)
    assert_same_losses(out, tmp_path / "whole")


# --- more steps than before, and fewer


def test_a_finished_run_is_given_more_steps(tmp_path, capsys):
    learner(tmp_path, 10).fit()
    job = learner(tmp_path, 20).fit(resume=True)
    assert (job.step, step_of(tmp_path)) == (20, 20)
    whole = learner(None, 20).fit()
    assert job.history[-1]["learning_rate"] == whole.history[-1]["learning_rate"]
    before = (tmp_path / "checkpoint" / "state.json").read_text()
    capsys.readouterr()
    assert learner(tmp_path, 20).fit(resume=True).step == 20
    assert capsys.readouterr().out == ""
    assert learner(tmp_path, 15).fit(resume=True).step == 20
    assert "20 steps have been trained and 15 are asked for" in capsys.readouterr().out
    assert (tmp_path / "checkpoint" / "state.json").read_text() == before


def test_a_run_that_was_stopped_goes_on_if_more_steps_are_asked_for(tmp_path):
    def make(steps):
        stopper = EarlyStopping(lambda job: 1.0, every=5, patience=2)
        return learner(tmp_path, steps, callbacks=[stopper])

    assert make(30).fit().step == 15
    assert make(30).fit(resume=True).step == 15
    assert make(20).fit(resume=True).step == 15
    assert make(40).fit(resume=True).step == 25  # its patience begins anew


# --- micro-batches


class Halves:
    "Each batch of a sampler in two parts"

    def __init__(self, batches):
        self.batches = batches
        self.rest = []

    def __next__(self):
        if not self.rest:
            batch = next(self.batches)
            self.rest = [batch.select(slice(0, 2)), batch.select(slice(2, 4))]
        return self.rest.pop(0)


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_two_halves_are_a_whole_batch(compiled):
    "Also where the masked terms count unequally many steps in the halves"
    callbacks = [Compile()] if compiled else []
    whole = learner(None, 12, loss_fn=quiet, **QUIET).fit()
    job = learner(None, 12, loss_fn=quiet, accumulate=2, **QUIET | dict(callbacks=callbacks))
    job.batches = Halves(job.batches)
    job.fit()
    assert len(job.history) == 12
    for ours, theirs in zip(job.history, whole.history, strict=True):
        for name in ("loss", "pixels", "edge", "reward", "gradient_norm", "rewarded"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    for name, tensor in model_tensors(whole.model).items():
        torch.testing.assert_close(
            model_tensors(job.model)[name], tensor, rtol=1e-3, atol=1e-5
        )


def test_micro_batches_draw_their_noise_once():
    "What is computed again in the backward pass has the same noise, each part its own"
    noise = []

    def noisy_loss(model, batch, generator):
        x = batch.frames.flatten(2).float() / 255
        noise.append(torch.randn(x.shape, generator=generator))
        return dict(pixels=(model(x + noise[-1]) - x).square().mean())

    learner(None, 1, loss_fn=noisy_loss, accumulate=2).fit()
    first, second, again, and_again = noise
    assert not torch.equal(first, second)
    assert torch.equal(torch.stack([first, second]).sum(0), again + and_again)


# --- an accelerator that does not exist


def test_a_step_reads_nothing_from_the_device(monkeypatch):
    monkeypatch.setattr(
        learner_module, "make_generator", lambda device, seed: fake_device.make_generator(seed)
    )

    class Loss:
        def draw(self, model, batch, generator):
            return torch.randn(batch["x"].shape, generator=generator, device=DEVICE)

        def __call__(self, model, batch, noise):
            error = (model(batch["x"] + noise) - batch["x"]).square()
            known = Average((error * batch["known"]).sum(), batch["known"].sum())
            metrics = dict(known=known, largest=error.max())
            return dict(mse=error.mean(), known=known, metrics=metrics)

    def batches():
        while True:
            yield dict(
                x=torch.zeros(4, 3, device=DEVICE), known=torch.ones(4, 3, device=DEVICE)
            )

    with fake_device.fake_device():
        net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
        model = fake_device.to_fake_device(net)
        job = Learner(model, Loss(), batches(), 100, device=DEVICE, callbacks=[EMA()])
        for callback in job.callbacks:
            callback.before_fit(job)
        job._commit()
        with fake_device.no_copies():
            for _ in range(3):
                job.train_step()
                for callback in job.callbacks:
                    callback.after_step(job)
                assert not job._is_interrupted()
        for callback in job.callbacks:
            callback.close()
        assert job.loss.device.type == DEVICE.type
        assert len(job.finite.pending) == 3
        with pytest.raises(DataDependentOutputException):
            job.finite.check_pending()  # what would have been noticed


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
        (lambda: set_matmul_precision("tf32"), "matmul_precision = 'tf32': must be one of"),
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
    return StepCheck(torch.tensor(finite), number, terms, [batch])


def test_a_bad_loss_names_its_windows(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"step 4: bad = nan; .* 0:7 1:7 .*\.\.\.") as e:
        FiniteCheck(torch.device("cpu"), tmp_path).check(bad_step(4))
    assert e.value.windows == [(i, 7) for i in range(20)]
    assert "keeps the last good step. Hint: " in str(e.value)


def test_the_steps_of_a_gpu_are_judged_together():
    check = FiniteCheck(torch.device("cuda"), None, every=4)
    for number in range(3):
        check.check(bad_step(number, finite=number != 1))
    assert list(check.pending[0].batches[0]) == ["episode", "start"]
    with pytest.raises(NonFiniteLoss, match="step 1: "):
        check.check(bad_step(3))
    check.check(bad_step(4))
    with pytest.raises(NonFiniteLoss, match="step 4: ") as error:
        check.check_pending()  # before a checkpoint
    assert error.value.windows == [(i, 7) for i in range(20)]
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

    learner(tmp_path, 20, callbacks=[Tracker("tensorboard")]).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = read_training_log(tmp_path)
    scalars = events.Scalars("loss")
    assert [s.step for s in scalars] == [row["step"] for row in rows]
    assert [s.value for s in scalars] == pytest.approx([row["loss"] for row in rows])


def test_tensorboard_needs_a_folder():
    pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match="tracker = 'tensorboard': no folder"):
        learner(None, 5, callbacks=[Tracker("tensorboard")]).fit()


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
    job = learner(None, 3, loss_fn=quiet, callbacks=[Compile()]).fit()
    assert "batch_terms" not in vars(job.loss_module)


def test_more_sizes_than_pytorch_expects_are_compiled(monkeypatch):
    "Of a whole graph, PyTorch's own limit of eight versions would be an error"
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: compile_with(f, backend="eager", **k))

    class Scaled(type(quiet)):
        def __call__(self, model, batch, drawn):
            terms = super().__call__(model, batch, drawn)
            return terms | dict(scaled=terms["pixels"] * (1.0 + batch.num_uniform))

    class Numbered:
        def __init__(self, batches):
            self.batches = batches
            self.number = 0

        def __next__(self):
            self.number += 1
            return dataclasses.replace(next(self.batches), num_uniform=self.number % 12)

    job = learner(None, 15, loss_fn=Scaled(), **QUIET | dict(callbacks=[Compile()]))
    job.batches = Numbered(job.batches)
    assert job.fit().step == 15


def test_a_break_in_the_graph_of_a_drawn_loss_is_an_error():
    class Reading(type(quiet)):
        def __call__(self, model, batch, drawn):
            terms = super().__call__(model, batch, drawn)
            if terms["pixels"].item() < 0:
                terms.pop("pixels")
            return terms

    with pytest.raises(Exception, match="(?s)fullgraph|graph break|item"):
        learner(None, 3, loss_fn=Reading(), callbacks=[Compile()]).fit()


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
        timeout=300,
        env=os.environ | dict(OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert step_of(tmp_path / "run") == 20


def test_what_no_loss_uses_stays_untouched_in_one_process_and_in_two(tmp_path):
    "Weight decay as well leaves it alone; a layer that is used later on is trained from there"
    one, two = tmp_path / "one", tmp_path / "two"
    job = learner(one, 20, idle=True, loss_fn=quiet, **QUIET)
    start = {name: tensor.clone() for name, tensor in model_tensors(job.model).items()}
    job.model.use_late = lambda: job.step >= 10
    job.fit()
    train_on(2, two, 20, "0", "quiet", "late")
    assert_same_losses(one, two)
    for out in (one, two):
        tensors = read_tensors(out / "checkpoint" / "model.safetensors")
        moments = read_tensors(out / "checkpoint" / "optimizer.safetensors")
        assert torch.equal(tensors["idle.weight"], start["idle.weight"])
        assert not torch.equal(tensors["late.weight"], start["late.weight"])
        assert not any("idle" in name for name in moments)
        assert moments["0/late.weight/step"] == 10
        assert moments["0/net.0.weight/step"] == 20


def test_slices_are_read_by_any_number_of_processes(tmp_path):
    "Two, three, and one that reads them as a whole"
    one, sliced = tmp_path / "one", tmp_path / "sliced"
    settings = dict(layers=True, loss_fn=quiet, rows=6, **QUIET)
    learner(one, 9, **settings).fit()
    train_on(2, sliced, 3, "0", "quiet", "layers", "six", **FSDP)
    assert len(list((sliced / "checkpoint" / "shards").iterdir())) == 2
    train_on(3, sliced, 6, "0", "quiet", "layers", "six", **FSDP)
    assert len(list((sliced / "checkpoint" / "shards").iterdir())) == 3
    loaded = load_model(sliced, learner(None, 1, **settings).model, ema=False)
    job = learner(sliced, 9, **settings)
    job.load()
    for name, tensor in model_tensors(loaded).items():
        assert torch.equal(tensor, model_tensors(job.model)[name]), name
    first = next((sliced / "checkpoint" / "shards").iterdir())
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="crc32: does not fit. Hint: copy it again"):
        load_model(sliced, loaded)
    first.unlink()
    with pytest.raises(FileNotFoundError, match="no such checkpoint file"):
        load_model(sliced, loaded)
    first.write_bytes(content)
    wide = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="shards: tensor 'weight' is missing"):
        load_model(sliced, wide)
    job.fit(resume=True)
    assert_same_losses(one, sliced)
    assert {p.name for p in (sliced / "checkpoint").iterdir()} == {*FILES, "state.json"}


@pytest.mark.slow
@pytest.mark.parametrize("option", ["compile", "halves", "muon"])
def test_two_processes_with_options(tmp_path, option):
    "The number of processes changes nothing, and compiled neither"
    rows = 2 if option == "halves" else 4
    optimizer = "muon" if option == "muon" else "adamw"
    one, two = tmp_path / "one", tmp_path / "two"
    settings = dict(loss_fn=quiet, rows=rows, optimizer=optimizer, accumulate=4 // rows)
    learner(one, 12, **settings, **QUIET).fit()
    train_on(2, two, 12, "0", "quiet", option)
    assert_same_losses(one, two)


@pytest.mark.slow
def test_slices_and_micro_batches(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    learner(one, 12, layers=True, loss_fn=quiet, rows=2, accumulate=2, **QUIET).fit()
    train_on(2, two, 12, "0", "quiet", "layers", "halves", **FSDP)
    assert_same_losses(one, two)

"""A small training run as a process of its own:
python training_job.py OUT STEPS [SECONDS_PER_STEP [OPTION ...]]

Options: quiet (no noise), layers (a transformer), idle (with parameters that no loss uses),
late (one is used from step 10 on), halves (two micro-batches a step), six (rows a batch),
killed (a process dies in its second save), muon, bf16, compile."""

import os
import signal
import sys
import time

import numpy as np
import torch
from torch import nn

from dreamer4_nb.data.dataset import MemoryRecordings
from dreamer4_nb.data.windows import SequenceSampler
from dreamer4_nb.models.transformer import Transformer
from dreamer4_nb.training import checkpoint
from dreamer4_nb.training.callbacks import EMA, Compile
from dreamer4_nb.training.distributed import average
from dreamer4_nb.training.learner import Learner


def recordings(seed=0, episodes=8, steps=50):
    "Random frames of 4 x 4 pixels, with actions and rare rewards"
    rng = np.random.default_rng(seed)
    frames = [
        rng.integers(256, size=(steps + 1, 1, 4, 4), dtype=np.uint8) for _ in range(episodes)
    ]
    actions = [rng.integers(4, size=(steps, 1)) for _ in range(episodes)]
    rewards = [(rng.random(steps) < 0.1).astype(np.float32) for _ in range(episodes)]
    return MemoryRecordings(frames, actions, rewards)


def loss(model, batch, generator):
    "Denoise the pixels; their mean is the reward"
    x = batch.frames.flatten(2).float() / 255
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    predicted = model(x + 0.1 * noise)
    return dict(
        pixels=(predicted - x).square().mean(),
        reward=(predicted.mean(-1) - batch.rewards[:, :8]).square().mean(),
    )


class Quiet:
    "A loss without noise: the same for any number of processes that share a batch's rows"

    def draw(self, model, batch, generator):
        return None

    def __call__(self, model, batch, drawn):
        x = batch.frames.flatten(2).float() / 255
        y = model(x)
        rewards = batch.rewards[:, :8]
        error = (y.mean(-1) - rewards).square()
        # masked means count the steps of all processes
        return dict(
            pixels=(y - x).square().mean(),
            edge=average((y[..., 1:] - x[..., :-1]).abs()),
            reward=average(error, rewards > 0),
            metrics=dict(rewarded=average((rewards > 0).float()), plain=error.mean()),
        )


quiet = Quiet()


class Layers(nn.Module):
    "A transformer, whose layers FSDP takes one by one, and an empty parameter"

    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(16, 32)
        self.none = nn.Parameter(torch.zeros(0, 32))
        self.net = Transformer(32, 3, 2, time_every=2)
        self.out = nn.Linear(32, 16)

    def forward(self, x):
        tokens = self.inp(x)[:, :, None]
        empty = self.none.expand(*x.shape[:2], 0, 32)
        return self.out(self.net(torch.cat([tokens, empty], 2))[:, :, 0])


class Idle(nn.Module):
    "A net with a layer that no loss uses, and one that is used from some call on"

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
        self.idle = nn.Linear(16, 16)
        self.late = nn.Linear(16, 16)
        self.use_late = lambda: False

    def forward(self, x):
        y = self.net(x)
        return y + self.late(x) if self.use_late() else y


# a rate that does not depend on how many steps are still to come
QUIET = dict(log_every=1, schedule=dict(warmup=10, decay="constant"))


def learner(out, steps, width=32, layers=False, idle=False, loss_fn=loss, rows=4, **changes):
    "A learner of a small model, always the same for the same arguments"
    torch.manual_seed(0)
    if layers:
        model = Layers()
    elif idle:
        model = Idle()
    else:
        model = nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 16))
    settings = dict(
        device="cpu",
        progress=False,
        save_every=5,
        log_every=10,
        schedule=dict(warmup=10, decay="linear"),
        callbacks=[EMA(0.95)],
    )
    batches = SequenceSampler(recordings(), rows, 8)
    return Learner(model, loss_fn, batches, steps, out, **settings | changes)


class Slowed:
    "The same loss, some time later"

    def __init__(self, loss_fn, seconds):
        self.loss_fn = loss_fn
        self.seconds = seconds
        if hasattr(loss_fn, "draw"):
            self.draw = loss_fn.draw

    def __call__(self, *args):
        time.sleep(self.seconds)
        return self.loss_fn(*args)


def check_slices(job):
    "Weights and moments of a sharded learner are slices"
    state = [x for o in job.optimizers for s in o.state.values() for x in s.values()]
    tensors = job.parameters + [x for x in state if x.ndim]
    local = sum(x.to_local().numel() for x in tensors)
    assert local < 0.6 * 3 * sum(p.numel() for p in job.parameters), (
        "weights and moments are not sliced"
    )


def die_while_saving():
    "The last process is killed in the middle of its second save"
    write = checkpoint._write_shards
    saves = []

    def write_or_die(*args):
        saves.append(args)
        if len(saves) == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        write(*args)

    checkpoint._write_shards = write_or_die


def main(out, steps, seconds=0.0, *options):
    loss_fn = quiet if "quiet" in options else loss
    if float(seconds):
        loss_fn = Slowed(loss_fn, float(seconds))
    callbacks = [EMA(0.95)]
    if "compile" in options:
        callbacks.append(Compile())
    job = learner(
        out,
        int(steps),
        layers="layers" in options,
        idle="idle" in options or "late" in options,
        loss_fn=loss_fn,
        callbacks=callbacks,
        rows=2 if "halves" in options else 6 if "six" in options else 4,
        accumulate=2 if "halves" in options else 1,
        optimizer="muon" if "muon" in options else "adamw",
        mixed_precision="bf16" if "bf16" in options else "no",
        **(QUIET if "quiet" in options else {}),
    )
    if "late" in options:
        job.model.use_late = lambda: job.step >= 10
    if "killed" in options:
        die_while_saving()
    job.fit(resume=True)
    if job.sharded:
        check_slices(job)
    if job.accelerator.num_processes > 1:
        job.accelerator.wait_for_everyone()
        os._exit(0)  # the threads of gloo may abort an ordinary end


if __name__ == "__main__":
    main(*sys.argv[1:])

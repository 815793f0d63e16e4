"A small training run as a process of its own: python training_job.py OUT STEPS [SECONDS_PER_STEP [quiet] [layers] [muon] [bf16]]"

import os
import sys
import time

import numpy as np
import torch
from dreamer4_nb.data.dataset import MemoryRecordings
from dreamer4_nb.data.windows import SequenceSampler
from dreamer4_nb.models.heads import masked_mean
from dreamer4_nb.models.transformer import Transformer
from dreamer4_nb.training.callbacks import EMA
from dreamer4_nb.training.learner import Learner
from torch import nn


def recordings(seed=0, episodes=8, steps=50):
    rng = np.random.default_rng(seed)
    return MemoryRecordings(
        [
            rng.integers(256, size=(steps + 1, 1, 4, 4), dtype=np.uint8)
            for _ in range(episodes)
        ],
        [rng.integers(4, size=(steps, 1)) for _ in range(episodes)],
        [(rng.random(steps) < 0.1).astype(np.float32) for _ in range(episodes)],
    )


def loss(model, batch, generator):
    x = batch["frames"].flatten(2).float() / 255
    guess = model(x + 0.1 * torch.randn(x.shape, generator=generator, device=x.device))
    return dict(
        pixels=(guess - x).square().mean(),
        reward=(guess.mean((-1)) - batch["rewards"][:, :8]).square().mean(),
    )


def quiet(model, batch, generator):
    "A loss without noise: the same for any number of processes that share the rows of a batch"
    x = batch["frames"].flatten(2).float() / 255
    y = model(x)
    rewards = batch["rewards"][
        :, :8
    ]  # of some rows: masked means count what all processes have
    return dict(
        pixels=(y - x).square().mean(),
        edge=(y[..., 1:] - x[..., :-1]).abs().mean(),
        reward=masked_mean((y.mean(-1) - rewards).square(), rewards > 0),
    )


class Layers(nn.Module):
    "A transformer, whose layers FSDP takes one by one, and an empty parameter"

    def __init__(self):
        super().__init__()
        self.inp, self.none, self.net, self.out = (
            nn.Linear(16, 32),
            nn.Parameter(torch.zeros(0, 32)),
            Transformer(32, 3, 2, time_every=2),
            nn.Linear(32, 16),
        )

    def forward(self, x):
        return self.out(
            self.net(
                torch.cat([self.inp(x)[:, :, None], self.none.expand(*x.shape[:2], 0, 32)], 2)
            )[:, :, 0]
        )


QUIET = dict(
    log_every=1, schedule=dict(warmup=10, decay="constant")
)  # a rate that does not depend on how many steps are still to come


def learner(out, steps, width=32, layers=False, **kw):
    torch.manual_seed(0)
    model = (
        Layers()
        if layers
        else nn.Sequential(nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 16))
    )
    kw = (
        dict(
            device="cpu",
            progress=False,
            save_every=5,
            log_every=10,
            schedule=dict(warmup=10, decay="linear"),
            callbacks=[EMA(0.95)],
        )
        | kw
    )
    return Learner(
        model, loss, SequenceSampler(recordings(), 4, 8, workers=1), steps, out, **kw
    )


if __name__ == "__main__":
    job = learner(
        sys.argv[1],
        int(sys.argv[2]),
        layers="layers" in sys.argv,
        optimizer="muon" if "muon" in sys.argv else "adamw",
        mixed_precision="bf16" if "bf16" in sys.argv else "no",
        **(QUIET if "quiet" in sys.argv else {}),
    )
    if "quiet" in sys.argv:
        job.loss_fn = quiet
    if len(sys.argv) > 3:
        fast = job.loss_fn

        def slow(*args):
            time.sleep(float(sys.argv[3]))
            return fast(*args)

        job.loss_fn = slow
    job.fit(resume=True)
    if job.sharded:
        held = [
            x.to_local().numel()
            for x in job.parameters
            + [
                m
                for o in job.optimizers
                for p in o.state.values()
                for m in p.values()
                if m.ndim
            ]
        ]
        assert sum(held) < 0.6 * 3 * sum(p.numel() for p in job.parameters), (
            "weights and moments are not sliced"
        )
    if job.accelerator.num_processes > 1:
        job.accelerator.wait_for_everyone()
        os._exit(0)  # gloo's threads may abort an ordinary end

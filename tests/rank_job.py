"""What the ranks of a launch do in tests: other processes have to import it.
python rank_job.py FUNCTION [ARGUMENTS] launches two ranks of it"""

import errno
import os
import signal
import sys
import time
from pathlib import Path

import torch

from dreamer4_nb.run.launch import launch
from dreamer4_nb.training.distributed import (
    all_gather,
    all_reduce_sum,
    broadcast_object,
    make_accelerator,
    num_processes,
    rank,
    wait_for_everyone,
)

ALONE = 600  # seconds that a rank computes on alone


def talk():
    "Exchange all that ranks exchange; returns what rank 0 sees"
    make_accelerator("cpu")
    number = torch.tensor([float(rank())])
    wait_for_everyone()
    return dict(
        ranks=all_gather(number).tolist(),
        total=all_reduce_sum(number).item(),
        main=broadcast_object(f"rank {rank()} of {num_processes()}"),
        threads=torch.get_num_threads(),
        variables={k: os.environ[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE")},
    )


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def lack_memory():
    raise MemoryError


def fill_disk():
    raise OSError(errno.ENOSPC, "No space left on device", "runs/a/run.json")


def lose_track():
    from dreamer4_nb.training.learner import NonFiniteLoss

    raise NonFiniteLoss("step 3: mse = nan", 3, [(0, 7)])


def fail(how, which, alone=False):
    "One rank fails, while the others wait for it or compute on alone"
    if rank() == which:
        globals()[how]()
    if alone:
        time.sleep(ALONE)
    wait_for_everyone()


def count_interrupts(folder):
    "Note each Ctrl-C in a file, and end a while after the first"
    notes = Path(folder) / f"{rank()}"

    def note(*_):
        with notes.open("a") as file:
            file.write("interrupted\n")

    signal.signal(signal.SIGINT, note)
    wait_for_everyone()
    (Path(folder) / f"ready{rank()}").write_text(str(os.getpid()))
    while not notes.exists():
        time.sleep(0.05)
    time.sleep(1)
    raise KeyboardInterrupt


def train_a_little(out):
    "Two optimiser steps, shared by the ranks"
    from training_job import QUIET, learner

    learner(out, 2, **QUIET).fit()


if __name__ == "__main__":
    import rank_job

    print(launch(getattr(rank_job, sys.argv[1]), sys.argv[2:], processes=2))

"""Updates of phase 3 on this process's part of the same dreams:
python phase3_job.py OUT [STATE]. OUT is a JSON file of metrics and parameter sums; with STATE
the updates go on from there, and the state after them is written beside OUT"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dreamer4_nb.config import AgentConfig, DynamicsConfig, ImaginationConfig
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.models.agent import Agent
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.policy.pmpo import ImaginationTrainer
from dreamer4_nb.policy.rollout import Rollout
from dreamer4_nb.training.distributed import all_gather, make_accelerator


def make_trainer():
    torch.manual_seed(0)
    codec = ActionCodec(ActionSpace.flat(["left", "right", "do"]))
    size = DynamicsConfig(
        width=32, depth=2, num_heads=4, num_kv_heads=2, time_every=2, context=8
    )
    agent = Agent(Dynamics(size, 4, 8, codec), codec, AgentConfig(hidden=32, mtp=1))
    config = ImaginationConfig(horizon=6, value_warmup=0, marginal_beta=1.0)
    return ImaginationTrainer(agent, config, 0)


def random_dreams(generator):
    return (
        torch.randn(8, 7, 32, generator=generator),
        torch.randint(0, 3, (8, 6, 1), generator=generator),
        torch.randn(8, 6, generator=generator),
        torch.ones(8, 6),
    )


def update(trainer, rollout):
    "Metrics of an update of both heads"
    metrics = trainer.update_policy(rollout)
    value_loss = trainer.update_value(rollout)
    return {k: x.item() for k, x in dict(value_loss=value_loss, **metrics).items()}


def parameter_sums(trainer):
    return {
        f"{name}{i}": p.abs().sum().item()
        for name in ("policy", "value")
        for i, p in enumerate(getattr(trainer, name).parameters())
    }


def first_updates(trainer, rank, processes):
    "Six updates, each on this process's rows of other dreams, of which the last are kept"
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        dreams = random_dreams(generator)
        own = Rollout(*(x[rank::processes] for x in dreams))
        metrics = update(trainer, own)
    trainer.rollouts = [own]
    return metrics | parameter_sums(trainer)


def later_updates(trainer):
    "Three updates on the dreams that were kept"
    for _ in range(3):
        metrics = update(trainer, trainer.rollouts[0])
    return metrics | parameter_sums(trainer)


def write_state(trainer, path):
    state, tensors = trainer.state_dict(), trainer.state_tensors()
    if int(os.environ.get("RANK", 0)) == 0:
        save_file(tensors, path.with_suffix(".safetensors"))
        path.with_suffix(".state").write_text(json.dumps(state))


def read_state(trainer, path):
    state = json.loads(path.with_suffix(".state").read_text())
    trainer.load_state(state, load_file(path.with_suffix(".safetensors")))


def main(out, state=None):
    make_accelerator("cpu")
    rank = int(os.environ.get("RANK", 0))
    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_trainer()
    if state is None:
        result = first_updates(trainer, rank, processes)
    else:
        read_state(trainer, Path(state))
        result = later_updates(trainer)
        write_state(trainer, Path(out))
    result["noise"] = all_gather(torch.rand(1, generator=trainer.generator)).tolist()
    if rank == 0:
        Path(out).write_text(json.dumps(result))
    if processes > 1:
        torch.distributed.barrier()
        os._exit(0)  # the threads of gloo may abort an ordinary end


if __name__ == "__main__":
    main(*sys.argv[1:])

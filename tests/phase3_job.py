"""Updates of phase 3 on this process's part of the same dreams:
python phase3_job.py OUT, a JSON file of metrics and parameter sums"""

import json
import os
import sys
from pathlib import Path

import torch

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


def main(out):
    make_accelerator("cpu")
    rank = int(os.environ.get("RANK", 0))
    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_trainer()
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        dreams = random_dreams(generator)
        own = Rollout(*(x[rank::processes] for x in dreams))
        result = dict(value_loss=trainer.update_value(own)) | trainer.update_policy(own)
    for name in ("policy", "value"):
        for i, p in enumerate(getattr(trainer, name).parameters()):
            result[f"{name}{i}"] = p.abs().sum().item()
    result["noise"] = all_gather(torch.rand(1, generator=trainer.generator)).tolist()
    if rank == 0:
        Path(out).write_text(json.dumps(result))
    if processes > 1:
        torch.distributed.barrier()
        os._exit(0)  # the threads of gloo may abort an ordinary end


if __name__ == "__main__":
    main(*sys.argv[1:])

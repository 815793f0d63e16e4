"Updates of phase 3 on this process's share of the same dreams: python phase3_job.py OUT, a JSON file of metrics and parameter sums"

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import gather
from dreamer4_nb.config import AgentConfig, DynamicsConfig, ImaginationConfig
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.models.agent import Agent
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.policy.pmpo import ImaginationTrainer
from dreamer4_nb.policy.rollout import Rollout
from dreamer4_nb.training.learner import make_accelerator

make_accelerator("cpu")
torch.manual_seed(0)
rank, n = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
codec = ActionCodec(ActionSpace.flat(["left", "right", "do"]))
agent = Agent(
    Dynamics(
        DynamicsConfig(
            width=32, depth=2, num_heads=4, num_kv_heads=2, time_every=2, context=8
        ),
        4,
        8,
        codec,
    ),
    codec,
    AgentConfig(hidden=32, mtp=1),
)
phase, g = (
    ImaginationTrainer(
        agent, ImaginationConfig(horizon=6, value_warmup=0, marginal_beta=1.0), 0
    ),
    torch.Generator().manual_seed(1),
)
for i in range(6):
    dreams = (
        torch.randn(8, 7, 32, generator=g),
        torch.randint(0, 3, (8, 6, 1), generator=g),
        torch.randn(8, 6, generator=g),
        torch.ones(8, 6),
    )
    mine = Rollout(*(x[rank::n] for x in dreams))
    found = dict(value_loss=phase.update_value(mine)) | phase.update_policy(mine)
found |= {
    f"{name}{i}": p.abs().sum().item()
    for name in ("policy", "value")
    for i, p in enumerate(getattr(phase, name).parameters())
}
found["noise"] = gather(torch.rand(1, generator=phase.generator)).tolist()
if rank == 0:
    Path(sys.argv[1]).write_text(json.dumps(found))
if n > 1:
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may abort an ordinary end

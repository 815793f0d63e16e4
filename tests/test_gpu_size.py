"Size gpu learns: a quarter of its width, on the processor, for some minutes"

import sys

import pytest
import torch

from dreamer4_nb.config import Config, named
from dreamer4_nb.evaluation.world_model import rollout_scores
from dreamer4_nb.pipeline import run_all
from dreamer4_nb.run.run import Run
from dreamer4_nb.training.callbacks import read_training_log

# terms of each stage's loss that say how well it predicts
TERMS = {"tokenizer": ["mse"], "dynamics": ["shortcut"], "agent": ["policy", "reward"]}


def quarter_width(
    config: Config,  # a size for a graphics card
    minutes: float,  # about so many on two idle cores
) -> Config:
    "The same recipe a quarter as wide, in small batches of float32"
    values = {
        "name": "quarter",
        "data.episodes": 120,
        "data.held_out": 0.2,
        "agent.bc_windows": 200,
        "imagination.contexts": 16,
        "imagination.iterations": 3,
        "imagination.value_warmup": 1,
        "imagination.context_length": 8,
    }
    for section in ("tokenizer", "dynamics"):
        values[f"{section}.width"] = getattr(config, section).width // 4
        values[f"{section}.num_heads"] = getattr(config, section).num_heads // 2
    values["dynamics.num_kv_heads"] = config.dynamics.num_kv_heads // 2
    values["agent.hidden"] = config.agent.hidden // 4
    values["agent.latent_reader"] = config.agent.latent_reader // 4
    steps = {"tokenizer": 80, "dynamics": 30, "agent": 20}  # a minute
    for stage, rate in steps.items():
        training = f"{stage}_training"
        count = max(4, round(rate * minutes))
        values |= {
            f"{training}.steps": count,
            f"{training}.warmup": min(count // 4, 20),
            f"{training}.batch_size": 4,
            f"{training}.length": 16,
            f"{training}.lr": 4 * getattr(config, training).lr,  # as the width falls
            f"{training}.ema": 0.98,
            f"{training}.accumulate": 1,
            f"{training}.workers": 0,
            f"{training}.mixed_precision": "no",
        }
    # frames alone mostly: what is scarce in some minutes are steps
    values["tokenizer_training.batch_size"] = 16
    values["tokenizer_training.length"] = ((1, 9), (8, 1))
    return config.change(values)


def train_quarter(
    folder,  # of the run
    config: Config,  # a size for a graphics card
    minutes: float,  # about so many on two idle cores
    windows: int = 32,  # held-out windows to dream in
) -> dict[str, float]:  # first and last loss by stage and term; dB of dreams, and of a still
    "Train a quarter of a size's width, and say what came of it"
    run = run_all(Run(folder, quarter_width(config, minutes), progress=False), "imagination")
    result = {}
    for stage, terms in TERMS.items():
        rows = read_training_log(run.out / stage)
        for term in terms:
            result[f"{stage}.{term}.first"] = rows[0][term]
            result[f"{stage}.{term}.last"] = rows[-1][term]
    _, held_out = run.data()
    models = [run.trained("tokenizer"), run.trained("dynamics")]
    scores = rollout_scores(*models, held_out, run.latents(), n=windows)
    return result | {name: scores[name] for name in ("psnr", "repeat_last")}


def check_learned(result: dict[str, float]) -> None:
    "Raise unless every loss has fallen and dreams beat repeating the last frame"
    for stage, terms in TERMS.items():
        for term in terms:
            name = f"{stage}.{term}"
            assert result[f"{name}.last"] < result[f"{name}.first"], name
    assert result["psnr"] > result["repeat_last"]


def test_what_was_measured_to_matter_is_there():
    "The laptop's recipe, field by field, in what does not depend on the budget"
    laptop, gpu = named("laptop"), named("gpu")
    same = ["clean_past", "frame_stack", "agent_view", "packing", "ramp_floor", "pure_noise"]
    for field in [*same, "bootstrap_fraction", "k_max"]:
        assert getattr(gpu.dynamics, field) == getattr(laptop.dynamics, field), field
    for field in ("mtp_decay", "video_weight", "reward_loss"):
        assert getattr(gpu.agent, field) == getattr(laptop.agent, field), field
    assert gpu.agent.latent_reader > 0
    assert gpu.tokenizer.num_latents == gpu.tokenizer.num_patches  # one to a patch
    for field in ("horizon", "gamma", "beta", "marginal_beta", "temperature", "lr"):
        assert getattr(gpu.imagination, field) == getattr(laptop.imagination, field), field


@pytest.mark.slow
def test_a_quarter_of_the_width_learns(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check_learned(train_quarter(tmp_path / "run", named("gpu"), minutes=8))
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":  # python tests/test_gpu_size.py FOLDER MINUTES
    for name, value in train_quarter(sys.argv[1], named("gpu"), float(sys.argv[2])).items():
        print(f"{name} {value:.4g}")

"The ceiling: what its table says, and what it refuses"

import numpy as np
import pytest

from dreamer4_nb.config import named
from dreamer4_nb.run.run import Run
from dreamer4_nb.studies.ceiling import (
    CEILING_BUDGET,
    CEILING_VARIANTS,
    ceiling_gain,
    ceiling_table,
    ceiling_trainer,
    learning_curve,
    mean_by_temperature,
)
from dreamer4_nb.studies.experiments import EXPERIMENTS


def result(arm, *ends, seed=0, bc=4.0):
    points = [
        dict(steps=10 * (i + 1), returns={"1": [end, end], "0.5": [0.0, 0.0]})
        for i, end in enumerate(ends)
    ]
    bc_returns = {"1": [1.0, 1.0], "0.5": [bc, bc]}
    return dict(arm=arm, seed=seed, bc=bc_returns, points=points, history=[dict(kl=0.25)])


def test_gain_is_that_of_the_end_at_the_better_temperatures():
    results = [result("PPO", 3.0, 9.0), result("PPO", 3.0, 8.0, seed=1, bc=5.0)]
    assert mean_by_temperature(results[0]["bc"]) == 4.0
    np.testing.assert_allclose(ceiling_gain(results, "PPO"), [5.0, 3.0])
    assert learning_curve(results[0], "1") == ([10, 20], [3.0, 9.0])


def test_table_compares_the_dream_with_its_ceiling():
    results = [result("PPO", 12.0), result("PPO, dreamed", 6.0), result("AWR", 3.0)]
    lines = ceiling_table(results).splitlines()[2:]
    assert lines[0] == "| PPO | 12.0 | 4.0 | +8.0 |  | 0.25 |"
    assert lines[1] == "| PPO, dreamed | 6.0 | 4.0 | +2.0 | 25% | 0.25 |"
    assert "no ceiling" in ceiling_table([result("AWR", 3.0), result("AWR, dreamed", 5.0)])


@pytest.mark.parametrize("size", ["laptop", "gpu"])
@pytest.mark.parametrize("variant", CEILING_VARIANTS)
def test_variants_fit_a_run(size, variant):
    settings = CEILING_BUDGET | CEILING_VARIANTS[variant]
    config = named(size).change({k: v for k, v in settings.items() if "." in k})
    per_round = config.imagination.contexts * config.imagination.horizon
    assert per_round <= settings["evaluate_every"] <= settings["steps"]
    assert settings["source"] == ("dream" if variant.endswith("dreamed") else "world")


def test_both_experiments_have_all_variants():
    for name in ("ceiling", "treechop_ceiling"):
        assert EXPERIMENTS[name].variants is CEILING_VARIANTS


def test_an_unknown_source(tmp_path):
    run = Run(tmp_path / "run", named("smoke"), progress=False)
    with pytest.raises(ValueError, match="'film' is not 'world' or 'dream'"):
        ceiling_trainer(run, run.config, 0, "film")

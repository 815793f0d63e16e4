"Intervals over worlds and seeds"

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from dreamer4_nb.evaluation.statistics import (
    mean_interval,
    paired_difference,
    two_level_bootstrap,
)


def test_mean_interval_is_students_t():
    returns = np.random.default_rng(0).gamma(2, 5, 37)
    interval = mean_interval(returns)
    expected = ttest_1samp(returns, 0).confidence_interval(0.95)
    assert interval["mean"] == pytest.approx(returns.mean())
    assert (interval["low"], interval["high"]) == pytest.approx((expected.low, expected.high))


def test_one_world_has_no_interval():
    assert mean_interval([5]) == {"mean": 5.0, "low": None, "high": None}


@pytest.mark.parametrize("returns", [[], [[1.0, 2.0]], [1.0, np.nan], [np.inf]])
def test_returns_that_have_no_mean(returns):
    with pytest.raises(ValueError, match="one finite number per world"):
        mean_interval(returns)


def test_a_paired_difference_needs_the_same_worlds():
    with pytest.raises(ValueError, match="3 worlds against 2"):
        paired_difference([1, 2, 3], [1, 2])


def test_a_constant_difference_is_certain():
    luck = np.random.default_rng(0).poisson(8, 128)
    assert list(paired_difference(luck + 1, luck).values()) == pytest.approx([1, 1, 1])


def test_the_draws_of_the_bootstrap_stay():
    "Committed results contain such intervals: the same seed gives the same ones."
    rng = np.random.default_rng(0)
    b = rng.gamma(2, 5, size=(3, 16))
    a = b + rng.normal(1, 2, size=(3, 16))
    result = two_level_bootstrap(a, b)
    expected = {
        "mean": 1.0139496230026497,
        "low": 0.0795557715533105,
        "high": 1.9268852866219834,
        "ratio_low": 1.0084638034474342,
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_the_bootstrap_repeats_itself_and_its_seed_matters():
    a, b = np.random.default_rng(1).normal(size=(2, 4, 8))
    assert two_level_bootstrap(a, b, 200) == two_level_bootstrap(a, b, 200)
    assert two_level_bootstrap(a, b, 200) != two_level_bootstrap(a, b, 200, seed=1)


def test_there_is_no_ratio_to_nothing():
    result = two_level_bootstrap(np.ones((2, 3)), np.zeros((2, 3)))
    assert [result[name] for name in ("ratio", "ratio_low", "ratio_high")] == [None] * 3


def test_the_bootstrap_names_the_shapes():
    with pytest.raises(ValueError, match=r"\(5, 8\) and \(3, 8\)"):
        two_level_bootstrap(np.ones((5, 8)), np.ones((3, 8)))

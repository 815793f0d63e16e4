"Average precision and the diagnosis of a reward head"

import numpy as np
import pytest

from dreamer4_nb.evaluation.reward_head import (
    VERDICTS,
    average_precision,
    diagnose_reward_head,
)

RECORDED = (np.arange(1000) % 50 == 0).astype(float)


def test_a_perfect_order():
    assert average_precision([0.9, 0.8, 0.1], [1, 1, 0]) == 1.0


@pytest.mark.parametrize("rewarded_step", range(4))
def test_a_constant_head_knows_nothing(rewarded_step):
    "Wherever the rewarded step stands, and also where it is the first."
    hits = np.arange(4) == rewarded_step
    assert average_precision(np.zeros(4), hits) == pytest.approx(1 / 4)


def test_ties_do_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    scores = rng.integers(3, size=100)
    hits = rng.random(100) < 0.3
    shuffled = rng.permutation(100)
    expected = average_precision(scores, hits)
    assert average_precision(scores[shuffled], hits[shuffled]) == pytest.approx(expected)


def test_a_weight_counts_as_so_many_steps():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    hits = np.array([0, 1, 0, 1])
    weight = np.array([3, 1, 2, 2])
    expected = average_precision(scores.repeat(weight), hits.repeat(weight))
    assert average_precision(scores, hits, weight) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (RECORDED, "healthy"),
        (np.full(1000, 0.02), "collapsed"),
        (0.2 * RECORDED + 0.4 * np.roll(RECORDED, 1) + 0.4 * np.roll(RECORDED, 2), "blind"),
        (RECORDED + 0.1 * (RECORDED == 0), "optimistic"),
        (0.3 * RECORDED, "timid"),
    ],
)
def test_verdicts(predicted, expected):
    diagnosis = diagnose_reward_head(predicted, RECORDED)
    assert diagnosis["verdict"] == expected
    assert diagnosis["reason"] == VERDICTS[expected]


def test_steps_without_a_recorded_reward_do_not_count():
    recorded = np.array([1, 0, np.nan, np.nan])
    diagnosis = diagnose_reward_head([1, 0, 9, 9], recorded)
    assert (diagnosis["steps"], diagnosis["bias"]) == (2, 1.0)


def test_without_rewards_there_is_no_verdict():
    diagnosis = diagnose_reward_head([0.1, 0.2], [0, np.nan])
    assert diagnosis["verdict"] == "unknown"
    assert diagnosis["average_precision"] is None
    assert "hold out more episodes" in diagnosis["reason"]


def test_without_any_known_step_there_is_no_verdict():
    diagnosis = diagnose_reward_head([0.1], [np.nan])
    assert (diagnosis["steps"], diagnosis["verdict"]) == (0, "unknown")


def test_lengths_are_named():
    with pytest.raises(ValueError, match="1, 2 and 1 steps"):
        diagnose_reward_head([0.1], [0, 1])

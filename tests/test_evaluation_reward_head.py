"Average precision and the diagnosis of a reward head"

import numpy as np
import pytest

from dreamer4_nb.data.dataset import MemoryRecordings
from dreamer4_nb.evaluation.reward_head import (
    VERDICTS,
    average_precision,
    diagnose_reward_head,
    scored_windows,
)

RECORDED = (np.arange(2000) % 50 == 0).astype(float)


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
        (np.full(2000, 0.02), "collapsed"),
        (0.2 * RECORDED + 0.4 * np.roll(RECORDED, 1) + 0.4 * np.roll(RECORDED, 2), "blind"),
        (RECORDED + 0.1 * (RECORDED == 0), "optimistic"),
        (0.3 * RECORDED, "timid"),
    ],
)
def test_verdicts(predicted, expected):
    diagnosis = diagnose_reward_head(predicted, RECORDED)
    assert diagnosis["verdict"] == expected
    assert diagnosis["reason"] == VERDICTS[expected]


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (-RECORDED, "healthy"),
        (np.full(2000, -0.02), "collapsed"),
        (-0.3 * RECORDED, "optimistic"),  # it promises less cost than there is
        (-RECORDED - 0.1 * (RECORDED == 0), "timid"),
    ],
)
def test_costs_are_judged_as_rewards_are(predicted, expected):
    diagnosis = diagnose_reward_head(predicted, -RECORDED)
    assert diagnosis["verdict"] == expected
    assert (diagnosis["rewarded"], diagnosis["costly"]) == (0, 40)


def test_gains_and_costs_that_cancel():
    both = RECORDED - np.roll(RECORDED, 7)
    nearly = diagnose_reward_head(both + 0.001, both)
    assert nearly["verdict"] == "healthy"
    assert nearly["bias"] == pytest.approx(1 + 0.001 / np.abs(both).mean())
    assert diagnose_reward_head(both.clip(0), both)["verdict"] == "collapsed"


def test_a_cost_of_every_step():
    assert diagnose_reward_head(np.full(50, -0.1), np.full(50, -0.1))["verdict"] == "healthy"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_head_is_not_blamed_for_its_bins(sign):
    "It predicts the outermost bin, 147, which is as much as it can"
    recorded = sign * 1024 * RECORDED
    diagnosis = diagnose_reward_head(recorded.clip(-147, 147), recorded, largest=147.0)
    assert diagnosis["verdict"] == "clipped"
    assert diagnosis["reason"] == (
        "rewards reach 1,024, but the bins end at 147. Hint: --agent.bin_range 7.7"
    )
    wide = diagnose_reward_head(recorded, recorded, largest=2000.0)
    assert wide["verdict"] == "healthy"


@pytest.mark.parametrize("hits, verdict", [(29, "unknown"), (30, "collapsed")])
def test_no_verdict_rests_on_few_rewarded_steps(hits, verdict):
    recorded = (np.arange(1000) < hits).astype(float)
    diagnosis = diagnose_reward_head(np.zeros(1000), recorded)
    assert diagnosis["verdict"] == verdict
    assert diagnosis["average_precision"] is not None
    if verdict == "unknown":
        assert diagnosis["reason"] == (
            "only 29 held-out steps are rewarded, and a verdict needs 30. "
            "Hint: hold out more episodes"
        )


def test_the_interval_resamples_whole_episodes():
    "Of ten episodes, half are known perfectly and half not at all"
    episode = np.repeat(np.arange(10), 100)
    recorded = (np.arange(1000) % 10 == 0).astype(float)
    predicted = np.where(episode % 2, recorded, 0.5 * np.roll(recorded, 1))
    steps = diagnose_reward_head(predicted, recorded)
    episodes = diagnose_reward_head(predicted, recorded, episode=episode)
    width = np.diff([d["interval"] for d in (steps, episodes)])
    low, high = episodes["interval"]
    assert low < episodes["average_precision"] < high
    assert width[1] > 2 * width[0]


@pytest.mark.parametrize("length", [2, 5, 16])
def test_every_known_step_is_scored_once(length):
    steps = [40, 3, 15, 16, 1, 20]
    rewards = [np.zeros(n) for n in steps]
    rewards[2][7] = -1.0
    rewards[5] = None
    frames = [np.zeros((n + 1, 1, 1, 1), np.uint8) for n in steps]
    recordings = MemoryRecordings(frames, [None] * 6, rewards)
    scored = [np.zeros(n + 1, int) for n in steps]
    for window in scored_windows(recordings, length):
        end = window.start + window.length
        assert window.start <= window.first < end <= steps[window.episode] + 1
        assert window.length == min(length, steps[window.episode] + 1)
        scored[window.episode][window.first : end] += 1
        assert window.rewarded == (window.episode == 2 and window.first <= 8 < end)
    assert [set(counts) for counts in scored] == [{1}] * 5 + [{0}]


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

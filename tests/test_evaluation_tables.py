"Names, tables and the verdict"

import numpy as np
import pytest

from dreamer4_nb.evaluation.tables import (
    achievement_rates,
    achievement_rates_by_policy,
    achievement_table,
    in_order,
    key_figures,
    markdown_table,
    policy_label,
    policy_table,
    split_name,
    verdict,
)
from dreamer4_nb.worlds.tasks import ACHIEVEMENTS


def results(**means):
    "Results in which a policy has the given mean, and nearly the same luck as all others."
    luck = np.random.default_rng(0).normal(0, 0.1, 64)
    policies = {}
    for name, mean in means.items():
        own = np.random.default_rng(len(name)).normal(0, 0.1, 64)
        policies[name] = {"returns": (mean + luck + own).tolist(), "temperature": 1.0}
    return {"task": "collect_wood", "policies": policies}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("random", "random"),
        ("scripted", "scripted player"),
        ("bc", "BC policy, sampled"),
        ("bc_all_tempered", "BC policy of all windows, best temperature"),
        ("imagination_argmax", "imagination, argmax"),
        ("mine", "mine, sampled"),
    ],
)
def test_labels(name, label):
    assert policy_label(name) == label


def test_split_name():
    assert split_name("bc_all_argmax") == ("bc_all", "_argmax")
    assert split_name("bc_all") == ("bc_all", "")


def test_order_and_unknown_policies_last():
    names = ["mine", "scripted", "bc_tempered", "random", "bc", "bc_argmax", "bc_all"]
    ordered = ["random", "bc_all", "bc", "bc_argmax", "bc_tempered", "scripted", "mine"]
    assert in_order(names) == ordered


def test_a_better_run():
    text = verdict(results(bc=5.0, imagination=9.0, bc_tempered=6.0, imagination_tempered=9.5))
    assert text.startswith("Imagination collects 9.0 wood per episode, 1.8 times the sampled")
    assert "worse" not in text and "no clear difference" not in text


def test_worse_is_called_worse():
    text = verdict(results(bc=9.0, imagination=5.0, bc_tempered=9.5, imagination_tempered=6.0))
    assert "(9.0; worse)" in text and text.endswith(": worse.")


def test_an_open_comparison_names_what_it_could_have_shown():
    text = verdict(results(bc=5.0, imagination=5.1, bc_tempered=6.0, imagination_tempered=6.0))
    assert "no clear difference (64 worlds show one of 0.0 or more)" in text


def test_without_tempered_policies():
    text = verdict(results(bc=5.0, imagination=9.0))
    assert text.endswith("At best temperatures they were not compared on the same worlds.")


def test_a_bc_policy_without_reward_has_no_ratio():
    policies = {"bc": {"returns": [0, 0]}, "imagination": {"returns": [1, 1]}}
    text = verdict({"policies": policies})
    assert "1.00 reward per episode, the sampled BC policy 0.00." in text


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ({}, "imagination, sampled"),
        (results(imagination=1.0), "BC policy, sampled"),
        ({"policies": {"imagination": None}}, "imagination, sampled"),
    ],
)
def test_no_verdict_without_returns(content, missing):
    assert verdict(content) == f"No verdict: the results contain no returns of {missing}."


def test_one_run_has_intervals_over_worlds_and_several_over_seeds_too():
    run = results(bc_tempered=5.0, imagination=9.0)
    rows = policy_table(run["policies"])
    assert [row["name"] for row in rows] == ["bc_tempered", "imagination"]
    assert rows[0]["difference"] is None
    assert rows[1]["difference"]["mean"] == pytest.approx(4, abs=0.1)
    several = policy_table([run, run, run])
    assert several[1]["difference"]["by_seed"] == pytest.approx([4] * 3, abs=0.1)


def test_markdown():
    text = markdown_table(policy_table(results(bc_tempered=5.0, imagination=9.0)["policies"]))
    head, line, reference, imagination = text.splitlines()
    assert reference.endswith("|  |")
    assert imagination.startswith("| imagination, sampled | 1 | 9.0 [")


def test_achievement_rates():
    episodes = [{"collect_wood": 4}, {"collect_wood": 9, "place_table": 30}]
    rates = achievement_rates(episodes)
    assert list(rates) == list(ACHIEVEMENTS)
    assert (rates["collect_wood"], rates["place_table"]) == (1.0, 0.5)
    with pytest.raises(ValueError, match="no episodes"):
        achievement_rates([])


def test_rates_of_results_and_of_achievements_are_the_same():
    episodes = [{"collect_wood": 4}]
    assert achievement_rates_by_policy({"bc": episodes}) == achievement_rates_by_policy(
        {"bc": {"returns": [1], "achievements": episodes}}
    )


def test_results_without_achievements_are_left_out():
    policies = {"bc": {"returns": [1]}, "random": {"achievements": [{}]}}
    assert achievement_rates_by_policy({"bc": {"returns": [1]}}) == {}
    assert achievement_rates_by_policy(policies)["collect_wood"] == {"random": 0.0}
    assert "| collect wood |  | 0.0 |" in achievement_table(policies)


def test_key_figures_leave_out_what_is_missing():
    assert key_figures({}) == {"returns": {}}
    figures = key_figures({"rollout": {"psnr": 20.0}, "policies": {"bc": {"returns": [1, 2]}}})
    assert figures == {"dream_psnr": 20.0, "returns": {"bc": 1.5}}

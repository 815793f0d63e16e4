"Worlds, policies and what an evaluation is saved under"

import pytest

from dreamer4_nb.config import EvaluationConfig
from dreamer4_nb.evaluation.in_worlds import (
    EvaluationCache,
    check_fresh,
    evaluate_policies,
    evaluation_seed,
    random_player,
    world_seeds,
)

COUNTS = {"validation": 2, "test": 3}


class OneRecording(list):
    "Recordings of one episode in the world of a given seed."

    names = ["an_episode"]

    def __init__(self, seed):
        super().__init__([0])
        self.seed = seed

    def info(self, i):
        return {"metadata": {"world_seed": self.seed}}


def cache(folder=None, **options):
    return EvaluationCache("collect_wood", "grid", COUNTS, cache_dir=folder, **options)


@pytest.mark.parametrize(
    ("policy", "temperature", "worlds", "seed"),
    [
        ("bc", 1.0, "test", 125124815465232),
        ("random", None, "validation", 266820808567834),
    ],
)
def test_seeds_stay(policy, temperature, worlds, seed):
    "Every return in the committed results follows from these seeds."
    key = cache().key(policy, temperature, worlds, "any weights")
    assert evaluation_seed(key) == seed


def test_the_weights_do_not_change_the_seed():
    keys = [cache().key("bc", 1.0, "test", weights) for weights in ("a", "b")]
    assert keys[0] != keys[1]
    assert evaluation_seed(keys[0]) == evaluation_seed(keys[1])


def test_an_unknown_set_of_worlds():
    with pytest.raises(ValueError, match="'training' is unknown; expected 'validation' or"):
        world_seeds("training", 3)


def test_a_recorded_evaluation_world_is_named():
    leaked = OneRecording(world_seeds("test", 1)[0])
    with pytest.raises(ValueError, match="episode an_episode shows the test world 2000000"):
        check_fresh(leaked, EvaluationConfig())


def test_other_recorded_worlds_are_counted():
    assert check_fresh(OneRecording(5), EvaluationConfig()) == 1
    assert check_fresh(OneRecording(None), EvaluationConfig()) == 0


@pytest.mark.parametrize("name", ["random", "scripted", "bc_argmax", "bc_tempered", "a-b", ""])
def test_names_that_a_policy_may_not_have(name):
    with pytest.raises(ValueError, match="policies: .* is not free"):
        evaluate_policies(None, None, {name: None}, progress=False)


@pytest.mark.parametrize("content", ["", '{"returns": [1', "[1, 2]", '{"returns": [1, 2, 3]}'])
def test_a_damaged_file_is_played_again(tmp_path, content):
    first = cache(tmp_path).evaluate("random", None, "test", random_player)
    (tmp_path / "random_test.json").write_text(content)
    assert cache(tmp_path).evaluate("random", None, "test", random_player) == first


def test_a_finished_evaluation_is_read(tmp_path):
    first = cache(tmp_path).evaluate("random", None, "test", random_player)
    assert cache(tmp_path).evaluate("random", None, "test", None) == first


def test_a_policy_with_other_weights_is_played_again(tmp_path):
    plays = []

    def counted(seed):
        plays.append(seed)
        return random_player(seed)

    for weights in ("a", "a", "b"):
        cache(tmp_path).evaluate("bc", 1.0, "test", counted, weights)
    assert len(plays) == 2


def test_read_or_played_it_counts_as_done(tmp_path):
    for _ in range(2):
        done = []
        counting = cache(tmp_path, on_step=done.append)
        counting.evaluate("random", None, "test", random_player)
        assert sum(done) == 100

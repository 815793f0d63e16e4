"The dream as a Gymnasium environment: interface, seeds, ends, errors, PPO in it"

import json
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

from dreamer4_nb.config import named
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.models.transformer import TimeCache, Transformer
from dreamer4_nb.pipeline import run_all
from dreamer4_nb.play.dream_env import (
    DreamBatch,
    DreamEnv,
    DreamVectorEnv,
    cache_beside,
    dream_action_space,
    encode_actions,
    replace_rows,
    stable_baselines_env,
)
from dreamer4_nb.play.player import Player
from dreamer4_nb.run.folder import RunError
from dreamer4_nb.run.load import PRETRAINED
from dreamer4_nb.run.run import Run
from dreamer4_nb.worlds.registration import register_environments

ID = "dreamer4_nb/Dream-v0"
register_environments()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dream") / "run"
    run_all(Run(folder, named("smoke"), progress=False), "agent")
    return folder


@pytest.fixture(scope="module")
def env(run):
    return DreamEnv(run)


# one dream


@pytest.mark.parametrize("observation", ["picture", "latents", "features"])
@pytest.mark.parametrize("actions", ["world", "classes"])
def test_the_checker_has_no_objection(run, observation, actions):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = gymnasium.make(ID, run=str(run), observation=observation, actions=actions)
        check_env(env.unwrapped)
    messages = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    if observation == "features":  # which have no bounds
        messages = [m for m in messages if "infinity" not in m]
    assert messages == []


def test_a_seed_is_a_whole_dream(env):
    def dream(seed):
        observations = [env.reset(seed=seed)[0]]
        rewards = []
        for action in (0, 3, 5, 1):
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            rewards.append(reward)
            if terminated or truncated:
                env.reset()
        return np.stack(observations), rewards

    first = dream(1)
    again = dream(1)
    other = dream(2)
    assert (first[0] == again[0]).all() and first[1] == again[1]
    assert (first[0] != other[0]).any()


def test_a_dream_begins_at_the_recorded_frame(env, run):
    player = Player(run).reset(2, 10)
    observation, info = env.reset(seed=0, options={"episode": 2, "step": 10})
    assert info == {"episode": 2, "step": 10}
    assert observation.shape == (64, 64, 3) and observation.dtype == np.uint8
    difference = observation.astype(int) - player.history[0].frame.transpose(1, 2, 0)
    assert abs(difference).max() <= 1


def test_the_very_first_frame_of_a_recording_is_a_beginning(env):
    observation, info = env.reset(seed=0, options={"episode": 0, "step": 0})
    assert info["step"] == 0
    assert observation in env.observation_space
    assert env.step(0)[0] in env.observation_space


def test_an_episode_alone_may_be_named(env):
    infos = [env.reset(seed=i, options={"episode": 4})[1] for i in range(8)]
    assert {info["episode"] for info in infos} == {4}
    assert len({info["step"] for info in infos}) > 1


def test_parts_of_the_recordings(run):
    starts = {}
    for part in ("train", "held_out", "all"):
        batch = DreamBatch(run, part=part)
        rng = np.random.default_rng(0)
        starts[part] = {batch.draw_start(rng)[0] for _ in range(200)}
    train, held_out = Run(run, progress=False).data()
    assert (len(starts["train"]), len(starts["held_out"])) == (len(train), len(held_out))
    assert starts["train"] | starts["held_out"] == starts["all"]
    assert not starts["train"] & starts["held_out"]


def always(dreams, cont):
    "Let the continue head say this probability"
    head = dreams.agent.predict_reward_and_continue
    dreams.agent.predict_reward_and_continue = lambda h: (
        head(h)[0],
        torch.full(h.shape[:-1], cont),
    )


def test_truncated_after_num_steps(run):
    env = DreamEnv(run, num_steps=5)
    always(env.dreams, 1.0)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]
    with pytest.raises(ResetNeeded, match="Hint: call reset"):
        env.step(0)
    default = DreamEnv(run)
    assert default.dreams.num_steps == named("smoke").imagination.horizon


def test_terminated_where_the_continue_head_says_so(run):
    env = DreamEnv(run, num_steps=5)
    always(env.dreams, 0.0)
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(0)
    assert terminated and not truncated
    assert info == {"continue": 0.0}


def test_rewards_are_the_heads_in_the_worlds_units(run):
    env = DreamEnv(run, observation="features", num_steps=50)
    env.reset(seed=0)
    features, reward, *_ = env.step(5)
    expected, cont = env.dreams.agent.predict_reward_and_continue(torch.from_numpy(features))
    assert reward == pytest.approx(expected.item(), abs=1e-6)


def test_pictures_are_made_only_where_somebody_looks(run):
    assert DreamEnv(run, observation="latents").render() is None
    env = DreamEnv(run, observation="latents", render_mode="rgb_array")
    env.reset(seed=0, options={"episode": 1, "step": 20})
    picture = env.render()
    same, _ = DreamEnv(run).reset(seed=0, options={"episode": 1, "step": 20})
    assert (picture == same).all()


# many dreams


def vectors(run, count=4, **options):
    "A batch and Gymnasium's own vector of single environments"
    batch = gymnasium.make_vec(ID, num_envs=count, run=str(run), **options)
    single = SyncVectorEnv([lambda: DreamEnv(run, **options)] * count)
    single.action_space.seed(1)
    return batch, single


def test_a_vector_looks_like_gymnasiums_own(run):
    batch, single = vectors(run)
    assert isinstance(batch.unwrapped, DreamVectorEnv)
    assert batch.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert single.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    for name in ("observation_space", "action_space", "single_observation_space"):
        assert getattr(batch, name) == getattr(single, name)
    batch.reset(seed=7)
    single.reset(seed=7)
    assert batch.unwrapped.np_random_seed == single.np_random_seed


@pytest.mark.parametrize(
    "options",
    [
        dict(observation="picture", num_steps=6),
        dict(observation="latents", num_steps=12),
        dict(observation="features", num_steps=12),
    ],
    ids=lambda options: options["observation"],
)
def test_a_batch_is_its_members_one_by_one(run, options):
    batch, single = vectors(run, **options)
    results = [batch.reset(seed=[3, 9, 4, 1]) + single.reset(seed=[3, 9, 4, 1])]
    tolerance = 1 if options["observation"] == "picture" else 1e-3
    alone = 0
    for _ in range(18):
        actions = single.action_space.sample()
        results.append(batch.step(actions) + single.step(actions))
    for result in results:
        ours, theirs = result[: len(result) // 2], result[len(result) // 2 :]
        assert ours[0].dtype == theirs[0].dtype and ours[0].shape == theirs[0].shape
        assert abs(ours[0].astype(float) - theirs[0]).max() <= tolerance
        check_infos(ours[-1], theirs[-1])
        if len(ours) == 5:
            assert ours[1].dtype == theirs[1].dtype
            np.testing.assert_allclose(ours[1], theirs[1], atol=1e-4)
            assert (ours[2] == theirs[2]).all() and (ours[3] == theirs[3]).all()
            alone += 0 < (ours[2] | ours[3]).sum() < 4
    assert alone > 3, "dreams ended at different times"


def check_infos(ours, theirs):
    "The same keys, masks and numbers"
    assert set(ours) == set(theirs)
    for name, values in ours.items():
        assert values.dtype == theirs[name].dtype
        np.testing.assert_allclose(values.astype(float), theirs[name].astype(float), atol=1e-4)


def test_the_step_after_an_end_begins_anew(run):
    batch = DreamVectorEnv(3, run, num_steps=4)
    always(batch.dreams, 1.0)
    batch.reset(seed=0)
    for _ in range(3):
        assert not batch.step([0, 1, 2])[3].any()
    _, _, terminated, truncated, infos = batch.step([0, 1, 2])
    assert truncated.all() and not terminated.any()
    observations, rewards, terminated, truncated, infos = batch.step([0, 1, 2])
    assert (rewards == 0).all() and not (terminated | truncated).any()
    assert infos["_episode"].all() and "continue" not in infos
    for i in range(3):
        start = {"episode": int(infos["episode"][i]), "step": int(infos["step"][i])}
        expected, _ = DreamEnv(run).reset(options=start)
        assert abs(expected.astype(int) - observations[i]).max() <= 1


def test_a_mask_resets_the_others_not(run):
    batch = DreamVectorEnv(3, run, observation="latents", num_steps=50)
    with pytest.raises(ResetNeeded, match="reset all of them first"):
        batch.reset(options={"reset_mask": np.array([True, False, False])})
    before, _ = batch.reset(seed=0)
    after, infos = batch.reset(options={"reset_mask": np.array([False, True, False])})
    assert (before[[0, 2]] == after[[0, 2]]).all() and (before[1] != after[1]).any()
    assert infos["_episode"].tolist() == [False, True, False]


@pytest.mark.parametrize("kinds", ["sst", "tdt"])
def test_a_dream_that_begins_anew_remembers_nothing(kinds):
    "In a cache of three, one begins again in the middle: as if it had one of its own"
    torch.manual_seed(0)
    net = Transformer(16, len(kinds), 2, context=4, kinds=kinds).eval()
    x = torch.randn(3, 15, 5, 16)
    fresh = torch.randn(1, 15, 5, 16)
    cache = TimeCache(4)
    alone = TimeCache(4)
    with torch.inference_mode():
        net(x[:, :4], cache=cache)
        for t in range(4, 11):
            net(x[:, t : t + 1], cache=cache)
        beside = cache_beside(cache, 4)
        assert cache.steps < 8, "the clock was set back"
        net(fresh[:, :4], cache=beside)
        replace_rows(cache, beside, [1], 3, kinds)
        net(fresh[:, :4], cache=alone)
        x[1, 11:15] = fresh[0, 4:8]
        for t in range(11, 15):
            y = net(x[:, t : t + 1], cache=cache)
            expected = net(fresh[:, t - 7 : t - 6], cache=alone)
            torch.testing.assert_close(y[1], expected[0], atol=1e-4, rtol=1e-4)
        going_on = TimeCache(4)
        net(x[[0, 2], :4], cache=going_on)
        for t in range(4, 15):
            expected = net(x[[0, 2], t : t + 1], cache=going_on)
        torch.testing.assert_close(y[[0, 2]], expected, atol=1e-4, rtol=1e-4)


# keys and a camera


def test_actions_of_minerl_by_name_and_by_class():
    codec = ActionCodec(ActionSpace.minerl("MineRLObtainDiamond-v0"))
    space = dream_action_space(codec)
    draws = batch_space(space, 6)
    draws.seed(0)
    actions = draws.sample()
    codes = encode_actions(codec, space, actions, 6)
    decoded = codec.decode(codes)
    assert (decoded["forward"] == actions["forward"]).all()
    crafted = [codec.space.choices["craft"][i] for i in actions["craft"]]
    assert decoded["craft"].tolist() == crafted
    classes = dream_action_space(codec, "classes")
    assert classes.nvec.tolist() == list(codec.sizes)
    assert (encode_actions(codec, classes, codes, 6) == codes).all()


def one_action(**changes):
    "A single action of Treechop, with the first axis that a batch has"
    codec = ActionCodec(ActionSpace.minerl_treechop())
    action = dict.fromkeys(codec.space.keys, [0]) | {"camera": [[0.0, 0.0]]} | changes
    return encode_actions(codec, dream_action_space(codec), action, 1)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(jump=[2]), "action: 'jump': 2 is not in Discrete"),
        (dict(jump=[0.5]), "action: 'jump': .*0.5.* is not in Discrete"),
        (dict(camera=[[0, 400]]), "action: 'camera': .*400.* is not in Box"),
        (dict(camera=[[0, 0, 0]]), "action: 'camera': shape"),
        (dict(fly=[1]), "action: has .*fly. Hint: give a dictionary of all of"),
    ],
)
def test_an_action_outside_of_its_space(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        one_action(**changes)
    assert "Hint: " in str(error.value) and "\n" not in str(error.value)


# errors


@pytest.mark.parametrize("action", [6, -1, 0.5, "left", None, [1, 2]])
def test_an_action_that_there_is_not(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action: .* Hint: action_space.sample") as error:
        env.step(action)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(episode=99), "episode: 99 does not exist. Hint: take one from 0 to 5"),
        (dict(episode=0, step=1000), "step: 1000 is not in episode 0. Hint"),
        (dict(step=3), "step without episode is unknown. Hint"),
        (dict(speed=3), "options: speed is unknown. Hint"),
    ],
)
def test_a_beginning_that_there_is_not(env, options, words):
    with pytest.raises(ValueError, match=words):
        env.reset(options=options)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(observation="sound"), "observation: 'sound' is unknown. Hint: take one of pic"),
        (dict(actions="words"), "actions: 'words' is unknown. Hint: take one of world"),
        (dict(part="test"), "part: 'test' is unknown. Hint: take one of train, held_out, all"),
        (dict(num_steps=0), "num_steps: 0 is not a whole number. Hint"),
        (dict(render_mode="human"), "render_mode: 'human' is unknown. Hint"),
        (dict(task=3), "task: 3.* Hint"),
    ],
)
def test_a_setting_that_there_is_not(run, options, words):
    with pytest.raises(ValueError, match=words) as error:
        DreamEnv(run, **options)
    assert "\n" not in str(error.value)


def test_a_step_without_a_dream(run):
    with pytest.raises(ResetNeeded, match="Hint: call reset"):
        DreamEnv(run).step(0)
    with pytest.raises(ResetNeeded, match="Hint: call reset"):
        DreamVectorEnv(2, run).step([0, 0])


def test_seeds_that_are_too_few(run):
    with pytest.raises(ValueError, match="seed: 2 seeds for 3 dreams. Hint"):
        DreamVectorEnv(3, run).reset(seed=[1, 2])


@pytest.mark.parametrize("make", [DreamEnv, lambda run: DreamVectorEnv(2, run)])
def test_a_folder_that_is_no_run_or_has_no_agent(tmp_path, make):
    with pytest.raises(RunError, match="run.json: no run here. Hint"):
        make(tmp_path / "nothing")
    Run(tmp_path / "new", named("smoke"), progress=False)
    with pytest.raises(RunError, match="agent is not done. Hint: run dreamer4 train"):
        make(tmp_path / "new")


def test_a_run_whose_checkpoint_is_gone(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    shutil.rmtree(copy / "agent")
    with pytest.raises(RunError, match="agent is not done"):
        DreamEnv(copy)
    state = json.loads((copy / "run.json").read_text())
    assert "agent" in state["stages"]


# learning


needs_sb3 = pytest.mark.skipif(
    find_spec("stable_baselines3") is None,
    reason="no Stable-Baselines3: pip install stable-baselines3",
)


@needs_sb3
def test_stable_baselines_has_no_objection(run):
    from stable_baselines3.common.env_checker import check_env as check

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(DreamEnv(run), skip_render_check=True)


@needs_sb3
def test_a_dream_begins_anew_in_the_step_in_which_it_ends(run):
    dreams = DreamVectorEnv(3, run, observation="latents", num_steps=4)
    always(dreams.dreams, 1.0)
    envs = stable_baselines_env(dreams)
    envs.seed(0)
    first = envs.reset()
    for _ in range(3):
        envs.step([0, 1, 2])
    newest, rewards, ended, infos = envs.step([0, 1, 2])
    assert ended.all()
    for i, info in enumerate(infos):
        assert (info["terminal_observation"] != newest[i]).any()
    envs.seed(0)
    assert (envs.reset() == first).all()


@needs_sb3
def test_ppo_learns_in_the_dream():
    "Of the run in the package: what PPO earns of dreamed logs in its first and last steps"
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    class Rewards(BaseCallback):
        def _on_training_start(self):
            self.means = []

        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.means.append(float(self.model.rollout_buffer.rewards.mean()))

    envs = DreamVectorEnv(16, PRETRAINED, observation="features", num_steps=10)
    rewards = Rewards()
    ppo = PPO(
        "MlpPolicy",
        stable_baselines_env(envs),
        learning_rate=1e-3,
        n_steps=32,
        batch_size=128,
        gamma=0.9,
        seed=0,
        device="cpu",
    )
    ppo.learn(6 * 512, rewards)
    assert np.mean(rewards.means[-2:]) > 1.5 * rewards.means[0] + 0.02, rewards.means

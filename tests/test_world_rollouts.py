"Rollouts in true worlds: whose steps they are, how episodes end, and what a trainer gets"

import gymnasium
import numpy as np
import pytest
import torch

from dreamer4_nb.config import AgentConfig, DynamicsConfig, ImaginationConfig, TokenizerConfig
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.observations import Observation, ObservationTokens
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models.agent import Agent
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.models.tokenizer import Tokenizer
from dreamer4_nb.policy.pmpo import ImaginationTrainer
from dreamer4_nb.policy.world_rollouts import FeatureReader, WorldRollouts
from dreamer4_nb.worlds.registry import Task
from dreamer4_nb.worlds.world import World

CONTEXT = 4  # shorter than most rollouts, so that rings of caches turn


class Ages(World):
    "Shows its seed and its age, pays for *go*, and is over after two to five steps."

    space = ActionSpace.flat(["wait", "go"])
    env_id = "Ages-v0"
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    num_steps = 30
    lives = (2, 5)

    def __init__(self, seed=None):
        self.reset(seed=seed)

    def reset(self, *, seed=None, options=None):
        self.world_seed = seed
        self.elapsed = 0
        self.terminated = self.truncated = False
        self.life = int(np.random.default_rng(seed).integers(*self.lives, endpoint=True))
        return self.frame(), {}

    def step(self, action):
        self.elapsed += 1
        self.terminated = self.elapsed >= self.life
        self.truncated = self.elapsed >= self.num_steps
        return self.frame(), float(action), self.terminated, self.truncated, {}

    def frame(self):
        return frame_of(self.world_seed or 0, self.elapsed)

    def observations(self):
        return {"compass$angle": float(30 * self.elapsed)}


class Immortal(Ages):
    lives = (10**6, 10**6)


class OwnLimit(Immortal):
    "Cuts itself off at seven steps, which its task does not know."

    num_steps = 7


def frame_of(seed, age):
    frame = np.full((64, 64, 3), 8 * age, np.uint8)
    frame[:32] = 40 * (seed % 6)
    return frame


def models(attention="factorised", frame_stack=True, tokens=None):
    torch.manual_seed(0)
    codec = ActionCodec(Ages.space)
    size = dict(width=32, depth=2, num_heads=4, num_kv_heads=2, time_every=2)
    dynamics = DynamicsConfig(
        **size, context=CONTEXT, context_signal=1.0, frame_stack=frame_stack
    )
    tokenizer = TokenizerConfig(
        width=32,
        depth=2,
        num_heads=4,
        num_latents=4,
        time_every=2,
        latent_dim=8,
        context=CONTEXT,
        attention=attention,
    )
    count = 4 + (tokens.num_tokens if tokens else 0)
    agent = Agent(
        Dynamics(dynamics, count, 8, codec),
        codec,
        AgentConfig(hidden=32, mtp=1),
        observation_tokens=tokens,
    )
    torch.nn.init.normal_(agent.policy.outs[0].weight)
    return Tokenizer(tokenizer), agent.eval()


def make_source(world=Ages, horizon=12, worlds=6, num_steps=30, staggered=False, **settings):
    tokenizer, agent = models(**settings)
    config = ImaginationConfig(horizon=horizon, contexts=worlds)
    task = Task(world.env_id, world, num_steps)
    source = WorldRollouts(tokenizer, agent, config, task, staggered=staggered)
    return source, agent, torch.Generator().manual_seed(0)


@pytest.mark.parametrize("attention", ["factorised", "dense"])
@pytest.mark.parametrize("frame_stack", [True, False])
def test_rows_are_what_actors_see_that_play_alone(attention, frame_stack):
    "Although worlds end at different steps and memories lose rows"
    source, agent, generator = make_source(attention=attention, frame_stack=frame_stack)
    frames = []  # of all worlds, before each step and after it
    step = source.worlds.step

    def watched(actions):
        frames.append(source.worlds.frames())
        return step(actions)

    source.worlds.step = watched
    rollout = source(None, agent.policy, generator)
    assert (rollout.cont == 0).sum() > 12
    for row in range(6):
        reader = None
        for t, frame in enumerate(frames):
            if reader is None:
                reader = FeatureReader(source.tokenizer, agent)
            else:
                reader.last_actions = rollout.actions[row : row + 1, t - 1]
            features = reader.read(frame[row : row + 1])
            torch.testing.assert_close(rollout.features[row, t], features[0])
            if rollout.cont[row, t] == 0:
                reader = None


def test_what_a_rollout_holds():
    source, agent, generator = make_source()
    rollout = source(None, agent.policy, generator)
    assert rollout.features.shape == (6, 13, 32)
    assert rollout.actions.shape == (6, 12, 1)
    assert torch.equal(rollout.rewards, rollout.actions[..., 0].float())
    assert rollout.rewards.dtype == rollout.cont.dtype == torch.float32
    drawn_by = agent.action_distribution(rollout.features[:, :-1])
    torch.testing.assert_close(rollout.log_probs, drawn_by.log_prob(rollout.actions))
    assert not rollout.features.is_inference()
    assert source.steps == 72


def test_seeds_are_fresh():
    source, agent, generator = make_source()
    seeds = []
    for world in source.worlds.worlds:
        reset = world.reset
        world.reset = lambda seed, reset=reset: (seeds.append(seed), reset(seed=seed))[1]
    for _ in range(3):
        source(None, agent.policy, generator)
    assert seeds == list(range(3_000_000, 3_000_000 + len(seeds)))
    assert len(seeds) > 30


def test_worlds_continue_and_a_short_rest_is_left():
    source, agent, generator = make_source(Immortal, horizon=7)
    rollouts = []
    ages = []
    for _ in range(5):
        rollouts.append(source(None, agent.policy, generator))
        ages.append(source.worlds.worlds[0].elapsed)
    assert ages == [7, 14, 21, 28, 7]
    for before, after in zip(rollouts[:3], rollouts[1:4]):
        assert torch.equal(before.features[:, -1], after.features[:, 0])
    assert not torch.equal(rollouts[3].features[:, -1], rollouts[4].features[:, 0])
    assert all(rollout.cont.all() for rollout in rollouts)
    assert len(source.readers) == 1


def test_staggered_worlds_are_of_all_ages():
    source, agent, generator = make_source(Immortal, horizon=7, staggered=True)
    ages = []
    for _ in range(8):
        source(None, agent.policy, generator)
        ages.append([world.elapsed for world in source.worlds.worlds])
    assert ages[0] == [7] * 6
    assert ages[1] == [7, 14, 14, 14, 7, 14]
    assert ages[-1] == [21, 14, 7, 28, 21, 14]
    assert sorted(len(reader.worlds) for reader in source.readers) == [1, 1, 2, 2]


def test_an_episode_that_ends_with_the_rollout():
    "A time limit leaves a value, the end of the game does not."
    source, agent, generator = make_source(Immortal, horizon=5, num_steps=5)
    assert source(None, agent.policy, generator).cont.all()
    assert source(None, agent.policy, generator).cont.all()

    class FiveSteps(Ages):
        lives = (5, 5)

    source, agent, generator = make_source(FiveSteps, horizon=5)
    for _ in range(2):
        rollout = source(None, agent.policy, generator)
        assert rollout.cont[:, :-1].all()
        assert not rollout.cont[:, -1].any()


def test_a_world_that_cuts_itself_off():
    source, agent, generator = make_source(OwnLimit, horizon=10)
    rollout = source(None, agent.policy, generator)
    assert rollout.cont[0].tolist() == [1.0] * 6 + [0.0] + [1.0] * 3


def test_what_is_observed_beside_the_picture():
    compass = ObservationTokens([Observation("compass$angle")], token_dim=8, multiple=2)
    source, agent, generator = make_source(tokens=compass)
    rollout = source(None, agent.policy, generator)
    assert rollout.features.shape == (6, 13, 32)


def test_another_generator_is_taken():
    source, agent, _ = make_source(Immortal, horizon=3)
    first = source(None, agent.policy, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    source(None, agent.policy, generator)
    assert source.readers[0].generator is source.readers[0].dream.generator is generator
    assert first.features.isfinite().all()


def test_more_worlds_than_can_be_open():
    tokenizer, agent = models()
    task = Task("Ages", Ages, 30, most_open=2)
    config = ImaginationConfig(contexts=3)
    with pytest.raises(ValueError, match="contexts = 3: Ages can have 2 worlds open at once"):
        WorldRollouts(tokenizer, agent, config, task)


@pytest.mark.parametrize("objective", ["pmpo", "ppo", "awr"])
def test_a_trainer_learns_what_the_world_pays(objective):
    tokenizer, agent = models()
    torch.nn.init.zeros_(agent.policy.outs[0].weight)
    config = ImaginationConfig(
        objective=objective,
        horizon=6,
        contexts=16,
        context_length=2,
        value_warmup=0,
        value_updates=2,
        replay=1,
        beta=0.1,
        gamma=0.5,
        lr=1e-2,
    )
    task = Task("Ages", Immortal, 30)
    source = WorldRollouts(tokenizer, agent, config, task)
    trainer = ImaginationTrainer(agent, config, rollout_source=source)
    batch = make_batch(
        latents=torch.zeros(1, 8, 4, 8), actions=torch.zeros(1, 9, 1, dtype=torch.long)
    )
    rewards = [trainer.step(batch)["imagined_reward"] for _ in range(10)]
    assert rewards[0] < 0.65
    assert rewards[-1] > 0.85

"Several tasks: recordings name them, windows carry them, the agent tells them apart."

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamer4_nb.config import (
    AgentConfig,
    DynamicsConfig,
    ImaginationConfig,
    TokenizerConfig,
    named,
)
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.dataset import MemoryRecordings, Recordings, task_numbers
from dreamer4_nb.data.windows import SequenceSampler, make_batch
from dreamer4_nb.files import RecordingError, read_json, with_checksum, write_json
from dreamer4_nb.models.agent import Agent, agent_loss
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.models.tokenizer import Tokenizer
from dreamer4_nb.pipeline import configure, demo
from dreamer4_nb.policy.actor import Actor
from dreamer4_nb.policy.cloning import bc_features
from dreamer4_nb.policy.rollout import RecordedRollouts, WorldModelRollouts, imagine
from dreamer4_nb.run.folder import RunError
from dreamer4_nb.run.run import Run

CODEC = ActionCodec(ActionSpace.flat(["noop", "left", "right"]))
STEPS = 20

# ---- recordings


def converted(folder, metadata, **lines):
    "A converted set of episodes without arrays: per name what its metadata say"
    episodes = []
    for name, values in metadata.items():
        line = dict(name=name, steps=STEPS, has_actions=True, has_rewards=True)
        episodes.append(line | lines.get(name, {}))
        info = folder / "episodes" / name / "info.json"
        info.parent.mkdir(parents=True)
        info.write_text(json.dumps(line | dict(metadata=values)))
    description = dict(
        format="dreamer4_nb.recordings",
        version=1,
        env_id="Toy-v0",
        action_space=CODEC.space.to_dict(),
        image_size=[8, 8],
        episodes=episodes,
    )
    write_json(folder / "dataset.json", with_checksum(description))
    return folder


def test_metadata_name_the_task_or_else_the_environment(tmp_path):
    metadata = {"a": {"task": "wood"}, "b": {}, "c": {"task": None}, "d": {"task": "axe"}}
    recordings = Recordings(converted(tmp_path, metadata))
    assert recordings.tasks == ("Toy-v0", "axe", "wood")
    assert recordings.task_index.tolist() == [2, 0, -1, 1]
    assert recordings.task_index.dtype == np.int64
    assert [recordings.task_of(i) for i in range(4)] == ["wood", "Toy-v0", None, "axe"]


def test_the_list_of_episodes_is_believed_first(tmp_path):
    folder = converted(tmp_path, {"a": {"task": "wood"}}, a=dict(task="axe"))
    assert Recordings(folder).tasks == ("axe",)


def test_plain_video_has_no_task(tmp_path):
    unlabelled = dict(has_actions=False, has_rewards=False)
    folder = converted(tmp_path, {"a": {"task": "wood"}, "film": {}}, film=unlabelled)
    assert Recordings(folder).task_index.tolist() == [0, -1]
    only_films = converted(tmp_path / "films", {"film": {}}, film=unlabelled)
    assert Recordings(only_films).tasks == ()
    assert task_numbers(Recordings(only_films)) is None


def test_the_order_can_be_given_and_unknown_tasks_are_refused(tmp_path):
    folder = converted(tmp_path, {"a": {"task": "wood"}, "b": {"task": "axe"}})
    assert Recordings(folder, ["wood", "iron", "axe"]).task_index.tolist() == [0, 2]
    with pytest.raises(RecordingError, match="task: axe, but the tasks are wood. Hint"):
        Recordings(folder, ["wood"]).split()


def test_a_task_that_is_no_name_is_refused(tmp_path):
    folder = converted(tmp_path, {"a": {"task": 3}})
    with pytest.raises(RecordingError, match="info.json: metadata.task: 3. Hint"):
        assert Recordings(folder).tasks


def test_every_task_is_split(tmp_path):
    metadata = {f"a{i}": {"task": "wood"} for i in range(18)}
    metadata |= {f"b{i}": {"task": "axe"} for i in range(2)}
    recordings = Recordings(converted(tmp_path, metadata))
    train, held_out = recordings.split(0.1)
    assert sorted(train.names + held_out.names) == sorted(recordings.names)
    for part, counts in [(train, [1, 16]), (held_out, [1, 2])]:
        assert np.bincount(part.task_index).tolist() == counts
        assert part.tasks == ("axe", "wood")
        assert part.subset([0]).tasks == ("axe", "wood")


def test_two_episodes_of_two_tasks_are_split(tmp_path):
    recordings = Recordings(converted(tmp_path, {"a": {"task": "x"}, "b": {"task": "y"}}))
    assert [len(part) for part in recordings.split()] == [1, 1]


# ---- windows


def of_tasks(tasks, rewards=None):
    "Black films that are paid at the end, or as said"
    count = len(tasks)
    at_the_end = np.eye(STEPS, dtype=np.float32)[-1]
    return MemoryRecordings(
        [np.zeros((STEPS + 1, 3, 2, 2), np.uint8)] * count,
        [np.zeros((STEPS, 1), np.int64)] * count,
        rewards or [at_the_end] * count,
        tasks=tasks,
    )


def test_windows_carry_the_task_of_their_recording():
    world = of_tasks(["water", None, "wood", "water"])
    assert world.tasks == ("water", "wood")
    batch = SequenceSampler(world, 64, 8, relevant_fraction=0.5).batch(0)
    assert batch.task.dtype == torch.int64
    assert batch.task.tolist() == [[0, -1, 1, 0][i] for i in batch.episode]
    assert (batch.task[batch.relevant] >= 0).all()
    assert torch.equal(batch.window().task, batch.task)
    assert torch.equal(batch.select(slice(0, 3)).task, batch.task[:3])


def test_naming_the_only_task_changes_no_window():
    named = SequenceSampler(of_tasks(["wood"] * 3), 16, 8)
    unnamed = SequenceSampler(of_tasks([None] * 3), 16, 8)
    for number in range(3):
        batch = named.batch(number)
        other = unnamed.batch(number)
        assert batch.task.tolist() == [0] * 16
        assert other.task is None
        for name, tensor in other.tensors().items():
            assert torch.equal(tensor, batch.tensors()[name])


@pytest.mark.parametrize("batch_size", [6, 9])
def test_relevant_windows_are_shared_out_equally_however_rare_a_task(batch_size):
    world = of_tasks(["wood"] * 19 + ["water"])
    sampler = SequenceSampler(world, batch_size, 8, horizon=0, relevant_fraction=1.0)
    counts = torch.zeros(2)
    for number in range(40):
        own = torch.bincount(sampler.batch(number).task, minlength=2)
        assert abs(own[0] - own[1]) <= 1
        counts += own
    assert abs(counts[0] / counts.sum() - 0.5) < 0.05


def test_importance_undoes_the_sharing():
    world = of_tasks(["wood"] * 19 + ["water"])
    batch = SequenceSampler(world, 4000, 8, horizon=0, relevant_within=0).batch(0)
    assert abs(batch.importance.mean() - 1) < 0.05
    water = (batch.task == world.tasks.index("water")).float()
    assert water.mean() > 0.2
    assert abs((water * batch.importance).mean() - 1 / 20) < 0.01


def test_windows_of_no_task_can_be_left_out():
    world = of_tasks([None, "wood", None, "water", None])
    sampler = SequenceSampler(world, 64, [(8, 1), (20, 1)], with_task=True)
    for number in range(4):
        assert set(sampler.batch(number).episode.tolist()) <= {1, 3}
    without = of_tasks(["wood", None])
    without.task_index[:] = -1
    with pytest.raises(ValueError, match="no episode has a task. Hint: name it"):
        SequenceSampler(without, 4, 8, with_task=True)


def test_a_task_that_never_pays_is_copied_everywhere():
    world = of_tasks(["wood", "water"], [np.ones(STEPS, np.float32), np.zeros(STEPS)])
    batch = SequenceSampler(world, 200, 8).batch(0)
    of_water = batch.relevant & (batch.task == world.tasks.index("water"))
    assert of_water.sum() == 50
    assert len(batch.start[of_water].unique()) > 10
    assert SequenceSampler(world, 4, 8, relevant_fraction=0).batch(0).task is not None


# ---- the agent

B, T, MTP = 6, 4, 2


def make_agent(num_tasks=2, tasks=()):
    torch.manual_seed(0)
    config = DynamicsConfig(
        width=32, depth=2, num_heads=4, num_kv_heads=2, time_every=2, context=8
    )
    dynamics = Dynamics(config, 4, 8, CODEC, num_tasks)
    agent = Agent(dynamics, CODEC, AgentConfig(hidden=32, mtp=MTP), tasks)
    for head in (agent.policy, agent.reward, agent.cont):
        torch.nn.init.normal_(head.outs[0].weight, std=0.2)
    return agent


def fake_batch(task=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    reach = T + MTP + 1
    return make_batch(
        latents=torch.randn(B, T, 4, 8, generator=g).tanh(),
        actions=torch.randint(0, 3, (B, reach, 1), generator=g),
        rewards=(torch.rand(B, reach, generator=g) < 0.3).float(),
        relevant=torch.arange(B) >= B // 2,
        task=None if task is None else torch.tensor(task),
    )


def seeded():
    return torch.Generator().manual_seed(3)


def losses_and_gradients(agent, batch):
    terms = agent_loss()(agent, batch, seeded())
    agent.zero_grad()
    sum(terms[name].mean for name in ("shortcut", "policy", "reward", "cont")).backward()
    gradients = [p.grad for p in agent.parameters() if p.grad is not None]
    return [*(terms[k].mean.detach() for k in ("policy", "reward", "cont")), *gradients]


def test_one_task_is_the_same_to_the_bit_named_or_not():
    agent = make_agent(num_tasks=1)
    unnamed = losses_and_gradients(agent, fake_batch())
    named = losses_and_gradients(agent, fake_batch([0] * B))
    assert all(map(torch.equal, unnamed, named))


def test_every_loss_of_a_head_depends_on_the_task_and_the_video_does_not():
    agent = make_agent()
    first = agent_loss()(agent, fake_batch([0] * B), seeded())
    second = agent_loss()(agent, fake_batch([1] * B), seeded())
    assert torch.equal(first["shortcut"].mean, second["shortcut"].mean)
    for name in ("policy", "reward", "cont"):
        assert first[name].mean != second[name].mean


def test_windows_of_no_task_teach_the_video_alone():
    agent = make_agent()
    batch = fake_batch([0, -1, 1, 1, -1, 0])
    other = replace(
        batch,
        actions=batch.actions.clone(),
        rewards=batch.rewards.clone(),
        is_terminal=batch.is_terminal.clone(),
    )
    other.actions[[1, 4]] = (batch.actions[[1, 4]] + 1) % 3
    other.rewards[[1, 4]] += 1
    other.is_terminal[[1, 4]] = True
    h = torch.randn(B, T, 32, generator=seeded())
    before = agent.head_losses(h, batch, batch.relevant)
    after = agent.head_losses(h, other, other.relevant)
    for name in ("policy", "reward", "cont"):
        assert torch.equal(before[name].mean, after[name].mean)
    assert before["cont"].count == 4 * T
    assert agent_loss()(agent, batch, seeded())["shortcut"].count > 0


def test_a_task_without_an_embedding_is_refused():
    agent = make_agent()
    batch = fake_batch([0, 1, 2, 0, 1, 2])
    message = "batch: task 2, but the agent tells 2 apart. Hint: make its dynamics with"
    with pytest.raises(ValueError, match=message):
        agent_loss()(agent, batch, seeded())
    with pytest.raises(ValueError, match=message):
        agent.features(batch.latents, batch.actions[:, :T], task=batch.task)
    with pytest.raises(ValueError, match=message):
        imagine(agent, batch.latents, batch.actions[:, :T], horizon=1, task=batch.task)
    with pytest.raises(ValueError, match="tasks: a, b, c, but the dynamics tell 2 apart"):
        make_agent(2, ["a", "b", "c"])


def test_tasks_have_names_and_numbers():
    agent = make_agent(2, ["wood", "water"])
    assert [agent.task_number(task) for task in ("water", "wood", 1)] == [1, 0, 1]
    for unknown in ("gold", 2, -1):
        with pytest.raises(ValueError, match="has not learned it. Hint: choose wood, water"):
            agent.task_number(unknown)
    with pytest.raises(ValueError, match="choose 0 to 1"):
        make_agent().task_number("wood")
    assert make_agent(1).task_number("whatever it is called") == 0


def train(agent, token, steps=25):
    "Left and a reward in the first task, right and none in the second, for the same pictures"
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-2)
    generator = seeded()
    task = torch.tensor([0, 0, 1, 1])
    for _ in range(steps):
        batch = make_batch(
            latents=torch.randn(2, T, 4, 8, generator=generator).tanh().repeat(2, 1, 1, 1),
            actions=(task + 1)[:, None, None].repeat(1, T + MTP + 1, 1),
            rewards=(1.0 - task)[:, None].repeat(1, T + MTP + 1),
            relevant=torch.ones(4, dtype=torch.bool),
            task=task if token else None,
        )
        terms = agent_loss()(agent, batch, generator)
        optimizer.zero_grad()
        (terms["policy"].mean + terms["reward"].mean).backward()
        optimizer.step()
    return agent.eval().requires_grad_(False)


def asked_for(agent, task):
    "Probability of going left and the reward expected for it, on pictures of another seed"
    batch = fake_batch([task] * B, seed=9)
    h = agent.features(batch.latents, batch.actions[:, :T], task=batch.task)
    left = agent.action_distribution(h).log_probs[0][..., 1].exp().mean().item()
    return left, agent.predict_reward_and_continue(h)[0].mean().item()


@pytest.fixture(scope="module")
def knows():
    return train(make_agent(2, ["left", "right"]), token=True)


def test_the_token_tells_contradictory_tasks_apart_and_nothing_else_can(knows):
    assert asked_for(knows, 0) == pytest.approx((1, 1), abs=0.15)
    assert asked_for(knows, 1) == pytest.approx((0, 0), abs=0.15)
    guesses = train(make_agent(), token=False)
    assert asked_for(guesses, 0) == pytest.approx((0.5, 0.5), abs=0.25)


def test_cloning_reads_each_window_in_its_task_and_copies_no_unknown_one():
    agent = make_agent()
    batch = fake_batch([0, 1, -1, 0, 1, -1])
    features, actions = bc_features(agent, iter([batch]), 1, generator=seeded())
    assert len(features) == len(actions) == 4 * T
    other = fake_batch([1, 1, -1, 0, 1, -1])
    changed, _ = bc_features(agent, iter([other]), 1, generator=seeded())
    differs = (features - changed).abs().amax(1) > 1e-4
    assert differs[:T].all() and not differs[T:].any()


@pytest.mark.parametrize("source", [WorldModelRollouts, RecordedRollouts])
def test_rollouts_follow_the_task_of_their_window(source):
    agent = make_agent()
    config = ImaginationConfig(horizon=2, context_length=2)

    def features(task):
        rollout = source(agent, config)(fake_batch(task), agent.policy, seeded())
        return rollout.features[:, 0]

    differs = (features([0] * B) - features([0, 1, 0, 1, 0, 1])).abs().amax(1) > 1e-4
    assert differs.tolist() == [False, True] * 3


def test_the_actor_plays_what_it_is_asked_for(knows):
    tokenizer = Tokenizer(
        TokenizerConfig(width=32, depth=2, num_latents=4, latent_dim=8, context=8)
    )
    frames = np.random.default_rng(0).integers(256, size=(8, 3, 64, 64), dtype=np.uint8)
    for number, name in enumerate(knows.tasks):
        for task in (number, name):
            actions = Actor(tokenizer, knows, task=task, temperature=0).act(frames)
            assert (actions == number + 1).float().mean() > 0.8


# ---- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run on two tasks, recorded and converted"
    pytest.importorskip("crafter")
    pytest.importorskip("av")
    config = configure("smoke", "drink+collect_wood").change({"data.episodes": 8})
    new = Run(tmp_path_factory.mktemp("two") / "run", config, progress=False)
    new.record()
    new.convert()
    return new


def test_a_run_gives_every_task_its_number_in_the_order_it_was_asked_for(run):
    assert run.agent_tasks == ("drink", "collect_wood")
    for part in run.data():
        assert part.tasks == run.agent_tasks
        assert set(part.task_index.tolist()) == {0, 1}
        for i, name in enumerate(part.names):
            assert part.tasks[part.task_index[i]] in name
    agent = run.build("agent")
    assert agent.num_tasks == 2
    assert agent.task_number("collect_wood") == 1
    assert Run(run.out, progress=False).agent_tasks == run.agent_tasks


def test_tasks_that_the_configuration_does_not_name_are_refused(run):
    config = run.config.change({"agent.tasks": ("drink", "swim")})
    unnamed = Run(run.out, progress=False)
    unnamed.config = config
    with pytest.raises(RecordingError, match="task: collect_wood, but the tasks are drink"):
        unnamed.data()


def test_a_run_older_than_names_is_of_one_task(run):
    old = Run(run.out, progress=False)
    old.state = {**old.state, "stages": {"convert": {"minutes": 0.1}}}
    assert old.agent_tasks == ()
    agent = old.build("agent")
    assert (agent.num_tasks, agent.task_number("collect_wood")) == (1, 0)


def test_a_task_without_recordings_is_named(run):
    other = Run(run.out, progress=False)
    other.config = run.config.change({"data.task": "drink+collect_wood+tools"})
    with pytest.raises(RunError, match="no recording of the task tools. Hint"):
        other.convert()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_on_two_tasks_is_asked_for_each(tmp_path):
    pytest.importorskip("crafter")
    config = named("smoke").change({"data.task": "collect_wood+drink"})
    run = demo(config, tmp_path / "run", progress=False, processes=1)
    results = read_json(run.out / "results.json")
    assert list(results["tasks"]) == ["collect_wood", "drink"]
    assert results["tasks"]["collect_wood"] == results["policies"]
    for returns in results["asked"].values():
        assert list(returns) == ["collect_wood", "drink"]
    report = (run.out / "report.html").read_text(encoding="utf-8")
    assert "asked for drink" in report

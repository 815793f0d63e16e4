"The world of blocks: MineRL's keys, the same numbers for the same seed, rewards paid once"

import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.convert import convert
from dreamer4_nb.data.dataset import Recordings
from dreamer4_nb.data.recordings import read_episode
from dreamer4_nb.worlds import voxel, voxel_players
from dreamer4_nb.worlds.record import record
from dreamer4_nb.worlds.registry import Task
from dreamer4_nb.worlds.voxel import AIR, GRASS_BLOCK, LEAVES, LOG, WATER, VoxelWorld
from dreamer4_nb.worlds.voxel_players import (
    KEYS,
    Digger,
    LogCollector,
    Puncher,
    RandomKeys,
    Stroller,
)
from dreamer4_nb.worlds.voxel_tasks import (
    NAVIGATE_KINDS,
    PICKAXE_KINDS,
    PICKAXE_REWARDS,
    Navigator,
    PickaxeMaker,
    VoxelNavigate,
    VoxelObtainPickaxe,
    bears,
    ways_to,
)
from dreamer4_nb.worlds.world import PlayerKind, World, draw_kind, play_episode

root = Path(__file__).resolve().parent.parent


def random_actions(count, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        action = {name: int(rng.random() < 0.4) for name in KEYS}
        yield action | {"camera": rng.uniform(-10, 10, 2).astype(np.float32)}


def play(world, actions):
    "Frames, rewards and counters after each step."
    frames, rewards, counters = [], [], []
    for action in actions:
        observation, reward, *_ = world.step(action)
        frames.append(observation["pov"])
        rewards.append(reward)
        counters.append(world.counters.copy())
    return np.stack(frames), np.array(rewards), np.stack(counters)


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def before_log():
    "A player on open ground, two blocks from a trunk of four logs."
    world = VoxelWorld()
    world.reset(seed=0)
    world.blocks[:, :, 10:] = AIR
    world.blocks[:, :, 9] = GRASS_BLOCK
    world.blocks[10, 13, 10:14] = LOG
    world.tops[:] = voxel.column_tops(world.blocks)
    world.player[:] = 0
    world.player[:6] = (10.5, 10.5, 10, 0, 0, voxel.STANDING)
    world.player[voxel.ON_GROUND] = 1
    world.update_aim()
    return world


def test_spaces_are_minerls():
    "As printed from MineRL 0.4.4 itself."
    world = VoxelWorld()
    names = "attack back camera forward jump left right sneak sprint".split()
    assert sorted(world.action_space) == names
    for name in names:
        if name != "camera":
            assert world.action_space[name] == gymnasium.spaces.Discrete(2)
    camera = world.action_space["camera"]
    assert (camera.shape, camera.low.min(), camera.high.max()) == ((2,), -180, 180)
    pov = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert world.observation_space == gymnasium.spaces.Dict({"pov": pov})
    assert world.space == ActionSpace.minerl_treechop()


ALL = (VoxelWorld, VoxelNavigate, VoxelObtainPickaxe)


@pytest.mark.parametrize("cls", ALL)
def test_gymnasiums_checker(cls):
    "Nothing to say but that a camera of degrees is not in fractions of 1; rendering included."
    gymnasium.register(f"Checked{cls.__name__}-v0", cls, kwargs={"num_steps": 20})
    world = gymnasium.make(f"Checked{cls.__name__}-v0").unwrapped
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(world)
    assert len(caught) == 1
    assert "symmetric and normalized" in str(caught[0].message)


@pytest.mark.parametrize("cls", ALL)
def test_is_in_its_spaces(cls):
    "Types, too: what is observed after a reset, after steps, and after a restored state."
    world = cls(action_repeat=2)
    world.action_space.seed(0)
    observation, _ = world.reset(seed=2)
    state = world.save()
    for _ in range(20):
        assert world.observation_space.contains(observation)
        observation, reward, *_ = world.step(world.action_space.sample())
        assert type(reward) is float
    assert world.observation_space.contains(world.restore(state))


@pytest.mark.parametrize("cls", ALL)
def test_vectorised_by_gymnasium(cls):
    worlds = gymnasium.vector.SyncVectorEnv([lambda: cls(2, 3)] * 2)
    observation, _ = worlds.reset(seed=[4, 5])
    alone = cls(2, 3)
    np.testing.assert_array_equal(alone.reset(seed=5)[0]["pov"], observation["pov"][1])
    worlds.action_space.seed(0)
    for n in range(4):  # the fourth step resets
        observation, _, terminated, truncated, _ = worlds.step(worlds.action_space.sample())
        assert observation["pov"].shape == (2, 64, 64, 3)
        assert not terminated.any()
        assert truncated.all() == (n == 2)


@pytest.mark.parametrize("name", ["VoxelTreechop", "VoxelNavigate", "VoxelObtainPickaxe"])
def test_made_by_name(name):
    import dreamer4_nb.worlds.registration  # noqa: F401

    worlds = gymnasium.make_vec(
        f"dreamer4_nb/{name}-v0", num_envs=2, vectorization_mode="sync", action_repeat=2
    )
    observation, _ = worlds.reset(seed=0)
    assert observation["pov"].shape == (2, 64, 64, 3)
    assert worlds.envs[0].unwrapped.env_id == f"{name}-v0"
    assert worlds.envs[0].unwrapped.action_repeat == 2


def test_in_processes():
    "Each in a process of its own, the same pictures."
    pictures = []
    for make in (gymnasium.vector.SyncVectorEnv, gymnasium.vector.AsyncVectorEnv):
        worlds = make([lambda: VoxelObtainPickaxe(2, 5)] * 2)
        worlds.reset(seed=3)
        worlds.action_space.seed(0)
        pictures.append(worlds.step(worlds.action_space.sample())[0]["pov"].copy())
        worlds.close()
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("cls", ALL)
def test_is_a_world(cls):
    "What a recorder and an agent ask of it."
    world = cls(action_repeat=2, num_steps=4)
    assert isinstance(world, World)
    assert (world.elapsed, world.terminated, world.truncated) == (0, False, False)
    world.reset(seed=1)
    codec = ActionCodec(world.space)
    decoded = codec.decode(np.array([size - 1 for size in codec.sizes]))
    action = world.action_of(decoded)
    assert action["attack"] == 1
    np.testing.assert_equal(world.named_action(action), action)
    assert world.named_action({}).keys() == action.keys()
    for n in range(4):
        before = world.save()
        observation, *_ = world.step(action)
        assert world.frame() is observation["pov"]
        assert (world.elapsed, world.terminated) == (n + 1, False)
        assert world.truncated == (n == 3)
    world.restore(before)
    assert (world.elapsed, world.truncated) == (3, False)
    world.reset()
    assert (world.elapsed, world.truncated) == (0, False)
    assert world.metadata_of_episode()["action_repeat"] == 2


@pytest.mark.parametrize("cls", ALL)
def test_observed_by_minerls_names(cls):
    "The same numbers under flat names; what is in hand by its name."
    world = cls()
    observation, _ = world.reset(seed=1)
    flat = {}
    for name, part in observation.items():
        if name != "pov":
            for key, value in part.items():
                inner = value if isinstance(value, dict) else {None: value}
                flat |= {f"{name}${key}" + (f"${k}" if k else ""): v for k, v in inner.items()}
    observed = world.observations()
    assert observed.keys() == flat.keys()
    if cls is VoxelObtainPickaxe:
        assert observed.pop("equipped_items$mainhand$type") == "air"
        del flat["equipped_items$mainhand$type"]
    assert observed == flat


@pytest.mark.parametrize("seed", [0, 7])
def test_same_seed_same_frames(seed):
    worlds = [VoxelWorld(action_repeat=2), VoxelWorld(action_repeat=2)]
    for world in worlds:
        world.reset(seed=seed)
    assert_same(*(play(world, random_actions(50, seed)) for world in worlds))


def test_another_process_draws_the_same():
    code = (
        "import zlib, numpy as np; from dreamer4_nb.worlds.voxel import VoxelWorld;"
        "w = VoxelWorld(action_repeat=2); w.reset(seed=3);"
        "[w.step(dict(forward=1, attack=1, camera=(1, 7.5))) for _ in range(20)];"
        "print(zlib.crc32(w.render().tobytes()), zlib.crc32(w.blocks.tobytes()))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout


def test_different_seeds_different_worlds():
    world = VoxelWorld()
    blocks = []
    for seed in range(4):
        world.reset(seed=seed)
        blocks.append(world.blocks.copy())
    for n in range(3):
        assert (blocks[n] != blocks[n + 1]).mean() > 0.01


def test_reset_without_seed_goes_on():
    world = VoxelWorld(seed=5)
    world.reset()
    first = world.world_seed
    world.reset()
    second = world.world_seed
    world.reset(seed=5)
    assert world.world_seed == first != second


def test_saved_and_restored(tmp_path):
    "Through a file, into a world that has been elsewhere: bit for bit."
    world = VoxelWorld(action_repeat=2)
    world.reset(seed=1)
    play(world, random_actions(40, 0))
    np.savez(tmp_path / "state.npz", **world.save())
    later = play(world, random_actions(40, 1))
    after = world.save()
    other = VoxelWorld(action_repeat=2)
    other.reset(seed=2)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        other.restore(dict(state))
    assert_same(play(other, random_actions(40, 1)), later)
    again = other.save()
    assert sorted(again) == sorted(after)
    for name in after:
        np.testing.assert_array_equal(again[name], after[name])
    world.reset()
    other.reset()  # the next world is the same, too
    assert world.world_seed == other.world_seed


def test_wrong_state_is_an_error():
    world = VoxelWorld()
    world.reset(seed=0)
    state = world.save()
    state["blocks"] = state["blocks"][:32]
    before = world.save()
    with pytest.raises(ValueError, match="'blocks'.*Hint"):
        world.restore(state)
    np.testing.assert_array_equal(world.save()["blocks"], before["blocks"])


@pytest.mark.parametrize("repeat", [1, 2, 4])
def test_camera_is_in_degrees_per_step(repeat):
    world = VoxelWorld(action_repeat=repeat)
    world.reset(seed=0)
    world.player[voxel.YAW] = 0
    world.step(dict(camera=(6, 9)))
    assert world.player[voxel.PITCH] == pytest.approx(6)
    assert world.player[voxel.YAW] == pytest.approx(9)
    world.step(dict(camera=(180, 0)))
    assert world.player[voxel.PITCH] == 90  # straight down, and no further
    world.step(dict(camera=(-180, 180)))
    assert world.player[voxel.PITCH] == -90
    assert world.player[voxel.YAW] == pytest.approx(-171)


def test_positive_is_down_and_right(before_log):
    "A log in the middle moves to the left when the camera turns right, up when it looks down."
    world = before_log

    def log_place():
        with_log = world.render().astype(int)
        logs = world.blocks[10, 13].copy()
        world.blocks[10, 13, 10:14] = AIR
        without = world.render()
        world.blocks[10, 13] = logs
        rows, columns = np.nonzero((with_log != without).any(-1))
        return rows.mean(), columns.mean()

    row, column = log_place()
    world.step(dict(camera=(0, 10)))
    assert log_place()[1] < column - 4
    world.step(dict(camera=(0, -20)))
    assert log_place()[1] > column + 4
    world.step(dict(camera=(10, 10)))
    assert log_place()[0] < row - 4


@pytest.mark.parametrize(
    "key, direction",
    [("forward", (0, 1)), ("back", (0, -1)), ("right", (1, 0)), ("left", (-1, 0))],
)
def test_keys_walk(before_log, key, direction):
    world = before_log
    world.blocks[10, 13, 10:14] = AIR
    for _ in range(20):
        world.step({key: 1})
    moved = world.player[:2] - 10.5
    assert moved @ direction == pytest.approx(4.1, abs=0.1)  # some 0.216 blocks per tick
    assert abs(moved @ direction[::-1]) < 1e-6


def test_sprint_sneak_and_jump(before_log):
    world = before_log
    world.blocks[10, 13, 10:14] = AIR
    state = world.save()

    def way(**keys):
        world.restore(state)
        highest = 0
        for _ in range(10):
            world.step(dict(forward=1, **keys))
            highest = max(highest, world.player[2] - 10)
        return world.player[1] - 10.5, highest

    walked, low = way()
    assert way(sprint=1)[0] > 1.2 * walked > 3 * way(sneak=1)[0]
    assert low == 0
    assert way(jump=1)[1] == pytest.approx(1.25, abs=0.01)


def test_sneaking_does_not_fall(before_log):
    world = before_log
    world.blocks[:, 12:, 9] = AIR
    for _ in range(100):
        world.step(dict(forward=1, sneak=1))
    assert world.player[2] == 10
    for _ in range(10):
        world.step(dict(forward=1))
    assert world.player[2] < 10


def test_a_log_pays_once(before_log):
    world = before_log
    assert world.aim == (LOG, (10, 13, 11))
    _, rewards, _ = play(world, [dict(attack=1)] * 30)
    assert np.flatnonzero(rewards).tolist() == [9]
    assert world.blocks[10, 13, 11] == AIR
    assert world.info()["logs"] == 1


@pytest.mark.parametrize("repeat", [2, 5])
def test_a_log_takes_ten_ticks_at_any_repeat(before_log, repeat):
    before_log.action_repeat = repeat
    _, rewards, _ = play(before_log, [dict(attack=1)] * 12)
    assert np.flatnonzero(rewards).tolist() == [10 // repeat - 1]


@pytest.mark.parametrize(
    "pause", [[dict()], [dict(attack=1, camera=(0, 60)), dict(attack=1, camera=(0, -60))]]
)
def test_cracks_are_reset(before_log, pause):
    "By letting go, and by looking away with the key down."
    world = before_log
    uncracked = world.render().astype(int)
    play(world, [dict(attack=1)] * 9)
    assert world.counters[voxel.WORK] == 9
    middle = (slice(20, 44), slice(20, 44))
    assert uncracked[middle].mean() - world.render()[middle].mean() > 5
    play(world, pause)
    _, rewards, _ = play(world, [dict(attack=1)] * 8)
    assert rewards.sum() == 0


def test_other_blocks_pay_nothing(before_log):
    world = before_log
    world.blocks[10, 13, 10:14] = LEAVES
    world.update_aim()
    _, rewards, _ = play(world, [dict(attack=1)] * 8)
    assert rewards.sum() == 0
    assert world.blocks[10, 13, 11] == AIR


def test_out_of_reach(before_log):
    world = before_log
    world.player[1] = 5.0
    world.update_aim()
    assert world.aim[0] == AIR
    _, rewards, _ = play(world, [dict(attack=1)] * 20)
    assert rewards.sum() == 0


def test_ends():
    world = VoxelWorld(num_steps=3)
    world.reset(seed=0)
    assert [world.step({})[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]
    assert VoxelWorld().num_steps == 8000
    assert VoxelWorld(action_repeat=2).num_steps == 4000


def test_terminates_at_the_goal(before_log):
    before_log.goal = 1
    over = [before_log.step(dict(attack=1))[2:4] for _ in range(10)]
    assert over == [(False, False)] * 9 + [(True, False)]


@pytest.mark.parametrize(
    "player", [RandomKeys(1.0), LogCollector(), Stroller(), Digger(), Puncher()]
)
def test_a_step_costs_the_same_for_ever(player):
    "The state does not grow, nor do the cells that a frame's rays visit."
    world = VoxelWorld(action_repeat=2)
    world.reset(seed=2)
    size = {name: value.nbytes for name, value in world.arrays().items()}
    attributes = set(vars(world))
    most = 2 * 64 * 64 * (voxel.FAR * np.sqrt(3) * 1.5 + voxel.HEIGHT)
    for _ in range(400):
        world.step(player.act(world))
        assert 4096 <= world.cells_visited < most
    assert {name: value.nbytes for name, value in world.arrays().items()} == size
    assert set(vars(world)) == attributes


def test_nobody_is_inside_a_block():
    "Whatever is pressed, the body stays in free cells and inside the world's height."
    world = VoxelWorld(action_repeat=2)
    for seed in range(4):
        world.reset(seed=seed)
        player = RandomKeys(1.0, seed)
        for _ in range(150):
            world.step(player.act(world))
            assert voxel.free_way(world.blocks, world.player, 2, 1e-9) >= 0
            x, y, z = world.player[:3]
            assert 1 <= z < voxel.HEIGHT + 2
            for level in (z + 0.1, z + 1.7):
                k = min(int(level), voxel.HEIGHT - 1)
                assert world.blocks[int(np.floor(x)) % 64, int(np.floor(y)) % 64, k] <= 1


def test_wrapped_around():
    "One world further on, everything is the same."
    world = VoxelWorld()
    world.reset(seed=6)
    here = world.render()
    world.player[:2] += (64, -128)
    world.update_aim()
    there = world.render()
    ground = slice(40, 64)  # clouds go on with another period
    np.testing.assert_allclose(there[ground].astype(int), here[ground], atol=2)


@pytest.mark.parametrize(
    "action, message",
    [
        (dict(fly=1), "fly"),
        (dict(attack=2), "attack"),
        (dict(camera=(np.nan, 0)), "camera"),
        (dict(camera=1.0), "camera"),
    ],
)
def test_wrong_actions_are_named(action, message):
    world = VoxelWorld()
    world.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        world.step(action)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(action_repeat=0), "action_repeat: 0. Hint"),
        (dict(num_steps=0), "num_steps: 0. Hint"),
        (dict(distance=(20, 10)), "distance: .20, 10.. Hint"),
        (dict(distance=(16, 40)), "distance: .16, 40.. Hint"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        VoxelNavigate(**options)


def test_script_beats_chance():
    def logs(make, seeds=range(4)):
        world = VoxelWorld(action_repeat=2, num_steps=150)
        total = []
        for seed in seeds:
            world.reset(seed=100 + seed)
            player = make(seed)
            total.append(play(world, (player.act(world) for _ in range(150)))[1].sum())
        return np.mean(total)

    assert logs(lambda seed: LogCollector(seed=seed)) > 7.3
    assert logs(lambda seed: RandomKeys(1.0, seed)) < 2


def test_collector_goes_for_what_it_sees(before_log):
    "With the log behind it, it turns to the right until the picture shows the log."
    world = before_log
    player = LogCollector()
    logs = world.cells_of(LOG)
    ticks = np.ones(12)
    assert player.known_logs(world, logs, logs, ticks).any()
    world.player[voxel.YAW] += 180
    assert not player.known_logs(world, logs, logs, ticks).any()
    assert LogCollector(sight=np.inf).known_logs(world, logs, logs, ticks).all()
    turns = []
    while player.choose_log(world) is None:
        action = player.act(world)
        turns.append(action["camera"][1])
        world.step(action)
    assert 10 < len(turns) < 19
    assert np.all(np.array(turns[:-1]) == 10)


def test_punching_pays_little():
    "Attack is held, and hardly a log falls."
    world = VoxelWorld(action_repeat=2, num_steps=150)
    episode = play_episode(world, Puncher(seed=0), 1)
    assert episode.named_actions["attack"].mean() > 0.2
    assert episode.rewards.sum() < 3


def short(world, players, num_steps):
    "A task with short episodes."
    options = {"action_repeat": 2, "num_steps": num_steps}
    return Task("short", world, num_steps, options, players={"usual": players})


def test_recordings_are_minerls(tmp_path):
    "Reader, converter and codec serve them; an interrupted recording ends as a whole one."
    task = short(VoxelWorld, voxel_players.VOXEL_KINDS, 30)
    paths = record(tmp_path / "a", task, episodes=4, seed=3, progress=False)
    for part in ((1, 2), (0, 2)):
        record(tmp_path / "b", task, 4, 3, part=part, progress=False)
    codec = ActionCodec(ActionSpace.minerl_treechop())
    for path in paths:
        one = read_episode(path)
        other = read_episode(tmp_path / "b" / path.relative_to(tmp_path / "a"))
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        assert len(one) == 30
        assert one.actions["camera"].shape == (30, 2)
        back = codec.decode(codec.encode(one.actions))
        np.testing.assert_allclose(back["camera"], one.actions["camera"], atol=1e-5)
        assert one.info["action_repeat"] == 2
    convert(tmp_path / "a", tmp_path / "converted", progress=False)
    recordings = Recordings(tmp_path / "converted")
    assert len(recordings) == 4
    assert recordings.actions(0).shape == (30, 9)


def test_played_again_from_a_recording(tmp_path):
    "World seed and actions of a recording give its frames."
    task = short(VoxelWorld, voxel_players.VOXEL_KINDS, 40)
    path = record(tmp_path, task, 1, 8, kind="collector", progress=False)[0]
    episode = read_episode(path)
    world = VoxelWorld(action_repeat=2)
    observation, _ = world.reset(seed=episode.info["world_seed"])
    for t in range(len(episode)):
        np.testing.assert_array_equal(observation["pov"].transpose(2, 0, 1), episode.frames[t])
        action = {name: values[t] for name, values in episode.actions.items()}
        observation, reward, *_ = world.step(action)
        assert reward == episode.rewards[t]


def test_works_where_nothing_can_be_kept():
    "A function without a file is compiled and not kept."
    names = {}
    exec("def double(x):\n    return 2 * x\n", names)
    assert voxel.jit(names["double"])(3) == 6


# ---- tasks with choices


@pytest.mark.parametrize("cls", [VoxelNavigate, VoxelObtainPickaxe])
def test_tasks_have_minerls_spaces(cls):
    world = cls(num_steps=10)
    space = ActionSpace.minerl(cls.minerl_id)
    assert sorted(world.action_space) == sorted(space.names)
    for name, options in space.choices.items():
        assert world.action_space[name].n == len(options)


def test_observations_are_minerls():
    assert sorted(VoxelNavigate().observation_space) == ["compass", "inventory", "pov"]
    assert list(VoxelNavigate().observation_space["inventory"]) == ["dirt"]
    obtain = VoxelObtainPickaxe().observation_space
    assert sorted(obtain) == ["equipped_items", "inventory", "pov"]
    assert sorted(obtain["equipped_items"]["mainhand"]) == ["damage", "maxDamage", "type"]
    assert obtain["equipped_items"]["mainhand"]["type"].n == 9
    assert len(obtain["inventory"]) == 18


@pytest.mark.parametrize("cls", [VoxelNavigate, VoxelObtainPickaxe])
def test_tasks_are_saved_and_restored(cls):
    world = cls(action_repeat=2)
    world.reset(seed=1)
    world.change("dirt", 3)
    play(world, random_actions(20, 0))
    state = world.save()
    later = play(world, random_actions(30, 1))
    other = cls(action_repeat=2)
    other.reset(seed=2)
    other.restore(state)
    assert_same(play(other, random_actions(30, 1)), later)
    assert other.amount("dirt") == world.amount("dirt") >= 3
    plain = VoxelWorld()
    plain.reset(seed=0)
    with pytest.raises(ValueError, match="amounts.*Hint"):
        other.restore(plain.save())


def test_navigator_is_paid_at_the_block():
    "In every one of eight worlds, and only there."
    world = VoxelNavigate(action_repeat=2, num_steps=200)
    for seed in range(8):
        episode = play_episode(world, Navigator(seed=seed), 100 + seed)
        assert episode.terminated
        assert episode.rewards[-1] == episode.rewards.sum() == 100
        assert episode.achievements == {"reached": 1}
        assert np.abs(world.goal_point() - world.player[:3])[:2].max() < 1


@pytest.mark.parametrize("distance", [(8, 12), (16, 28)])
def test_goal_lies_on_dry_land(distance):
    world = VoxelNavigate(distance=distance)
    for seed in range(12):
        world.reset(seed=seed)
        x, y, z, _ = world.place_of_goal.tolist()
        assert world.blocks[x, y, z] == voxel.DIAMOND_BLOCK
        assert world.blocks[x, y, z - 1] > WATER
        assert world.blocks[x, y, z + 1] == AIR
        apart = np.hypot(*np.subtract(world.goal_point(), world.player[:3])[:2])
        assert distance[0] - 1 < apart < distance[1] + 1


def test_ways_go_around():
    "A wall is walked around, a pool swum through, a step jumped on, a cliff fallen down."
    blocks = np.zeros((64, 64, 24), np.uint8)
    blocks[:, :, :5] = voxel.STONE
    ticks = np.full(12, np.inf)

    def way(start, goal=(20, 10, 5)):
        return ways_to(blocks, goal, ticks)[start]

    plain = way((10, 10, 5))
    assert plain == 9 * 4  # the last step touches the goal
    blocks[15, 5:16, 5:9] = voxel.STONE
    assert way((10, 10, 5)) == plain + 2 * 6 * 4
    ticks[voxel.STONE] = 4.0
    assert way((10, 10, 5)) == plain + 2 * (4 + 8)  # through the wall
    ticks[voxel.STONE] = np.inf
    blocks[15, :, 5:9] = AIR
    blocks[15, :, 5] = voxel.STONE
    assert way((10, 10, 5)) == plain + 3
    assert bears(blocks, (15, 3, 6))
    assert not bears(blocks, (15, 3, 7))
    blocks[15, :, 4] = blocks[15, :, 5] = WATER
    blocks[12:15, :, 5] = voxel.STONE
    assert way((10, 10, 5)) == plain + 3 + 6
    assert np.isinf(way((10, 10, 8)))  # nobody stands in the air


def test_compass_turns_with_the_head():
    world = VoxelNavigate()
    world.reset(seed=5)
    before = world.compass()
    observation, *_ = world.step(dict(camera=(0, 20)))
    turned = (before - float(observation["compass"]["angle"]) + 180) % 360 - 180
    assert turned == pytest.approx(20, abs=1)


def test_dirt_is_dug_and_placed():
    world = VoxelNavigate()
    world.reset(seed=5)
    for _ in range(7):
        world.step(dict(camera=(10, 0)))
    blocks = world.blocks.copy()
    while not world.amount("dirt"):
        world.step(dict(attack=1))
    assert (world.blocks != blocks).sum() == 1
    observation, *_ = world.step(dict(place="dirt"))
    assert observation["inventory"]["dirt"] == world.amount("dirt") == 0
    world.step(dict(place="dirt"))  # there is none left
    assert (world.blocks > 1).sum() == (blocks > 1).sum()


def test_recipes_take_what_they_need():
    world = VoxelObtainPickaxe()
    world.reset(seed=0)

    def does(**action):
        _, reward, *_ = world.step(action)
        return reward

    assert does(craft="planks") == 0
    world.change("log", 3)
    assert does(craft="planks") == 1 + 2  # the log is there, too
    assert does(craft="planks") == does(craft="planks") == 0  # once
    assert (world.amount("log"), world.amount("planks")) == (0, 12)
    assert does(craft="stick") == 4
    assert does(craft="crafting_table") == 4
    assert does(nearbyCraft="wooden_pickaxe") == 0  # no table stands near
    x, y, z = np.floor(world.player[:3]).astype(int)
    world.put_block((x + 2, y, z), voxel.CRAFTING_TABLE)
    assert does(nearbyCraft="wooden_pickaxe") == 8
    assert world.tool == "air"
    does(equip="stone_pickaxe")
    assert world.tool == "air"  # the player has none
    does(equip="wooden_pickaxe")
    assert world.tool == "wooden_pickaxe"
    assert world.break_ticks(voxel.STONE) == 23
    world.change("cobblestone", 3)
    assert does() == 16
    assert does(nearbyCraft="stone_pickaxe") == 32
    assert world.is_done()


def test_haste():
    "Everything breaks faster; a recording says so."
    world = VoxelObtainPickaxe(haste=4)
    world.reset(seed=0)
    assert [world.break_ticks(kind) for kind in (LOG, voxel.DIRT, AIR)] == [15, 4, 0]
    assert world.metadata_of_episode() == {"action_repeat": 1, "haste": 4.0}
    for wrong in (0, -1, np.nan):
        with pytest.raises(ValueError, match="haste.*Hint"):
            VoxelObtainPickaxe(haste=wrong)


def test_stone_gives_nothing_to_the_hand():
    world = VoxelObtainPickaxe()
    world.reset(seed=0)
    world.collect(voxel.STONE)
    assert world.amount("cobblestone") == 0


def test_ladder_is_climbed_and_recorded(tmp_path):
    "Choices and observations go through writer, reader, converter and codec."
    task = short(VoxelObtainPickaxe, (PlayerKind("maker", 1.0, PickaxeMaker, (0, 0)),), 400)
    path = record(tmp_path / "a", task, episodes=1, seed=0, progress=False)[0]
    episode = read_episode(path)
    assert episode.terminated
    assert episode.rewards.sum() == 67
    assert "crafting_table" in episode.actions["craft"]
    assert "stone_pickaxe" in episode.actions["nearbyCraft"]
    assert episode.observations["inventory$stone_pickaxe"][-1] == 1
    assert list(episode.info["achievements"]) == list(PICKAXE_REWARDS)
    assert episode.info["achievements"]["log"] >= 3
    hand = episode.observations["equipped_items$mainhand$type"]
    assert len(hand) == len(episode) + 1
    assert sorted(set(hand.tolist())) == ["air", "wooden_pickaxe"]
    convert(tmp_path / "a", tmp_path / "converted", progress=False)
    actions = Recordings(tmp_path / "converted").actions(0)
    codec = ActionCodec(ActionSpace.minerl("MineRLObtainIronPickaxe-v0"))
    np.testing.assert_array_equal(actions, codec.encode(episode.actions))


@pytest.mark.parametrize(
    "cls, player", [(VoxelNavigate, Navigator), (VoxelObtainPickaxe, PickaxeMaker)]
)
def test_noise_presses_choices(cls, player):
    "Of random keys, and of a player that errs."
    world = cls(action_repeat=2, num_steps=100)
    codec = ActionCodec(world.space)
    for make in (RandomKeys, player):
        pressed = {name: set() for name in world.space.choices}
        for seed in range(3):
            episode = play_episode(world, make(0.7, seed), seed)
            actions = codec.encode(episode.named_actions)
            assert actions.shape == (len(episode.rewards), len(codec.sizes))
            for name, values in pressed.items():
                values |= set(episode.named_actions[name].tolist())
        for name, options in world.space.choices.items():
            assert 1 < len(pressed[name])
            assert pressed[name] <= set(options)


@pytest.mark.parametrize("kinds", [voxel_players.VOXEL_KINDS, NAVIGATE_KINDS, PICKAXE_KINDS])
def test_kinds_are_players(kinds):
    for kind in kinds:
        player = draw_kind(kinds, np.random.default_rng(0), kind.name)
        assert player.name == kind.name
        assert kind.noise[0] <= player.noise <= kind.noise[1]


def test_without_numba():
    "The modules are imported, and the world says what is missing."
    code = (
        "import sys; sys.modules['numba'] = None;"
        "import dreamer4_nb.worlds.voxel_tasks as tasks;"
        "tasks.VoxelWorld().reset(seed=0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root
    )
    assert run.returncode == 1
    assert "numba" in run.stderr.strip().split("\n")[-1]
    assert "Hint: pip install 'dreamer4_nb[demo]'" in run.stderr

"Anybody's world: every kind of observation and action, three packages, one line for bad input"

import sys
import types
from enum import IntEnum
from functools import partial

import gymnasium
import numpy as np
import pytest
import tyro
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from dreamer4_nb.config import Config, DataConfig, load_config
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.recordings import read_episode
from dreamer4_nb.data.spaces import action_space_of
from dreamer4_nb.worlds.adapt import (
    AdaptedWorld,
    FunctionPlayer,
    RandomPlayer,
    open_environment,
    player_from,
    red_column,
)
from dreamer4_nb.worlds.record import record
from dreamer4_nb.worlds.registry import Task, find_task
from dreamer4_nb.worlds.vector import VectorWorlds
from dreamer4_nb.worlds.world import PlayerKind

# what is lost is looked at where it matters
pytestmark = pytest.mark.filterwarnings("ignore:.*(rounded|not shown|does nothing)")
PICTURE = spaces.Box(0, 255, (24, 32, 3), np.uint8)


class Fake(gymnasium.Env):
    "Shows a picture of the step's number; what it is asked to get wrong, it gets wrong."

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, action=None, space=PICTURE, ends=100, render_mode=None, **wrong):
        self.action_space = action or spaces.Discrete(3)
        self.observation_space = space
        self.ends = ends
        self.render_mode = render_mode
        self.wrong = wrong
        self.taken = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.count = 0
        return self.observe(), {}

    def step(self, action):
        self.count += 1
        self.taken.append(action)
        flags = self.wrong.get("flags", (self.count >= self.ends, False))
        info = {"achievements": {"steps": self.count}}
        return self.observe(), self.wrong.get("reward", 1.0), *flags, info

    def observe(self):
        if "observation" in self.wrong:
            return self.wrong["observation"](self)
        return self.observation_space.sample()

    def render(self):
        return np.full((40, 60, 3), self.count, np.uint8)


def started(env, **options):
    world = AdaptedWorld(env, **options)
    world.reset(seed=0)
    return world


# observations


@pytest.mark.parametrize(
    "space",
    [
        PICTURE,
        spaces.Box(0, 255, (24, 32), np.uint8),
        spaces.Box(0, 255, (24, 32, 1), np.uint8),
        spaces.Box(0, 255, (3, 24, 32), np.uint8),
        spaces.Dict(screen=PICTURE),
        spaces.Dict(eyes=spaces.Tuple([spaces.Dict(left=PICTURE)])),
    ],
)
def test_every_layout_of_a_picture(space):
    world = started(Fake(space=space), image_size=(16, 20))
    assert world.frame().shape == (16, 20, 3)
    assert world.frame().dtype == np.uint8
    assert world.observation_space.contains(world.frame())
    assert world.observations() == {}


def test_a_picture_of_the_right_size_is_kept_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    world = started(KeptPicture(pixels))
    np.testing.assert_array_equal(world.frame(), pixels)
    pixels[:] = 0
    assert world.frame().any()  # a copy: environments write into their buffers


class KeptPicture(Fake):
    def __init__(self, pixels):
        super().__init__(space=spaces.Box(0, 255, pixels.shape, np.uint8))
        self.pixels = pixels

    def observe(self):
        return self.pixels


def test_channels_first_is_turned():
    pixels = np.zeros((3, 64, 64), np.uint8)
    pixels[0] = 200
    world = started(KeptPicture(pixels))
    assert world.frame()[5, 5].tolist() == [200, 0, 0]


def test_what_is_beside_the_picture():
    space = spaces.Dict(
        screen=PICTURE,
        body=spaces.Dict(speed=spaces.Box(-1, 1, (2,)), health=spaces.Discrete(9, start=1)),
        goal=spaces.Text(5),
        sound=spaces.Box(-1, 1, (1000,)),
    )
    world = started(Fake(space=space))
    others = world.observations()
    assert sorted(others) == ["body$health", "body$speed", "goal"]
    assert others["body$speed"].shape == (2,)
    assert isinstance(others["body$health"], int) and isinstance(others["goal"], str)
    assert world.lost == ("sound: not shown to the agent",)
    assert "lost: sound" in world.describe()


def test_one_of_several_pictures_is_named():
    space = spaces.Dict(screen=PICTURE, depth=spaces.Box(0, 255, (24, 32, 1), np.uint8))
    with pytest.raises(
        ValueError, match=r"has pictures screen, depth. Hint: .*picture='screen'"
    ):
        AdaptedWorld(Fake(space=space))
    assert started(Fake(space=space), picture="screen").frame().shape == (64, 64, 3)
    with pytest.raises(
        ValueError, match="'map' is not observed. Hint: choose from screen, depth"
    ):
        AdaptedWorld(Fake(space=space), picture="map")


def test_without_a_picture_the_world_is_drawn():
    space = spaces.Box(-1, 1, (4,))
    world = started(Fake(space=space, render_mode="rgb_array"))
    world.step(0)
    assert (world.frame() == 1).all()
    assert world.observations()["observation"].shape == (4,)
    assert "drawn by render" in world.describe()
    with pytest.raises(ValueError, match="no picture and draws none. Hint: .*render_mode"):
        AdaptedWorld(Fake(space=space))


def test_floats_with_a_range_are_pictures():
    space = spaces.Box(0, 1, (24, 32, 3), np.float32)
    fake = Fake(space=space, observation=lambda env: np.full((24, 32, 3), 0.5))
    assert (started(fake, picture_max=1.0).frame() == 128).all()


# actions


class Moves(IntEnum):
    up = 1
    down = 0


ACTIONS = {
    "discrete": spaces.Discrete(5),
    "started": spaces.Discrete(3, start=-1),
    "two": spaces.Discrete(2),
    "keys": spaces.MultiBinary(4),
    "grid": spaces.MultiBinary((2, 2)),
    "counts": spaces.MultiDiscrete([3, 2, 4]),
    "from one": spaces.MultiDiscrete([3, 2], start=[1, 1]),
    "box": spaces.Box(np.array([-1, 0]), np.array([1, 8]), dtype=np.float32),
    "scalar": spaces.Box(-2, 2, (), np.float32),
    "whole box": spaces.Box(0, 3, (2,), np.int32),
    "tuple": spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)]),
    "mouse": spaces.Dict(
        jump=spaces.Discrete(2), mouse=spaces.Box(-1, 1, (2,)), tool=spaces.Discrete(3)
    ),
    "minerl": spaces.Dict(
        attack=spaces.Discrete(2), camera=spaces.Box(-180, 180, (2,)), place=spaces.Discrete(4)
    ),
    "nested": spaces.Dict(
        arm=spaces.Dict(look=spaces.Box(-9, 9, (2,)), grip=spaces.Discrete(2))
    ),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_named_and_own_actions_are_inverse(name):
    world = started(Fake(ACTIONS[name]), bins=5)
    codec = ActionCodec(world.space)
    assert ActionSpace.from_dict(world.space.to_dict()) == world.space
    rng = np.random.default_rng(0)
    for _ in range(20):
        components = rng.integers(codec.sizes)
        decoded = codec.decode(components)
        action = world.action_of(decoded)
        assert world.action_space.contains(action), action
        world.step(action)
        again = codec.encode(world.named_action(action))
        np.testing.assert_array_equal(again, components)
    world.action_space.seed(0)
    for _ in range(20):
        action = world.action_space.sample()
        named = world.named_action(action)
        codec.encode(named)
        if not world.lost:
            for mine, own in zip(np.ravel(world.action_of(named)), np.ravel(action)):
                assert mine == own


@pytest.mark.parametrize("name", ["discrete", "keys", "counts", "box", "whole box", "minerl"])
def test_names_are_those_of_data_sets(name):
    "A run that learned from a data set of a world plays in that world"
    camera = "camera" if name == "minerl" else None
    assert AdaptedWorld(Fake(ACTIONS[name])).space == action_space_of(ACTIONS[name], 7, camera)


@pytest.mark.parametrize(
    "attribute",
    [
        {"get_action_meanings": lambda self: ["noop", "left", "right"]},
        {"action_names": ("noop", "left", "right")},
        {"actions": IntEnum("Actions", {"right": 2, "noop": 0, "left": 1})},
    ],
)
def test_names_of_the_environment(attribute):
    world = started(type("Named", (Fake,), attribute)())
    assert world.space == ActionSpace.flat(("noop", "left", "right"))
    assert world.action_of({"action": "right"}) == 2
    assert world.action_of({"action": 1}) == 1
    assert world.action_of({"action": np.array("2")}) == 2  # as a data set without names says
    assert world.named_action(1) == {"action": "left"}


def test_names_that_do_not_fit_are_left():
    class Named(Fake):
        actions = Moves

    assert AdaptedWorld(Named()).space == ActionSpace.flat(("0", "1", "2"))
    two = AdaptedWorld(Named(spaces.Discrete(2)))
    assert two.space == ActionSpace.flat(("down", "up"))


def camera_of(**options):
    return started(Fake(spaces.Dict(look=spaces.Box(-5, 5, (2,)))), **options)


def test_the_camera_is_in_degrees():
    down_right = {"look": (10.0, 5.0)}
    turned = camera_of().action_of(down_right)["look"]
    np.testing.assert_allclose(turned, (5, 2.5))  # ten degrees are the bound
    turned = camera_of(camera_degrees=-4.0).action_of(down_right)["look"]
    np.testing.assert_allclose(turned, (-2.5, -1.25))
    world = camera_of(camera_degrees=2.0, camera_order="yaw pitch")
    np.testing.assert_allclose(world.action_of(down_right)["look"], (2.5, 5))
    np.testing.assert_allclose(world.named_action({"look": (2.5, 5)})["look"], (10, 5))
    assert "10 degrees a step" in camera_of().describe()


def test_a_box_by_another_name_is_the_camera():
    space = spaces.Dict(aim=spaces.Box(-1, 1, (2,)), look=spaces.Box(-1, 1, (2,)))
    world = AdaptedWorld(Fake(space), camera="aim")
    assert world.space.camera == "aim"
    assert list(world.space.choices) == ["look.0", "look.1"]


def test_a_camera_of_one_number_turns_to_the_right():
    space = spaces.Dict(steer=spaces.Box(-5, 5, (1,)), go=spaces.Discrete(2))
    world = started(Fake(space), camera="steer")
    action = world.action_of({"go": 1, "steer": (3.0, 10.0)})
    assert action["steer"].tolist() == [5]
    np.testing.assert_allclose(world.named_action(action)["steer"], (0, 10))
    assert any("pitch of the camera: does nothing" in line for line in world.lost)


def test_bins_and_what_they_lose():
    with pytest.warns(UserWarning, match="^Fake: numbers are rounded to 3 bins each: action"):
        world = started(Fake(spaces.Box(-1, 1, (1,))), bins=3)
    assert world.space.choices["action.0"] == ("-1", "0", "1")
    assert world.named_action([0.4]) == {"action.0": "0"}
    assert world.lost == ("numbers are rounded to 3 bins each: action (off by up to 0.5)",)
    endless = Fake(spaces.Box(-np.inf, np.inf, (1,)))
    assert AdaptedWorld(endless, box_range=4).space.choices["action.0"][0] == "-4"


# conventions


def test_time_limits_are_no_endings():
    world = started(Fake(), num_steps=3)
    assert world.num_steps == 3
    flags = [world.step(0)[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]
    with pytest.raises(RuntimeError, match="step after the end .* Hint: call reset"):
        world.step(0)
    world.reset()
    assert world.elapsed == 0 and not world.truncated


def test_an_ending_on_the_last_step_is_one():
    world = started(Fake(ends=3), num_steps=3)
    assert [world.step(0)[2:4] for _ in range(3)][-1] == (True, False)


def test_a_world_that_says_both_ran_out_of_time():
    assert started(Fake(flags=(True, True))).step(0)[2:4] == (False, True)


def test_a_registered_limit_is_known():
    assert AdaptedWorld("CartPole-v1").num_steps == 500
    assert AdaptedWorld("CartPole-v1", action_repeat=3).num_steps == 167
    assert AdaptedWorld("CartPole-v1", num_steps=20).num_steps == 20
    assert AdaptedWorld(Fake()).num_steps is None


def test_repeated_actions_pay_together_and_stop_at_an_end():
    fake = Fake(ends=5)
    world = started(fake, action_repeat=3)
    assert world.step(1)[1:4] == (3.0, False, False)
    assert world.step(2)[1:4] == (2.0, True, False)
    assert fake.taken == world.env.unwrapped.taken == [1, 1, 1, 2, 2]
    assert world.elapsed == 2
    assert world.achievements == {"steps": 5}


def test_the_same_seed_is_the_same_episode():
    first = started(Fake())
    second = AdaptedWorld(Fake(), seed=0)
    second.reset()
    np.testing.assert_array_equal(first.frame(), second.frame())
    first.reset()
    second.reset()
    assert first.world_seed == second.world_seed != 0
    first.reset(seed=2**62)  # more than many worlds take
    assert 0 <= first.world_seed < 2**31


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_checker_of_gymnasium_passes():
    check_env(AdaptedWorld(Fake(), num_steps=5), skip_render_check=True)
    check_env(AdaptedWorld("CartPole-v1", image_size=16), skip_render_check=True)


# bad input


def broken(**wrong):
    return started(Fake(**wrong))


def grows(env):
    return np.zeros((24 + env.count, 32, 3), np.uint8)


FLOATS = {"observation": lambda env: np.linspace(0, 1, 24 * 32 * 3).reshape(24, 32, 3)}
VECTOR = spaces.Dict(screen=PICTURE, speed=spaces.Box(-1, 1, (2,)))


def with_speed(value):
    return {
        "observation": lambda env: {
            "screen": np.zeros((24, 32, 3), np.uint8),
            "speed": value if env.count else np.zeros(2),
        }
    }


BAD = [
    (
        lambda: broken(**FLOATS),
        r"'observation' is float64 from 0 to 1, not uint8.*picture_max",
    ),
    (lambda: broken(reward=None).step(0), "reward None at step 1 is no finite number"),
    (lambda: broken(reward=float("nan")).step(0), "reward nan at step 1"),
    (lambda: broken(reward=[1, 2]).step(0), r"reward \[1, 2\] at step 1"),
    (lambda: broken(reward="5").step(0), "reward '5' at step 1"),
    (lambda: broken().step(3), r"action 3 is outside its space Discrete\(3\)"),
    (lambda: broken().step(None), "action None is outside"),
    (
        lambda: broken().action_of({"action": "7"}),
        "action='7' is unknown. Hint: choose from 0",
    ),
    (lambda: broken().action_of({"action": 7}), "action=.*7.* is unknown"),
    (lambda: broken().action_of({}), "'action' is missing. Hint: give all of action"),
    (lambda: AdaptedWorld(Fake(), bins=1), "bins = 1 is wrong. Hint: give a whole number, 2"),
    (lambda: AdaptedWorld(Fake(), action_repeat=0), "action_repeat = 0"),
    (lambda: AdaptedWorld(Fake(), num_steps=2.5), "num_steps = 2.5"),
    (lambda: AdaptedWorld(Fake(), image_size=(64, 4)), "image_size = 4"),
    (lambda: AdaptedWorld(Fake(), picture_max=0), "picture_max = 0"),
    (lambda: AdaptedWorld(Fake(), box_range="wide"), "box_range = 'wide'"),
    (lambda: AdaptedWorld(Fake(), camera="action"), "camera = 'action' is none"),
    (lambda: AdaptedWorld(Fake(), camera_order="yaw"), "camera_order = 'yaw' is unknown"),
    (lambda: AdaptedWorld(Fake(), camera_degrees=0.0), "camera_degrees = 0.0"),
    (lambda: AdaptedWorld(Fake(), speed=3), "option speed is of an environment"),
    (lambda: AdaptedWorld(Fake(), wrappers="math:Wrap"), "'Wrap' is not in math"),
    (lambda: AdaptedWorld(Fake(spaces.Text(4))), "action 'action' is Text. Hint: wrap it"),
    (
        lambda: AdaptedWorld(Fake(spaces.Box(-np.inf, np.inf, (2,)))),
        "action 'action' has no bounds. Hint: give its range",
    ),
    (
        lambda: AdaptedWorld(
            Fake(spaces.Dict(look=spaces.Box(-1, 1, (2,)), turn=spaces.Box(-1, 1, (2,))))
        ),
        "has cameras look, turn. Hint: name one: camera='look'",
    ),
    (
        lambda: started(Fake(space=VECTOR, **with_speed([0, np.inf]))).step(0),
        "observation 'speed' holds inf",
    ),
    (
        lambda: started(Fake(space=VECTOR, **with_speed(None))).step(0),
        "observation 'speed' is None, no number or text",
    ),
    (lambda: broken().step("go"), "action 'go' is outside"),
]


@pytest.mark.parametrize("attempt, message", BAD)
def test_bad_input_is_one_line(attempt, message):
    with pytest.raises(ValueError, match=message) as error:
        attempt()
    text = str(error.value)
    assert "\n" not in text and "Hint: " in text and text.startswith(("Fake: ", "math:Wrap: "))


def test_a_picture_that_changes_its_size():
    world = broken(observation=grows)
    with pytest.raises(
        ValueError, match=r"changes its size from \(24, 32, 3\) to \(25, 32, 3\)"
    ):
        world.step(0)


def test_a_picture_that_is_none():
    with pytest.raises(ValueError, match="'observation' is no picture: object"):
        broken(observation=lambda env: None)


def test_before_reset_nothing_is_known():
    world = AdaptedWorld(Fake())
    with pytest.raises(RuntimeError, match="before reset. Hint: call reset"):
        world.step(0)
    with pytest.raises(RuntimeError, match="before reset. Hint: call reset"):
        world.frame()


@pytest.mark.parametrize(
    "name, options, kind, message",
    [
        (
            "CartPol-v1",
            {},
            ValueError,
            "'CartPol-v1' does not exist. Hint: did you mean CartP",
        ),
        ("zzzzzz", {}, ValueError, r"does not exist. Hint: gymnasium.pprint_registry\(\)"),
        ("CartPole-v99", {}, ValueError, "does not exist. Hint: did you mean CartPole-v"),
        (
            "no_package:X-v0",
            {},
            ImportError,
            "'no_package' is not installed. Hint: pip install",
        ),
        ("math.none:X-v0", {}, ImportError, "'math.none' is not installed. Hint: correct the"),
        ("math:X-v0", {}, ValueError, "'X-v0' does not exist"),
        ("CartPole-v1", {"speed": 2}, ValueError, r"does not open \(TypeError.*speed=2"),
        ("math:sqrt", {}, ValueError, "does not open"),
    ],
)
def test_a_name_that_does_not_open(name, options, kind, message):
    with pytest.raises(kind, match=message) as error:
        open_environment(name, **options)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{name}: ")


# players


def test_random_players_hold_what_they_press():
    world = started(Fake(spaces.MultiBinary(8)))
    player = RandomPlayer(seed=3, hold=5)
    rows = []
    for _ in range(400):
        rows.append(player.act(world))
        world.elapsed += 1
    rows = np.stack(rows)
    assert 0.4 < rows.mean() < 0.6
    changes = (rows[1:] != rows[:-1]).mean()
    assert 0.06 < changes < 0.14  # a fifth is drawn anew, half of that differs
    again = RandomPlayer(seed=3, hold=5)
    world.elapsed = 0
    np.testing.assert_array_equal(again.act(world), rows[0])


def play_left(world):
    return 1


class Sleeper:
    def __init__(self, noise=0.0, seed=0, name="sleeper"):
        self.noise = noise
        self.name = name

    def act(self, world):
        return 0


@pytest.fixture
def players():
    module = types.ModuleType("my_players")
    module.play_left = play_left
    module.Sleeper = Sleeper
    module.Fake = Fake
    module.number = 5
    sys.modules["my_players"] = module
    yield
    del sys.modules["my_players"]


def test_players_by_name(players):
    world = started(Fake())
    player = player_from("my_players:play_left")(noise=0.0, seed=1)
    assert isinstance(player, FunctionPlayer)
    assert (player.name, player.act(world)) == ("play_left", 1)
    kind = PlayerKind("left", 1.0, player_from("my_players:play_left"), (0.5, 0.5))
    drawn = kind.player(noise=0.5, seed=0, name=kind.name)
    assert {drawn.act(world) for _ in range(60)} == {0, 1, 2}
    assert player_from("my_players:Sleeper")(noise=0.1, seed=0, name="x").act(world) == 0


@pytest.mark.parametrize(
    "text, kind, message",
    [
        ("play", ValueError, "is not named in full. Hint: write module:play"),
        ("my_players:", ValueError, "is not named in full"),
        ("no_players:play", ImportError, "'no_players' is not installed"),
        ("my_players:play_lef", ValueError, "'play_lef' is not in my_players. Hint: did you"),
        ("my_players:number", ValueError, "is int. Hint: name a function"),
        ("my_players:Fake", ValueError, "has no method act"),
    ],
)
def test_a_player_that_is_not_there(players, text, kind, message):
    with pytest.raises(kind, match=message):
        player_from(text)


# recording, and worlds together


def fake_task(action, **options):
    world = partial(AdaptedWorld, env=Fake(action, VECTOR, **with_speed(np.ones(2))))
    random = PlayerKind("random", 1.0, RandomPlayer, (1.0, 1.0))
    return Task("fake", world, 6, {"num_steps": 6, **options}, players={"random": (random,)})


@pytest.mark.parametrize("name", ["discrete", "minerl", "box", "counts"])
def test_the_one_recorder_writes_it(tmp_path, name):
    task = fake_task(ACTIONS[name])
    folders = record(tmp_path, task, episodes=2, progress=False)
    episode = read_episode(folders[1])
    assert len(episode) == 6
    assert not episode.terminated
    assert episode.observations["speed"].shape == (7, 2)
    space = ActionSpace.from_dict(episode.info["action_space"])
    assert space == AdaptedWorld(Fake(ACTIONS[name])).space
    codes = ActionCodec(space).encode(episode.actions)
    assert codes.shape == (6, ActionCodec(space).num_components)
    assert episode.info["action_repeat"] == 1


def test_a_world_that_breaks_leaves_nothing_half_written(tmp_path):
    class Breaks(Fake):
        def step(self, action):
            self.wrong = {"reward": None} if self.count == 3 else {}
            return super().step(action)

    random = PlayerKind("random", 1.0, RandomPlayer, (1.0, 1.0))
    task = Task(
        "b",
        partial(AdaptedWorld, Breaks()),
        6,
        {"num_steps": 6},
        players={"random": (random,)},
    )
    with pytest.raises(ValueError, match="Breaks: reward None at step 4"):
        record(tmp_path, task, episodes=2, progress=False)
    assert list(tmp_path.rglob("*")) == []


def test_several_step_together():
    worlds = VectorWorlds(fake_task(ACTIONS["minerl"]), seeds=range(2))
    assert worlds.reset().shape == (2, 3, 64, 64)
    codes = np.zeros((2, worlds.codec.num_components), int)
    _, rewards, _, truncated = worlds.step(worlds.decode(codes))
    assert rewards.tolist() == [1, 1] and not truncated.any()


def test_a_task_by_the_name_of_its_world():
    task = find_task("gymnasium:CartPole-v1", {"action_repeat": 5, "image_size": 16})
    assert task.num_steps == 100
    worlds = VectorWorlds(task, seeds=[4])
    assert worlds.reset().shape == (1, 3, 16, 16)
    assert worlds.worlds[0].world_seed == 4


# packages that exist


def episode_of(world, steps=6, seed=0):
    player = RandomPlayer(seed=seed)
    world.reset(seed=seed)
    frames = [world.frame()]
    for _ in range(steps):
        action = player.act(world)
        assert world.action_space.contains(world.action_of(world.named_action(action)))
        world.step(action)
        frames.append(world.frame())
    return np.stack(frames)


def test_crafter_itself():
    world = AdaptedWorld("crafter:Env", length=4)
    assert world.env_id == "crafter.Env"
    assert world.space.choices["action"][:3] == ("noop", "move_left", "move_right")
    frames = episode_of(world, steps=4)
    assert frames.shape == (5, 64, 64, 3)
    assert world.truncated and not world.terminated  # nobody died
    assert world.achievements["collect_wood"] == 0
    world.reset(seed=0)
    np.testing.assert_array_equal(world.frame(), frames[0])


def test_vizdoom_with_buttons_by_number():
    pytest.importorskip("vizdoom")
    world = AdaptedWorld("vizdoom:VizdoomBasic-v1", action_repeat=4, num_steps=10)
    assert world.space == ActionSpace.flat(("noop", "attack", "move_right", "move_left"))
    frames = episode_of(world, steps=3)
    assert frames.any() and frames.shape[1:] == (64, 64, 3)
    assert list(world.observations()) == ["gamevariables"]
    world.close()


def test_the_same_seed_is_the_same_game_of_vizdoom():
    pytest.importorskip("vizdoom")
    first, second = (AdaptedWorld("vizdoom:VizdoomBasic-v1", frame_skip=4) for _ in range(2))
    episode_of(second, steps=2, seed=9)  # what came before has no influence
    np.testing.assert_array_equal(episode_of(first, seed=2), episode_of(second, seed=2))
    first.close()
    second.close()


def test_the_hunter_of_vizdoom_shoots_the_monster():
    pytest.importorskip("vizdoom")
    world = AdaptedWorld("vizdoom:VizdoomBasic-v1", frame_skip=4)
    world.reset(seed=1)
    player = player_from("dreamer4_nb.worlds.adapt:doom_hunter")(noise=0.0, seed=0)
    rewards = []
    while not (world.terminated or world.truncated):
        rewards.append(world.step(player.act(world))[1])
    assert world.terminated and not world.truncated
    assert rewards[-1] > 90
    assert not world.frame().any()  # the screen is off once the game is over
    world.close()


def test_where_the_red_things_are():
    picture = np.zeros((64, 64, 3), np.uint8)
    assert red_column(picture) is None
    picture[30:34, 47:50, 0] = 200
    assert 0.4 < red_column(picture) < 0.6


def test_vizdoom_with_keys_and_a_mouse():
    pytest.importorskip("vizdoom")
    world = AdaptedWorld("vizdoom:VizdoomDeathmatch-v1", max_buttons_pressed=0, num_steps=9)
    assert world.space.camera == "camera"
    assert {"attack", "move_forward", "speed"} <= set(world.space.keys)
    assert any("move_left_right_delta: stays 0" in line for line in world.lost)
    still = {key: 0 for key in world.space.keys}
    action = world.action_of(still | {"camera": (2.0, 5.0)})
    assert action["continuous"].tolist() == [-2, 5, 0]  # ViZDoom looks up, we look down
    np.testing.assert_allclose(world.named_action(action)["camera"], (2, 5))
    episode_of(world, steps=2)
    world.close()
    strafing = AdaptedWorld("vizdoom:VizdoomDeathmatch-v1", box_range=10)
    assert strafing.space.choices["move_left_right_delta"][0] == "-10"
    assert "attack" in strafing.space.choices["binary"]
    strafing.close()


def test_minigrid_with_and_without_its_wrapper():
    pytest.importorskip("minigrid")
    name = "minigrid:MiniGrid-Empty-5x5-v0"
    world = AdaptedWorld(name, wrappers="minigrid.wrappers:RGBImgPartialObsWrapper")
    assert world.space.choices["action"][:3] == ("left", "right", "forward")
    assert world.num_steps == 100
    episode_of(world)
    assert sorted(world.observations()) == ["direction", "mission"]
    drawn = AdaptedWorld(name)
    episode_of(drawn)
    assert "drawn by render" in drawn.describe()


# the configuration


def test_options_of_a_world_in_a_configuration(tmp_path):
    config = Config().change({"data.world_options": {"bins": "5", "fast": "true", "x": "a:b"}})
    assert dict(config.data.world_options) == {"bins": 5, "fast": True, "x": "a:b"}
    file = config.save(tmp_path / "config.json")
    assert load_config(file) == config
    file.write_text('{"data": {"world_options": {"bins": 5, "fast": true, "x": "a:b"}}}')
    assert load_config(file).data.world_options == config.data.world_options


def test_options_of_a_world_on_the_command_line():
    args = ["--data.world-options", "frame_skip", "4", "fast", "true", "wrappers", "a.b:C"]
    config = tyro.cli(Config, default=Config(), args=args)
    assert dict(config.data.world_options) == {
        "frame_skip": 4,
        "fast": True,
        "wrappers": "a.b:C",
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"a": [1]}, r"data.world_options.a = \[1\]: must be a number, a text, true or false"),
        ({"a": None}, "data.world_options.a = None: must be"),
        ({"a": float("inf")}, "data.world_options.a = inf: must be"),
        (3, "data.world_options = 3: must be names with their values"),
    ],
)
def test_options_that_no_file_can_hold(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(world_options=options)

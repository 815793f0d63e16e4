"Data sets of Minari: read, written, recognised; and all that can be wrong with one."

# ruff: noqa: E402  (imports come after the check that Minari is installed)

import json

import numpy as np
import pytest

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")

from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from dreamer4_nb.cli import main
from dreamer4_nb.data.actions import ActionSpace
from dreamer4_nb.data.convert import convert, describe_source, find_recordings, look_at
from dreamer4_nb.data.dataset import Recordings
from dreamer4_nb.data.export import write_minari
from dreamer4_nb.data.minari import minari_id, open_minari, read_minari
from dreamer4_nb.data.recordings import read_episode, write_episode
from dreamer4_nb.data.windows import SequenceSampler
from dreamer4_nb.files import RecordingError

STEPS = 6
PICTURE = spaces.Box(0, 255, (16, 16, 3), np.uint8)
rng = np.random.default_rng(0)


def pictures(count, shape=(16, 16, 3)):
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def played(**changes):
    "An episode as Minari keeps it."
    flags = np.zeros(STEPS, bool)
    parts = dict(
        observations=pictures(STEPS + 1),
        actions=np.arange(STEPS) % 3,
        rewards=np.arange(STEPS, dtype=np.float64),
        terminations=np.append(flags[1:], True),
        truncations=flags,
        infos={},
    )
    return EpisodeBuffer(**parts | changes)


def make_set(root, episodes, observation_space=PICTURE, action_space=None):
    "A data set as Minari's own storage writes it."
    root.mkdir(parents=True)
    action_space = action_space or spaces.Discrete(3)
    storage = MinariStorage.new(
        *(root / "data", observation_space, action_space), jpeg_encoding=False
    )
    storage.update_episodes(episodes)
    about = dict(dataset_id="tests/game-v0", minari_version=minari.__version__)
    storage.update_metadata(about)
    return root


def change_metadata(root, **changes):
    path = root / "data/metadata.json"
    metadata = json.loads(path.read_text()) | changes
    kept = {key: value for key, value in metadata.items() if value is not None}
    path.write_text(json.dumps(kept))


def refused(function, *args, **options):
    "The one line of an error with a hint."
    with pytest.raises((RecordingError, FileNotFoundError)) as error:
        function(*args, **options)
    text = str(error.value)
    assert "\n" not in text and "Hint: " in text, text
    return text


def record(root, name, space, terminated=True, steps=STEPS, **more):
    "A recording in MineRL's layout with everything in it."
    actions = {key: rng.integers(0, 2, steps) for key in space.keys}
    if space.camera:
        actions[space.camera] = rng.normal(0, 5, (steps, 2)).astype(np.float32)
    for key, options in space.choices.items():
        actions[key] = np.array(options)[rng.integers(0, len(options), steps)]
    observations = {
        "inventory$log": np.arange(steps + 1),
        "compass$angle": rng.normal(0, 90, steps + 1).astype(np.float32),
        "equipped_items$mainhand$type": np.array(["air", "wooden_axe"] * steps)[: steps + 1],
        "gui": np.arange(steps + 1) > 2,
        "position": rng.normal(size=(steps + 1, 3)),
        "info$health": rng.integers(0, 20, steps + 1),
    }
    return write_episode(
        *(root, "VoxelTreechop-v0", name, pictures(steps + 1), actions),
        rewards=rng.normal(size=steps).astype(np.float32),
        terminated=terminated,
        observations=observations,
        extra=dict(player="script", action_space=space.to_dict(), **more),
    )


# --- there and back


SPACES = dict(
    treechop=ActionSpace.minerl_treechop(),
    pickaxe=ActionSpace.minerl("MineRLObtainDiamond-v0"),
    flat=ActionSpace.flat(["noop", "left", "right"]),
)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_recordings_come_back_to_the_bit(tmp_path, space, data_format):
    if data_format != "hdf5":
        pytest.importorskip("pyarrow")
    folders = [
        record(tmp_path / "play", "a", space, terminated=True, task="treechop"),
        record(tmp_path / "play", "b", space, terminated=False, steps=9),
    ]
    write_minari(tmp_path / "play", tmp_path / "set", data_format=data_format)
    data = open_minari(tmp_path / "set")
    for index, folder in enumerate(folders):
        before = read_episode(folder)
        after = read_minari(data, index)
        assert np.array_equal(after.frames, before.frames)
        assert after.rewards.dtype == before.rewards.dtype
        assert np.array_equal(after.rewards, before.rewards)
        assert after.terminated == before.terminated
        assert after.info["truncated"] == (not before.terminated)
        assert after.actions.keys() == before.actions.keys()
        for name, values in before.actions.items():
            assert np.array_equal(after.actions[name], values), name
        assert after.observations.keys() == before.observations.keys()
        for name, values in before.observations.items():
            assert np.array_equal(after.observations[name], values), name
            assert after.observations[name].dtype.kind == values.dtype.kind, name
        assert after.info["player"] == "script"
    assert read_minari(data, 0).info["task"] == "treechop"
    assert read_minari(data, 1).info["task"] == "VoxelTreechop-v0"


def test_converted_recordings_are_the_same(tmp_path):
    space = SPACES["pickaxe"]
    for name in "ab":
        record(tmp_path / "play", name, space)
    convert(tmp_path / "play", tmp_path / "before", image_size=16, progress=False)
    write_minari(tmp_path / "before", tmp_path / "set")
    convert(tmp_path / "set", tmp_path / "after", image_size=16, progress=False)
    before = Recordings(tmp_path / "before")
    after = Recordings(tmp_path / "after")
    assert after.action_space == before.action_space
    assert after.env_id == before.env_id == "VoxelTreechop-v0"
    for i in range(2):
        for part in ("frames", "actions", "rewards", "terminated"):
            assert np.array_equal(getattr(after, part)(i), getattr(before, part)(i)), part


def test_minari_loads_what_is_written(tmp_path, monkeypatch):
    folder = record(tmp_path / "play", "a", SPACES["treechop"])
    dataset_id = minari_id("VoxelTreechop-v0")
    assert dataset_id == "dreamer4_nb/VoxelTreechop-v0"
    write_minari(tmp_path / "play", tmp_path / "sets" / dataset_id)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    dataset = minari.load_dataset(dataset_id)
    before = read_episode(folder)
    episode = dataset[0]
    image = episode.observations["image"]
    assert len(image) == STEPS + 1 == len(episode.rewards) + 1
    assert np.array_equal(image.transpose(0, 3, 1, 2), before.frames)
    assert np.array_equal(episode.actions["camera"], before.actions["camera"])
    assert np.array_equal(episode.rewards, before.rewards)
    assert episode.terminations.tolist() == [False] * (STEPS - 1) + [True]
    assert not episode.truncations.any()
    assert dataset.total_steps == STEPS


# --- data sets of others


OTHERS = dict(
    discrete=(spaces.Discrete(3, start=1), 1 + np.arange(STEPS) % 3, 1),
    multi_discrete=(spaces.MultiDiscrete([2, 3]), np.ones((STEPS, 2), np.int64), 2),
    multi_binary=(spaces.MultiBinary(4), np.ones((STEPS, 4), np.int8), 4),
    box=(spaces.Box(-1, 1, (2,)), np.zeros((STEPS, 2), np.float32), 2),
    dictionary=(
        spaces.Dict(camera=spaces.Box(-180, 180, (2,)), jump=spaces.Discrete(2)),
        dict(camera=np.zeros((STEPS, 2), np.float32), jump=np.ones(STEPS, np.int64)),
        2,
    ),
)


@pytest.mark.parametrize("space, actions, components", OTHERS.values(), ids=OTHERS)
def test_every_kind_of_action(tmp_path, space, actions, components):
    buffer = played(actions=actions)
    root = make_set(tmp_path / "set", [buffer], action_space=space)
    (row,) = convert(root, tmp_path / "data", image_size=16, progress=False)
    assert row["status"] == "converted"
    data = Recordings(tmp_path / "data")
    assert data.codec.num_components == components
    assert data.actions(0).shape == (STEPS, components)
    assert np.array_equal(data.frames(0).transpose(0, 2, 3, 1), buffer.observations)
    assert np.array_equal(data.rewards(0), buffer.rewards)
    assert data.terminated(0)
    assert data.info(0)["metadata"]["task"] == "tests/game-v0"


def test_bins_are_chosen_and_told(tmp_path):
    space, actions, _ = OTHERS["box"]
    root = make_set(tmp_path / "set", [played(actions=actions)], action_space=space)
    assert "rounded to 5 bins" in describe_source(root, bins=5)
    convert(root, tmp_path / "data", image_size=16, bins=5, progress=False)
    assert Recordings(tmp_path / "data").codec.sizes == (5, 5)
    (again,) = convert(root, tmp_path / "data", image_size=16, bins=5, progress=False)
    assert again["status"] == "kept"
    (again,) = convert(root, tmp_path / "data", image_size=16, bins=3, progress=False)
    assert again["status"] == "converted"


def test_dictionary_of_observations(tmp_path):
    space = spaces.Dict(
        camera=PICTURE,
        goal=spaces.Box(-1, 1, (2,)),
        pose=spaces.Dict(angle=spaces.Box(-1, 1, ())),
    )
    observations = dict(
        camera=pictures(STEPS + 1),
        goal=np.zeros((STEPS + 1, 2), np.float32),
        pose=dict(angle=np.ones(STEPS + 1, np.float32)),
    )
    infos = dict(speed=np.arange(STEPS + 1.0), note=np.zeros(3))
    buffer = played(observations=observations, infos=infos)
    root = make_set(tmp_path / "set", [buffer], space)
    episode = read_minari(open_minari(root), 0)
    assert sorted(episode.observations) == ["goal", "info$speed", "pose$angle"]
    assert np.array_equal(episode.frames.transpose(0, 2, 3, 1), observations["camera"])


@pytest.mark.parametrize("shape", [(16, 20), (16, 20, 1), (3, 16, 20), (16, 20, 3)])
def test_forms_of_pictures(tmp_path, shape):
    space = spaces.Box(0, 255, shape, np.uint8)
    observed = pictures(STEPS + 1, shape)
    root = make_set(tmp_path / "set", [played(observations=observed)], space)
    frames = read_minari(open_minari(root), 0).frames
    assert frames.shape == (STEPS + 1, 3, 16, 20)
    first = observed[0] if shape[0] == 3 else observed[0].reshape(16, 20, -1)
    assert np.array_equal(frames[0, 0], first[0] if shape[0] == 3 else first[..., 0])
    assert read_minari(open_minari(root), 0, (8, 8)).frames.shape[2:] == (8, 8)


def test_recognised_below_namespaces(tmp_path):
    root = make_set(tmp_path / "sets/D4RL/door/human-v2", [played(), played()])
    for source in (root, root / "data", root.parent, tmp_path / "sets"):
        content = look_at(source)
        assert (content.kind, content.env_id) == ("Minari", "tests/game-v0")
        assert [path.name for path in content.recordings] == [
            "episode_000000",
            "episode_000001",
        ]
    assert "2 recordings of tests/game-v0, kind Minari" in describe_source(root)
    make_set(tmp_path / "sets/other-v0", [played()])
    assert "several environments (human-v2, other-v0)" in refused(look_at, tmp_path / "sets")


def test_windows_are_drawn(tmp_path):
    root = make_set(tmp_path / "set", [played() for _ in range(3)])
    rows = convert(root, tmp_path / "data", image_size=16, progress=False)
    assert [row["status"] for row in rows] == ["converted"] * 3
    batch = next(iter(SequenceSampler(Recordings(tmp_path / "data"), 2, 4, seed=0)))
    assert batch.frames.shape[1:] == (4, 3, 16, 16)
    rows = convert(root, tmp_path / "few", image_size=16, limit=1, progress=False)
    assert len(rows) == 1


# --- bad input


@pytest.mark.parametrize("name", ["hf://lerobot/pusht", "lerobot/pusht", "D4RL/door"])
def test_nothing_is_downloaded(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    text = refused(convert, name, tmp_path / "data", progress=False)
    assert "nothing is downloaded" in text
    assert not any(tmp_path.iterdir())


def test_no_pictures(tmp_path):
    space = spaces.Box(-1, 1, (3,))
    observed = np.zeros((STEPS + 1, 3), np.float32)
    root = make_set(tmp_path / "set", [played(observations=observed)], space)
    text = refused(convert, root, tmp_path / "data", progress=False)
    assert "metadata.json: observation_space: has no picture" in text
    assert not (tmp_path / "data").exists()


def test_two_pictures(tmp_path):
    space = spaces.Dict(left=PICTURE, right=PICTURE)
    observed = dict(left=pictures(STEPS + 1), right=pictures(STEPS + 1))
    root = make_set(tmp_path / "set", [played(observations=observed)], space)
    assert "several pictures: left, right" in refused(look_at, root)
    assert "no picture 'top'" in refused(look_at, root, picture="top")
    options = dict(image_size=16, picture="right", progress=False)
    convert(root, tmp_path / "data", **options)
    frames = Recordings(tmp_path / "data").frames(0)
    assert np.array_equal(frames.transpose(0, 2, 3, 1), observed["right"])


METADATA = dict(
    space=(dict(observation_space="{"), "observation_space: cannot be read"),
    format=(dict(data_format="pickle"), "data_format: is none of"),
    count=(dict(total_episodes="x"), "total_episodes: is 'x'"),
    ours=(dict(dreamer4_nb=dict(action_space=dict(keys=["a"]))), "does not fit"),
    actions=(
        dict(
            action_space=json.dumps(dict(type="Text", max_length=3, min_length=0, charset="a"))
        ),
        "Text has no mapping",
    ),
)


@pytest.mark.parametrize("changes, words", METADATA.values(), ids=METADATA)
def test_damaged_metadata(tmp_path, changes, words):
    root = make_set(tmp_path / "set", [played()])
    change_metadata(root, **changes)
    assert words in refused(convert, root, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


def test_metadata_that_is_no_json(tmp_path):
    root = make_set(tmp_path / "set", [played()])
    (root / "data/metadata.json").write_text("{")
    assert "not readable as JSON" in refused(convert, root, tmp_path / "data")
    (root / "data/metadata.json").unlink()
    assert "metadata.json: file: is missing" in refused(convert, root, tmp_path / "data")


def test_no_code_runs_for_a_data_set_without_spaces(tmp_path):
    root = make_set(tmp_path / "set", [played()])
    spec = dict(id="Evil-v0", entry_point="os:abort")
    change_metadata(root, action_space=None, env_spec=json.dumps(spec))
    assert "action_space: is missing" in refused(convert, root, tmp_path / "data")


EPISODES = dict(
    frames=(dict(observations=pictures(STEPS)), "6 rewards need 7 observations"),
    flags=(dict(terminations=np.ones(STEPS, bool)), "terminations: true at step 0 of 6"),
    actions=(
        dict(actions=np.zeros(STEPS - 1, np.int64)),
        "has shape (5,), 6 rewards need (6,)",
    ),
    shape=(
        dict(actions=np.zeros((STEPS, 2), np.int64)),
        "has shape (6, 2), 6 rewards need (6,)",
    ),
    outside=(dict(actions=np.full(STEPS, 7)), "action 'action': is 7"),
    rewards=(dict(rewards=np.full(STEPS, np.nan)), "rewards: is no list of finite numbers"),
)


@pytest.mark.parametrize("changes, words", EPISODES.values(), ids=EPISODES)
def test_bad_episodes_are_set_aside(tmp_path, changes, words):
    root = make_set(tmp_path / "set", [played(**changes), played()])
    bad, good = convert(root, tmp_path / "data", image_size=16, progress=False)
    assert good["status"] == "converted"
    assert bad["status"] == "set aside"
    assert "episode_0: " in bad["reason"] and words in bad["reason"]
    assert "Hint: " in bad["reason"] and "\n" not in bad["reason"]


def test_file_cut_short(tmp_path):
    root = make_set(tmp_path / "set", [played()])
    path = root / "data/main_data.hdf5"
    path.write_bytes(path.read_bytes()[:2000])
    text = refused(convert, root, tmp_path / "data", progress=False)
    assert "main_data.hdf5/episode_0: episode: cannot be read" in text
    assert not (tmp_path / "data/dataset.json").exists()


def test_python_objects_are_not_read(tmp_path):
    root = make_set(tmp_path / "set", [played()])
    with h5py.File(root / "data/main_data.hdf5", "a") as file:
        group = file["episode_0"]
        del group["observations"]
        text = h5py.string_dtype()
        group.create_dataset("observations", data=["x"] * (STEPS + 1), dtype=text)
    text = refused(convert, root, tmp_path / "data", progress=False)
    assert "observations: has type object" in text


# --- bad input to the writer


def test_writer_refuses_and_leaves_nothing(tmp_path):
    space = SPACES["flat"]
    unlabelled = tmp_path / "unlabelled"
    about = dict(action_space=space.to_dict())
    write_episode(unlabelled, "A-v0", "x", pictures(4), extra=about)
    assert "has no actions" in refused(write_minari, unlabelled, tmp_path / "set")
    record(tmp_path / "play", "a", space)
    folder = record(tmp_path / "play", "b", space)
    (folder / "recording.mp4").write_bytes(b"")
    assert "recording.mp4" in refused(write_minari, tmp_path / "play", tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["play", "unlabelled"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious").touch()
    assert "is not empty" in refused(write_minari, tmp_path / "play", tmp_path / "full")
    with pytest.raises(ValueError, match="namespace/name-v0"):
        write_minari(tmp_path / "play", tmp_path / "set", dataset_id="no version")
    assert (tmp_path / "full/precious").exists()


def test_writer_wants_episodes_alike(tmp_path):
    space = SPACES["flat"]
    about = dict(action_space=space.to_dict())
    for name, size in (("a", 16), ("b", 20)):
        frames = pictures(4, (size, size, 3))
        actions = dict(action=np.zeros(3, np.int64))
        folder = write_episode(
            tmp_path, "A-v0", name, frames, actions, np.zeros(3), extra=about
        )
    assert "episode 1: pictures are (20, 20, 3)" in refused(
        write_minari, folder.parent, tmp_path / "set"
    )
    make_set(tmp_path / "other", [played()])
    assert "is of kind Minari" in refused(write_minari, tmp_path / "other", tmp_path / "set")
    assert find_recordings(folder.parent)[0] == "A-v0"


# --- the command


def command(*arguments):
    "The exit code of a command."
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code or 0
    return 0


def test_command_there_and_back(tmp_path, capsys):
    record(tmp_path / "play", "a", SPACES["flat"])
    target = tmp_path / "set"
    assert not command("convert", tmp_path / "play", target, "--to", "minari")
    assert f"a data set of Minari in {target}" in capsys.readouterr().out
    assert not command("convert", target, tmp_path / "data", "--image-size", 16)
    out = capsys.readouterr().out
    assert "set: 1 recording of VoxelTreechop-v0, kind Minari" in out
    assert "1 recording in" in out
    assert command("convert", "hf://lerobot/pusht", tmp_path / "none") == 1
    error = capsys.readouterr().err
    assert "nothing is downloaded" in error and len(error.splitlines()) == 1

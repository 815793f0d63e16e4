"Folders of LeRobot, versions 2 and 3: read, recognised; and all that can be wrong with one."

# ruff: noqa: E402  (imports come after the check that PyArrow is installed)

import io
import json
import shutil

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

import pyarrow.parquet as pq
from PIL import Image

from dreamer4_nb.data.convert import convert, describe_conversion, describe_source, look_at
from dreamer4_nb.data.dataset import Recordings
from dreamer4_nb.data.lerobot import open_lerobot, read_lerobot
from dreamer4_nb.data.video import LOSSLESS, write_video
from dreamer4_nb.data.windows import SequenceSampler
from dreamer4_nb.files import RecordingError

FPS = 10
LENGTHS = (6, 9, 7)
TOP = "observation.images.top"
WRIST = "observation.images.wrist"
JOINTS = ["shoulder", "elbow"]
FEATURES = {
    TOP: dict(dtype="video", shape=[16, 16, 3]),
    "observation.state": dict(dtype="float32", shape=[2], names=dict(motors=JOINTS)),
    "action": dict(dtype="float32", shape=[2], names=dict(motors=JOINTS)),
    "next.reward": dict(dtype="float32", shape=[1]),
    "next.done": dict(dtype="bool", shape=[1]),
    **{k: dict(dtype="int64", shape=[1]) for k in ("episode_index", "task_index")},
}
TASKS = ["stack the cubes", "open the drawer"]


def made_up(index, length):
    "The columns and the film of one episode."
    rng = np.random.default_rng(index)
    actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    rewards = np.arange(length, dtype=np.float32)
    columns = {
        "observation.state": (actions / 2).tolist(),
        "action": actions.tolist(),
        "next.reward": rewards,
        "next.done": np.arange(length) == length - 1,
        "episode_index": np.full(length, index),
        "task_index": np.full(length, index % 2),
    }
    film = rng.integers(0, 256, (length, 16, 16, 3), dtype=np.uint8)
    return columns, film


EPISODES = [made_up(index, length) for index, length in enumerate(LENGTHS)]


def write_table(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_film(path, film):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, film, fps=FPS)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_info(root, version, features=FEATURES, **changes):
    info = dict(codebase_version=version, fps=FPS, robot_type="arm", features=features)
    write_lines(root / "meta/info.json", [info | changes])


def table_of(root, index):
    return root / f"data/chunk-000/episode_{index:06d}.parquet"


def video_of(root, index, camera=TOP):
    return root / f"videos/chunk-000/{camera}/episode_{index:06d}.mp4"


def make_v2(root, version="v2.1", cameras=(TOP,)):
    "A data set of version 2, which has files for each episode."
    features = FEATURES | {camera: FEATURES[TOP] for camera in cameras}
    write_info(root, version, features)
    for index, (columns, film) in enumerate(EPISODES):
        write_table(table_of(root, index), columns)
        for number, camera in enumerate(cameras):
            write_film(video_of(root, index, camera), film if number == 0 else 255 - film)
    listed = [
        dict(episode_index=i, length=n, tasks=[TASKS[i % 2]]) for i, n in enumerate(LENGTHS)
    ]
    write_lines(root / "meta/episodes.jsonl", listed)
    tasks = [dict(task_index=i, task=text) for i, text in enumerate(TASKS)]
    write_lines(root / "meta/tasks.jsonl", tasks)
    if version == "v2.1":
        stats = dict(action=dict(min=[-1, -1], max=[1, 1]))
        rows = [dict(episode_index=i, stats=stats) for i in range(len(LENGTHS))]
        write_lines(root / "meta/episodes_stats.jsonl", rows)
    else:
        stats = dict(action=dict(min=[-2, -2], max=[2, 2]))
        write_lines(root / "meta/stats.json", [stats])
    return root


def make_v3(root):
    "A data set of version 3, with two episodes in the first file and one in the second."
    write_info(root, "v3.0")
    parts = [(0, 1), (2,)]
    rows = []
    for number, episodes in enumerate(parts):
        columns = {
            name: sum((list(EPISODES[i][0][name]) for i in episodes), [])
            for name in EPISODES[0][0]
        }
        write_table(root / f"data/chunk-000/file-{number:03d}.parquet", columns)
        film = np.concatenate([EPISODES[i][1] for i in episodes])
        write_film(root / f"videos/{TOP}/chunk-000/file-{number:03d}.mp4", film)
        start = 0.0
        for i in episodes:
            stop = start + LENGTHS[i] / FPS
            video = dict(chunk_index=0, file_index=number)
            video |= dict(from_timestamp=start, to_timestamp=stop)
            row = dict(episode_index=i, tasks=[TASKS[i % 2]], length=LENGTHS[i])
            row |= {"data/chunk_index": 0, "data/file_index": number}
            rows.append(row | {f"videos/{TOP}/{key}": value for key, value in video.items()})
            start = stop
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    write_table(root / "meta/episodes/chunk-000/file-000.parquet", columns)
    tasks = {"task_index": [0, 1], "__index_level_0__": TASKS}
    write_table(root / "meta/tasks.parquet", tasks)
    write_lines(root / "meta/stats.json", [dict(action=dict(min=[-1, -1], max=[1, 1]))])
    return root


def refused(function, *args, **options):
    "The one line of an error with a hint."
    with pytest.raises((RecordingError, FileNotFoundError)) as error:
        function(*args, **options)
    text = str(error.value)
    assert "\n" not in text and "Hint: " in text, text
    return text


MAKERS = dict(v20=lambda root: make_v2(root, "v2.0"), v21=make_v2, v30=make_v3)


# --- read


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_version_is_read(tmp_path, make):
    root = make(tmp_path / "arm")
    data = open_lerobot(root)
    for index, (columns, film) in enumerate(EPISODES):
        episode = read_lerobot(data, index, bins=5)
        assert len(episode) == LENGTHS[index] - 1
        assert np.array_equal(episode.frames.transpose(0, 2, 3, 1), film)
        assert np.array_equal(episode.observations["state"], columns["observation.state"])
        half_bin = 0.5 if make is MAKERS["v20"] else 0.25
        for joint, values in zip(JOINTS, np.transpose(columns["action"])):
            off = abs(episode.actions[joint].astype(float) - values[:-1])
            assert off.max() <= half_bin + 1e-6
        assert episode.rewards.sum() == columns["next.reward"].sum()
        assert np.array_equal(episode.rewards[:-1], columns["next.reward"][:-2])
        assert episode.terminated
        info = episode.info
        assert (info["task"], info["fps"], info["robot"]) == (TASKS[index % 2], FPS, "arm")


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_version_is_converted(tmp_path, make):
    root = make(tmp_path / "user/arm")
    for source in (root, root.parent, tmp_path):
        content = look_at(source)
        assert (content.kind, content.env_id) == ("LeRobot", "arm")
        assert len(content.recordings) == len(LENGTHS)
    rows = convert(root, tmp_path / "data", image_size=8, bins=5, progress=False)
    assert [row["status"] for row in rows] == ["converted"] * 3
    data = Recordings(tmp_path / "data")
    assert data.codec.sizes == (5, 5)
    assert data.info(1)["metadata"]["task"] == TASKS[1]
    assert data.observations(0)["state"].shape == (LENGTHS[0], 2)
    batch = next(iter(SequenceSampler(data, 2, 4, seed=0)))
    assert batch.frames.shape[1:] == (4, 3, 8, 8)
    again = convert(root, tmp_path / "data", image_size=8, bins=5, progress=False)
    assert [row["status"] for row in again] == ["kept"] * 3
    line = describe_source(root, bins=5)
    assert "3 recordings of arm, kind LeRobot; numbers are rounded to 5 bins each" in line


def test_range_is_computed_where_none_is_noted(tmp_path):
    root = make_v2(tmp_path / "arm")
    (root / "meta/episodes_stats.jsonl").unlink()
    actions = np.concatenate([np.float32(columns["action"]) for columns, _ in EPISODES])
    options = open_lerobot(root).action_space(3).choices
    for joint, values in zip(JOINTS, actions.T):
        low, _, high = map(float, options[joint])
        assert [low, high] == pytest.approx([values.min(), values.max()], abs=1e-5)


def test_one_of_two_cameras(tmp_path):
    root = make_v2(tmp_path / "arm", cameras=(TOP, WRIST))
    assert "several cameras: top, wrist" in refused(look_at, root)
    assert "no camera 'front'" in refused(look_at, root, picture="front")
    assert "--picture top" in refused(convert, root, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()
    convert(root, tmp_path / "data", image_size=16, picture="wrist", progress=False)
    frames = Recordings(tmp_path / "data").frames(0).transpose(0, 2, 3, 1)
    assert np.array_equal(frames, 255 - EPISODES[0][1])


def test_pictures_in_the_table_and_whole_number_actions(tmp_path):
    root = make_v2(tmp_path / "arm")
    shutil.rmtree(root / "videos")
    (root / "meta/episodes_stats.jsonl").unlink()
    features = FEATURES | {TOP: dict(dtype="image"), "action": dict(dtype="int64", shape=[1])}
    write_info(root, "v2.0", features)
    for index, (columns, film) in enumerate(EPISODES):
        pictures = []
        for frame in film:
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, format="PNG")
            pictures.append(dict(bytes=buffer.getvalue(), path=None))
        changed = columns | {TOP: pictures, "action": np.arange(len(film)) % 4}
        write_table(table_of(root, index), changed)
    rows = convert(root, tmp_path / "data", image_size=16, progress=False)
    assert [row["status"] for row in rows] == ["converted"] * 3
    data = Recordings(tmp_path / "data")
    assert data.codec.sizes == (4,)
    assert data.actions(1)[:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert np.array_equal(data.frames(1).transpose(0, 2, 3, 1), EPISODES[1][1])
    assert describe_source(root).endswith("kind LeRobot")


def test_no_rewards_and_time_that_was_up(tmp_path):
    root = make_v2(tmp_path / "arm")
    features = {name: f for name, f in FEATURES.items() if name != "next.reward"}
    features["next.truncated"] = dict(dtype="bool", shape=[1])
    write_info(root, "v2.1", features)
    for index, (columns, _) in enumerate(EPISODES):
        done = columns["next.done"]
        write_table(table_of(root, index), columns | {"next.truncated": done})
    episode = read_lerobot(open_lerobot(root), 0)
    assert episode.rewards is None
    assert not episode.terminated


# --- bad input


def test_missing_video_costs_its_own_episode(tmp_path):
    root = make_v2(tmp_path / "arm")
    video_of(root, 1).unlink()
    rows = convert(root, tmp_path / "data", image_size=16, progress=False)
    assert [row["status"] for row in rows] == ["converted", "set aside", "converted"]
    reason = rows[1]["reason"]
    assert f"{video_of(root, 1)}: file: is missing. Hint: " in reason
    assert "\n" not in reason
    assert len(Recordings(tmp_path / "data")) == 2
    shutil.rmtree(root / "videos")
    assert "is missing" in refused(convert, root, tmp_path / "none", progress=False)
    assert not (tmp_path / "none/dataset.json").exists()


def damage_video(root):
    path = video_of(root, 0)
    path.write_bytes(path.read_bytes()[:500])


def shorten_video(root):
    write_film(video_of(root, 0), EPISODES[0][1][:-2])


def lengthen_video(root):
    write_film(video_of(root, 0), np.concatenate([EPISODES[0][1]] * 2))


def change_table(root, **changes):
    columns = {name.replace("_", "."): values for name, values in changes.items()}
    columns = EPISODES[0][0] | columns
    kept = {name: values for name, values in columns.items() if values is not None}
    write_table(table_of(root, 0), kept)


def cut_table(root):
    path = table_of(root, 0)
    path.write_bytes(path.read_bytes()[:200])


BROKEN = dict(
    damaged_video=(damage_video, "episode_000000.mp4: video: cannot be decoded"),
    short_video=(shorten_video, "episode_000000.mp4: frames: 4, the table has 6 rows"),
    long_video=(lengthen_video, "the table has 6 rows"),
    no_table=(
        lambda root: table_of(root, 0).unlink(),
        "episode_000000.parquet: file: is missing",
    ),
    cut_table=(cut_table, "episode_000000.parquet: table: cannot be read"),
    no_column=(
        lambda root: change_table(root, action=None),
        "episode_000000.parquet: action: the column is missing",
    ),
    wrong_shape=(
        lambda root: change_table(root, action=[[0.0]] * 6),
        "action: rows of 1 numbers, meta has 2",
    ),
    ragged=(
        lambda root: change_table(root, action=[[0.0]] * 5 + [[0.0, 1.0]]),
        "action: is no column of numbers of one shape",
    ),
    text=(
        lambda root: change_table(root, action=["x"] * 6),
        "action: is no column of numbers of one shape",
    ),
    not_finite=(
        lambda root: change_table(root, next_reward=np.full(6, np.nan)),
        "next.reward: not finite in row 0",
    ),
    rows=(
        lambda root: write_table(table_of(root, 0), EPISODES[1][0]),
        "rows: 0, meta has 6 for episode 0",
    ),
)


@pytest.mark.parametrize("damage, words", BROKEN.values(), ids=BROKEN)
def test_broken_episodes_are_set_aside(tmp_path, damage, words):
    root = make_v2(tmp_path / "arm")
    damage(root)
    rows = convert(root, tmp_path / "data", image_size=16, progress=False)
    assert [row["status"] for row in rows] == ["set aside", "converted", "converted"]
    reason = rows[0]["reason"]
    assert words in reason and "Hint: " in reason and "\n" not in reason


META = dict(
    no_info=(lambda root: (root / "meta/info.json").unlink(), "info.json: file: is missing"),
    cut_info=(
        lambda root: (root / "meta/info.json").write_text('{"fps": 1'),
        "info.json: not readable as JSON",
    ),
    old=(lambda root: write_info(root, "v1.6"), "codebase_version: v1.6"),
    no_fps=(lambda root: write_info(root, "v2.1", fps="ten"), "fps: is missing"),
    no_rate=(lambda root: write_info(root, "v2.1", fps=0), "fps or features: is impossible"),
    no_camera=(
        lambda root: write_info(root, "v2.1", {"action": FEATURES["action"]}),
        "features: have no pictures",
    ),
    outside=(
        lambda root: write_info(root, "v2.1", data_path="../{episode_index}.parquet"),
        "data_path: '../{episode_index}.parquet' is no pattern",
    ),
    pattern=(
        lambda root: write_info(root, "v2.1", video_path="{nothing}"),
        "video_path: '{nothing}' is no pattern",
    ),
    no_episodes=(
        lambda root: (root / "meta/episodes.jsonl").unlink(),
        "episodes.jsonl: file: is missing",
    ),
    cut_episodes=(
        lambda root: (root / "meta/episodes.jsonl").write_text('{"episode_index": 0, "len'),
        "episodes.jsonl: line 1: is damaged",
    ),
    other_episodes=(
        lambda root: (root / "meta/episodes.jsonl").write_text('{"length": 3}'),
        "has no episode_index, length or tasks",
    ),
    empty=(
        lambda root: (root / "meta/episodes.jsonl").write_text(""),
        "episodes: none are listed",
    ),
    range=(
        lambda root: write_lines(
            root / "meta/stats.json", [dict(action=dict(min=[1, 1], max=[0, 0]))]
        ),
        "stats.json: action: min and max are no lists of numbers",
    ),
)


@pytest.mark.parametrize("damage, words", META.values(), ids=META)
def test_damaged_meta(tmp_path, damage, words):
    root = make_v2(tmp_path / "arm")
    damage(root)
    assert words in refused(convert, root, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


def test_version_3_is_checked_too(tmp_path):
    root = make_v3(tmp_path / "arm")
    video = root / f"videos/{TOP}/chunk-000/file-000.mp4"
    write_film(video, EPISODES[0][1])  # the second episode is not there
    rows = convert(root, tmp_path / "data", image_size=16, progress=False)
    assert [row["status"] for row in rows] == ["converted", "set aside", "converted"]
    assert f"{video}: frames: 0, the table has 9 rows" in rows[1]["reason"]
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    position = table.column_names.index(f"videos/{TOP}/to_timestamp")
    wrong = table.set_column(position, table.column_names[position], pa.array([9.0] * 3))
    pq.write_table(wrong, path)
    assert "episode 0: 9 s of video for 6 rows" in refused(look_at, root)
    pq.write_table(table.drop_columns(["length"]), path)
    assert "length: the column is missing" in refused(look_at, root)
    shutil.rmtree(root / "meta/episodes")
    assert "episodes: folder: is missing" in refused(look_at, root)


def test_meta_is_read_again_when_it_changes(tmp_path):
    root = make_v2(tmp_path / "arm")
    assert len(look_at(root).recordings) == 3
    write_lines(root / "meta/episodes.jsonl", [dict(episode_index=0, length=6, tasks=["x"])])
    assert len(look_at(root).recordings) == 1


# --- videos as a player shows them


def test_a_turned_video(tmp_path):
    av = pytest.importorskip("av")
    root = make_v2(tmp_path / "arm")
    lying = np.ascontiguousarray(np.rot90(EPISODES[0][1], 1, (1, 2)))
    with av.open(str(video_of(root, 0)), "w") as video:
        stream = video.add_stream("libx264rgb", rate=FPS, options=LOSSLESS)
        stream.height, stream.width = lying.shape[1:3]
        stream.pix_fmt = "rgb24"
        stream.set_display_rotation(-90)
        for frame in lying:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode())
    rows = convert(root, tmp_path / "data", image_size=16, progress=False)
    assert [row["changes"] for row in rows] == ["turned 90 degrees clockwise", "", ""]
    frames = Recordings(tmp_path / "data").frames(0).transpose(0, 2, 3, 1)
    assert np.array_equal(frames, EPISODES[0][1])


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_a_video_of_another_rate_is_read_by_the_times_of_the_rows(tmp_path, version):
    root = MAKERS[version](tmp_path / "arm")
    path = root / f"videos/{TOP}/chunk-000/file-000.mp4"
    parts = [0] if version == "v21" else [0, 1]
    film = np.concatenate([EPISODES[i][1] for i in parts])
    path = video_of(root, 0) if version == "v21" else path
    write_video(path, film.repeat(3, 0), fps=3 * FPS)
    rows = convert(root, tmp_path / "data", image_size=16, progress=False)
    assert [row["status"] for row in rows] == ["converted"] * 3
    data = Recordings(tmp_path / "data")
    for i in parts:
        assert rows[i]["changes"] == "30 frames a second taken at 10"
        assert np.array_equal(data.frames(i).transpose(0, 2, 3, 1), EPISODES[i][1])


def test_files_that_are_not_read_are_named(tmp_path):
    root = make_v2(tmp_path / "arm", cameras=(TOP, WRIST))
    (root / "README.md").write_text("an arm")
    (root / ".gitattributes").write_text("")
    convert(root, tmp_path / "data", image_size=16, picture="top", progress=False)
    lines = describe_conversion(tmp_path / "data")
    assert "not read (a hidden file): .gitattributes" in lines
    assert "not read (not part of a recording): README.md" in lines
    assert any("of another camera" in line and WRIST in line for line in lines)
    assert lines[-1].startswith("3 recordings in ")
    assert "0 set aside, 5 files not read" in lines[-1]

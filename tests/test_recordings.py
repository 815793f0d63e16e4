"Conversion as processes: killed and continued, several workers, full disk; and all bad input."

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
from dreamer4_nb.data.actions import ActionSpace
from dreamer4_nb.data.convert import (
    convert,
    convert_part,
    find_recordings,
    finish_conversion,
)
from dreamer4_nb.data.dataset import LatentStore, Recordings
from dreamer4_nb.data.recordings import gold_game, read_episode, write_episode
from dreamer4_nb.data.video import read_video, write_video
from dreamer4_nb.files import RecordingError

SPACE = ActionSpace.flat(["noop", "left", "right"])
ENV = "Toy-v0"


def make(root, name, steps=12, size=64, seed=0, **changes):
    "Write a recording of noise."
    rng = np.random.default_rng(seed)
    content = dict(
        frames=rng.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8),
        actions={"action": rng.integers(0, 3, steps)},
        rewards=rng.random(steps).astype(np.float32),
        extra=dict(action_space=SPACE.to_dict()),
    )
    return write_episode(root, ENV, name, **content | changes)


def arrays(folder):
    return dict(np.load(folder / "rendered.npz", allow_pickle=False))


def without_checksums(folder):
    "As recordings of other people are, and those that somebody has changed on purpose."
    path = folder / "metadata.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in info.items() if k != "crc32"}))


def leftovers(root):
    names = (".tmp-", ".old-")
    paths = Path(root).rglob("*")
    return [p for p in paths if p.name.startswith(names) or p.suffix == ".tmp"]


@pytest.fixture
def source(tmp_path):
    for i in range(6):
        make(tmp_path / "source", f"{i}", steps=80, seed=i)
    return tmp_path / "source"


SLOW_CONVERSION = """
import sys, time
import dreamer4_nb.data.convert as module

save = module.np.save


def slow_save(*args):
    save(*args)
    time.sleep(0.3)


if __name__ == "__main__":
    module.np.save = slow_save
    module.convert(sys.argv[1], sys.argv[2], progress=False)
"""


def test_killed_and_resumed(source, tmp_path):
    target = tmp_path / "target"
    command = [sys.executable, "-c", SLOW_CONVERSION, str(source), str(target)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    deadline = time.time() + 300
    while len(list(target.glob("episodes/v3_*"))) < 2 or not leftovers(target):
        assert time.time() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert leftovers(target)
    with pytest.raises(FileNotFoundError, match="dataset.json"):
        Recordings(target)
    done = {p: p.stat().st_mtime_ns for p in target.glob("episodes/v3_*/frames.npy")}
    lines = convert(source, target, progress=False)
    assert len(lines) == 6
    assert [line["status"] for line in lines].count("kept") == len(done) >= 2
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    assert not leftovers(target)
    convert(source, tmp_path / "reference", progress=False)
    resumed = Recordings(target)
    reference = Recordings(tmp_path / "reference")
    for i in range(6):
        assert (resumed.frames(i) == reference.frames(i)).all()
        assert (resumed.actions(i) == reference.actions(i)).all()
        assert (resumed.rewards(i) == reference.rewards(i)).all()


def test_workers_agree(source, tmp_path):
    video = make(source, "bad") / "recording.mp4"
    video.write_bytes(b"")
    one = convert(source, tmp_path / "one", progress=False)
    two = convert(source, tmp_path / "two", workers=2, progress=False)
    assert one == two
    assert one[-1]["status"] == "set aside"
    for file in ("dataset.json", "summary.csv"):
        assert (tmp_path / "one" / file).read_text() == (tmp_path / "two" / file).read_text()


def test_parts_agree_with_the_whole(source, tmp_path):
    make(source, "bad").joinpath("recording.mp4").write_bytes(b"")
    one = convert(source, tmp_path / "one", progress=False)
    target = tmp_path / "three"
    done = [convert_part(source, target, (i, 3), progress=False) for i in (2, 0, 1)]
    assert [len(lines) for lines in done] == [2, 3, 2]
    assert not (target / "dataset.json").exists()  # until all are done
    assert finish_conversion(target, parts=3) == one
    for file in ("dataset.json", "summary.csv"):
        assert (tmp_path / "one" / file).read_text() == (target / file).read_text()
    assert sorted(p.name for p in target.iterdir()) == [
        *("dataset.json", "episodes", "summary.csv")
    ]
    # more processes than recordings
    for i in range(8):
        convert_part(source, target, (i, 8), progress=False)
    kept = [line["status"] for line in finish_conversion(target, parts=8)]
    assert kept == ["kept"] * 6 + ["set aside"]


def test_a_part_that_is_missing_or_differs(source, tmp_path):
    target = tmp_path / "target"
    with pytest.raises(ValueError, match=r"part: \(2, 2\). Hint: give"):
        convert_part(source, target, (2, 2), progress=False)
    convert_part(source, target, (0, 2), progress=False)
    with pytest.raises(FileNotFoundError, match="1_of_2.json: .* Hint: convert this part"):
        finish_conversion(target, parts=2)
    convert_part(source, target, (1, 2), image_size=32, progress=False)
    with pytest.raises(RecordingError, match="1_of_2.json: settings: differ from those of"):
        finish_conversion(target, parts=2)
    assert not (target / "dataset.json").exists()


def test_an_episode_that_was_being_replaced_is_read_where_it_waits(source, tmp_path):
    convert(source, tmp_path / "data", progress=False)
    recordings = Recordings(tmp_path / "data")
    expected = np.array(recordings.frames(2))
    folder = tmp_path / "data/episodes" / recordings.names[2]
    waiting = folder.rename(folder.with_name(f".old-{folder.name}"))
    again = Recordings(tmp_path / "data")
    assert (again.frames(2) == expected).all()
    assert again.actions(2) is not None and again.info(2)
    assert waiting.exists() and not folder.exists()


def test_full_disk(tmp_path):
    for i in range(4):
        make(tmp_path / "source", f"{i}", steps=60, seed=i)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(OSError, match="could not be written"):
            convert(tmp_path / "source", disk / "data", progress=False)
        assert not leftovers(disk)
        assert not (disk / "data/dataset.json").exists()
        whole = list(disk.glob("data/episodes/v3_*/info.json"))
        assert len(whole) == len(list(disk.glob("data/episodes/*"))) >= 1
        with pytest.raises(OSError, match="could not be written"):
            for i in range(9):
                make(disk / "recordings", f"{i}", steps=60)
        assert not leftovers(disk)
        for folder in (disk / "recordings" / ENV).iterdir():
            read_episode(folder)
    finally:
        subprocess.run(["umount", str(disk)])


# --- every way in which a recording can be damaged: functions of its folder


def remove(file):
    return lambda folder: (folder / file).unlink()


def write(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def cut(file, size=None):
    "Keep so many bytes, or half of them."

    def damage(folder):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: size or len(content) // 2])

    return damage


def change_labels(**changes):
    def damage(folder):
        changed = {key.replace("__", "$"): values for key, values in changes.items()}
        np.savez(folder / "rendered.npz", **arrays(folder) | changed)
        without_checksums(folder)

    return damage


def change_film(shape):
    def damage(folder):
        write_video(folder / "recording.mp4", np.zeros(shape, np.uint8))
        without_checksums(folder)

    return damage


def cut_streamable_video(folder):
    path = folder / "recording.mp4"
    write_video(path, read_video(path), movflags="faststart", qp="0", preset="ultrafast")
    cut("recording.mp4")(folder)


def nan_reward(folder):
    rewards = arrays(folder)["reward"]
    rewards[3] = np.nan
    change_labels(reward=rewards)(folder)


def strange_name(folder):
    path = folder / "rendered.npz"
    path.write_bytes(path.read_bytes().replace(b"reward.npy", b"re\n\x07rd.npy"))
    without_checksums(folder)


eleven = np.zeros(11)
twelve = np.zeros(12)
DAMAGES = {
    "no video": (remove("recording.mp4"), ["recording.mp4", "missing"]),
    "no labels": (remove("rendered.npz"), ["rendered.npz", "missing"]),
    "no metadata": (remove("metadata.json"), ["metadata.json", "missing"]),
    "broken metadata": (write("metadata.json", b"{"), ["metadata.json", "JSON"]),
    "list as metadata": (write("metadata.json", b"[1]"), ["metadata.json", "dictionary"]),
    "truncated video": (cut("recording.mp4"), ["recording.mp4", "cut short"]),
    "truncated streamable video": (cut_streamable_video, ["recording.mp4", "cut short"]),
    "empty video": (write("recording.mp4", b""), ["recording.mp4", "cut short"]),
    "not a video": (write("recording.mp4", b"hello"), ["recording.mp4"]),
    "video too short": (change_film((9, 64, 64, 3)), ["recording.mp4", "cut short"]),
    "frames of another size": (
        change_film((13, 32, 32, 3)),
        ["recording.mp4", "32x32", "64x64"],
    ),
    "truncated labels": (cut("rendered.npz", 200), ["rendered.npz", "cut short"]),
    "strange name in labels": (strange_name, ["rendered.npz", "re"]),
    "pickled labels": (write("rendered.npz", pickle.dumps([1])), ["rendered.npz"]),
    "object array": (
        change_labels(reward=np.array([{}] * 12)),
        ["rendered.npz", "reward", "Python objects"],
    ),
    "lengths": (
        change_labels(reward=eleven),
        ["rendered.npz", "lengths", "action$action 12", "reward 11"],
    ),
    "observation length": (
        change_labels(observation__inventory__log=twelve),
        ["lengths", "observation$inventory$log 12"],
    ),
    "metadata disagrees": (
        change_labels(reward=eleven, action__action=eleven.astype(int)),
        ["metadata.json", "duration_steps"],
    ),
    "NaN reward": (nan_reward, ["rendered.npz", "reward", "nan at step 3"]),
    "rewards of two numbers": (
        change_labels(reward=np.zeros((12, 2))),
        ["rendered.npz", "reward", "(12, 2)"],
    ),
    "unknown action": (
        change_labels(action__fly=twelve.astype(int)),
        ["rendered.npz", "'fly'", "unknown key"],
    ),
    "action out of range": (
        change_labels(action__action=np.full(12, 9)),
        ["rendered.npz", "'action'", "0..2"],
    ),
    "obfuscated action": (
        change_labels(action__vector=np.zeros((12, 64))),
        ["rendered.npz", "obfuscated"],
    ),
    "unknown array": (
        change_labels(speed_forward=twelve),
        ["rendered.npz", "speed_forward", "unknown key"],
    ),
    "slash in a name": (
        change_labels(**{"observation__a/b": np.zeros(13)}),
        ["rendered.npz", "cannot be"],
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_bad_recording(tmp_path, what):
    damage, words = DAMAGES[what]
    damage(make(tmp_path / "source", "bad"))
    with pytest.raises(RecordingError) as alone:
        convert(tmp_path / "source", tmp_path / "alone", progress=False)
    assert not (tmp_path / "alone/dataset.json").exists()
    make(tmp_path / "source", "good")
    bad, good = convert(tmp_path / "source", tmp_path / "data", progress=False)
    assert good["status"] == "converted"
    assert bad["status"] == "set aside"
    for text in (bad["reason"], str(alone.value)):
        assert "\n" not in text
        assert all(word in text for word in words), text
    assert Recordings(tmp_path / "data").names == ["v3_good"]
    assert not leftovers(tmp_path)
    assert "v3_bad,set aside" in (tmp_path / "data/summary.csv").read_text()


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "t", progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordingError, match="no recordings here"):
        convert(tmp_path / "empty", tmp_path / "t", progress=False)
    for env in ("A-v0", "B-v0"):
        (tmp_path / "both" / env / "v3_x").mkdir(parents=True)
    with pytest.raises(RecordingError, match="same as that of"):
        find_recordings(tmp_path / "both")
    with pytest.raises(FileNotFoundError):
        read_episode(tmp_path / "nowhere")
    assert not (tmp_path / "t").exists()


def test_zipped(tmp_path):
    zipped = tmp_path / "source" / "MineRLTreechop-v0.zip"
    zipped.parent.mkdir()
    zipped.write_bytes(b"")
    for path in (zipped, zipped.parent):
        with pytest.raises(RecordingError, match="MineRLTreechop-v0.zip: file: still zipped"):
            find_recordings(path)


def test_videos_of_one_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.mp4").write_bytes(b"")
    with pytest.raises(RecordingError, match="x.mp4: name: the same as that of"):
        find_recordings(tmp_path)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(rewards=np.full(12, np.nan)), "reward: nan"),
        (dict(rewards=np.zeros(11)), "lengths"),
        (dict(frames=np.zeros((12, 64, 64, 3), np.uint8)), "frames"),
        (dict(frames=np.zeros((14, 64, 64, 3), np.uint8)), "T[+]1"),
        (dict(frames=np.zeros((13, 64, 64, 3))), "uint8"),
        (dict(actions={"action": np.array([{}] * 12)}), "object"),
    ],
)
def test_writer_checks(tmp_path, changes, words):
    with pytest.raises(RecordingError, match=words):
        make(tmp_path, "x", **changes)
    assert not list(tmp_path.rglob("v3_*")) and not leftovers(tmp_path)


@pytest.fixture
def converted(tmp_path):
    make(tmp_path / "source", "a")
    convert(tmp_path / "source", tmp_path / "data", progress=False)
    return tmp_path / "data"


def test_damaged_frames(converted):
    path = converted / "episodes/v3_a/frames.npy"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(RecordingError, match="frames.npy: cannot be read"):
        Recordings(converted).frames(0)
    path.unlink()
    with pytest.raises(RecordingError, match="frames.npy: cannot be read"):
        Recordings(converted).frames(0)


@pytest.mark.parametrize(
    "name, values, problem",
    [
        ("frames", np.zeros((9, 3, 64, 64), np.uint8), "holds uint8"),
        ("actions", np.zeros((12, 1), np.int64), "holds int64"),
        ("actions", np.full((12, 1), 3, np.int16), "impossible values"),
        ("rewards", np.full(12, np.inf, np.float32), "impossible values"),
    ],
)
def test_wrong_arrays(converted, name, values, problem):
    np.save(converted / f"episodes/v3_a/{name}.npy", values)
    recordings = Recordings(converted)
    with pytest.raises(RecordingError, match=f"{name}.npy: .*{problem}"):
        getattr(recordings, name)(0)


def test_damaged_list(converted):
    path = converted / "dataset.json"
    good = json.loads(path.read_text())
    for content, problem in [
        ("{", "not readable as JSON"),
        ("[]", "holds list"),
        (json.dumps({"format": "other"}), "format: other version None"),
        (json.dumps(good | dict(env_id="Other-v0")), "crc32: the file has changed"),
    ]:
        path.write_text(content)
        with pytest.raises(RecordingError, match=f"dataset.json: {problem}"):
            Recordings(converted)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="dataset.json: no such file. Hint: convert"):
        Recordings(converted)


def test_one_episode_cannot_be_split(converted):
    with pytest.raises(RecordingError, match="1 episode, a split needs two"):
        Recordings(converted).split()


def without_terminated(folder, **changes):
    "MineRL's metadata, which does not say whether the world ended."
    path = folder / "metadata.json"
    info = json.loads(path.read_text())
    del info["terminated"]
    path.write_text(json.dumps(info | changes))


def test_minerl_treechop(tmp_path):
    """Keys, dtypes and lengths as the publisher writes them.

    There are five frames before the first action, and one recording has no rewards.
    """
    rng = np.random.default_rng(0)
    T = 20
    frames = rng.integers(0, 256, (T + 1, 64, 64, 3), dtype=np.uint8)
    actions = {key: rng.integers(0, 2, T) for key in ActionSpace.minerl_treechop().keys}
    actions["camera"] = rng.normal(0, 5, (T, 2)).astype(np.float32)
    observations = {
        "inventory$log": np.arange(T + 1),
        "equipped_items$mainhand$type": np.array(["iron_axe"] * (T + 1)),
    }
    for name, reward in (("rewarded", np.ones(T)), ("unrewarded", None)):
        folder = write_episode(
            *(tmp_path / "source", "MineRLTreechop-v0", name, frames, actions, reward),
            success=True,
            observations=observations,
        )
        write_video(folder / "recording.mp4", np.concatenate([frames[:5] // 2, frames]))
        without_terminated(folder, true_video_frame_count=T + 6)
        without_checksums(folder)
    convert(tmp_path / "source", tmp_path / "data", progress=False)
    data = Recordings(tmp_path / "data")
    assert data.names == ["v3_rewarded", "v3_unrewarded"]
    assert data.action_space == ActionSpace.minerl_treechop()
    for i in range(2):
        assert (data.frames(i) == frames.transpose(0, 3, 1, 2)).all()
        assert data.terminated(i)
        assert (data.actions(i) == data.codec.encode(actions)).all()
        observed = data.observations(i)
        assert (observed["inventory$log"] == np.arange(T + 1)).all()
        assert observed["equipped_items$mainhand$type"][0] == "iron_axe"
    assert data.rewards(0).sum() == T
    assert data.rewards(1) is None
    assert data.info(1)["total_reward"] is None


def test_travels_to_processes(source, tmp_path):
    convert(source, tmp_path / "data", progress=False)
    data = Recordings(tmp_path / "data")
    data.max_open = 2
    for i in range(6):
        data.frames(i)
        data.actions(i)
    assert len(data._maps) == 2
    packed = pickle.dumps(data)
    assert len(packed) < 5000  # paths, not pixels
    again = pickle.loads(packed)
    assert (again.frames(3) == data.frames(3)).all()


def test_settings_change_reconverts(tmp_path):
    make(tmp_path / "source", "a")
    convert(tmp_path / "source", tmp_path / "data", progress=False)
    wider = ActionSpace.flat(["noop", "left", "right", "jump"])
    with pytest.raises(RecordingError, match="action_space"):
        convert(tmp_path / "source", tmp_path / "data", wider, progress=False)
    shutil.rmtree(tmp_path / "source")
    make(tmp_path / "source", "a", extra=None)
    (line,) = convert(tmp_path / "source", tmp_path / "data", wider, progress=False)
    assert line["status"] == "converted"
    assert Recordings(tmp_path / "data").action_space == wider


def test_latents_are_checked(tmp_path):
    root = tmp_path / "latents"
    with pytest.raises(FileNotFoundError, match="latents: no such folder"):
        LatentStore(root)
    root.mkdir()
    with pytest.raises(FileNotFoundError, match="latents missing for all episodes"):
        LatentStore(root)
    LatentStore.write(root, "a", np.zeros((3, 4, 8)))
    with pytest.raises(FileNotFoundError, match="b.npy: latents missing for 1 episodes"):
        LatentStore(root, ["a", "b"])
    with pytest.raises(OSError, match="a.npy: could not be written"):
        LatentStore.write("/dev/null", "a", np.zeros((3, 4, 8)))
    np.save(root / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match="a.npy: float64 .* expected float16"):
        LatentStore(root)["a"]
    (root / "a.npy").write_bytes(b"broken")
    with pytest.raises(ValueError, match="a.npy: not a readable array"):
        LatentStore(root)["a"]


def test_axes_of_one_and_lists_are_written_as_plain_arrays(tmp_path):
    frames, actions, rewards = gold_game(np.random.default_rng(0))
    space = ActionSpace(keys=("left", "right"))
    columns = {key: value[:, None] for key, value in actions.items()}
    extra = dict(action_space=space.to_dict())
    written = (list(frames), columns, rewards[:, None])
    episode = read_episode(write_episode(tmp_path, "Gold-v0", "0", *written, extra=extra))
    assert {key: value.shape for key, value in episode.actions.items()} == {
        "left": (30,),
        "right": (30,),
    }
    assert (episode.actions["right"] == actions["right"]).all()
    assert episode.rewards.shape == (30,)
    assert episode.frames.shape == (31, 3, 64, 64)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(frames=[np.zeros((8, 8, 3)), np.zeros((8, 9, 3))]), "frames: are of several"),
        (dict(frames=np.zeros((31, 3, 64, 64), np.uint8)), r"transpose\(0, 2, 3, 1\)"),
        (dict(actions=[dict(left=1, right=0)] * 30), "actions: is a list. Hint: give a dict"),
        (dict(actions=dict(left=np.zeros((30, 2)), right=np.zeros((30, 2)))), "have shapes"),
        (dict(actions=dict(left=np.zeros((30, 2, 3)), right=np.zeros(30))), "has shape"),
        (dict(actions=dict(left=np.linspace(0, 1, 30), right=np.zeros(30))), "continuous"),
    ],
)
def test_odd_shapes_are_refused_at_the_door(tmp_path, changes, words):
    frames, actions, rewards = gold_game(np.random.default_rng(0))
    extra = dict(action_space=ActionSpace(keys=("left", "right")).to_dict())
    given = dict(frames=frames, actions=actions, rewards=rewards) | changes
    with pytest.raises(RecordingError, match=words):
        write_episode(tmp_path, "Gold-v0", "0", **given, extra=extra)
    assert not list(tmp_path.rglob("v3_*"))


def test_a_recording_that_says_nothing_is_named_in_the_summary(tmp_path):
    space = ActionSpace(keys=("left", "right"))
    for number in range(3):
        frames, actions, _ = gold_game(np.random.default_rng(number))
        if number == 1:
            actions = {key: 0 * value for key, value in actions.items()}
        extra = dict(action_space=space.to_dict())
        write_episode(tmp_path / "in", "Gold-v0", str(number), frames, actions, extra=extra)
    rows = convert(tmp_path / "in", tmp_path / "out", progress=False)
    changes = [row["changes"] for row in rows]
    assert changes == ["", "actions never vary while the picture moves", ""]

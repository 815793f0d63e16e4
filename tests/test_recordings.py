"Conversion as processes: killed and gone on with, several workers, full disk; and every kind of bad input."

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
from dreamer4_nb.data.actions import ActionSpace
from dreamer4_nb.data.convert import convert, find_recordings
from dreamer4_nb.data.dataset import Recordings
from dreamer4_nb.data.recordings import read_episode, write_episode
from dreamer4_nb.data.video import read_video, write_video
from dreamer4_nb.files import RecordingError

SPACE = ActionSpace.flat(["noop", "left", "right"])
ENV = "Toy-v0"


def make(root, name, steps=12, size=64, seed=0, **changes):
    rng = np.random.default_rng(seed)
    kw = (
        dict(
            frames=rng.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8),
            actions={"action": rng.integers(0, 3, steps)},
            rewards=rng.random(steps).astype(np.float32),
            extra=dict(action_space=SPACE.to_dict()),
        )
        | changes
    )
    return write_episode(root, ENV, name, **kw), kw


def arrays(folder):
    return dict(np.load(folder / "rendered.npz", allow_pickle=False))


def without_checksums(folder):
    "As recordings of other people are, and those that somebody has changed on purpose"
    path = folder / "metadata.json"
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "crc32"})
    )


def leftovers(root):
    return [
        p
        for p in Path(root).rglob("*")
        if p.name.startswith((".tmp-", ".old-")) or p.suffix == ".tmp"
    ]


@pytest.fixture
def source(tmp_path):
    for i in range(6):
        make(tmp_path / "source", f"{i}", steps=80, seed=i)
    return tmp_path / "source"


def start(source, target, slow=""):
    code = f"""
        import sys, time
        import dreamer4_nb.recordings as r
        {slow or "pass"}
        if __name__ == "__main__": r.convert({str(source)!r}, {str(target)!r}, progress=False)"""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parents[1]
    )


def test_killed_and_resumed(source, tmp_path):
    target, reference = tmp_path / "target", tmp_path / "reference"
    convert(source, reference, progress=False)
    slow = "save = r.np.save; r.np.save = lambda *a: (save(*a), time.sleep(.3))"  # so that the kill finds a half-written episode
    process = start(source, target, slow)
    deadline = time.time() + 60
    while len([p for p in target.glob("episodes/v3_*")]) < 2 or not leftovers(target):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert leftovers(target) and not (target / "dataset.json").exists()
    with pytest.raises(FileNotFoundError, match="dataset.json"):
        Recordings(target)
    done = {p: p.stat().st_mtime_ns for p in target.glob("episodes/v3_*/frames.npy")}
    lines = convert(source, target, progress=False)
    assert [d["status"] for d in lines].count("kept") == len(done) >= 2 and len(lines) == 6
    assert all(p.stat().st_mtime_ns == t for p, t in done.items()) and not leftovers(target)
    a, b = Recordings(target), Recordings(reference)
    for i in range(6):
        assert (
            (a.frames(i) == b.frames(i)).all()
            and (a.actions(i) == b.actions(i)).all()
            and (a.rewards(i) == b.rewards(i)).all()
        )


def test_workers_agree(source, tmp_path):
    make(source, "bad")
    (source / ENV / "v3_bad/recording.mp4").write_bytes(b"")
    one, two = (
        convert(source, tmp_path / "a", progress=False),
        convert(source, tmp_path / "b", workers=2, progress=False),
    )
    assert one == two and one[-1]["status"] == "set aside"
    assert (tmp_path / "a/dataset.json").read_text() == (
        tmp_path / "b/dataset.json"
    ).read_text()
    assert (tmp_path / "a/summary.csv").read_text() == (tmp_path / "b/summary.csv").read_text()


def test_full_disk(tmp_path):
    for i in range(4):
        make(tmp_path / "source", f"{i}", steps=60, seed=i)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(OSError, match="could not be written"):
            convert(tmp_path / "source", disk / "data", progress=False)
        assert not leftovers(disk) and not (disk / "data/dataset.json").exists()
        assert (
            len(list(disk.glob("data/episodes/v3_*/info.json")))
            == len(list(disk.glob("data/episodes/*")))
            >= 1
        )
        with pytest.raises(OSError, match="could not be written"):
            for i in range(9):
                make(disk / "recordings", f"{i}", steps=60)
        assert not leftovers(disk)
        for folder in (disk / "recordings" / ENV).iterdir():
            read_episode(folder)
    finally:
        subprocess.run(["umount", str(disk)])


def damage(what):
    "A function that breaks a recording, and the words that its error must hold."

    def npz(change):
        def f(folder):
            a = arrays(folder)
            change(a)
            np.savez(folder / "rendered.npz", **a)
            without_checksums(folder)

        return f

    def cut(folder):
        p = folder / "recording.mp4"
        p.write_bytes(p.read_bytes()[: len(p.read_bytes()) // 2])

    def cut_in_the_middle(folder):
        p = folder / "recording.mp4"
        frames = read_video(p)
        write_video(p, frames, movflags="faststart", qp="0", preset="ultrafast")
        cut(folder)

    def nan(a):
        a["reward"][3] = np.nan

    return {
        "no video": (lambda d: (d / "recording.mp4").unlink(), ["recording.mp4", "missing"]),
        "no labels": (lambda d: (d / "rendered.npz").unlink(), ["rendered.npz", "missing"]),
        "no metadata": (
            lambda d: (d / "metadata.json").unlink(),
            ["metadata.json", "missing"],
        ),
        "broken metadata": (
            lambda d: (d / "metadata.json").write_text("{"),
            ["metadata.json", "JSON"],
        ),
        "truncated video": (cut, ["recording.mp4", "cut short"]),
        "truncated streamable video": (cut_in_the_middle, ["recording.mp4", "cut short"]),
        "empty video": (
            lambda d: (d / "recording.mp4").write_bytes(b""),
            ["recording.mp4", "cut short"],
        ),
        "truncated labels": (
            lambda d: (d / "rendered.npz").write_bytes(
                (d / "rendered.npz").read_bytes()[:200]
            ),
            ["rendered.npz", "cut short"],
        ),
        "strange name in labels": (
            lambda d: (
                without_checksums(d),
                (d / "rendered.npz").write_bytes(
                    (d / "rendered.npz").read_bytes().replace(b"reward.npy", b"re\n\x07rd.npy")
                ),
            ),
            ["rendered.npz", "re"],
        ),
        "pickled labels": (
            lambda d: (d / "rendered.npz").write_bytes(pickle.dumps([1])),
            ["rendered.npz"],
        ),
        "object array": (
            npz(lambda a: a.update(reward=np.array([{}] * 12))),
            ["rendered.npz", "reward", "Python objects"],
        ),
        "lengths": (
            npz(lambda a: a.update(reward=np.zeros(11))),
            ["rendered.npz", "lengths", "action$action 12", "reward 11"],
        ),
        "observation length": (
            npz(lambda a: a.update({"observation$inventory$log": np.zeros(12)})),
            ["lengths", "observation$inventory$log 12"],
        ),
        "video too short": (
            lambda d: write_video(d / "recording.mp4", np.zeros((9, 64, 64, 3), np.uint8)),
            ["recording.mp4", "cut short"],
        ),
        "metadata disagrees": (
            npz(
                lambda a: a.update(reward=np.zeros(11), **{"action$action": np.zeros(11, int)})
            ),
            ["metadata.json", "duration_steps"],
        ),
        "NaN reward": (npz(nan), ["rendered.npz", "reward", "nan at step 3"]),
        "unknown action": (
            npz(lambda a: a.update({"action$fly": np.zeros(12, int)})),
            ["rendered.npz", "'fly'", "unknown key"],
        ),
        "action out of range": (
            npz(lambda a: a.update({"action$action": np.full(12, 9)})),
            ["rendered.npz", "'action'", "0..2"],
        ),
        "unknown array": (
            npz(lambda a: a.update({"speed_forward": np.zeros(12)})),
            ["rendered.npz", "speed_forward", "unknown key"],
        ),
        "frames of another size": (
            lambda d: (
                write_video(d / "recording.mp4", np.zeros((13, 32, 32, 3), np.uint8)),
                without_checksums(d),
            ),
            ["recording.mp4", "32x32", "64x64"],
        ),
        "not a video": (
            lambda d: (d / "recording.mp4").write_text("hello"),
            ["recording.mp4"],
        ),
    }[what]


DAMAGES = [
    "no video",
    "no labels",
    "no metadata",
    "broken metadata",
    "truncated video",
    "truncated streamable video",
    "empty video",
    "truncated labels",
    "pickled labels",
    "object array",
    "lengths",
    "observation length",
    "video too short",
    "metadata disagrees",
    "NaN reward",
    "unknown action",
    "action out of range",
    "unknown array",
    "frames of another size",
    "not a video",
]


@pytest.mark.parametrize("what", DAMAGES)
def test_bad_recording(tmp_path, what):
    spoil, words = damage(what)
    bad, _ = make(tmp_path / "source", "bad")
    spoil(bad)
    with pytest.raises(RecordingError) as alone:
        convert(tmp_path / "source", tmp_path / "alone", progress=False)
    make(tmp_path / "source", "good")
    lines = {
        d["name"]: d for d in convert(tmp_path / "source", tmp_path / "data", progress=False)
    }
    assert (
        lines["v3_good"]["status"] == "converted" and lines["v3_bad"]["status"] == "set aside"
    )
    for text in (lines["v3_bad"]["reason"], str(alone.value)):
        assert "\n" not in text and all(w in text for w in words), text
    assert Recordings(tmp_path / "data").names == ["v3_good"] and not leftovers(tmp_path)
    assert not (tmp_path / "alone/dataset.json").exists()
    assert "v3_bad,set aside" in (tmp_path / "data/summary.csv").read_text()


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "t", progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordingError, match="no recordings here"):
        convert(tmp_path / "empty", tmp_path / "t", progress=False)
    for env in ("A-v0", "B-v0"):
        (tmp_path / "both" / env / "v3_x").mkdir(parents=True)
    with pytest.raises(RecordingError, match="A-v0, B-v0"):
        find_recordings(tmp_path / "both")
    with pytest.raises(FileNotFoundError):
        read_episode(tmp_path / "nowhere")
    assert not (tmp_path / "t").exists()


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
def test_writer_refuses(tmp_path, changes, words):
    with pytest.raises(RecordingError, match=words):
        make(tmp_path, "x", **changes)
    assert not list(tmp_path.rglob("v3_*")) and not leftovers(tmp_path)


def test_damaged_converted_data(tmp_path):
    make(tmp_path / "source", "a")
    convert(tmp_path / "source", tmp_path / "data", progress=False)
    p = tmp_path / "data/episodes/v3_a/frames.npy"
    p.write_bytes(p.read_bytes()[:5000])
    with pytest.raises(RecordingError, match="frames.npy"):
        Recordings(tmp_path / "data").frames(0)
    p.unlink()
    with pytest.raises(RecordingError, match="frames.npy"):
        Recordings(tmp_path / "data").frames(0)
    (tmp_path / "data/dataset.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(RecordingError, match="dataset.json"):
        Recordings(tmp_path / "data")


def test_minerl_treechop(tmp_path):
    "Keys, dtypes and lengths as the publisher writes them; five frames before the first action; no reward noted in one."
    rng, keys, T = (
        np.random.default_rng(0),
        "attack back forward jump left right sneak sprint".split(),
        20,
    )
    frames = rng.integers(0, 256, (T + 1, 64, 64, 3), dtype=np.uint8)
    actions = {k: rng.integers(0, 2, T) for k in keys} | {
        "camera": rng.normal(0, 5, (T, 2)).astype(np.float32)
    }
    for name, reward in (("rewarded", np.ones(T)), ("unrewarded", None)):
        folder = write_episode(
            tmp_path / "source",
            "MineRLTreechop-v0",
            name,
            frames,
            actions,
            reward,
            success=True,
            observations={
                "inventory$log": np.arange(T + 1),
                "equipped_items$mainhand$type": np.array(["iron_axe"] * (T + 1)),
            },
        )
        meta = json.loads((folder / "metadata.json").read_text())
        del meta["terminated"]
        (folder / "metadata.json").write_text(
            json.dumps(meta | dict(true_video_frame_count=T + 6))
        )
        write_video(folder / "recording.mp4", np.concatenate([frames[:5] // 2, frames]))
        without_checksums(folder)
    convert(tmp_path / "source", tmp_path / "data", progress=False)
    r = Recordings(tmp_path / "data")
    assert (
        r.names == ["v3_rewarded", "v3_unrewarded"]
        and r.action_space == ActionSpace.minerl_treechop()
    )
    for i in range(2):
        assert (r.frames(i) == frames.transpose(0, 3, 1, 2)).all() and r.terminated(i)
        assert (r.actions(i) == r.codec.encode(actions)).all()
        assert (
            r.observations(i)["inventory$log"] == np.arange(T + 1)
        ).all() and r.observations(i)["equipped_items$mainhand$type"][0] == "iron_axe"
    assert (
        r.rewards(0).sum() == T and r.rewards(1) is None and r.info(1)["total_reward"] is None
    )


def test_travels_to_processes(source, tmp_path):
    convert(source, tmp_path / "data", progress=False)
    r = Recordings(tmp_path / "data")
    r.max_open = 2
    for i in range(6):
        r.frames(i), r.actions(i)
    assert len(r._maps) == 2 and len(pickle.dumps(r)) < 5000
    again = pickle.loads(pickle.dumps(r))
    assert (again.frames(3) == r.frames(3)).all()


def test_settings_change_reconverts(tmp_path):
    make(tmp_path / "source", "a")
    convert(tmp_path / "source", tmp_path / "data", progress=False)
    wider = ActionSpace.flat(["noop", "left", "right", "jump"])
    with pytest.raises(RecordingError, match="action_space"):
        convert(tmp_path / "source", tmp_path / "data", wider, progress=False)
    shutil.rmtree(tmp_path / "source")
    make(tmp_path / "source", "a", extra=None)
    assert (
        convert(tmp_path / "source", tmp_path / "data", wider, progress=False)[0]["status"]
        == "converted"
    )
    assert Recordings(tmp_path / "data").action_space == wider

"""Segments with a log, damaged at random.

Each ends in a reason in one line or in an episode, never in a traceback, and never in an
episode whose labels have another length."""

import json

import numpy as np
import pytest

pytest.importorskip("av")
from dreamer4_nb.data.convert import convert
from dreamer4_nb.data.video import write_video
from dreamer4_nb.data.vpt import EVENTS, draw_cursor, log_events, read_segment, read_vpt_log
from dreamer4_nb.files import RecordingError

LOGS = "minecraft.mine_block:minecraft.oak_log"


def log_line(rng, t):
    mouse = dict(x=5.0 * t, y=90.0, dx=float(rng.integers(-9, 9)), dy=0.0)
    return dict(
        mouse=mouse | dict(buttons=[0] * (t % 2), newButtons=[]),
        keyboard=dict(keys=["key.keyboard.w"], newKeys=[], chars=""),
        isGuiOpen=t > 8,
        hotbar=t % 3,
        inventory=[dict(type="oak_log", quantity=t // 4)],
        stats={LOGS: t // 4},
    )


def write_log(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_log(path):
    return [json.loads(row) for row in path.read_text().splitlines()]


def write_segment(folder, name="a", steps=12):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    path = folder / f"{name}.mp4"
    write_video(path, rng.integers(0, 256, (steps, 36, 64, 3), dtype=np.uint8))
    write_log(path.with_suffix(".jsonl"), [log_line(rng, t) for t in range(steps)])
    return path


def damage(rng, good, number):
    "Every third time cut off, else three bytes changed"
    if number % 3 == 0:
        return good[: rng.integers(len(good))]
    damaged = bytearray(good)
    for i in rng.integers(len(damaged), size=3):
        damaged[i] = rng.integers(256)
    return bytes(damaged)


def check_episode(episode):
    assert episode.frames.shape[1:] == (3, 64, 64)
    assert all(len(a) == len(episode) for a in episode.actions.values())
    assert episode.rewards is None or len(episode.rewards) == len(episode)


@pytest.mark.parametrize("suffix", [".jsonl", ".mp4"])
def test_damaged_bytes(tmp_path, suffix, full):
    path = write_segment(tmp_path / "source")
    damaged = path.with_suffix(suffix)
    good = damaged.read_bytes()
    whole = read_segment(path, event="mine_log")
    rng = np.random.default_rng(1)
    rejected = 0
    for number in range(500 if full else 60):
        damaged.write_bytes(damage(rng, good, number))
        try:
            check_episode(read_segment(path, event="mine_log"))
        except RecordingError as error:
            assert "\n" not in str(error)
            assert damaged.stem in str(error)
            rejected += 1
    assert rejected > 0
    damaged.write_bytes(good)
    assert (read_segment(path, event="mine_log").frames == whole.frames).all()


@pytest.mark.parametrize(
    "field, value",
    [
        ("mouse", dict(dx="far")),
        ("mouse", dict(buttons=3)),
        ("keyboard", dict(keys=[1])),
        ("inventory", ["oak_log"]),
        ("inventory", [dict(type="oak_log", quantity="x")]),
        ("inventory", [dict(type="oak_log", quantity=10**30)]),
        ("mouse", dict(x=[])),
        ("mouse", dict(dx=1e300)),
        ("stats", {LOGS: "b"}),
    ],
)
def test_values_of_another_kind(tmp_path, field, value):
    path = write_segment(tmp_path / "source").with_suffix(".jsonl")
    lines = read_log(path)
    lines[3][field] = value
    write_log(path, lines)
    message = "a.jsonl: (values: not all are of the kind expected|line 4: mouse)"
    with pytest.raises(RecordingError, match=message):
        read_segment(path.with_suffix(".mp4"), event="mine_log")


def change_line(**changes):
    return lambda line: line | changes


def without(key):
    return lambda line: {k: v for k, v in line.items() if k != key}


@pytest.mark.parametrize(
    "change, message",
    [
        (change_line(hotbar=9), "line 2: hotbar is 9"),
        (change_line(mouse=dict(dx=float("nan"))), "line 2: mouse.dx is nan"),
        (change_line(isGuiOpen=1), "line 2: has no 'isGuiOpen'"),
        (without("keyboard"), "line 2: has no 'keyboard'"),
        (without("stats"), "stats: are in some lines only"),
        (lambda line: [line], "line 2: has no 'mouse'"),
    ],
)
def test_wrong_lines(tmp_path, change, message):
    path = write_segment(tmp_path / "source").with_suffix(".jsonl")
    lines = read_log(path)
    lines[1] = change(lines[1])
    write_log(path, lines)
    with pytest.raises(RecordingError, match=f"a.jsonl: {message}"):
        read_vpt_log(path)


def test_wrong_logs(tmp_path):
    path = write_segment(tmp_path / "source").with_suffix(".jsonl")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(RecordingError, match="line 12: is cut in half"):
        read_vpt_log(path)
    path.write_text(json.dumps(log_line(np.random.default_rng(0), 0)))
    with pytest.raises(RecordingError, match="lines: 1. Hint: .* at least two frames"):
        read_vpt_log(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecordingError, match="a.jsonl: file: cannot be read"):
        read_vpt_log(path)


def test_what_players_type(tmp_path):
    "Some characters end a line for Python, but not for JSON"
    path = write_segment(tmp_path / "source").with_suffix(".jsonl")
    lines = read_log(path)
    for line in lines:
        line["keyboard"]["chars"] = "a\u2028b"
    rows = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
    path.write_text("".join(rows), encoding="utf-8")
    assert len(read_vpt_log(path)) == 12


def test_videos_that_do_not_fit(tmp_path):
    path = write_segment(tmp_path / "source")
    lines = read_log(path.with_suffix(".jsonl"))
    write_log(path.with_suffix(".jsonl"), lines + lines[:3])
    with pytest.raises(RecordingError, match="frames: 12, its log has 15 lines"):
        read_segment(path)
    write_video(tmp_path / "one.mp4", np.zeros((1, 36, 64, 3), np.uint8))
    with pytest.raises(RecordingError, match="frames: 1. Hint: .* at least one step"):
        read_segment(tmp_path / "one.mp4")
    with pytest.raises(RecordingError, match="gone.mp4: file: is missing"):
        read_segment(tmp_path / "gone.mp4")


def test_unknown_event(tmp_path):
    lines = read_vpt_log(write_segment(tmp_path / "source").with_suffix(".jsonl"))
    with pytest.raises(ValueError, match="event: 'fly'. Hint: choose one of mine_log"):
        log_events(lines, "fly")


@pytest.mark.parametrize("x", [-1e5, -45, -5, 1275, 1e5])
@pytest.mark.parametrize("y", [-1e5, -45, -5, 715, 1e5])
def test_a_cursor_at_the_border_and_beyond(x, y):
    frame = np.full((360, 640, 3), 90, np.uint8)
    draw_cursor(frame, x, y)
    assert (frame[20:340, 20:620] == 90).all()


def test_every_event_converts(tmp_path):
    write_segment(tmp_path / "source")
    for event in EVENTS:
        (row,) = convert(tmp_path / "source", tmp_path / "data", progress=False, event=event)
        assert row["status"] == "converted"
        assert row["total_reward"] == (2 if event == "mine_log" else 0)

"""Videos of all kinds, with a log and without: as a player shows them, or with a reason.

Segments damaged at random end in a reason in one line or in an episode, never in a traceback,
and never in an episode whose labels have another length."""

import csv
import json
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("av")
from dreamer4_nb.data.actions import ActionSpace
from dreamer4_nb.data.convert import convert, describe_conversion
from dreamer4_nb.data.dataset import Recordings
from dreamer4_nb.data.recordings import gold_game, write_episode
from dreamer4_nb.data.video import Video, video_frames, write_video
from dreamer4_nb.data.vpt import (
    EVENTS,
    draw_cursor,
    log_events,
    read_segment,
    read_vpt_log,
    resize_area,
)
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
        (change_line(mouse=dict(x=[])), r"line 2: mouse.x is \[\]"),
        (change_line(isGuiOpen=1), "line 2: isGuiOpen is 1. Hint: expected bool"),
        (change_line(keyboard="w"), "line 2: keyboard is 'w'"),
        (lambda line: [line], "line 2: is no dictionary"),
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
    path.write_text(path.read_text()[:-40].replace("}\n", "\n", 1))
    with pytest.raises(RecordingError, match="line 1: is cut in half"):
        read_vpt_log(path)
    path.write_text(json.dumps(log_line(np.random.default_rng(0), 0)))
    with pytest.raises(RecordingError, match="lines: 1. Hint: .* at least two frames"):
        read_vpt_log(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecordingError, match="a.jsonl: line 1: is cut in half or not JSON"):
        read_vpt_log(path)


def test_what_players_type(tmp_path):
    "Some characters end a line for Python, but not for JSON"
    path = write_segment(tmp_path / "source").with_suffix(".jsonl")
    lines = read_log(path)
    for line in lines:
        line["keyboard"]["chars"] = "a\u2028b"
    rows = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
    path.write_text("".join(rows), encoding="utf-8")
    assert len(read_vpt_log(path).lines) == 12


def test_videos_that_do_not_fit(tmp_path):
    path = write_segment(tmp_path / "source")
    lines = read_log(path.with_suffix(".jsonl"))
    write_log(path.with_suffix(".jsonl"), lines + lines[:3])
    with pytest.raises(
        RecordingError, match="12 frames in 0.6 s .*, its log has 15 lines in 0.75"
    ):
        read_segment(path)
    write_video(tmp_path / "one.mp4", np.zeros((1, 36, 64, 3), np.uint8))
    with pytest.raises(RecordingError, match="frames: 1. Hint: .* at least one step"):
        read_segment(tmp_path / "one.mp4")
    with pytest.raises(RecordingError, match="gone.mp4: file: is missing"):
        read_segment(tmp_path / "gone.mp4")


def test_unknown_event(tmp_path):
    lines = read_vpt_log(write_segment(tmp_path / "source").with_suffix(".jsonl")).lines
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


# --- as a player shows it


def pan(steps=24, height=36, width=64):
    "A bright sky, a red left side, and a pattern that moves by a pixel a step."
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 120, (height // 4, (width + steps) // 4 + 1, 3))
    wide = wide.repeat(4, 0).repeat(4, 1)
    film = np.stack([wide[:, t : t + width] for t in range(steps)])
    film[:, : height // 4] += 120
    film[:, :, : width // 8, 0] += 100
    return film.clip(0, 255).astype(np.uint8)


def film_file(path, frames, rate=20, times=None, flags=None, codec="libx264", **options):
    "Write a lossy film of any container; `times` in milliseconds, `flags` of the stream."
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.lower()[1:]
    kind = dict(mkv="matroska", m4v="mp4", ts="mpegts").get(kind, kind)
    with av.open(str(path), "w", format=kind) as video:
        stream = video.add_stream(codec, rate=rate, options=dict(crf="1") | options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.thread_count = 1
        for name, value in (flags or {}).items():
            if name == "rotation":
                stream.set_display_rotation(value)
            elif name == "matrix":
                stream.set_display_matrix(value)
            else:
                setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.time_base = Fraction(1, 1000)
                picture.pts = int(times[i])
            video.mux(stream.encode(picture))
        video.mux(stream.encode())
    return path


def pan_log(path, steps, **clock):
    rng = np.random.default_rng(0)
    clocks = [
        {key: start + step * t for key, (start, step) in clock.items()} for t in range(steps)
    ]
    write_log(path, [log_line(rng, t) | clocks[t] for t in range(steps)])


def mean_difference(a, b):
    return np.abs(a.astype(float) - b).mean()


ONE = 1 << 16
FIXED = 1 << 30
TURNS = dict(
    left=(1, [0, ONE, 0, -ONE, 0, 0, 0, 0, FIXED], "turned 90 degrees clockwise"),
    right=(-1, [0, -ONE, 0, ONE, 0, 0, 0, 0, FIXED], "turned 90 degrees to the left"),
    down=(2, [-ONE, 0, 0, 0, -ONE, 0, 0, 0, FIXED], "turned 180 degrees"),
)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("turns, matrix, words", TURNS.values(), ids=TURNS)
def test_a_turned_film_comes_upright(tmp_path, suffix, turns, matrix, words):
    upright = pan()
    stored = np.ascontiguousarray(np.rot90(upright, turns, (1, 2)))
    film_file(tmp_path / f"source/turned{suffix}", stored, flags=dict(matrix=matrix))
    film_file(tmp_path / "source/upright.mp4", upright)
    rows = convert(tmp_path / "source", tmp_path / "data", progress=False)
    assert words in rows[0]["changes"] and "turned" not in rows[1]["changes"]
    turned, straight = map(Recordings(tmp_path / "data").frames, (0, 1))
    assert mean_difference(turned, straight) < 4


def test_a_mirrored_film(tmp_path):
    flags = dict(matrix=[-ONE, 0, 0, 0, ONE, 0, 0, 0, FIXED])
    path = film_file(tmp_path / "a.mp4", np.ascontiguousarray(pan()[:, :, ::-1]), flags=flags)
    video = Video(path)
    assert mean_difference(np.stack([f for _, f in video.timed_frames()]), pan()) < 12
    assert video.changes == ["mirrored"]


def test_interlaced_films_have_no_combs(tmp_path):
    "Odd lines are half a frame later: as they are, lines that follow each other differ"
    fine = pan(48, 48, 64)
    combed = fine[::2].copy()
    combed[:, 1::2] = np.roll(fine[1::2], 6, 2)[:, 1::2]
    path = tmp_path / "a.mp4"
    film_file(path, combed, **{"x264-params": "interlaced=1:tff=1"})
    video = Video(path)
    shown = np.stack([frame for _, frame in video.timed_frames()]).astype(float)
    assert len(shown) == len(combed) and video.changes == ["deinterlaced"]

    def comb(film):
        film = film.astype(float)
        return np.abs(2 * film[:, 1:-1] - film[:, :-2] - film[:, 2:]).mean()

    assert comb(shown) < 0.6 * comb(combed)


def test_pixels_that_are_not_square(tmp_path):
    "A cursor lies where the log says on the picture that a player shows"
    frames = np.full((6, 36, 32, 3), 90, np.uint8)  # of 16:9, squeezed to half its width
    flags = dict(sample_aspect_ratio=Fraction(2, 1))
    film_file(tmp_path / "source/a.mp4", frames, flags=flags)
    lines = [log_line(np.random.default_rng(0), t) for t in range(6)]
    for line in lines:
        line |= dict(isGuiOpen=True)
        line["mouse"] |= dict(x=1000.0, y=360.0)
    write_log(tmp_path / "source/a.jsonl", lines)
    episode = read_segment(tmp_path / "source/a.mp4")
    assert "pixels made square, 2 times as wide" in episode.info["changes"]
    columns = np.flatnonzero(np.abs(episode.frames[0].astype(int) - 90).max((0, 1)) > 20)
    assert 46 <= columns.min() <= 52  # 1000 of 1280
    stored = next(iter(video_frames(tmp_path / "source/a.mp4")))  # as MineRL's are read
    assert stored.shape == (36, 32, 3)


CONTAINERS = dict(
    capital=(".MP4", "libx264"),
    m4v=(".m4v", "libx264"),
    obs=(".mkv", "libx264"),
    web=(".webm", "libvpx-vp9"),
    apple=(".Mov", "libx264"),
    avi=(".avi", "mpeg4"),
    avi_h264=(".AVI", "libx264"),
    gif=(".gif", "gif"),
    stream=(".ts", "libx264"),
)


@pytest.mark.parametrize("suffix, codec", CONTAINERS.values(), ids=CONTAINERS)
def test_every_container_is_read(tmp_path, suffix, codec):
    film_file(tmp_path / f"source/deep/a{suffix}", pan(), codec=codec)
    pan_log(tmp_path / "source/deep/a.jsonl", 24)
    (row,) = convert(tmp_path / "source", tmp_path / "data", progress=False)
    assert (row["status"], row["steps"], row["has_actions"]) == ("converted", 23, True)
    expected = np.stack([resize_area(frame, (64, 64)) for frame in pan()])
    frames = Recordings(tmp_path / "data").frames(0).transpose(0, 2, 3, 1)
    assert mean_difference(frames, expected) < (12 if codec.startswith("lib") else 30)


# --- no file goes unseen


def summary_of(target):
    with open(target / "summary.csv", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_every_file_is_read_or_named(tmp_path):
    source = tmp_path / "source"
    film_file(source / "a.mkv", pan())
    pan_log(source / "a.jsonl", 24)
    film_file(source / "deep/b.webm", pan(), codec="libvpx-vp9")
    film_file(source / "a.gif", pan(), codec="gif")
    pan_log(source / "lonely.jsonl", 24)
    (source / "broken.avi").write_bytes(b"no film")
    for name in ("._a.mkv", "notes.txt", "shot.PNG", "old.zip", "deep/more.tar.gz"):
        (source / name).write_bytes(b"")
    (source / ".git").mkdir()
    (source / ".git/config").write_text("")
    convert(source, source / "converted", progress=False)
    rows = summary_of(source / "converted")
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict(a="converted", b="converted", broken="set aside"),
        **{
            name: "not read"
            for name in ("a.gif", "lonely.jsonl", "._a.mkv", "notes.txt", "shot.PNG")
        },
        **{"old.zip": "not read", "deep/more.tar.gz": "not read"},
    }
    assert "the same name as a.mkv: rename it" in rows["a.gif"]["reason"]
    assert rows["lonely.jsonl"]["reason"] == "a log without a video of its name"
    assert "picture" in rows["shot.PNG"]["reason"] and "unpack" in rows["old.zip"]["reason"]
    lines = describe_conversion(source / "converted")
    assert lines[0].startswith("set aside broken: ")
    assert lines[-1].startswith("2 recordings in ")
    assert lines[-1].endswith("1 set aside, 7 files not read (summary.csv)")
    assert any(line.startswith("not read (packed") for line in lines)
    again = convert(source, source / "converted", progress=False)
    assert [row["status"] for row in again] == ["kept", "kept", "set aside"]


def test_a_folder_without_recordings_says_what_it_holds(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(RecordingError, match="no recordings here, but files: 3 .png"):
        convert(tmp_path, tmp_path / "data", progress=False)


def test_videos_among_recordings_of_minerl_are_named(tmp_path):
    frames, actions, rewards = gold_game(np.random.default_rng(0))
    space = dict(action_space=ActionSpace(keys=("left", "right")).to_dict())
    folder = tmp_path / "source/some/where/Gold-v0"
    write_episode(folder.parent, "Gold-v0", "a", frames, actions, rewards, extra=space)
    film_file(folder / "extra.mp4", pan())
    (folder / "v3_a/notes.txt").write_text("")
    film_file(tmp_path / "source/v1_takes/take.mp4", pan())
    convert(tmp_path / "source", tmp_path / "data", progress=False)
    rows = summary_of(tmp_path / "data")
    assert [row["status"] for row in rows.values()] == ["converted"] + ["not read"] * 3
    assert (
        "convert it from a folder of its own" in rows["some/where/Gold-v0/extra.mp4"]["reason"]
    )
    assert "v1_takes/take.mp4" in rows


@pytest.mark.parametrize("listed", ["8.0/x.1", "8.0/x.1.mp4", "8.0\\x.1", "data/x.1.jsonl"])
@pytest.mark.parametrize("place", ["8.0/x.1.mp4", "x.1.MP4", "8.0/x.1.mkv"])
def test_paths_of_an_index(tmp_path, listed, place):
    if listed.startswith("data") and place.startswith("8.0"):
        pytest.skip("the index names another folder")
    source = tmp_path / "source"
    film_file(source / place, pan(6))
    film_file(source / "8.0/unlisted.mp4", pan(6))
    index = dict(basedir="https://example.org/", relpaths=[listed, "8.0/gone"])
    (source / "all.json").write_text(json.dumps(index))
    convert(source, tmp_path / "data", progress=False)
    rows = {name: row["status"] for name, row in summary_of(tmp_path / "data").items()}
    assert rows.pop("8.0/unlisted.mp4") == "not read"
    assert rows == {"x.1": "converted", "gone": "set aside"}


# --- rates and clocks


def numbered(count):
    "Frames that can be told apart after compression, by the brightness of their halves."
    number = np.arange(count)
    halves = np.stack([number % 16, number // 16], 1).astype(np.uint8) * 15
    return halves[:, None, :, None].repeat(16, 1).repeat(8, 2).repeat(3, 3)


def numbers_of(frames):
    halves = frames.reshape(len(frames), 3, 16, 2, 8).mean((1, 2, 4)) / 15
    return (halves.round() @ [1, 16]).astype(int).tolist()


def read_numbers(path, **options):
    episode = read_segment(path, (16, 16), **options)
    return numbers_of(episode.frames), episode.info["changes"]


@pytest.mark.parametrize("rate", [60, 30, 10])
@pytest.mark.parametrize("clock", [dict(milli=(10**12, 50)), dict(tick=(7, 1)), {}])
def test_a_screen_capture_beside_a_log_of_20_ticks(tmp_path, rate, clock):
    count = 3 * rate // 2 if rate > 20 else 15
    path = film_file(tmp_path / "a.mp4", numbered(count), rate)
    steps = round(count * 20 / rate)
    pan_log(tmp_path / "a.jsonl", steps, **clock)
    numbers, changes = read_numbers(path)
    assert numbers == [int(t * rate / 20 + 1e-6) for t in range(steps)]
    assert changes == [f"{rate} frames a second taken at the 20 lines a second of the log"]


def test_a_capture_of_varying_rate_beside_a_log(tmp_path):
    times = np.r_[np.arange(20) * 50, 1000 + np.arange(5) * 200, 2000 + np.arange(30) * 33.34]
    path = film_file(tmp_path / "a.mkv", numbered(55), rate=30, times=times.round())
    pan_log(tmp_path / "a.jsonl", 60, milli=(5, 50))
    numbers, changes = read_numbers(path)
    shown = [int(np.flatnonzero(times <= 50 * t + 5)[-1]) for t in range(60)]
    assert numbers == shown
    assert changes[0].startswith("5 to 30.3 frames a second, mostly 29, taken at the 20 lines")


@pytest.mark.parametrize("rate, count, steps", [(60, 80, 60), (20, 80, 60), (30, 60, 60 * 3)])
def test_durations_that_do_not_agree(tmp_path, rate, count, steps):
    path = film_file(tmp_path / "a.mp4", numbered(count), rate)
    pan_log(tmp_path / "a.jsonl", steps, milli=(0, 50))
    words = (
        rf"{count} frames in [\d.]+ s \({rate} frames a second\), its log has {steps} lines in"
    )
    with pytest.raises(RecordingError, match=words):
        read_segment(path)


def test_frames_of_another_rate_but_one_for_each_line(tmp_path):
    path = film_file(tmp_path / "a.mp4", numbered(60), rate=60)
    pan_log(tmp_path / "a.jsonl", 60, tick=(0, 1))
    numbers, changes = read_numbers(path)
    assert numbers == list(range(60))
    assert "60 frames in 1 s (60 frames a second), its log has 60 lines in 3 s" in changes[0]


def test_clips_of_several_rates(tmp_path):
    for rate in (20, 30, 60):
        film_file(tmp_path / f"source/{rate}.mp4", numbered(rate), rate)
    times = np.r_[np.arange(20) * 25, 500 + np.arange(6) * 100]
    film_file(tmp_path / "source/varies.mp4", numbered(26), times=times)
    rows = convert(tmp_path / "source", tmp_path / "data", progress=False, image_size=16)
    data = Recordings(tmp_path / "data")
    shown = {name: numbers_of(np.array(data.frames(i))) for i, name in enumerate(data.names)}
    assert shown["60"] == list(range(0, 60, 3)) and shown["20"] == list(range(20))
    assert shown["30"] == [int(1.5 * t) for t in range(20)]
    assert shown["varies"][:10] == list(range(0, 20, 2))
    assert shown["varies"][10:] == [20 + (t // 2) for t in range(len(shown["varies"]) - 10)]
    changes = {row["name"]: row["changes"] for row in rows}
    assert changes["20"] == "" and changes["60"] == "60 frames a second taken at 20"
    rows = convert(
        tmp_path / "source", tmp_path / "ten", progress=False, image_size=16, rate=10
    )
    assert [row["steps"] for row in rows[:3]] == [9, 9, 9]


def test_a_film_of_minerl_of_another_rate(tmp_path):
    frames, actions, rewards = gold_game(np.random.default_rng(0), 40)
    space = dict(action_space=ActionSpace(keys=("left", "right")).to_dict())
    folder = write_episode(tmp_path, "Gold-v0", "a", frames, actions, rewards, extra=space)
    info = json.loads((folder / "metadata.json").read_text())
    info.pop("crc32")
    (folder / "metadata.json").write_text(json.dumps(info))
    write_video(folder / "recording.mp4", frames.repeat(3, 0), fps=60)
    with pytest.raises(RecordingError, match="123 of 60 a second, but 40 steps.* ffmpeg"):
        convert(tmp_path, tmp_path / "data", progress=False)


# --- logs of older recorders, and broken ones


def changed_log(tmp_path, change, steps=12):
    path = write_segment(tmp_path / "source", steps=steps)
    lines = read_log(path.with_suffix(".jsonl"))
    change(lines)
    write_log(path.with_suffix(".jsonl"), lines)
    return path


def drop(*keys):
    def change(lines):
        for line in lines:
            for key in keys:
                del line[key]

    return change


def set_line(number, **values):
    return lambda lines: lines[number].update(values)


OLD_LOGS = dict(
    no_hotbar=(drop("hotbar"), "12 of 12 lines have no hotbar: slots by keys"),
    no_window=(drop("isGuiOpen"), "12 of 12 lines have no isGuiOpen: no cursor drawn"),
    idm=(drop("hotbar", "isGuiOpen", "inventory", "stats"), "12 of 12 lines have no hotbar"),
    null_mouse=(set_line(5, mouse=None), "1 of 12 lines have no mouse: taken as at rest"),
    null_keys=(set_line(0, keyboard=None), "1 of 12 lines have no keyboard"),
    null_both=(set_line(-1, keyboard=None, mouse=None), "1 of 12 lines have no mouse"),
    null_slot=(set_line(5, hotbar=None), "1 of 12 lines have no hotbar"),
    null_inside=(set_line(5, mouse=dict(x=None, dx=None, buttons=None)), None),
    null_list=(set_line(5, keyboard=dict(keys=None)), None),
    null_inventory=(set_line(5, inventory=None), None),
    null_stats=(set_line(5, stats=None), "1 of 12 lines have no stats: as in the line before"),
    whole_slot=(set_line(5, hotbar=2.0), None),
)


@pytest.mark.parametrize("change, note", OLD_LOGS.values(), ids=OLD_LOGS)
def test_logs_of_older_recorders(tmp_path, change, note):
    episode = read_segment(changed_log(tmp_path, change), event="mine_log")
    check_episode(episode)
    assert len(episode) == 11
    notes = [text for text in episode.info["changes"] if "resized" not in text]
    assert any(text.startswith(note) for text in notes) if note else notes == []


def test_without_hotbar_the_number_keys_count(tmp_path):
    def change(lines):
        drop("hotbar")(lines)
        lines[4]["keyboard"] = dict(keys=["key.keyboard.3"])

    episode = read_segment(changed_log(tmp_path, change))
    assert np.flatnonzero(episode.actions["hotbar.3"]).tolist() == [4]
    assert episode.actions["hotbar.1"].sum() == 0


def test_logs_that_say_nothing(tmp_path):
    path = changed_log(tmp_path, drop("mouse", "keyboard"))
    with pytest.raises(
        RecordingError, match="12 of 12 have no mouse and no keyboard.* remove it"
    ):
        read_segment(path)
    path.with_suffix(".jsonl").write_bytes(b"")
    with pytest.raises(RecordingError, match="lines: 0. Hint: "):
        read_segment(path)


@pytest.mark.parametrize("end", [b"", b"\0" * 500, b'{"mouse": {"x": 3', b'{"a": "\xc3'])
def test_the_last_line_is_cut(tmp_path, end):
    path = write_segment(tmp_path / "source")
    rows = path.with_suffix(".jsonl").read_bytes().split(b"\n")
    half = end or rows[9][: len(rows[9]) // 2]
    path.with_suffix(".jsonl").write_bytes(b"\r\n".join([*rows[:9], half]))
    episode = read_segment(path)
    assert len(episode) == 8
    assert "line 10 of the log is cut in half and left out" in episode.info["changes"]
    assert "0.15 s of video after the end of the log left out" in episode.info["changes"]


def with_clock(milli, **more):
    def change(lines):
        for line, value in zip(lines, milli):
            line["milli"] = int(value)
        for key, values in more.items():
            for line, value in zip(lines, values):
                line[key] = int(value)

    return change


def test_clocks_that_run_backwards(tmp_path):
    milli = 10**12 + 50 * np.arange(12)
    path = changed_log(tmp_path, with_clock(np.r_[milli[:6], milli[6:] - 3_600_000]))
    episode = read_segment(path)
    assert len(episode) == 11
    note = "the log's milli runs back by 3600 s at line 7: not used"
    assert note in episode.info["changes"]
    film_file(path, numbered(36), rate=60)  # the game's clock remains
    back = np.r_[milli[:6], milli[6:] - 3_600_000]
    path = changed_log_of(path, with_clock(back, tick=np.arange(12)))
    numbers, changes = read_numbers(path)
    assert numbers == list(range(0, 36, 3)) and note in changes


def changed_log_of(path, change):
    lines = read_log(path.with_suffix(".jsonl"))
    change(lines)
    write_log(path.with_suffix(".jsonl"), lines)
    return path


def test_lines_out_of_order_are_sorted(tmp_path):
    def change(lines):
        with_clock(50 * np.arange(12))(lines)
        lines[4], lines[5] = lines[5], lines[4]

    straight = read_segment(write_segment(tmp_path / "straight"))
    episode = read_segment(changed_log(tmp_path, change))
    assert "2 lines of the log sorted by milli" in episode.info["changes"]
    for name, values in straight.actions.items():
        assert np.array_equal(values, episode.actions[name])

"Segments with a log, damaged at random: a reason in one line, never a traceback, and never an episode of another length."

import json

import numpy as np
import pytest

pytest.importorskip("av")
from dreamer4_nb.data.convert import convert
from dreamer4_nb.data.video import write_video
from dreamer4_nb.data.vpt import EVENTS, read_segment
from dreamer4_nb.files import RecordingError


def write_segment(folder, name="a", steps=12):
    folder.mkdir(parents=True, exist_ok=True)
    rng, path = np.random.default_rng(0), folder / f"{name}.mp4"
    write_video(path, rng.integers(0, 256, (steps, 36, 64, 3), dtype=np.uint8))
    line = lambda t: dict(
        mouse=dict(
            x=5.0 * t,
            y=90.0,
            dx=float(rng.integers(-9, 9)),
            dy=0.0,
            buttons=[0] * (t % 2),
            newButtons=[],
        ),
        keyboard=dict(keys=["key.keyboard.w"], newKeys=[], chars=""),
        isGuiOpen=t > 8,
        hotbar=t % 3,
        inventory=[dict(type="oak_log", quantity=t // 4)],
        stats={"minecraft.mine_block:minecraft.oak_log": t // 4},
    )
    path.with_suffix(".jsonl").write_text(
        "\n".join(json.dumps(line(t)) for t in range(steps)) + "\n"
    )
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".mp4"])
def test_damaged_bytes(tmp_path, suffix, full):
    path, read = write_segment(tmp_path / "source"), 0
    damaged, rng = path.with_suffix(suffix), np.random.default_rng(1)
    good = damaged.read_bytes()
    whole = read_segment(path, event="mine_log")
    for k in range(500 if full else 60):
        b = bytearray(good)
        if k % 3 == 0:
            b = b[: rng.integers(len(b))]
        else:
            for i in rng.integers(len(b), size=3):
                b[i] = rng.integers(256)
        damaged.write_bytes(bytes(b))
        try:
            e = read_segment(path, event="mine_log")
        except RecordingError as error:
            assert "\n" not in str(error) and damaged.stem in str(error)
        else:
            read += 1
            assert (
                e.frames.shape[1:] == (3, 64, 64)
                and all(len(a) == len(e) for a in e.actions.values())
                and (e.rewards is None or len(e.rewards) == len(e))
            )
    damaged.write_bytes(good)
    assert (
        read < (500 if full else 60)
        and (read_segment(path, event="mine_log").frames == whole.frames).all()
    )


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
        ("stats", {"minecraft.mine_block:minecraft.oak_log": "b"}),
    ],
)
def test_values_of_another_kind(tmp_path, field, value):
    path = write_segment(tmp_path / "source").with_suffix(".jsonl")
    rows = [json.loads(r) for r in path.read_text().splitlines()]
    rows[3][field] = value
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        RecordingError,
        match="a.jsonl: (values: not all are of the kind expected|line 4: mouse)",
    ):
        read_segment(path.with_suffix(".mp4"), event="mine_log")


def test_every_event_converts(tmp_path):
    write_segment(tmp_path / "source")
    for event in EVENTS:
        (row,) = convert(tmp_path / "source", tmp_path / "data", progress=False, event=event)
        assert row["status"] == "converted" and row["total_reward"] == (
            2 if event == "mine_log" else 0
        )

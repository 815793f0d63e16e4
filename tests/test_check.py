"The checks on real first-person video, where that is at hand, and their messages"

from pathlib import Path

import numpy as np
import pytest

from dreamer4_nb.config import named
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.dataset import MemoryRecordings
from dreamer4_nb.evaluation.reward_head import diagnose_reward_head
from dreamer4_nb.run.checks import (
    check_imagination,
    check_lengths,
    check_path,
    check_reward_head,
    check_run,
    enforce_checks,
    format_checks,
)
from dreamer4_nb.run.folder import RunError, RunFolder
from dreamer4_nb.run.recording_checks import Check, check_alignment

PLAYED = Path(__file__).parents[2] / "shared/data/minetest"
KEYS = ("forward", "back", "left", "right", "jump", "attack")


def minetest_recordings(shift):
    "Two recordings of Minetest in parts, their actions moved by so many steps"
    space = ActionSpace(keys=KEYS, camera="camera")
    codec = ActionCodec(space)
    frames = []
    actions = []
    for seed in ("seed3", "seed7"):
        with np.load(PLAYED / seed / "episode.npz", allow_pickle=False) as episode:
            camera = 0.1 * np.stack([episode["dy"], episode["dx"]], -1).astype(float)
            named_actions = {key: episode[key] for key in KEYS} | {"camera": camera}
            encoded = np.asarray(codec.encode(named_actions))
            pictures = episode["frames"].transpose(0, 3, 1, 2)
        for start in range(0, 3000, 300):
            frames.append(pictures[start : start + 301])
            actions.append(np.roll(encoded[start : start + 300], shift, 0))
    return MemoryRecordings(frames, actions, [None] * len(frames), codec=codec)


@pytest.mark.skipif(
    not PLAYED.is_dir(), reason="the Minetest recordings of ../shared are not here"
)
@pytest.mark.parametrize("shift, status", [(0, "pass"), (1, "fail")])
def test_alignment_of_keys_and_mouse(shift, status):
    check = next(check_alignment(minetest_recordings(shift)))
    assert check.name == "actions fit the frames"
    assert check.status == status, check


def test_a_check_is_shown_with_its_hint():
    failed = Check("length", "fail", "1 m", "2 m", "stretch it")
    passed = Check("width", "pass", "3 m", "2 m", "squeeze it")
    assert format_checks([failed, passed]).splitlines() == [
        "fail  length: 1 m",
        "      passes at 2 m. Hint: stretch it",
        "pass  width: 3 m",
    ]


def test_a_check_is_written_by_the_names_of_earlier_files():
    check = Check("length", "fail", "1 m", "2 m", "stretch it")
    assert check.to_dict() == {
        "name": "length",
        "status": "fail",
        "found": "1 m",
        "threshold": "2 m",
        "mend": "stretch it",
    }
    assert Check.from_dict(check.to_dict()) == check


def test_nothing_to_check(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder. Hint"):
        list(check_path(tmp_path / "nothing"))
    run = RunFolder(tmp_path / "run", named("smoke"), progress=False)
    with pytest.raises(RunError, match="convert is not done"):
        list(check_run(run))


def test_failed_checks_stop_with_their_hints(tmp_path, monkeypatch, capsys):
    failed = Check("length", "fail", "1 m", "2 m", "stretch it")
    monkeypatch.setattr("dreamer4_nb.run.checks.check_stage", lambda run, stage: [failed])
    run = RunFolder(tmp_path / "run", named("smoke"), progress=False)
    with pytest.raises(RunError) as error:
        enforce_checks(run, "convert")
    assert str(error.value) == (
        f"{run.out}: convert: length: 1 m. Hint: stretch it; or continue with --unchecked"
    )
    assert "fail  length" in capsys.readouterr().out
    enforce_checks(run, "record")  # after which there is nothing to check


@pytest.mark.parametrize(
    "hits, size, largest, status, line, hint",
    [
        (
            9,
            1.0,
            147.0,
            "warn",
            "unknown: only 9 held-out steps are rewarded",
            "hold out more",
        ),
        (40, 1024.0, 147.0, "fail", "clipped: rewards reach 1,024", "--agent.bin_range 7.7"),
        (40, 64.0, 147.0, "pass", "healthy: average precision 1.00 (1.00 to 1.00) on 40", ""),
        (40, -1.0, 147.0, "pass", "1.00) on 40 costly of 1000 held-out steps, -1 there", ""),
    ],
)
def test_the_reward_head_is_judged_in_words(hits, size, largest, status, line, hint):
    "Its predictions are as good as its bins let them be"
    recorded = size * (np.arange(1000) < hits)
    predicted = recorded.clip(-largest, largest)
    (check,) = check_reward_head(diagnose_reward_head(predicted, recorded, largest=largest))
    assert check.status == status
    assert line in check.observed
    assert check.hint.startswith(hint)


@pytest.mark.parametrize("frames, status", [(2, "warn"), (22, "warn"), (23, "pass")])
def test_short_held_out_episodes_are_said(frames, status):
    short, long = (
        MemoryRecordings([np.zeros((n, 1, 1, 1), np.uint8)], [None], [None])
        for n in (frames, 50)
    )
    (check,) = check_lengths(long, short)
    assert check.status == status
    assert check.observed == f"at most {frames} frames, of those for training 50"


@pytest.mark.parametrize(
    "alarm, name",
    [
        ("far from the clone", "far from the BC policy"),  # as earlier runs call it
        ("far from the BC policy", "far from the BC policy"),
        ("an alarm of a later version", "an alarm of a later version"),
    ],
)
def test_every_alarm_in_a_history_is_reported(alarm, name):
    healthy = dict(band=0.1, advantage_std=1.0, better=500, worse=500, correlation=0.9)
    checks = list(check_imagination([healthy | dict(alarms=[alarm])]))
    assert checks[-1].status == "warn"
    assert checks[-1].observed == name

"The checks on real first-person video, where that is at hand, and their messages"

from pathlib import Path

import numpy as np
import pytest

from dreamer4_nb.config import named
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.dataset import MemoryRecordings
from dreamer4_nb.data.recordings import gold_game, write_episode
from dreamer4_nb.evaluation.reward_head import diagnose_reward_head
from dreamer4_nb.files import RecordingError
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
from dreamer4_nb.run.recording_checks import (
    Check,
    check_actions_vary,
    check_alignment,
    check_copies,
    check_kinds,
    find_gap,
)
from dreamer4_nb.studies.alignment import SMALL_WORLDS, small_recordings
from dreamer4_nb.worlds.record import record

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


def as_memory(recordings, chosen, **changes):
    columns = {
        "frames": [recordings.frames(i) for i in chosen],
        "actions": [recordings.actions(i) for i in chosen],
        "rewards": [recordings.rewards(i) for i in chosen],
    }
    return MemoryRecordings(**columns | changes, codec=recordings.codec)


@pytest.mark.parametrize("seed", range(3))
def test_good_recordings_are_not_refused(seed):
    kind, recordings = small_recordings(seed)
    assert kind in SMALL_WORLDS
    for check in check_alignment(recordings):
        assert check.status in ("pass", "skip"), (kind, check)


@pytest.mark.parametrize("seed", (36, 55))
def test_largest_changes_decide_on_few_rewards(seed):
    way = (-1) ** seed
    _, rewards = check_alignment(small_recordings(seed, rewards=way)[1])
    assert rewards.status == "fail"
    assert "explained by the largest changes" in rewards.observed
    assert "so shift nothing" in rewards.hint
    _, rewards = check_alignment(small_recordings(seed)[1])
    assert rewards.status == "pass"


def test_frames_that_do_not_tell_are_not_refused():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (12, 41, 3, 16, 16), np.uint8)
    actions = rng.integers(0, 2, (12, 40, 1))
    rewards = rng.integers(0, 2, (12, 40)).astype(np.float32)
    codec = ActionCodec(ActionSpace.flat(["none", "push"]))
    recordings = MemoryRecordings(list(noise), list(actions), list(rewards), codec=codec)
    checks = list(check_alignment(recordings))
    assert [check.status for check in checks] == ["warn", "skip"]
    for check in checks:
        assert "the frames do not tell" in check.observed
        assert "look at a recording" in check.hint


def test_nobody_is_told_to_move_one_column_while_the_other_fits():
    actions, rewards = check_alignment(small_recordings(5, rewards=1)[1])
    assert (actions.status, rewards.status) == ("pass", "fail")
    assert "the actions fit, so shift nothing" in rewards.hint
    actions, rewards = check_alignment(small_recordings(5, actions=1)[1])
    assert actions.status == "fail"
    assert "so shift nothing" in actions.hint or rewards.status != "pass"
    both = list(check_alignment(small_recordings(5, actions=1, rewards=1)[1]))
    assert [check.status for check in both] == ["fail", "fail"]
    assert "first row without meaning: leave it out, of actions and of rewards" in both[0].hint


def test_actions_that_never_vary_are_named():
    recordings = small_recordings(0)[1]
    actions = [recordings.actions(i) for i in range(len(recordings))]
    actions[2] = 0 * actions[2] + 3
    recordings = as_memory(recordings, range(len(recordings)), actions=actions)
    check = next(check_actions_vary(recordings))
    assert check.status == "warn"
    assert check.observed.endswith(
        "one action at all steps while the picture moves: episode0002"
    )


def test_bins_that_hold_nearly_all_steps():
    frames = [np.zeros((101, 3, 16, 16), np.uint8)]
    actions = np.full((100, 1), 3, np.int16)
    actions[:5] = 0
    codec = ActionCodec(ActionSpace(choices={"steer": ["-1", "-0.5", "0", "0.5", "1"]}))
    recordings = MemoryRecordings(frames, [actions], [None], codec=codec)
    *_, check = check_actions_vary(recordings)
    assert check.name == "bins are used"
    assert check.observed == "steer: 2 of 5 bins used, 95% of the steps at 0.5"
    assert check.status == "warn"


def noisy(frames, seed=0):
    "As after another compression"
    noise = np.random.default_rng(seed).integers(-6, 7, frames.shape)
    return np.clip(frames.astype(int) + noise, 0, 255).astype(np.uint8)


def test_copies_and_pieces_are_named():
    recordings = small_recordings(3)[1]
    frames = [recordings.frames(i) for i in range(len(recordings))]
    actions = [recordings.actions(i) for i in range(len(recordings))]
    assert check_copies(recordings).status == "pass"
    count = len(frames)
    whole = MemoryRecordings(
        [*frames, noisy(frames[1])],
        [*actions, actions[1]],
        [None] * (count + 1),
        codec=recordings.codec,
    )
    check = check_copies(whole)
    assert check.status == "warn"
    assert check.observed.endswith(f"episode{count:04d} is episode0001")
    piece = MemoryRecordings(
        [frames[2][3:]], [actions[2][3:]], [None], ["p"], recordings.codec
    )
    piece.names = ["piece"]
    check = check_copies(recordings, piece)
    assert check.status == "fail"
    assert check.observed == "1 held-out episodes are trained on: piece is episode0002"
    video = MemoryRecordings([frames[4], noisy(frames[4])], [None, None], [None, None])
    assert check_copies(video).status == "warn"


def test_two_players_without_names():
    rng = np.random.default_rng(0)
    left = [rng.choice(5, (40, 1), p=[0.05, 0.05, 0.05, 0.8, 0.05]) for _ in range(8)]
    right = [rng.choice(5, (40, 1), p=[0.05, 0.05, 0.05, 0.05, 0.8]) for _ in range(8)]
    codec = ActionCodec(ActionSpace.flat(["none", "up", "down", "left", "right"]))
    frames = [rng.integers(0, 255, (41, 3, 16, 16), np.uint8) for _ in range(16)]
    tasks = ["west"] * 8 + ["east"] * 8
    untold = MemoryRecordings(frames, left + right, [None] * 16, codec=codec)
    named = MemoryRecordings(frames, left + right, [None] * 16, codec=codec, tasks=tasks)
    assert "8 with other actions than 8" in check_kinds(untold).observed
    assert check_kinds(untold).status == "warn"
    assert check_kinds(named).status == "pass"


@pytest.mark.parametrize("seed", range(20))
def test_no_gap_in_one_cloud(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(10, 60))
    assert find_gap(rng.normal(size=(count, 30))) is None
    assert find_gap(rng.uniform(size=(count, 2))) is None


def write_games(root, size=64):
    space = ActionSpace(keys=("left", "right"))
    for number in range(12):
        frames, actions, rewards = gold_game(np.random.default_rng(number))
        frames = frames[:, :, :size]
        extra = dict(action_space=space.to_dict())
        write_episode(root, "Gold-v0", str(number), frames, actions, rewards, extra=extra)


def test_a_folder_is_checked_at_its_own_size(tmp_path):
    write_games(tmp_path, size=48)
    checks = {check.name: check for check in check_path(tmp_path)}
    assert checks["recordings can be read"].observed == "12 of 12 in the sample"
    assert checks["actions fit the frames"].status == "pass"
    with pytest.raises(RecordingError, match="--height 64 --width 48") as error:
        list(check_path(tmp_path, image_size=(64, 64)))
    assert "summary.csv" not in str(error.value)
    assert "converted" not in str(error.value)


def test_files_that_are_not_read_are_named(tmp_path):
    "Beside the recordings, in the check of a folder that is not converted yet."
    record(tmp_path, "collect_wood", episodes=4, seed=0, progress=False)
    names = {check.name: check for check in check_path(tmp_path)}
    check = names["files are read as they are"]
    assert check.status == "pass"
    (tmp_path / "notes.txt").write_text("bought milk")
    names = {check.name: check for check in check_path(tmp_path)}
    check = names["files are read as they are"]
    assert check.status == "warn"
    assert "not read" in check.observed and "notes.txt" in check.observed

"Windows and batches: properties by brute force, and every message."

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dreamer4_nb.data.dataset import LatentStore, MemoryRecordings, Recordings
from dreamer4_nb.data.windows import (
    Batch,
    SequenceIndex,
    SequenceSampler,
    fit_to_longest,
    make_batch,
)


@st.composite
def worlds(draw):
    "Recordings whose pixels spell out episode, step, the last action (2) and the last reward"
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    frames, actions, rewards = [], [], []
    for i, steps in enumerate(lengths):
        action = rng.integers(1, 9, size=(steps, 2))
        reward = (rng.random(steps) < 0.15).astype(np.float32)
        pixels = np.zeros((steps + 1, 5), np.uint8)
        pixels[:, 0] = i
        pixels[:, 1] = np.arange(steps + 1)
        pixels[1:, 2:4] = action
        pixels[1:, 4] = reward
        frames.append(pixels.reshape(steps + 1, 5, 1, 1))
        actions.append(action)
        rewards.append(reward if draw(st.booleans()) else None)
    terminated = [draw(st.booleans()) for _ in lengths]
    return MemoryRecordings(frames, actions, rewards, terminated)


@given(worlds(), st.integers(1, 12), st.integers(0, 6), st.integers(0, 5))
def test_windows_agree_with_their_frames(world, length, horizon, number):
    assume(max(world.steps) + 1 >= length)
    sampler = SequenceSampler(world, 8, length, horizon=horizon, relevant_fraction=0)
    batch = sampler.batch(number)
    pixels = batch.frames.flatten(2).long()
    steps = batch.start[:, None] + torch.arange(length)
    assert (pixels[..., 0] == batch.episode[:, None]).all()
    assert (pixels[..., 1] == steps).all()
    assert (pixels[..., 2:4] == batch.window().actions).all()


@given(worlds(), st.integers(1, 12), st.integers(0, 6), st.integers(0, 5))
def test_labels_agree_with_the_recordings(world, length, horizon, number):
    assume(max(world.steps) + 1 >= length)
    sampler = SequenceSampler(world, 8, length, horizon=horizon, relevant_fraction=0)
    batch = sampler.batch(number)
    for row in range(len(batch)):
        i = int(batch.episode[row])
        start = int(batch.start[row])
        rewards = world.rewards(i)
        for k in range(length + horizon + 1):
            t = start + k
            acted = 1 <= t <= world.steps[i]
            paid = acted and rewards is not None
            assert batch.action_mask[row, k] == acted
            assert batch.reward_mask[row, k] == paid
            if acted:
                assert (batch.actions[row, k].numpy() == world.actions(i)[t - 1]).all()
            assert batch.rewards[row, k] == (rewards[t - 1] if paid else 0)
            ended = t == world.steps[i] and world.terminated(i)
            assert batch.is_terminal[row, k] == ended
        assert batch.is_first[row].tolist() == [start + k == 0 for k in range(length)]


def arrivals_of(world, i):
    rewards = world.rewards(i)
    if rewards is None:
        rewards = np.zeros(world.steps[i])
    return np.r_[False, rewards > 0]


@given(worlds(), st.integers(1, 10), st.integers(0, 8))
def test_index_counts_every_window_once_and_knows_the_relevant(world, length, within):
    arrivals = [arrivals_of(world, i) for i in range(len(world))]
    index = SequenceIndex(world.steps, arrivals, length, within)
    windows = []
    for i, steps in enumerate(world.steps):
        windows += [(i, start) for start in range(steps + 2 - length)]
    episodes, starts = index.locate(np.arange(index.total))
    assert list(zip(episodes.tolist(), starts.tolist())) == windows
    relevant = [arrivals[i][start : start + length + within].any() for i, start in windows]
    assert index.is_relevant.tolist() == relevant


@given(worlds(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_fractions_and_resume(world, relevant, single, number):
    def make_sampler(**options):
        return SequenceSampler(
            *(world, 10, [(4, 2), (6, 1)]),
            relevant_fraction=relevant,
            single_image_fraction=single,
            seed=number,
            **options,
        )

    try:
        first = make_sampler()
    except ValueError as error:
        assert "longest episode" in str(error)
        return
    for _ in range(number):
        next(first)
    resumed = make_sampler()
    resumed.load_state_dict(first.state_dict())
    for _ in range(3):
        batch = next(first)
        assert_same(batch, next(resumed))
        assert abs(batch.relevant.sum().item() - relevant * len(batch)) < 1
        num_single = 0 if batch.single is None else batch.single.sum().item()
        assert (batch.single is None) == (num_single == 0)
        assert abs(num_single - single * len(batch)) < 1
        assert batch.num_uniform == (~batch.relevant).sum()
        assert not batch.relevant[: batch.num_uniform].any()
        assert (batch.importance > 0).all()


def assert_same(a, b):
    a = a.tensors()
    b = b.tensors()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def blank(steps, rewarded=False):
    frames = np.zeros((steps + 1, 1, 1, 1), np.uint8)
    rewards = np.ones(steps) if rewarded else None
    return MemoryRecordings([frames], [np.zeros((steps, 1), int)], [rewards])


def test_state_of_other_recordings():
    sampler = SequenceSampler(blank(20), 2, 4, relevant_fraction=0)
    other = SequenceSampler(blank(21), 2, 4, relevant_fraction=0)
    with pytest.raises(ValueError, match="resume with the same recordings"):
        sampler.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(length=500), "length: 500 frames, but the longest episode has 21"),
        (dict(length=0), "length: 0. Hint"),
        (dict(length=[(4, 1), (8, 0)]), "length: .* weight > 0"),
        (dict(length=[]), r"length: \[\]. Hint"),
        (dict(batch_size=0), "batch_size: 0. Hint: choose at least 1"),
        (dict(horizon=-1), "horizon: -1. Hint: choose at least 0"),
        (dict(relevant_within=-1), "relevant_within: -1. Hint: choose at least 0"),
        (dict(workers=-1), "workers: -1. Hint: choose at least 0"),
        (dict(relevant_fraction=1.5), "relevant_fraction: 1.5. Hint"),
        (dict(single_image_fraction=-0.1), "single_image_fraction: -0.1. Hint"),
        (dict(fields=["pixels"]), r"fields: \('pixels',\). Hint"),
        (dict(fields=["observations"]), "fields: 'observations', .* none beside the frames"),
        (dict(latents=dict(episode0000=np.zeros((20, 2, 3)))), "20 latents for 21 frames"),
    ],
)
def test_wrong_arguments(options, message):
    defaults = dict(recordings=blank(20, rewarded=True), batch_size=2, length=4)
    with pytest.raises(ValueError, match=message):
        SequenceSampler(**defaults | options)


def test_recordings_without_rewards_or_episodes():
    "Without rewards all windows are alike, and any may be a relevant one"
    batch = SequenceSampler(blank(20), 400, 4).batch(0)
    assert batch.relevant.sum() == 200
    assert set(batch.start[batch.relevant].tolist()) == set(range(18))
    assert (batch.importance == 1).all()
    with pytest.raises(ValueError, match="recordings: no episodes"):
        SequenceSampler(MemoryRecordings([], [], []), 2, 4)


@pytest.mark.parametrize(
    "frames, asked, expected",
    [
        (23, (8, 15), (8, 15)),
        (20, (8, 15), (8, 12)),
        (9, (8, 15), (4, 5)),
        (2, (8, 15), (1, 1)),
        (5, (8, 0), (5, 0)),
    ],
)
def test_windows_fit_to_short_episodes(frames, asked, expected):
    assert fit_to_longest(blank(frames - 1), *asked) == expected


def test_a_batch_can_be_cut_reordered_and_moved():
    batch = make_batch(
        latents=torch.arange(12.0).reshape(2, 6, 1, 1),
        actions=torch.arange(16).reshape(2, 8, 1),
        rewards=torch.zeros(2, 8),
        task=torch.tensor([0, 1]),
        observations=dict(health=torch.ones(2, 6)),
    )
    assert (len(batch), batch.num_steps) == (2, 6)
    short = batch.first(4)
    time_fields = [short.actions, short.action_mask, short.rewards, short.reward_mask]
    time_fields += [short.is_terminal, short.is_first, short.latents]
    assert {x.shape[1] for x in time_fields} == {4}
    assert short.observations["health"].shape == (2, 4)
    assert batch.window().actions.shape == (2, 6, 1)
    assert batch.select(torch.tensor([1])).task.tolist() == [1]
    assert batch.select(torch.tensor([False, True])).start.tolist() == [0]
    assert batch.select(slice(1)).latents.shape == (1, 6, 1, 1)
    assert batch.to("meta").observations["health"].device.type == "meta"
    both = Batch.cat([batch, batch.select(torch.tensor([1, 0]))])
    assert both.task.tolist() == [0, 1, 1, 0]
    assert both.observations["health"].shape == (4, 6)
    assert both.frames is None
    for steps in (0, 7):
        with pytest.raises(ValueError, match=f"steps: {steps}, but the windows have 6"):
            batch.first(steps)


def test_how_many_rows_are_uniform_is_known_without_a_look():
    relevant = torch.tensor([False, False, False, True, True])
    batch = make_batch(latents=torch.zeros(5, 2, 1, 1), relevant=relevant)
    assert batch.num_uniform == 3
    assert batch.first(1).num_uniform == batch.to("meta").num_uniform == 3
    for rows in (slice(2), slice(1, 4), slice(1, None, 2), slice(3, None), slice(5, None)):
        part = batch.select(rows)
        assert part.num_uniform == (~part.relevant).sum()
    assert batch.select(torch.tensor([4, 0])).num_uniform is None
    assert make_batch(latents=batch.latents, relevant=relevant.flip(0)).num_uniform is None
    assert make_batch(latents=batch.latents.to("meta")).num_uniform == 5
    on_device = dict(latents=batch.latents.to("meta"), relevant=relevant.to("meta"))
    assert make_batch(**on_device).num_uniform is None
    assert Batch.cat([batch, batch]).num_uniform is None
    assert Batch.cat([batch.select(slice(2)), batch.select(slice(3))]).num_uniform == 5


def test_separate_images_are_a_tensor_or_none():
    latents = torch.zeros(2, 3, 1, 1)
    none = make_batch(latents=latents)
    one = make_batch(latents=latents, single=torch.tensor([True, False]))
    assert none.single is None
    assert none.select(slice(1)).single is None
    assert none.first(2).to("cpu").single is None
    assert Batch.cat([none, none]).single is None
    assert Batch.cat([none, one]).single.tolist() == [False, False, True, False]
    assert Batch.cat([one, none]).single.tolist() == [True, False, False, False]
    assert one.select(torch.tensor([1])).single.tolist() == [False]


def test_what_a_made_batch_does_not_know():
    batch = make_batch(actions=torch.ones(2, 5, 1, dtype=torch.long), num_steps=3)
    assert batch.num_steps == 3
    assert batch.action_mask.all()
    assert not batch.reward_mask.any()
    assert make_batch(latents=torch.zeros(2, 5, 1, 1)).action_mask.sum() == 0
    with pytest.raises(ValueError, match="give actions, latents or frames"):
        make_batch(rewards=torch.zeros(2, 5))


SPACE_NAMES = ["noop", "left", "right"]


@pytest.fixture
def converted(tmp_path):
    "Three episodes whose colour is the last action, with a reward at their end"
    pytest.importorskip("av")
    from dreamer4_nb.data.actions import ActionSpace
    from dreamer4_nb.data.convert import convert
    from dreamer4_nb.data.recordings import write_episode

    space = ActionSpace.flat(SPACE_NAMES)
    rng = np.random.default_rng(0)
    for i in range(3):
        action = rng.integers(3, size=30)
        frames = np.zeros((31, 64, 64, 3), np.uint8)
        frames[1:] = action[:, None, None, None] * 100
        write_episode(
            *(tmp_path / "raw", "Toy-v0", str(i), frames),
            actions=dict(action=np.array(SPACE_NAMES)[action]),
            rewards=np.eye(30)[29],
            terminated=True,
            extra=dict(action_space=space.to_dict()),
        )
    convert(tmp_path / "raw", tmp_path / "data", space, progress=False)
    return Recordings(tmp_path / "data")


def test_converted_recordings(converted, tmp_path):
    latents = [np.zeros((steps + 1, 4, 2)) for steps in converted.steps]
    LatentStore.write(tmp_path / "latents", converted.names, latents)
    store = LatentStore(tmp_path / "latents", converted.names)
    batch = SequenceSampler(converted, 16, 8, latents=store).batch(0)
    colour = batch.frames[:, :, 0, 32, 32].long()
    window = batch.window()
    known = window.action_mask
    assert (colour[known] == window.actions[..., 0][known] * 100).all()
    assert batch.latents.shape == (16, 8, 4, 2)
    row, step = batch.is_terminal.nonzero().T
    assert len(row)
    assert (batch.rewards[row, step] == 1).all()


MAPPED_STEPS = (30, 50, 40)


def write_mapped(folder):
    "Frames and latents of three episodes, as files to be mapped"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i, steps in enumerate(MAPPED_STEPS):
        pixels = rng.integers(256, size=(steps + 1, 3, 4, 4), dtype=np.uint8)
        np.save(folder / f"frames{i}.npy", pixels)
        LatentStore.write(folder, f"{i}", rng.uniform(-1, 1, (steps + 1, 4, 2)))
    return folder


def mapped_sampler(folder, **options):
    "Batches of two lengths from memory maps, some with separate images"
    rng = np.random.default_rng(1)
    names = [f"{i}" for i in range(len(MAPPED_STEPS))]
    world = MemoryRecordings(
        frames=[np.load(folder / f"frames{name}.npy", mmap_mode="r") for name in names],
        actions=[rng.integers(5, size=(steps, 1)) for steps in MAPPED_STEPS],
        rewards=[(rng.random(steps) < 0.1).astype(np.float32) for steps in MAPPED_STEPS],
        names=names,
    )
    store = LatentStore(folder, names, cached_maps=2)
    settings = dict(single_image_fraction=0.2, latents=store, seed=4) | options
    return SequenceSampler(world, 6, [(4, 2), (12, 1)], **settings)


def assert_equal_streams(sampler, batches):
    for batch in batches:
        read = next(sampler)
        assert_same(read, batch)
        assert read.num_uniform == batch.num_uniform


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_number(tmp_path, workers):
    write_mapped(tmp_path)
    batches = [mapped_sampler(tmp_path).batch(n) for n in range(8)]
    state = torch.get_rng_state()
    sampler = mapped_sampler(tmp_path, workers=workers, pin_memory=True)
    assert_equal_streams(sampler, batches[:3])
    assert torch.equal(torch.get_rng_state(), state)
    # what was read ahead and not handed out is not counted
    saved = json.loads(json.dumps(sampler.state_dict()))
    assert saved["number"] == 3
    resumed = mapped_sampler(tmp_path, workers=workers)
    resumed.load_state_dict(saved)
    assert_equal_streams(resumed, batches[3:])
    sampler.load_state_dict(saved | dict(number=1))
    assert_equal_streams(sampler, batches[1:4])
    sampler.shard(1, 2)
    alone = mapped_sampler(tmp_path).shard(1, 2)
    assert_equal_streams(sampler, [alone.batch(n) for n in range(4, 7)])


def children():
    return {process.pid for process in multiprocessing.active_children()}


def test_workers_end_with_their_sampler(tmp_path):
    before = children()
    sampler = mapped_sampler(write_mapped(tmp_path), workers=2)
    assert children() == before  # none before they are needed
    next(sampler)
    assert len(children() - before) == 2
    sampler.close()
    assert children() == before
    next(sampler)
    assert len(children() - before) == 2
    del sampler
    assert children() == before


def test_what_a_worker_runs_into_is_raised_in_one_line(tmp_path):
    before = children()
    sampler = mapped_sampler(write_mapped(tmp_path), workers=1)
    for i in range(3):
        (tmp_path / f"{i}.npy").unlink()
        (tmp_path / f"{i}.npy").write_bytes(b"damaged")
    sampler.reader.latents._open.cache_clear()
    with pytest.raises(ValueError, match=r"\d.npy: not a readable array .* Hint") as error:
        next(sampler)
    assert "\n" not in str(error.value)
    assert sampler.state_dict()["number"] == 0
    assert children() == before


def test_a_batch_that_was_taken_and_not_counted_comes_again(tmp_path):
    sampler = mapped_sampler(write_mapped(tmp_path), workers=1)
    next(sampler)
    next(sampler._ahead)  # as if interrupted before it was counted
    assert_equal_streams(sampler, [sampler.batch(1), sampler.batch(2)])


def test_a_sampler_goes_to_another_process_as_paths(converted, tmp_path):
    latents = [np.zeros((steps + 1, 4, 2)) for steps in converted.steps]
    LatentStore.write(tmp_path / "latents", converted.names, latents)
    store = LatentStore(tmp_path / "latents", converted.names)
    sampler = SequenceSampler(converted, 16, 8, latents=store)
    sampler.shard(1, 2)
    expected = sampler.batch(3)
    packed = pickle.dumps(sampler)
    assert len(packed) < 20_000
    assert_same(pickle.loads(packed).batch(3), expected)


WORKERS_BY = """
import sys
from pathlib import Path

import torch
from test_batches import assert_equal_streams, mapped_sampler


def read(rank, folder):
    "A rank whose sampler has a worker of its own, and that leaves without closing it"
    sampler = mapped_sampler(folder, workers=1).shard(rank, 2)
    alone = mapped_sampler(folder).shard(rank, 2)
    assert_equal_streams(sampler, [alone.batch(n) for n in range(3)])
    print("read by", rank, flush=True)


if __name__ == "__main__":
    how, folder = sys.argv[1], Path(sys.argv[2])
    if how == "ranks":
        torch.multiprocessing.start_processes(read, (folder,), 2, start_method="spawn")
    else:
        torch.multiprocessing.set_start_method(how)
        read(0, folder)
        kept = mapped_sampler(folder, workers=2)  # still reading when the interpreter ends
        next(kept)
"""


WORKER_KILLED = """
import multiprocessing
import os
import signal
import sys
from pathlib import Path

from test_batches import assert_equal_streams, mapped_sampler

sampler = mapped_sampler(Path(sys.argv[1]), workers=1)
batches = [sampler.batch(n) for n in range(10)]
try:
    next(sampler)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)  # PyTorch raises at any place from here on
    for _ in batches:
        next(sampler)  # some were read before
except RuntimeError as error:
    print(error)
    if "a worker has ended" in str(error):
        assert "Hint: give fewer workers" in str(error)
    else:
        assert "DataLoader worker" in str(error)
done = sampler.state_dict()["number"]
assert done < 10
sampler.close()
assert_equal_streams(sampler, batches[done:])
"""


def run_script(folder, text, *arguments):
    "What a program says that may use the helpers of this file"
    script = folder / "script.py"
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent)),
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_killed_worker_is_one_line_and_no_batch_is_lost(tmp_path):
    printed, _ = run_script(tmp_path, WORKER_KILLED, write_mapped(tmp_path / "data"))
    assert printed.count("\n") == 1


@pytest.mark.parametrize("how", ["fork", "spawn", "ranks"])
def test_workers_by_any_start_method_end_with_the_program(tmp_path, how):
    data = write_mapped(tmp_path / "data")
    printed, complained = run_script(tmp_path, WORKERS_BY, how, data)
    assert "Error" not in complained and "Traceback" not in complained
    assert printed.count("read by") == (2 if how == "ranks" else 1)

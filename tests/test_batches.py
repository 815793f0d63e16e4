"Properties of windows, found by brute force."

import numpy as np
import pytest
import torch
from dreamer4_nb.data.dataset import LatentStore, MemoryRecordings
from dreamer4_nb.data.windows import SequenceIndex, SequenceSampler
from hypothesis import assume, given
from hypothesis import strategies as st


@st.composite
def worlds(draw):
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    frames, actions, rewards = [], [], []
    for i, n in enumerate(lengths):
        a, r = rng.integers(1, 9, size=(n, 2)), (rng.random(n) < 0.15).astype(np.float32)
        x = np.zeros((n + 1, 5), np.uint8)
        x[:, 0] = i
        x[:, 1] = np.arange(n + 1)
        x[1:, 2:4] = a
        x[1:, 4] = r
        frames.append(x.reshape(n + 1, 5, 1, 1))
        actions.append(a)
        rewards.append(r)
    labelled = [draw(st.booleans()) for _ in lengths]
    return MemoryRecordings(
        frames,
        actions,
        [r if l else None for r, l in zip(rewards, labelled)],
        [draw(st.booleans()) for _ in lengths],
    )


@given(worlds(), st.integers(1, 12), st.integers(0, 6), st.integers(0, 5))
def test_windows_say_what_the_frames_say(world, length, horizon, number):
    assume(max(world.steps) + 1 >= length)
    b = SequenceSampler(world, 8, length, horizon=horizon, relevant_fraction=0).batch(number)
    x = b["frames"].flatten(2).long()
    assert (x[..., 0] == b["episode"][:, None]).all() and (
        x[..., 1] == b["start"][:, None] + torch.arange(length)
    ).all()
    assert (x[..., 2:4] == b["actions"][:, :length]).all()
    for row, (e, s) in enumerate(zip(b["episode"].tolist(), b["start"].tolist())):
        n = world.steps[e]
        for k in range(length + horizon + 1):
            t = s + k
            known = 1 <= t <= n
            labelled = world.rewards(e) is not None
            assert b["action_mask"][row, k] == known and b["reward_mask"][row, k] == (
                known and labelled
            )
            if known:
                assert (b["actions"][row, k].numpy() == world.actions(e)[t - 1]).all()
            assert b["rewards"][row, k] == (
                world.rewards(e)[t - 1] if known and labelled else 0
            )
            assert b["is_terminal"][row, k] == (t == n and world.terminated(e))
        assert b["is_first"][row].tolist() == [s + k == 0 for k in range(length)]


@given(worlds(), st.integers(1, 10), st.integers(0, 8))
def test_index_counts_every_window_once_and_knows_the_relevant(world, length, within):
    arrivals = [
        np.r_[False, np.zeros(n, bool) if world.rewards(i) is None else world.rewards(i) > 0]
        for i, n in enumerate(world.steps)
    ]
    index = SequenceIndex(world.steps, arrivals, length, within)
    brute = [(i, s) for i, n in enumerate(world.steps) for s in range(n + 2 - length)]
    assert list(zip(*[o.tolist() for o in index.locate(np.arange(index.total))])) == brute
    assert index.is_relevant.tolist() == [
        bool(arrivals[i][s : s + length + within].any()) for i, s in brute
    ]


@given(worlds(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_shares_and_resume(world, relevant, single, number):
    try:
        make = lambda **kw: SequenceSampler(
            world,
            10,
            [(4, 2), (6, 1)],
            relevant_fraction=relevant,
            single_image_fraction=single,
            seed=number,
            **kw,
        )
        a = make()
    except ValueError as e:
        assert "no reward arrives" in str(e) or "longest episode" in str(e)
        return
    for _ in range(number):
        next(a)
    b = make(workers=2)
    b.load_state_dict(a.state_dict())
    for _ in range(3):
        x, y = next(a), next(b)
        size = len(x["start"])
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
        assert (
            abs(x["relevant"].sum().item() - relevant * size) < 1
            and abs(x["single"].sum().item() - single * size) < 1
        )
        assert (x["importance"] > 0).all()


def test_state_of_other_recordings_is_refused():
    a, b = [
        MemoryRecordings([np.zeros((n, 1, 1, 1), np.uint8)], [None], [None]) for n in (20, 21)
    ]
    with pytest.raises(ValueError, match="resume with the same recordings"):
        SequenceSampler(a, 2, 4, relevant_fraction=0).load_state_dict(
            SequenceSampler(b, 2, 4, relevant_fraction=0).state_dict()
        )


def test_real_recordings(tmp_path):
    pytest.importorskip("av")
    from dreamer4_nb.data.actions import ActionSpace
    from dreamer4_nb.data.convert import convert
    from dreamer4_nb.data.dataset import Recordings
    from dreamer4_nb.data.recordings import write_episode

    space, rng = ActionSpace.flat(["noop", "left", "right"]), np.random.default_rng(0)
    truth = []
    for i in range(3):
        a = rng.integers(3, size=30)
        x = np.zeros((31, 64, 64, 3), np.uint8)
        x[1:] = a[:, None, None, None] * 100
        truth.append(a)
        write_episode(
            tmp_path / "raw",
            "Toy-v0",
            str(i),
            x,
            dict(action=np.array(["noop", "left", "right"])[a]),
            np.eye(30)[29],
            True,
            extra=dict(action_space=space.to_dict()),
        )
    convert(tmp_path / "raw", tmp_path / "data", space, progress=False)
    data = Recordings(tmp_path / "data")
    LatentStore.write(
        tmp_path / "latents", data.names, [np.zeros((n + 1, 4, 2)) for n in data.steps]
    )
    b = SequenceSampler(
        data,
        16,
        8,
        latents=LatentStore(tmp_path / "latents", data.names),
        single_image_fraction=0.3,
    ).batch(0)
    seen, k = b["frames"][:, :, 0, 32, 32].long(), b["action_mask"][:, :8]
    assert (seen[k] == b["actions"][:, :8, 0][k] * 100).all() and b["latents"].shape == (
        16,
        8,
        4,
        2,
    )
    ends = b["is_terminal"].nonzero()
    assert len(ends) and (b["rewards"][ends[:, 0], ends[:, 1]] == 1).all()

"Shortcut forcing: grids, sampler, targets and loss, on functions that need no training."

import pytest
import torch

from dreamer4_nb.models import shortcut
from dreamer4_nb.models.shortcut import (
    NoiseSchedule,
    NoisyLatents,
    add_noise,
    add_noise_to_latents,
    bootstrap_target,
    ramp_weight,
    shortcut_error,
    shortcut_loss,
    shortcut_sample,
    shortcut_targets,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, eps=1e-5):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=eps, rtol=0)


@pytest.mark.parametrize("k_max", [0, 3, 6, -4])
def test_the_finest_grid_is_a_power_of_two(k_max):
    with pytest.raises(ValueError, match="power of two"):
        NoiseSchedule(k_max)


@pytest.mark.parametrize("k_max", [1, 4, 64])
def test_levels_lie_on_the_grid_of_their_step_size(k_max):
    schedule = NoiseSchedule(k_max, context_fraction=0.0, bootstrap_fraction=0.5)
    signal, step, _, _ = schedule.sample(500, 8, seeded())
    assert (signal % (k_max // 2**step) == 0).all()
    close(schedule.step_size(step), 1 / 2**step)
    assert (schedule.signal_level(signal) + schedule.step_size(step) <= 1).all()


def test_step_sizes_of_bootstrap_sequences_are_equally_likely():
    schedule = NoiseSchedule(16, context_fraction=0.0, bootstrap_fraction=1.0)
    _, step, boot, _ = schedule.sample(4000, 8, seeded())
    assert boot.all() and step.max() == 3
    close(step.flatten().bincount() / step.numel(), torch.full((4,), 0.25), 0.01)


def test_the_finest_step_learns_from_data():
    schedule = NoiseSchedule(8, bootstrap_fraction=0.5)
    signal, step, boot, _ = schedule.sample(500, 8, seeded())
    assert (step[~boot] == schedule.finest).all() and (step[boot] < schedule.finest).all()
    assert not boot[signal == schedule.context_index].any()


def test_fractions_of_context_and_pure_noise():
    schedule = NoiseSchedule(64, context_fraction=0.25, bootstrap_fraction=0.0, pure_noise=0.4)
    signal, *_ = schedule.sample(4000, 8, seeded())
    close((signal == 64).float().mean(), 0.25, 0.01)
    expected = 0.75 * (0.4 + 0.6 / 64)
    close((signal == 0).float().mean(), expected, 0.01)


@pytest.mark.parametrize(
    "settings, index",
    [
        ({}, 8),
        (dict(context_fraction=0.0), 7),
        (dict(context_fraction=0.0, own_context=True), 8),
    ],
)
def test_where_the_context_level_is(settings, index):
    assert NoiseSchedule(8, **settings).context_index == index


def test_one_step_grid_has_no_bootstrap():
    levels = NoiseSchedule(1, bootstrap_fraction=1.0).sample(10, 4, seeded())
    assert not levels.bootstrap.any() and levels.rows is None


@pytest.mark.parametrize("B, fraction", [(4, 0.1), (6, 0.25), (3, 1.0), (8, 0.25), (5, 0.0)])
def test_bootstrap_rows_are_a_whole_number_and_on_average_the_fraction(B, fraction):
    schedule = NoiseSchedule(8, bootstrap_fraction=fraction)
    generator = seeded()
    counts = [schedule.num_bootstrap_rows(B, generator) for _ in range(2000)]
    whole = int(B * fraction)
    assert set(counts) == ({whole} if B * fraction == whole else {whole, whole + 1})
    close(sum(counts) / 2000, B * fraction, 0.05)


def test_any_sequence_may_learn_large_steps():
    schedule = NoiseSchedule(8, context_fraction=0.0, bootstrap_fraction=0.25)
    generator = seeded()
    chosen = torch.zeros(8)
    for _ in range(1000):
        _, _, bootstrap, rows = schedule.sample(8, 3, generator)
        assert torch.equal(bootstrap.any(1).nonzero()[:, 0], rows) and len(rows) == 2
        chosen[rows] += 1
    close(chosen / 1000, torch.full((8,), 0.25), 0.05)


def test_host_decisions_follow_the_generator():
    "Also that of a device, whose numbers the host does not see"

    class Elsewhere(torch.Generator):
        device = torch.device("meta")

    schedule = NoiseSchedule(8, bootstrap_fraction=0.1)

    def counts(kind):
        return [schedule.num_bootstrap_rows(4, kind().manual_seed(s)) for s in range(200)]

    for kind in (torch.Generator, Elsewhere):
        assert counts(kind) == counts(kind)
        close(sum(counts(kind)) / 200, 0.4, 0.1)


def test_levels_without_bootstrap_are_drawn_in_one_fixed_order():
    "Runs without the bootstrap term repeat what they did before it had a fixed number of rows"
    schedule = NoiseSchedule(8, context_fraction=0.3, bootstrap_fraction=0.0, pure_noise=0.2)
    signal, step, bootstrap, rows = schedule.sample(6, 4, seeded(9))
    g = seeded(9)
    torch.rand(6, 1, generator=g)
    torch.rand(6, 4, generator=g)
    expected = (torch.rand(6, 4, generator=g) * 8).long()
    expected[torch.rand(6, 4, generator=g) < 0.2] = 0
    expected[torch.rand(6, 4, generator=g) < 0.3] = 8
    assert torch.equal(signal, expected) and (step == 3).all()
    assert rows is None and not bootstrap.any()


@pytest.mark.parametrize("sample_steps", [1, 2, 4, 8])
def test_a_perfect_denoiser_returns_the_data(sample_steps):
    data, noise = torch.randn(2, 5, 3, generator=seeded())
    close(shortcut_sample(lambda z, i, e: data, noise, sample_steps, 8), data)


def test_what_the_sampler_asks_for():
    asked = []

    def denoise(z, i, e):
        asked.append((i, e))
        return z

    shortcut_sample(denoise, torch.zeros(1), 4, 16)
    assert asked == [(0, 2), (4, 2), (8, 2), (12, 2)]
    asked.clear()
    shortcut_sample(denoise, torch.zeros(1), 1, 16)
    assert asked == [(0, 0)]


@pytest.mark.parametrize("sample_steps", [3, 16, 0])
def test_sampling_steps_off_the_grid(sample_steps):
    with pytest.raises((ValueError, ZeroDivisionError)):
        shortcut_sample(lambda z, i, e: z, torch.zeros(1), sample_steps, 8)


def test_noise_and_ramp():
    z1, noise = torch.randn(2, 3, 4, 5, generator=seeded())
    tau = torch.tensor([[0.0, 0.25, 0.5, 1.0]]).expand(3, 4)
    z = add_noise(z1, tau, noise)
    close(z[:, 0], noise[:, 0])
    close(z[:, 3], z1[:, 3])
    close(z[:, 1], 0.75 * noise[:, 1] + 0.25 * z1[:, 1])
    close(ramp_weight(tau)[0], [0.1, 0.325, 0.55, 1.0])
    assert (ramp_weight(tau, floor=1.0) == 1).all()


def make_noisy(schedule, B=64, T=8):
    z1 = torch.randn(B, T, 3, generator=seeded(1))
    return z1, add_noise_to_latents(z1, schedule, seeded(2))


def test_a_perfect_model_is_its_own_bootstrap_target():
    schedule = NoiseSchedule(8, bootstrap_fraction=0.5)
    z1, noisy = make_noisy(schedule)
    levels = noisy.signal_level_index, noisy.step_index
    target = bootstrap_target(lambda z, i, e: z1, noisy.z, *levels, schedule)
    close(target[noisy.bootstrap], z1[noisy.bootstrap], 1e-4)


def test_bootstrap_target_by_hand():
    "From tau = 0 with d = 1 over two half steps of a model that predicts a constant 1, then 3"
    schedule = NoiseSchedule(2, context_fraction=0.0)
    z = torch.zeros(1, 1, 1)
    zero = torch.zeros(1, 1, dtype=torch.long)
    answers = iter([1.0, 3.0])
    asked = []

    def model(z, i, e):
        asked.append((z.item(), i.item(), e.item()))
        return torch.full_like(z, next(answers))

    target = bootstrap_target(model, z, zero, zero, schedule)
    # b' = 1, z' = 0.5, b'' = (3 - 0.5) / 0.5 = 5, target = (1 + 5) / 2
    assert asked == [(0.0, 0, 1), (0.5, 1, 1)]
    assert target.item() == 3.0


def test_targets_have_no_gradient_and_are_data_elsewhere():
    schedule = NoiseSchedule(8, bootstrap_fraction=0.5)
    z1, noisy = make_noisy(schedule)
    weight = torch.ones((), requires_grad=True)

    def model(z, i, e, rows=None):
        return weight * z

    targets = shortcut_targets(model, z1, noisy, schedule)
    assert not targets.requires_grad
    assert torch.equal(targets[~noisy.bootstrap], z1[~noisy.bootstrap])
    assert (targets[noisy.bootstrap] != z1[noisy.bootstrap]).any()


def test_only_rows_with_large_steps_are_asked_for_targets():
    schedule = NoiseSchedule(8, bootstrap_fraction=0.25)
    z1, noisy = make_noisy(schedule)
    asked = []

    def model(z, i, e, rows):
        asked.append(rows)
        assert len(z) == len(i) == len(e) == len(rows)
        return z

    shortcut_targets(model, z1, noisy, schedule)
    rows = noisy.bootstrap.any(1).nonzero()[:, 0]
    assert len(rows) == 16
    assert len(asked) == 2 and all(torch.equal(r, rows) for r in asked)
    flow = NoiseSchedule(8, bootstrap_fraction=0.0)
    z1, noisy = make_noisy(flow)
    assert shortcut_targets(model, z1, noisy, flow) is z1 and len(asked) == 2


def test_another_target_is_an_argument():
    schedule = NoiseSchedule(8, context_fraction=0.0, bootstrap_fraction=1.0)
    z1 = torch.randn(4, 3, 2, generator=seeded())
    calls = []

    def target(f, z, i, e, schedule):
        calls.append(i.shape)
        return torch.zeros_like(z)

    loss, _ = shortcut_loss(
        lambda z, i, e, rows=None: torch.zeros_like(z), z1, schedule, seeded(), target=target
    )
    assert calls == [(4, 3)] and loss.mean == 0


def test_error_is_weighed_and_counted():
    schedule = NoiseSchedule(4, context_fraction=0.0)
    index = torch.tensor([[0, 2]])
    boot = torch.tensor([[True, False]])
    noisy = NoisyLatents(torch.zeros(1, 2, 1), index, index, boot)
    prediction = torch.tensor([[[1.0], [2.0]]])
    loss, metrics = shortcut_error(prediction, torch.zeros(1, 2, 1), noisy, schedule)
    close(loss.total, 0.1 * 1 + 0.55 * 4)
    assert loss.count == 2
    close(metrics["bootstrap_mse"].mean, 1.0)
    close(metrics["flow_mse"].mean, 4.0)
    close(metrics["from_noise_mse"].mean, 1.0)
    first = torch.tensor([[1.0, 0.0]])
    loss, _ = shortcut_error(prediction, torch.zeros(1, 2, 1), noisy, schedule, first)
    close(loss.mean, 0.1)
    nothing, _ = shortcut_error(prediction, torch.zeros(1, 2, 1), noisy, schedule, 0 * first)
    assert nothing.mean == 0


def test_given_levels_are_used():
    schedule = NoiseSchedule(4)
    levels = schedule.sample(3, 5, seeded(4))
    noisy = add_noise_to_latents(torch.randn(3, 5, 2), schedule, levels=levels)
    assert torch.equal(noisy.signal_level_index, levels[0])
    assert torch.equal(noisy.bootstrap, levels[2])


def test_given_noise_is_used():
    schedule = NoiseSchedule(4)
    z1, noise = torch.randn(2, 3, 5, 2, generator=seeded())
    levels = schedule.sample(3, 5, seeded(4))
    noisy = add_noise_to_latents(z1, schedule, levels=levels, noise=noise)
    close(noisy.z, add_noise(z1, schedule.signal_level(levels.signal_level_index), noise))


def test_processes_with_slices_of_a_model_all_call_it(monkeypatch):
    "None of them may have no rows that learn large steps while another has some"
    monkeypatch.setattr(shortcut, "is_sliced", lambda: True)
    schedule = NoiseSchedule(4, bootstrap_fraction=0.1)
    counts = {schedule.num_bootstrap_rows(2, seeded(s)) for s in range(50)}
    assert counts == {1}
    assert NoiseSchedule(4, bootstrap_fraction=0.0).num_bootstrap_rows(2) == 0

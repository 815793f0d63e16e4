"What is observed beside the picture: scaled, packed into tokens, read by dynamics and actor."

import json

import numpy as np
import pytest
import torch

from dreamer4_nb.config import AgentConfig, DynamicsConfig, TokenizerConfig
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.observations import Observation, ObservationTokens
from dreamer4_nb.models.agent import Agent
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.models.tokenizer import Tokenizer
from dreamer4_nb.pipeline import configure, run_all
from dreamer4_nb.policy.actor import Actor
from dreamer4_nb.run.run import Run

CODEC = ActionCodec(ActionSpace.flat(["left", "right"]))


class FakeRecordings:
    "Episodes of which only the observations exist"

    def __init__(self, *episodes):
        self.episodes = episodes

    def __len__(self):
        return len(self.episodes)

    def observations(self, i):
        return self.episodes[i]


def fit(names, *episodes, token_dim=4, multiple=1):
    return ObservationTokens.fit(FakeRecordings(*episodes), names, token_dim, multiple)


def test_bounds_are_robust_and_never_empty():
    counts = np.r_[np.arange(1000) % 10, 100_000.0]
    tokens = fit(["a", "b", "c"], dict(a=counts, b=np.full(5, 7), c=np.full(5, np.nan)))
    a, b, c = tokens.observations
    assert (a.low, a.high) == (0, 9)
    assert a.scale([100_000])[0, 0] == 1
    assert (b.low, b.high) == (7, 8)
    assert c.scale([np.nan, 0.5]).tolist() == [[0.0], [0.0]]


def test_a_rare_item_keeps_its_range():
    rare = np.zeros(1000)
    rare[7] = 1
    (axe,) = fit(["axe"], dict(axe=rare)).observations
    assert axe.scale([0, 1])[:, 0].tolist() == [-1, 1]


def test_vectors_angles_and_words_have_their_widths():
    episode = dict(
        joints=np.random.default_rng(0).normal(size=(9, 3)),
        camera_angle=np.linspace(0, 360, 9),
        hand=np.array(["axe", "none", "none"] * 3),
    )
    tokens = fit(["hand", "joints", "camera_angle"], episode, multiple=2)
    assert [o.width for o in tokens.observations] == [2, 3, 2]
    assert (tokens.width, tokens.num_tokens) == (7, 2)
    packed = tokens.pack(episode, 9)
    assert packed.shape == (9, 2, 4) and packed.dtype == np.float32
    restored = tokens.unpack(packed)
    assert restored["hand"].tolist() == episode["hand"].tolist()
    middle = slice(1, -1)
    inside = np.abs(tokens.observations[1].scale(episode["joints"])) < 1
    assert np.allclose(restored["joints"][inside], episode["joints"][inside], atol=1e-4)
    difference = restored["camera_angle"][middle, 0] - episode["camera_angle"][middle]
    assert np.allclose(np.cos(np.deg2rad(difference)), 1)


def test_what_an_episode_did_not_record_is_zero():
    tokens = fit(["a", "b"], dict(a=np.arange(5)), dict(b=np.arange(5)))
    packed = tokens.pack(dict(b=np.arange(5)), 5).reshape(5, -1)
    assert not packed[:, 0].any() and packed[:, 1].any()


def test_names_are_chosen_once_in_the_order_asked_for():
    episode = {name: np.arange(3) for name in ("i$b", "i$a", "c")}
    tokens = fit(["c", "i$*", "i$a"], episode)
    assert [o.name for o in tokens.observations] == ["c", "i$a", "i$b"]


@pytest.mark.parametrize("name", ["inventory$lgo", "invent*ory", "x$*"])
def test_a_name_that_nobody_recorded_is_one_line(name):
    with pytest.raises(ValueError, match="was not recorded. ") as error:
        fit([name], {"inventory$log": np.arange(3)})
    assert "\n" not in str(error.value) and repr(name) in str(error.value)
    with pytest.raises(ValueError, match="Hint: leave it out"):
        fit([name], {})


def test_other_values_than_recorded_are_one_line():
    log = Observation("log")
    for wrong in ([["a"]], [[1, 2]]):
        with pytest.raises(ValueError, match="observation 'log'.*Hint"):
            log.scale(wrong)


def test_json_keeps_everything():
    episode = {"a": np.arange(5), "b": np.array(list("xyxyx"))}
    tokens = fit(["a", "b"], episode)
    again = ObservationTokens.from_dict(json.loads(json.dumps(tokens.to_dict())))
    assert again.observations == tokens.observations
    assert (again.pack(episode, 5) == tokens.pack(episode, 5)).all()


# ---- models


def make_dynamics(extra=0, **changes):
    torch.manual_seed(0)
    settings = dict(width=32, depth=2, num_heads=4, num_kv_heads=2, time_every=2, context=8)
    config = DynamicsConfig(**settings | dict(frame_stack=True, packing=1) | changes)
    return Dynamics(config, 4 + extra, 8, CODEC, extra_latents=extra)


def test_no_extra_latents_change_nothing():
    plain = Dynamics(make_dynamics().config, 4, 8, CODEC)
    torch.manual_seed(0)
    again = Dynamics(plain.config, 4, 8, CODEC)
    for a, b in zip(make_dynamics().state_dict().values(), again.state_dict().values()):
        assert torch.equal(a, b)


def test_neighbours_in_the_picture_stay_those_of_the_picture():
    plain, extended = make_dynamics(), make_dynamics(extra=1)
    assert extended.grid == plain.grid == (2, 2)
    z = torch.randn(1, 3, 5, 8)
    around = extended.previous_latents(z, None, None, 0)
    of_picture = plain.previous_latents(z[:, :, :4], None, None, 0)
    assert torch.equal(around[:, :, :4], of_picture)
    own = around[:, 1:, 4].unflatten(-1, (-1, 8))
    assert torch.equal(own.sum(-2), z[:, :-1, 4])
    assert (own.abs().sum(-1) > 0).sum() == 2  # one place at each step, the middle
    middle = of_picture.shape[-1] // 8 // 2
    assert torch.equal(own[:, :, middle], z[:, :-1, 4])


def test_packing_must_divide_extra_latents():
    with pytest.raises(ValueError, match="packing=2 does not divide extra_latents=1"):
        Dynamics(make_dynamics(packing=2).config, 6, 8, CODEC, extra_latents=1)


def test_the_decoder_reads_the_picture_alone():
    config = TokenizerConfig(width=32, depth=2, num_latents=4, latent_dim=8, context=8)
    tokenizer = Tokenizer(config)
    latents = torch.rand(2, 3, 6, 8)
    with torch.no_grad():
        assert torch.equal(tokenizer.decode(latents), tokenizer.decode(latents[:, :, :4]))


def test_the_actor_wants_what_it_has_learned_to_read():
    tokens = fit(["angle"], dict(angle=np.arange(9)), token_dim=8)
    agent = Agent(make_dynamics(extra=1), CODEC, AgentConfig(hidden=32), (), tokens)
    config = TokenizerConfig(width=32, depth=2, num_latents=4, latent_dim=8, context=8)
    actor = Actor(Tokenizer(config), agent)
    frames = np.zeros((2, 3, 64, 64), np.uint8)
    assert actor.act(frames, [dict(angle=90), dict(angle=-90, other=3)]).shape == (2, 1)
    with pytest.raises(ValueError, match="observations: angle missing, .*Hint"):
        actor.act(frames, [dict(other=3)] * 2)
    with pytest.raises(ValueError, match="observations: of 1 worlds, frames: of 2"):
        actor.act(frames, [dict(angle=90)])


# ---- a run


def test_a_run_puts_observations_behind_its_latents_and_learns_both(tmp_path):
    pytest.importorskip("crafter")
    pytest.importorskip("av")
    changes = {
        "data.episodes": 4,
        "data.held_out": 0.5,
        "data.observations": ("inventory$w*",),
    }
    config = configure("smoke").change(changes | {"dynamics.frame_stack": True})
    run = run_all(Run(tmp_path / "run", config, progress=False), "dynamics")
    tokens = Run(tmp_path / "run", progress=False).observation_tokens()
    assert {o.name.partition("$")[0] for o in tokens.observations} == {"inventory"}
    train, _ = run.data()
    latents = run.latents()[train.names[0]]
    packed = tokens.pack(train.observations(0), len(latents))
    assert latents.shape[1:] == (8 + tokens.num_tokens, 8)
    assert np.allclose(latents[:, 8:], packed, atol=1e-3)
    agent = run.build("agent")
    assert agent.dynamics.latent_shape == latents.shape[1:]
    assert agent.dynamics.grid == (2, 2)
    assert agent.observation_tokens.to_dict() == tokens.to_dict()

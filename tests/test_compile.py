"""Losses and one dreamed step as one graph each: no break, no second compilation where only
the numbers change, and the numbers of the uncompiled ones.

The agent's loss, which holds that of the dynamics, and the dreams go through `aot_eager`: it
traces, functionalises and differentiates as the default backend does and then runs the
operations as they are, without a C++ compiler. The other losses are traced only."""

from dataclasses import replace

import pytest
import torch

from dreamer4_nb import config
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models import dynamics
from dreamer4_nb.models.agent import Agent, agent_loss
from dreamer4_nb.models.dynamics import CompiledDream, Dream, Dynamics, dynamics_loss
from dreamer4_nb.models.tokenizer import Tokenizer, tokenizer_loss
from dreamer4_nb.models.transformer import TimeCache

B, T = 4, 6
CODEC = ActionCodec(ActionSpace.minerl_treechop())
TINY = config.named("smoke").change(
    {"tokenizer.depth": 2, "dynamics.depth": 2, "dynamics.context": 4}
)


@pytest.fixture(autouse=True)
def one_graph():
    "A second compilation of the same code is an error."
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def compiled(function, backend="aot_eager"):
    "The function as one graph."
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make_some(seed, single=None):
    "A batch whose second half is relevant."
    g = seeded(seed)
    t = TINY.tokenizer
    shape = (B, T, t.channels, *t.frame_size)
    steps = T + TINY.agent.mtp + 1
    batch = make_batch(
        frames=torch.randint(0, 256, shape, dtype=torch.uint8, generator=g),
        latents=torch.rand(B, T, t.num_latents, t.latent_dim, generator=g) * 2 - 1,
        actions=torch.randint(0, 2, (B, steps, CODEC.num_components), generator=g),
        rewards=torch.rand(B, steps, generator=g),
        relevant=torch.tensor([False, False, True, True]),
    )
    batch.single = single
    return batch


def new_dynamics(**changes):
    torch.manual_seed(0)
    t = TINY.tokenizer
    return Dynamics(replace(TINY.dynamics, **changes), t.num_latents, t.latent_dim, CODEC)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def total_loss(terms):
    "The terms' sum, and what else a loss says."
    metrics = terms.pop("metrics")
    means = {k: v.mean if isinstance(v, tuple) else v for k, v in (terms | metrics).items()}
    return sum(means[name] for name in terms), means


def losses_and_gradients(model, run, loss_fn, batches):
    "What one way of running a loss gives for some batches."
    results = []
    for seed, batch in enumerate(batches):
        model.zero_grad()
        drawn = loss_fn.draw(model, batch, seeded(seed))
        loss, means = total_loss(run(model, batch, drawn))
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append((means, {n: g.clone() for n, g in gradients.items()}))
    return results


def check(model, loss_fn, backend, single=None):
    "One graph for two batches, with the eager loss's numbers and gradients."
    batches = [make_some(seed, single) for seed in (0, 1)]
    eager = losses_and_gradients(model, loss_fn, loss_fn, batches)
    graph = losses_and_gradients(model, compiled(loss_fn, backend), loss_fn, batches)
    close(graph, eager)


def test_tokenizer_loss():
    torch.manual_seed(0)
    single = torch.tensor([True, False, False, True])
    check(Tokenizer(TINY.tokenizer), tokenizer_loss(TINY.tokenizer), "eager", single)


@pytest.mark.parametrize(
    "changes",
    [
        dict(bootstrap_fraction=0.25, frame_stack=True, action_gate=16, soft_cap=20.0),
        dict(bootstrap_fraction=0.0, clean_past=False, context_fraction=0.3),
    ],
    ids=["clean past", "paper's past"],
)
def test_dynamics_loss(changes):
    check(new_dynamics(**changes), dynamics_loss, "eager")


def test_agent_loss():
    model = new_dynamics(bootstrap_fraction=0.0, agent_view=True)
    check(Agent(model, CODEC, TINY.agent), agent_loss(), "aot_eager")


def test_dreamed_steps_are_one_graph(monkeypatch):
    "While the cache fills, when it is full, and in the next dream, which begins from nothing"
    monkeypatch.setattr(dynamics, "compiled_advance", lambda: advance)
    advance = compiled(Dream.advance)
    sizes = dict(sample_steps=2, k_max=4, soft_cap=20.0)
    shown = dict(frame_stack=True, action_gate=16, agent_view=True)
    model = new_dynamics(**sizes, **shown).eval()
    task = torch.zeros(B, dtype=torch.long)

    def dreamed(kind, seed):
        batch = make_some(seed)
        dream = kind(model, task, generator=seeded(seed))
        if seed == 0:
            dream.observe(batch.latents[:, :2], batch.actions[:, :2])
        return [dream.step(batch.actions[:, t % T]) for t in range(7)], dream.cache.steps

    for seed in (0, 1):
        close(dreamed(CompiledDream, seed), dreamed(Dream, seed))


def test_a_second_compilation_would_be_noticed():
    double = compiled(lambda x: 2 * x)
    double(torch.zeros(2))
    with pytest.raises(torch._dynamo.exc.RecompileError):
        double(torch.zeros(3))


# ---- graphs for other programs: torch.export and torch.jit.trace (ONNX: the first of them)


class Predicts(torch.nn.Module):
    "Clean latents alone; without a task there are no features"

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model(*inputs)[0]


def frames_like(B, T):
    return torch.rand(B, T, 3, *TINY.tokenizer.frame_size, generator=seeded(T))


def inputs_like(model, B, T):
    "What a dynamics model takes, with a task"
    z = torch.rand(B, T, *model.latent_shape, generator=seeded(T)) * 2 - 1
    actions = torch.randint(0, 2, (B, T, CODEC.num_components), generator=seeded(T))
    known = torch.ones(B, T, dtype=torch.bool)
    task = torch.zeros(B, dtype=torch.long)
    return (z, *model.context_levels(B, T), actions, known, task)


def small_tokenizer(**changes):
    torch.manual_seed(0)
    return Tokenizer(replace(TINY.tokenizer, **changes)).eval()


GRAPHS = [
    ((1, 1), dict()),  # a single image
    ((1, 7), dict()),  # longer than the context
    ((2, 3), dict(soft_cap=20.0)),
    ((2, 3), dict(attention="dense")),
]


@pytest.mark.parametrize("shape, changes", GRAPHS)
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_a_tokenizer_as_a_graph(shape, changes):
    model = small_tokenizer(context=4, **changes)
    x = frames_like(*shape)
    traced = torch.jit.trace(model, x)
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        close(traced(x), model(x))
        close(exported(x), model(x))
        x = frames_like(*shape).flip(-1)
        close(traced(x), model(x))
        close(exported(x), model(x))


@pytest.mark.parametrize("shape", [(1, 1), (2, 7)])
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_a_dynamics_model_as_a_graph(shape):
    shown = dict(frame_stack=True, action_gate=16, agent_view=True, soft_cap=20.0)
    model = new_dynamics(**shown).eval()
    inputs = inputs_like(model, *shape)
    traced = torch.jit.trace(model, inputs)
    exported = torch.export.export(model, inputs).module()
    without_task = torch.jit.trace(Predicts(model), inputs[:4])
    with torch.no_grad():
        close(traced(*inputs), model(*inputs))
        close(exported(*inputs), model(*inputs))
        close(without_task(*inputs[:4]), model(*inputs[:4])[0])


def test_a_traced_graph_is_saved_and_refuses_other_shapes(tmp_path):
    "It would be wrong without a word, since a single frame has no layers over time"
    tokenizer = small_tokenizer()
    torch.jit.trace(tokenizer, frames_like(1, 1)).save(tmp_path / "tokenizer.pt")
    loaded = torch.jit.load(tmp_path / "tokenizer.pt")
    close(loaded(frames_like(1, 1)), tokenizer(frames_like(1, 1)))
    for other in ((2, 4), (1, 2), (2, 1)):
        line = f"traced for shape .1, 1, 3, 64, 64., given .{other[0]}, {other[1]}, .*Hint"
        with pytest.raises(torch.jit.Error, match=line):
            loaded(frames_like(*other))
    model = new_dynamics().eval()
    traced = torch.jit.trace(model, inputs_like(model, 1, 2))
    with pytest.raises(torch.jit.Error, match="traced for shape .1, 2, .*given .1, 3, "):
        traced(*inputs_like(model, 1, 3))


def test_a_trace_with_a_past_is_one_line():
    model = small_tokenizer()
    cache = TimeCache(4)
    with pytest.raises(ValueError, match="cache: a traced graph does not keep the past. Hint"):
        torch.jit.trace(lambda x: model.encode(x, cache=cache), frames_like(1, 1))

"""An accelerator that does not exist, for tests that need one: PyTorch's FakeTensorMode on a
device of its own. Nothing is computed; shapes and devices are. What would make a GPU wait, or
fail, is an error there:

- tensors of two devices in one operation (`FakeTensorDeviceMismatchError`, or `CopyError`
  where PyTorch would copy silently),
- a number that the host reads: `.item()`, `bool()`, `int()` (`DataDependentOutputException`),
- a shape that depends on numbers: `nonzero`, a boolean mask (`DynamicOutputShapeException`),
- a copy from or to the processor inside a step (`CopyError`).

    with fake_device():
        model = to_fake_device(Tokenizer(config))
        frames = torch.zeros(2, 4, 3, 64, 64, device=DEVICE)
        with no_copies():
            model(frames)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

from dreamer4_nb import config
from dreamer4_nb.config import Config
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.windows import Batch, make_batch
from dreamer4_nb.models.agent import Agent
from dreamer4_nb.models.dynamics import Dynamics
from dreamer4_nb.models.tokenizer import Tokenizer


class AbsentModule(_DummyBackendModule):
    "What PyTorch asks about the device: there is none, so nobody else chooses it."

    def is_available(self):
        return False

    def device_count(self):
        return 0


class AbsentHook(_DummyPrivateUse1Hook):
    "The same."

    def is_available(self):
        return False


_setup_privateuseone_for_python_backend("absent", AbsentModule(), AbsentHook())  # only once
DEVICE = torch.device("absent")

# the draw of a class; PyTorch has no fake form of it with a generator
if not fake_impls._is_op_registered_to_fake_rule(torch.ops.aten.exponential_.default):

    @fake_impls.register_op_impl(torch.ops.aten.exponential_.default)
    def exponential(mode, func, x, *args, **kwargs):
        return x


class CopyError(RuntimeError):
    "A tensor of the processor met one of the device."


class FakeGenerator(torch.Generator):
    "A generator that says that it lives on the device."

    device = DEVICE


def make_generator(seed: int = 0) -> torch.Generator:
    "A seeded generator of the device."
    return FakeGenerator().manual_seed(seed)


@contextmanager
def fake_device() -> Iterator[torch.device]:
    "Tensors made inside are fake, on whichever device."
    with FakeTensorMode():
        yield DEVICE


class _NoCopies(TorchDispatchMode):
    "Refuses operations that cross from one device to the other."

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = tree_leaves((args, kwargs))
        tensors = [x for x in (*inputs, *tree_leaves(result)) if isinstance(x, torch.Tensor)]
        # a plain number in an operation is a tensor without dimensions on the processor
        tensors = [x for x in tensors if x.dim() or x.device.type == DEVICE.type]
        devices = {x.device.type for x in tensors}
        if len(devices) > 1:
            raise CopyError(f"{func}: its tensors are on {sorted(devices)}")
        return result


def no_copies() -> TorchDispatchMode:
    "Inside, a copy between processor and device is a `CopyError`."
    return _NoCopies()


ModuleType = TypeVar("ModuleType", bound=nn.Module)


def to_fake_device(
    module: ModuleType,  # made inside `fake_device`, on the processor
) -> ModuleType:  # the module, with parameters and buffers of the device
    "What `.to(device)` is for a real one (`Module.to` cannot change a fake tensor's device)."
    moved: dict[int, torch.Tensor] = {}

    def on_device(x):
        if id(x) not in moved:
            y = torch.empty(x.shape, dtype=x.dtype, device=DEVICE)
            moved[id(x)] = nn.Parameter(y, x.requires_grad) if is_parameter(x) else y
        return moved[id(x)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, x in tensors.items():
                tensors[name] = None if x is None else on_device(x)
    return module


def is_parameter(x: torch.Tensor) -> bool:
    "Whether a tensor is trained."
    return isinstance(x, nn.Parameter)


# ---- models and batches of one size on the device, made inside `fake_device`


CODEC = ActionCodec(ActionSpace.minerl_treechop())


@dataclass
class Size:
    "A configuration with the models and batches that it means."

    config: Config

    def tokenizer(self) -> Tokenizer:
        "Frames to latents."
        return to_fake_device(Tokenizer(self.config.tokenizer))

    def _dynamics(self) -> Dynamics:
        t = self.config.tokenizer
        return Dynamics(self.config.dynamics, t.num_latents, t.latent_dim, CODEC)

    def dynamics(self) -> Dynamics:
        "The world model."
        return to_fake_device(self._dynamics())

    def agent(self) -> Agent:
        "The world model with its heads."
        return to_fake_device(Agent(self._dynamics(), CODEC, self.config.agent))

    def batch(self, B: int = 4, T: int = 8, relevant: int = 2) -> Batch:
        "Windows with a look-ahead; the last `relevant` rows are."
        t = self.config.tokenizer
        steps = T + self.config.agent.mtp + 1

        def zeros(*shape, dtype=torch.float32):
            return torch.zeros(shape, dtype=dtype, device=DEVICE)

        batch = make_batch(
            frames=zeros(B, T, t.channels, *t.frame_size, dtype=torch.uint8),
            latents=zeros(B, T, t.num_latents, t.latent_dim),
            actions=zeros(B, steps, CODEC.num_components, dtype=torch.long),
            rewards=zeros(B, steps),
        )
        batch.num_uniform = B - relevant  # what a sampler knows on the host
        return batch


def size(name: str) -> Size:
    "The models and batches of a named size."
    return Size(config.named(name))

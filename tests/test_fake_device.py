"What would make a GPU wait is an error on the accelerator that does not exist."

import pytest
import torch
from fake_device import (
    DEVICE,
    CopyError,
    fake_device,
    make_generator,
    no_copies,
    to_fake_device,
)
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
)


def refused(error, step):
    with fake_device(), no_copies(), pytest.raises(error):
        step(torch.zeros(3, 4, device=DEVICE))


@pytest.mark.parametrize(
    "error, step",
    [
        (FakeTensorDeviceMismatchError, lambda x: x + torch.zeros(3, 4)),
        (CopyError, lambda x: x.cpu()),
        (CopyError, lambda x: x + torch.randn(3, 4).to(DEVICE)),
        (CopyError, lambda x: x[torch.tensor([0, 2])]),
        (DataDependentOutputException, lambda x: x.sum().item()),
        (DataDependentOutputException, lambda x: bool((x > 0).any())),
        (DataDependentOutputException, lambda x: int(x.sum())),
        (DataDependentOutputException, lambda x: x.tolist()),
        (DynamicOutputShapeException, lambda x: (x > 0).nonzero()),
        (DynamicOutputShapeException, lambda x: x[x > 0]),
    ],
)
def test_what_would_make_a_device_wait_is_an_error(error, step):
    refused(error, step)


def test_a_constant_from_the_host_is_an_error():
    refused((NotImplementedError, CopyError), lambda x: x * torch.tensor([1.0], device=DEVICE))


def test_what_a_step_may_do_is_none():
    with fake_device(), no_copies():
        model = to_fake_device(nn.Linear(4, 4))
        x = torch.randn(3, 4, generator=make_generator(), device=DEVICE)
        model(x * 2.0).square().sum().backward()
        torch.optim.AdamW(model.parameters(), 1e-3, fused=True).step()
        assert model.weight.grad.device.type == "absent"

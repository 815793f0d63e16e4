"LPIPS by its library, with a stand-in that speaks its API: the real one downloads its weights."

import sys
import types
import urllib.error

import pytest
import torch
from dreamer4_nb.config import TokenizerConfig
from dreamer4_nb.models.tokenizer import Tokenizer, perceptual_distance, tokenizer_loss


def stand_in(monkeypatch, fails=None):
    calls = []

    class LPIPS(torch.nn.Module):
        def __init__(self, net="alex", verbose=True):
            super().__init__()
            if fails:
                raise fails
            self.scale = torch.nn.Parameter(torch.ones(()))
            self.net = net

        def forward(self, x, y):
            calls.append((x, y, self))
            return self.scale * (x - y).pow(2).mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=LPIPS))
    return calls


def test_lpips_is_asked_as_it_expects(monkeypatch):
    calls = stand_in(monkeypatch)
    model = Tokenizer(
        TokenizerConfig(width=32, depth=2, num_heads=2, num_latents=4, latent_dim=8)
    )
    loss = tokenizer_loss(TokenizerConfig(perceptual="lpips"))
    terms = loss(
        model,
        dict(frames=torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)),
        torch.Generator().manual_seed(0),
    )
    ((x, y, net),) = calls
    assert (
        x.shape == y.shape == (6, 3, 64, 64) and -1 <= y.min() < -0.9 < 0.9 < y.max() <= 1
    )  # LPIPS wants pictures in [-1, 1]
    assert (
        net.net == "vgg"
        and not net.training
        and not any(p.requires_grad for p in net.parameters())
    )
    terms["perceptual"].backward()
    assert terms["perceptual"].shape == () and any(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()
    )


def test_lpips_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match="pip install lpips"):
        perceptual_distance("lpips")
    stand_in(monkeypatch, urllib.error.URLError("no network"))
    with pytest.raises(OSError, match="no network.*'gradient'"):
        perceptual_distance("lpips")

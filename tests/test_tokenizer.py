"LPIPS by its library, with a stand-in that has its API: the real one downloads its weights."

import sys
import types
import urllib.error

import pytest
import torch
from safetensors.torch import save_file

from dreamer4_nb.config import TokenizerConfig
from dreamer4_nb.data.windows import make_batch
from dreamer4_nb.models.tokenizer import (
    Tokenizer,
    patchify,
    perceptual_distance,
    sample_mask,
    tokenizer_loss,
    unpatchify,
)
from dreamer4_nb.models.transformer import TimeCache
from dreamer4_nb.training.checkpoint import load_model


class StandIn:
    "A module in the place of `lpips`, which keeps what its network is given"

    def __init__(self, fails=None):
        self.calls = []
        self.module = types.SimpleNamespace(LPIPS=self.make_network_class(fails))

    def make_network_class(self, fails):
        calls = self.calls

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

        return LPIPS


@pytest.fixture
def lpips(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "lpips", stand_in.module)
    return stand_in


def small_tokenizer(**changes):
    torch.manual_seed(0)
    config = dict(image_size=16, width=32, depth=2, num_heads=2, num_latents=4, latent_dim=8)
    return Tokenizer(TokenizerConfig(**config | changes))


def some_frames(B=2, T=3):
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (B, T, 3, 16, 16), dtype=torch.uint8, generator=g)


def test_lpips_gets_frames_from_minus_one_to_one(lpips):
    loss = tokenizer_loss(TokenizerConfig(perceptual="lpips"))
    loss(small_tokenizer(), make_batch(frames=some_frames()), torch.Generator())
    ((x, y, _),) = lpips.calls
    assert x.shape == y.shape == (6, 3, 16, 16)
    assert -1 <= y.min() < -0.9 and 0.9 < y.max() <= 1


def test_lpips_is_the_vgg_one_and_stays_as_it_is(lpips):
    perceptual_distance("lpips")(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))
    network = lpips.calls[0][2]
    assert network.net == "vgg" and not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_lpips_teaches_the_tokenizer(lpips):
    model = small_tokenizer()
    loss = tokenizer_loss(TokenizerConfig(perceptual="lpips"))
    terms = loss(model, make_batch(frames=some_frames()), torch.Generator())
    terms["perceptual"].backward()
    assert terms["perceptual"].shape == ()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_lpips_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match="pip install lpips"):
        perceptual_distance("lpips")


def test_lpips_without_its_weights(monkeypatch):
    stand_in = StandIn(fails=urllib.error.URLError("no network"))
    monkeypatch.setitem(sys.modules, "lpips", stand_in.module)
    with pytest.raises(OSError, match="no network.*'gradient'"):
        perceptual_distance("lpips")


def test_unknown_perceptual_term():
    with pytest.raises(ValueError, match="Hint: use 'gradient' or 'lpips'"):
        perceptual_distance("ssim")


def test_no_perceptual_term_where_its_weight_is_zero():
    loss = tokenizer_loss(TokenizerConfig(perceptual_weight=0.0))
    terms = loss(small_tokenizer(), make_batch(frames=some_frames()), torch.Generator())
    assert "perceptual" not in terms


def test_masks_are_drawn_first():
    "The loss with its masks drawn before is the same, and draws nothing itself"
    model, batch = small_tokenizer(), make_batch(frames=some_frames())
    loss = tokenizer_loss(TokenizerConfig(image_size=16, max_mask=0.9))
    mask = loss.draw(model, batch, torch.Generator().manual_seed(3))
    assert mask.shape == (2, 3, 4) and mask.dtype == torch.bool
    expected = loss(model, batch, torch.Generator().manual_seed(3))
    state = torch.get_rng_state()
    assert loss(model, batch, mask) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert loss(model, batch, ~mask)["mse"] != expected["mse"]


def test_patches_are_counted_row_by_row():
    frames = torch.arange(3 * 16 * 24).view(3, 16, 24)
    patches = patchify(frames, 8)
    assert patches.shape == (6, 3 * 8 * 8)
    assert torch.equal(patches[4].view(3, 8, 8), frames[:, 8:, 8:16])
    assert torch.equal(unpatchify(patches, 8, (3, 16, 24)), frames)


def test_streaming_equals_the_batch_pass():
    model = small_tokenizer(context=3)
    frames = some_frames(T=6)
    encoding = TimeCache(3)
    decoding = TimeCache(3)
    with torch.no_grad():
        z = [model.encode(frames[:, t : t + 1], cache=encoding) for t in range(6)]
        pictures = [model.decode(x, cache=decoding) for x in z]
        torch.testing.assert_close(torch.cat(z, 1), model.encode(frames), atol=1e-4, rtol=0)
        whole = model(frames)
    torch.testing.assert_close(torch.cat(pictures, 1), whole, atol=1e-4, rtol=0)


def test_masked_pixels_do_not_reach_the_latents():
    model = small_tokenizer(linear_path=True)
    frames = some_frames().float().div(255).requires_grad_()
    mask = sample_mask((2, 3), 4, 0.9, generator=torch.Generator().manual_seed(0))
    gradient = torch.autograd.grad(model.encode(frames, mask).square().sum(), frames)[0]
    by_patch = patchify(gradient, 8).abs().sum(-1)
    assert (by_patch[mask] == 0).all() and (by_patch[~mask] > 0).all()


def test_fraction_of_masked_images():
    mask = sample_mask((4000,), 16, 0.9, 0.25, torch.Generator().manual_seed(0))
    assert abs(mask.any(-1).float().mean() - 0.25) < 0.04


def test_weights_saved_under_an_earlier_name_are_read(tmp_path):
    model = small_tokenizer()
    tensors = {k: v + 1 for k, v in model.state_dict().items()}
    tensors["readouts"] = tensors.pop("decoder_queries")
    save_file(tensors, tmp_path / "model.safetensors")
    expected = tensors["readouts"]
    load_model(tmp_path / "model.safetensors", model)
    assert torch.equal(model.decoder_queries, expected)


@pytest.mark.parametrize("shape", [(2, 3, 3, 16, 24), (2, 3, 1, 16, 16), (3, 16, 16)])
def test_frames_of_another_shape(shape):
    config = TokenizerConfig(
        image_size=16, width=32, depth=2, num_heads=2, num_latents=4, latent_dim=4
    )
    with pytest.raises(ValueError, match=r"expected \(B, T, 3, 16, 16\)\. Hint: ") as error:
        Tokenizer(config).encode(torch.zeros(shape))
    assert str(shape) in str(error.value)

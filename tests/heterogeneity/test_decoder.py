"""The decoder: what it stores, what it is fitted to, and that the held-out loss tells mass from motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from emsplat.errors import InputError
from emsplat.heterogeneity.decoder import Decoder, average
from emsplat.heterogeneity.fit_decoder import Bin, DecoderFit, DecoderSettings, fit_decoder
from emsplat.models.gaussians import Gaussians
from emsplat.statistics.loss import QuadraticLoss
from emsplat.statistics.sufficient import Statistics

BOX, PIXEL = 20, 2.0


def decoder(seed: int = 0, count: int = 30, latents: int = 1, slope: float = 0.0, move: float = 0.0) -> Decoder:
    """Gaussians in a ball; half of them change their mass, or move along x."""
    g = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(count, 3, generator=g).clamp(-1.8, 1.8)  # (count, 3, generator=g)
    quaternions = torch.randn(count, 4, generator=g)
    model = Gaussians(centres, torch.full((count, 3), np.log(3.0)), quaternions, torch.full((count,), 5.0))
    half = (torch.arange(count) % 2 == 0).float()
    slopes, moves = torch.zeros(count, latents), torch.zeros(count, latents, 3)
    slopes[:, 0], moves[:, 0, 0] = slope * half, move * half
    return Decoder(model, slopes, moves)


def statistics_of(volume: np.ndarray, noise: float, seed: int) -> Statistics:
    """Statistics of images that see every frequency alike: T is a delta, b the volume and its noise."""
    kernel = np.zeros((2 * BOX,) * 3, dtype=np.float32)
    kernel[(BOX,) * 3] = 100
    b = 100 * volume + 10 * noise * np.random.default_rng(seed).normal(size=volume.shape)
    return Statistics(b.astype(np.float32), kernel, 100, 100.0)


def bins(truth: Decoder, points: np.ndarray, noise: float) -> list[Bin]:
    out = []
    for i, z in enumerate(points):
        volume = truth.at(z).voxelise(BOX, PIXEL)
        losses = [QuadraticLoss(statistics_of(volume, noise, 10 * i + j), BOX) for j in range(2)]
        out.append(Bin(z, 1 / len(points), 1000.0, losses[0], losses[1], 0.2))
    return out


def test_the_average_decodes_to_the_average_map() -> None:
    first, second = decoder(0, slope=0.5, move=1.0), decoder(1, slope=-0.3)
    z = np.array([0.7])
    expected = 0.5 * (first.at(z).voxelise(BOX, PIXEL) + second.at(z).voxelise(BOX, PIXEL))
    np.testing.assert_allclose(average(first, second).at(z).voxelise(BOX, PIXEL), expected, atol=1e-4 * expected.max())


def test_masses_and_centres_follow_the_latent() -> None:
    model = decoder(slope=0.5, move=2.0)
    at = model.at([2.0])
    np.testing.assert_allclose(at.log_masses[::2], 6.0)
    np.testing.assert_allclose(at.log_masses[1::2], 5.0)
    np.testing.assert_allclose(at.centres[::2, 0] - model.gaussians.centres[::2, 0], 4.0, rtol=1e-5)
    np.testing.assert_allclose(at.centres[:, 1:], model.gaussians.centres[:, 1:])


def test_a_decoder_comes_back_from_its_file(tmp_path: Path) -> None:
    model = decoder(slope=0.5, move=2.0, latents=2)
    model.save(tmp_path / "d.safetensors")
    again = Decoder.load(tmp_path / "d.safetensors")
    torch.testing.assert_close(again.displacements, model.displacements)
    torch.testing.assert_close(again.mass_slopes, model.mass_slopes)
    model.gaussians.save(tmp_path / "g.safetensors")
    with pytest.raises(InputError, match="not a decoder"):
        Decoder.load(tmp_path / "g.safetensors")


@pytest.mark.parametrize("variant", ["mass", "both"])
def test_the_gradient_is_that_of_the_loss_of_all_bins(variant: str) -> None:
    points = np.array([[-1.0], [0.5], [1.0]])
    data = bins(decoder(0, slope=0.6, move=2.0), points, 0.0)
    fit = DecoderFit(decoder(0, slope=0.1, move=0.5), data, PIXEL, BOX, variant, DecoderSettings(cutoff=5.0))

    def loss() -> float:
        with torch.no_grad():
            return sum(one.weight * one.training.at(fit.density(one.z))[0] for one in data)

    fit.optimiser.zero_grad()
    for one in data:
        volume = fit.density(one.z)
        volume.backward(one.weight * one.training.at(volume.detach())[1])
    leaves = [fit.mass_slopes] + ([fit.displacements] if variant == "both" else [])
    for leaf in leaves:
        direction, step = torch.sign(leaf.grad), 3e-3
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(sign * step * direction)
            values.append(loss())
            with torch.no_grad():
                leaf.sub_(sign * step * direction)
        expected = float((leaf.grad * direction).sum())
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("slope", "move"), [(1.0, 0.0), (0.0, 5.0)])
def test_the_fit_follows_what_varies(slope: float, move: float) -> None:
    truth, start = decoder(0, slope=slope, move=move), decoder(0)
    points = np.linspace(-1, 1, 3)[:, None]
    found = fit_decoder(start, bins(truth, points, 1.0), PIXEL, BOX, DecoderSettings(most_steps=20))
    first, second = found.histories
    assert first.best <= second.best < first.checks[0][1]
    if move:  # masses alone cannot move a Gaussian
        assert (first.variant, second.variant) == ("both", "mass")
        assert first.best < second.best - 0.02 * abs(second.best)
    for z in points[::2]:
        true, fitted, flat = (d.at(z).voxelise(BOX, PIXEL) for d in (truth, found.decoder, start))
        assert np.linalg.norm(fitted - true) < 0.6 * np.linalg.norm(flat - true)


def test_the_next_round_starts_where_the_held_out_images_were_not_seen() -> None:
    data = bins(decoder(0, slope=1.0), np.linspace(-1, 1, 3)[:, None], 0.05)
    found = fit_decoder(decoder(0), data, PIXEL, BOX, DecoderSettings(most_steps=15), ("mass",))
    # The consensus part stays as it was while only the training images are fitted.
    torch.testing.assert_close(found.training.gaussians.centres, decoder(0).gaussians.centres, atol=1e-4, rtol=0)
    masses = np.mean([np.exp(found.training.at(one.z).log_masses.numpy()) for one in data], axis=0)
    np.testing.assert_allclose(masses, np.exp(decoder(0).gaussians.log_masses.numpy()), rtol=1e-4)
    assert found.training.mass_slopes.abs().max() > 0.5
    assert not torch.allclose(found.decoder.gaussians.centres, decoder(0).gaussians.centres, atol=1e-4)


def test_the_prior_draws_small_slopes_to_zero_and_leaves_large_ones() -> None:
    data = bins(decoder(0), np.linspace(-1, 1, 3)[:, None], 0.0)
    fit = DecoderFit(decoder(0), data, PIXEL, BOX, "both", DecoderSettings(slope_prior=0.1))
    with torch.no_grad():
        fit.mass_slopes[:3, 0] = torch.tensor([0.05, -0.2, 5.0])
    for leaf in (fit.mass_slopes, fit.displacements):
        leaf.grad = torch.zeros_like(leaf)
    fit._add_prior(fit.images)
    w = np.array([0.05, -0.2, 5.0])  # the derivative of log(w² + ε²), of one slope and 3,000 images
    np.testing.assert_allclose(fit.mass_slopes.grad[:3, 0], 2 * w / (w**2 + 0.01) / 3000, rtol=1e-5)
    assert not fit.displacements.grad.any()

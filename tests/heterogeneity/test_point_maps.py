"""Maps at many points as combinations of a few, against the maps themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from emsplat.fourier import maps
from emsplat.heterogeneity.decoder import Decoder
from emsplat.heterogeneity.observations import Observations
from emsplat.heterogeneity.point_maps import PointMaps, information_of
from emsplat.heterogeneity.slices import half_plane
from emsplat.models.gaussians import Gaussians

RNG = np.random.default_rng(0)


def moving_decoder() -> Decoder:
    """Gaussians in a ball, of which half lose their mass and others move, with two latents."""
    g = torch.Generator().manual_seed(0)
    n = 40
    centres = 8 * torch.randn(n, 3, generator=g).clamp(-1.5, 1.5)
    model = Gaussians(centres, torch.full((n, 3), np.log(3.0)), torch.randn(n, 4, generator=g), torch.full((n,), 5.0))
    slopes, moves = torch.zeros(n, 2), torch.zeros(n, 2, 3)
    slopes[::2, 0], moves[1::2, 1, 0] = 1.0, 3.0
    return Decoder(model, slopes, moves)


@pytest.mark.parametrize(("box_size", "working_box"), [(24, 24), (33, 20)])
def test_few_maps_say_of_images_what_all_say(box_size: int, working_box: int) -> None:
    decoder, pixel, n = moving_decoder(), 3.0, 30
    points = RNG.normal(size=(40, 2)).clip(-1.5, 1.5)
    volumes = [maps.fourier_resize(decoder.at(z).voxelise(box_size, pixel), working_box) for z in points]
    samples = half_plane(working_box // 2 - 1)
    weights = RNG.uniform(0.5, 1.5, (n, len(samples))).astype(np.float32)
    images = Observations(
        np.arange(n), np.arange(n), samples, np.zeros_like(weights, dtype=np.complex64), weights,
        Rotation.random(n, rng=1).as_matrix(), working_box,
    )  # fmt: skip
    all_maps = PointMaps.of_volumes(volumes)
    weights *= 100 / all_maps.inner(images)[0].mean()  # as images of an SNR of 0.05 or so have it
    images.spectra[:] = RNG.normal(size=(*weights.shape, 2)).view(np.complex128)[..., 0] * np.sqrt(weights)
    found = PointMaps.of_decoder(decoder, points, box_size, working_box, pixel, information_of(images))
    assert 3 < found.basis.count < 25
    power, overlap = found.inner(images)
    whole, data = all_maps.inner(images)
    likelihood, expected = overlap - 0.5 * power, data - 0.5 * whole
    differences = [a - a.mean(axis=1, keepdims=True) for a in (likelihood, expected)]
    assert differences[1].std() > 3
    assert np.sqrt(np.mean((differences[0] - differences[1]) ** 2)) < 0.25

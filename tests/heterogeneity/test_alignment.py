"""The frames of two decoders: the place of one at which it shows what the other shows elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from emsplat.heterogeneity.alignment import places_alike
from emsplat.heterogeneity.decoder import Decoder
from emsplat.models.gaussians import Gaussians


def test_a_decoder_in_a_turned_frame_is_followed() -> None:
    g = torch.Generator().manual_seed(0)
    n, box_size, pixel = 40, 32, 3.0
    centres = 10 * torch.randn(n, 3, generator=g).clamp(-1.5, 1.5)
    model = Gaussians(centres, torch.full((n, 3), np.log(4.0)), torch.randn(n, 4, generator=g), torch.full((n,), 5.0))
    slopes = 0.7 * torch.randn(n, 2, generator=g)
    frame = Decoder(model, slopes, torch.zeros(n, 2, 3))
    # It shows at z what the first one shows at M z + o.
    matrix, offset = np.array([[0.97, -0.24], [0.24, 0.97]]), np.array([0.1, -0.2])
    moved = replace(model, log_masses=model.log_masses + slopes @ torch.as_tensor(offset, dtype=torch.float32))
    turned = Decoder(moved, slopes @ torch.as_tensor(matrix, dtype=torch.float32), torch.zeros(n, 2, 3))
    places = np.random.default_rng(0).normal(size=(12, 2)).clip(-1.5, 1.5)
    expected = places @ matrix.T + offset
    found = places_alike(frame, turned, places, np.full(12, 1 / 12), box_size, pixel, 8)
    assert np.linalg.norm(found - expected) < 0.5 * np.linalg.norm(places - expected)  # the rest is for later rounds
    same = places_alike(frame, frame, places, np.full(12, 1 / 12), box_size, pixel, 8)
    np.testing.assert_allclose(same, places, atol=1e-3)

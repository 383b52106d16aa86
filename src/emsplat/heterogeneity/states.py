"""States: neighbourhoods of latent space, with the map of each, its half maps, and their validation.

The posterior of every image over the points says how much of it belongs to each state. A half's map of a state is the
average of its decoder's maps over the state's images; direct inversions of the same images, weighted in the same way,
judge it. They judge the average over the neighbourhood: motion within it blurs both half maps, and neither shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.heterogeneity.bins import landmarks
from emsplat.heterogeneity.decoder import Decoder
from emsplat.heterogeneity.latents import Latents
from emsplat.io.images import ImageSource
from emsplat.models.gaussians import Gaussians, merge
from emsplat.particles.parts import Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.runtime.reporting import Reporter
from emsplat.settings import HeterogeneitySettings
from emsplat.statistics.accumulate import AccumulationSettings, accumulate
from emsplat.validation.validate import Validation, validate

_MOST_STATES = 12
_IMAGES_OF_A_STATE = 250  # least average number of images in a state
_LEAST_SHARE = 0.02


@dataclass(frozen=True)
class Difference:
    """The difference between a state's direct inversion and that of all images, with its significance."""

    map: NDArray[np.float32]  # (D, D, D) mean of the halves, low-passed
    error: NDArray[np.float32]  # (D, D, D) standard error, from the halves' difference
    correlation: float  # correlation of the halves' difference maps within the mask
    significance: float  # standard deviations above no agreement


@dataclass(frozen=True)
class State:
    """One state. Maps are (D, D, D)."""

    z: NDArray[np.float64]  # (K,) mean latent of its images
    spread: NDArray[np.float64]  # (K,) standard deviation of the latents within it
    population: float  # share of all images
    map: NDArray[np.float32]
    half_maps: tuple[NDArray[np.float32], NDArray[np.float32]]
    raw: tuple[NDArray[np.float32], NDArray[np.float32]]
    mask: NDArray[np.float32]
    gaussians: Gaussians  # Gaussians at z
    validation: Validation
    difference: Difference


def make_states(
    table: Particles,
    images: ImageSource,
    consensus: Reconstruction,
    decoders: tuple[Decoder, Decoder],
    latents: Latents,
    points: NDArray[np.float64],
    posterior: NDArray[np.float32],
    accumulation: AccumulationSettings,
    settings: HeterogeneitySettings,
    reporter: Reporter,
) -> tuple[tuple[State, ...], NDArray[np.int32]]:
    """The states, the most populated first, and the state of each image.

    Args: posterior: (N, P) posterior of each image over the points, (P, K).
    """
    of_point = _states_of_points(latents, points, posterior, settings)
    n_states = int(of_point.max()) + 1
    weights = np.stack([posterior[:, of_point == s].sum(axis=1) for s in range(n_states)], axis=1)
    weights *= (1 - latents.junk[:, None]).astype(np.float32)
    table_of_parts = PartWeights.one_part_each((Part(1), Part(2)), table.half_set.astype(np.int32) - 1).with_states(
        weights, _LEAST_SHARE
    )
    with reporter.stage("states"), reporter.bar("states", "images") as advance:
        found = accumulate(table, images, table_of_parts, accumulation, lambda done: advance(done, len(table)))
    states = []
    pixel_size = table.pixel_size_in_angstroms
    with reporter.stage("states"):
        decoded = [[decoder.at(z).voxelise(table.box_size, pixel_size) for z in points] for decoder in decoders]
        whole = [half.raw for half in consensus.halves]
        for s in range(n_states):
            raws, maps_of_halves = [], []
            for half in (1, 2):
                raw = found.pop(Part(half, state=s)).raw_map()
                raws.append(_resized(raw, table.box_size))
                rows = (table.half_set == half) & (latents.junk < 0.5)
                mass = np.where(of_point == s, posterior[rows].sum(axis=0), 0)
                total = max(float(mass.sum()), 1e-9)
                maps_of_halves.append(_weighted(decoded[half - 1], mass / total))
            states.append(
                _state(s, (raws[0], raws[1]), (maps_of_halves[0], maps_of_halves[1]), whole, weights, latents, decoders,
                       consensus, settings)
            )  # fmt: skip
    order = np.argsort([-state.population for state in states], kind="stable")
    of_image = np.argsort(order)[weights.argmax(axis=1)].astype(np.int32)
    of_image[latents.junk > 0.5] = -1
    return tuple(states[i] for i in order), of_image


def _states_of_points(
    latents: Latents, points: NDArray[np.float64], posterior: NDArray[np.float32], settings: HeterogeneitySettings
) -> NDArray[np.int64]:
    """(P,) state of each point, given by the nearest of some landmarks among the latents."""
    surely = latents.junk < 0.5
    count = settings.n_states or int(np.clip(surely.sum() // (2 * _IMAGES_OF_A_STATE), 2, _MOST_STATES))
    centres = landmarks(latents.mean[surely], min(count, len(points)), settings.seed + 2)
    nearest = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    mass = np.bincount(nearest, posterior.sum(axis=0), minlength=len(centres))
    kept = np.flatnonzero(mass > 0.1 * _IMAGES_OF_A_STATE)
    distance = ((points[:, None] - centres[kept]) ** 2).sum(axis=2)
    return np.unique(distance.argmin(axis=1), return_inverse=True)[1]


def _state(
    s: int,
    raw: tuple[NDArray[np.float32], NDArray[np.float32]],
    half_maps: tuple[NDArray[np.float32], NDArray[np.float32]],
    whole: list[NDArray[np.float32]],
    weights: NDArray[np.float32],
    latents: Latents,
    decoders: tuple[Decoder, Decoder],
    consensus: Reconstruction,
    settings: HeterogeneitySettings,
) -> State:
    pixel_size = consensus.pixel_size_in_angstroms
    w = weights[:, s].astype(np.float64)
    z = w @ latents.mean / w.sum()
    inner = np.einsum("n,nkk->k", w, latents.covariance) / w.sum()
    spread = np.sqrt(w @ (latents.mean - z) ** 2 / w.sum() + np.maximum(inner, 0))
    mean = 0.5 * (half_maps[0] + half_maps[1])
    mask = maps.soft_mask(mean, pixel_size, consensus.preview.diameter_in_angstroms)
    validation = validate(*raw, *half_maps, mask, pixel_size, settings.seed)
    gain = np.append(validation.gain[:1], validation.gain)
    whole_mask = np.maximum(mask, consensus.mask)
    return State(
        z, spread, float(w.sum() / weights.sum()), maps.radial_filter(mean, gain), half_maps, raw, mask,
        merge(*(decoder.at(z) for decoder in decoders)), validation,
        _difference(raw, whole, whole_mask, min(consensus.validation.limit_shell, max(validation.limit_shell, 4))),
    )  # fmt: skip


def _difference(
    raw: tuple[NDArray[np.float32], NDArray[np.float32]],
    whole: list[NDArray[np.float32]],
    mask: NDArray[np.float32],
    limit_shell: int,
) -> Difference:
    """Each half's inversion minus that of all its images, up to a shell; products of the halves have no noise bias."""
    box_size = len(mask)
    curve = np.where(np.arange(box_size // 2 + 1) <= limit_shell, 1.0, 0.0)
    first, second = (maps.radial_filter(r - w, curve) for r, w in zip(raw, whole, strict=True))
    a, b = (maps.half_spectrum(d * mask) for d in (first, second))
    ab, aa, bb = (maps.shell_correlation(x, y, box_size)[1 : limit_shell + 1] for x, y in ((a, b), (a, a), (b, b)))
    fsc = ab / np.maximum(np.sqrt(aa * bb), 1e-30)
    share = float((mask**2).sum() ** 2 / ((mask**4).sum() * mask.size))
    terms = np.maximum(0.5 * maps.shell_size(box_size)[1 : limit_shell + 1] * share, 1.0)
    return Difference(
        0.5 * (first + second),
        0.5 * np.abs(first - second),
        float(ab.sum() / np.sqrt(aa.sum() * bb.sum())),
        float((terms * fsc).sum() / np.sqrt(terms.sum())),
    )


def _weighted(volumes: list[NDArray[np.float32]], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    total = np.zeros_like(volumes[0])
    for volume, weight in zip(volumes, weights.tolist(), strict=True):
        if weight > 0:
            total += np.float32(weight) * volume
    return total


def _resized(volume: NDArray[np.float32], box_size: int) -> NDArray[np.float32]:
    return volume if len(volume) == box_size else maps.fourier_resize(volume, box_size)

"""A small map of the sample, made in seconds: the statistics of its four quarters, its contrast and its centre."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from emsplat.check.findings import Finding, fine, note, problem
from emsplat.fourier import maps
from emsplat.io.images import ImageSource
from emsplat.particles.parts import Part, PartWeights
from emsplat.particles.table import Particles
from emsplat.statistics.accumulate import AccumulationSettings, accumulate
from emsplat.statistics.preview import contrast, contrast_is_sure, outline_diameter
from emsplat.statistics.sufficient import Statistics
from emsplat.validation.correlation import Curve, fsc

_OFF_CENTRE = 0.1  # share of the box; a centre of mass further from the box centre is a problem
_SMOOTHED_OVER = 2  # shells on either side
_FILLING = 0.9  # share of the box; a larger particle leaves no background


@dataclass(frozen=True)
class SmallData:
    """A table, its images in memory, and their noise."""

    particles: Particles
    images: NDArray[np.float32]  # (n, d, d) background subtracted
    noise: NDArray[np.float64]  # (groups, d//2+1) from `noise_spectra`


class _InMemory:
    """Stands in for an ImageSource."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self._images = images

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._images[rows]


def gather_parts(data: SmallData, part: NDArray[np.int8], symmetry: NDArray[np.float64]) -> list[Statistics]:
    """Statistics of every part, numbered from 0. Args: part: (n,) part of each image."""
    box_size = data.particles.box_size
    images = cast(ImageSource, _InMemory(data.images))
    settings = AccumulationSettings(box_size, box_size, data.noise, symmetry)
    parts = PartWeights.one_part_each([Part(state=number) for number in range(int(part.max()) + 1)], part)
    return list(accumulate(data.particles, images, parts, settings).values())


def quarters(particle: NDArray[np.int64], seed: int) -> NDArray[np.int8]:
    """(n,) 0 .. 3, equal within a particle; 0 and 1 are one half, 2 and 3 the other."""
    names, inverse = np.unique(particle, return_inverse=True)
    side = np.arange(len(names)) % 4
    np.random.default_rng(seed).shuffle(side)
    return side[inverse.reshape(-1)].astype(np.int8)


def expected_map(first: Statistics, second: Statistics) -> NDArray[np.float32]:
    """(d, d, d) inversion of both together, with each shell weighted by the signal that the two share."""
    share = np.maximum(np.nan_to_num(fsc(first.raw_map(), second.raw_map())), 0)
    reach = _SMOOTHED_OVER
    smooth = np.convolve(np.pad(share, reach, mode="edge"), np.full(2 * reach + 1, 1 / (2 * reach + 1)), "valid")
    weight = 2 * smooth / (1 + smooth)
    return maps.radial_filter((first + second).raw_map(), np.append(weight[:1], weight))


@dataclass(frozen=True)
class QuickMap:
    """Inversions of the sample, d voxels a side; lengths in Å."""

    map: NDArray[np.float32]  # (d, d, d) of the whole sample, noise filtered out
    pixel_size: float
    half_fsc: Curve  # (d//2,) of the two halves' inversions
    correlation: float  # of the low-passed halves
    skewness: float  # of their density; positive: particle white
    diameter: float | None  # about the box centre; None: no outline to be seen
    centre: tuple[float, float, float] | None  # of mass, x, y, z from the box centre

    @property
    def contrast_is_sure(self) -> bool:
        """Whether the contrast is certain, by the rule of the main job."""
        return contrast_is_sure(self.correlation, self.skewness)


def quick_map(parts: list[Statistics], pixel_size: float) -> QuickMap:
    """The small map from the statistics of the four quarters."""
    a, b = (parts[0] + parts[1]), (parts[2] + parts[3])
    halves = [a.raw_map(), b.raw_map()]
    correlation, skewness = contrast(halves, pixel_size)
    dark = contrast_is_sure(correlation, skewness) and skewness < 0
    density = [-half for half in halves] if dark else halves
    return QuickMap(
        map=expected_map(a, b),
        pixel_size=pixel_size,
        half_fsc=fsc(*halves),
        correlation=correlation,
        skewness=skewness,
        diameter=outline_diameter(density, pixel_size),
        centre=_centre_of_mass(0.5 * (density[0] + density[1]), pixel_size),
    )


def _centre_of_mass(density: NDArray[np.float32], pixel_size: float) -> tuple[float, float, float] | None:
    """Centre of mass, x, y, z in Å, of the low-passed map within the data mask; None if there is no mask."""
    resolution = 4 * pixel_size
    mask = maps.data_mask(density, pixel_size, resolution=resolution)
    if mask is None:
        return None
    mass = np.maximum(maps.low_pass(density, pixel_size, resolution) * mask, 0).astype(np.float64)
    axis = (np.arange(len(mass)) - len(mass) // 2) * pixel_size
    x, y, z = (float(mass.sum(axis=across) @ axis / mass.sum()) for across in ((0, 1), (0, 2), (1, 2)))
    return x, y, z


# --- verdicts ---------------------------------------------------------------------------------------------------------


def map_findings(quick: QuickMap, invert: bool, box_in_angstroms: float) -> list[Finding]:
    """Verdicts on contrast, size and centre of the small map."""
    return [_contrast_finding(quick, invert), *_size_findings(quick, box_in_angstroms)]


def _contrast_finding(quick: QuickMap, invert: bool) -> Finding:
    numbers = f"skewness {quick.skewness:+.2f} of the small map, its halves correlate by {quick.correlation:.2f}"
    if not quick.contrast_is_sure:
        return note("contrast", f"it is not clear whether particles are white ({numbers})")
    if quick.skewness > 0:
        return fine("contrast", f"particles are white{' once inverted' * invert} ({numbers})")
    advice = "leave out --invert" if invert else "use --invert"
    return problem("contrast", f"particles are dark{' once inverted' * invert} ({numbers})", advice)


def _size_findings(quick: QuickMap, box_in_angstroms: float) -> list[Finding]:
    if quick.diameter is None or quick.centre is None:
        return [note("particle", "the outline does not stand out from the noise of the small map")]
    off = float(np.linalg.norm(quick.centre))
    where = ", ".join(f"{value:+.0f}" for value in quick.centre)
    text = f"{quick.diameter:.0f} Å across about the box centre, centre of mass {off:.0f} Å off it"
    if off > _OFF_CENTRE * box_in_angstroms:
        return [problem("particle", f"{text} (x, y, z {where} Å)", "recentre the particles and extract them again")]
    if quick.diameter > _FILLING * box_in_angstroms:
        text += f", in a box of {box_in_angstroms:.0f} Å: it leaves no background to measure the noise in"
        return [note("particle", text, "extract with a larger box, unless this outline includes a neighbour")]
    return [fine("particle", text)]

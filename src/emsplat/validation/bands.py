"""Moments of masked maps, band by band, so that no coarse detail leaks through the mask into finer shells.

A mask multiplies in real space, so that it smears every shell over others. If it ends abruptly, strong coarse detail,
which the halves share, appears in shells where the maps themselves share nothing, and makes them agree up to the edge
of the data. Random phases show how much (Chen et al. 2013); here, what leaks is left out instead: each band of shells
is compared in maps from which everything coarser than the band was taken away before the mask was applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.validation.correlation import Moments, moments

_WIDTH = 0.12  # width of a band as a share of its first shell; narrower bands cost more transforms
_FIRST_CUT = 2  # there is nothing to leak from the shells before


class Band(NamedTuple):
    """Shells that are compared in maps without what is coarser than the cut."""

    cut: int  # the first shell that the maps keep
    first: int
    last: int


def smear(mask: NDArray[np.float32]) -> int:
    """How many shells a mask smears a sharp edge over: the box over the diameter of a ball of the mask's volume."""
    diameter = (6 / np.pi * max(float(mask.sum()), 1.0)) ** (1 / 3)
    return int(np.ceil(len(mask) / diameter))


def bands_of(mask: NDArray[np.float32]) -> list[Band]:
    """Bands that cover the shells 1 .. D//2; a cut is as far below its band as the mask smears even if it is soft."""
    last_shell, margin = len(mask) // 2, smear(mask)
    found: list[Band] = []
    first = 1
    while first <= last_shell:
        cut = max(first - margin, 0)
        if cut < _FIRST_CUT:
            cut, last = 0, margin + _FIRST_CUT - 1
        else:
            last = first + max(1, round(_WIDTH * first)) - 1
        last = min(last, last_shell)
        found.append(Band(cut, first, last))
        first = last + 1
    return found


def moments_by_bands(spectra: Mapping[str, NDArray[np.complex64]], mask: NDArray[np.float32]) -> Moments:
    """The moments of four maps within a mask, (D, D, D).

    Args:
        spectra: half spectra of the maps v1, v2, r1, r2 without a mask.
    """
    box_size, shell = len(mask), maps.shell_index(len(mask))
    found = []
    for band in bands_of(mask):
        kept = shell >= band.cut
        masked = {
            name: maps.half_spectrum(maps.from_half_spectrum(np.where(kept, spectrum, 0), box_size) * mask)
            for name, spectrum in spectra.items()
        }
        sums = moments(masked, box_size)
        found.append([getattr(sums, field.name)[band.first - 1 : band.last] for field in fields(Moments)])
    return Moments(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

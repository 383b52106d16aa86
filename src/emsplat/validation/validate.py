"""How far a map can be believed: the FSC family and the honest correlation with the truth.

Two Gaussian half maps share the errors of the prior that regularises both, so their FSC overstates them. The direct
inversion r of the other half is the truth plus noise that no prior has touched. With ⟨·,·⟩ the sum over a shell of
masked maps, V̄ the average of the two Gaussian half maps,

    c_map  = ½(⟨V₁,r₂⟩ + ⟨V₂,r₁⟩) / sqrt(⟨V̄,V̄⟩ ⟨r₁,r₂⟩)      correlation of the final map with the truth
    c_half = FSC(V₁,r₂) / sqrt(FSC(r₁,r₂)), both ways averaged    the same for the map of one half

Quotients are of sums; nothing is clipped. Without a prior (V = r) c_map is the classical sqrt(2F/(1+F)), so
c_map = 0.5 is where the classical FSC is 0.143: the resolution. Nothing is said beyond the limit of measurability:
the last shell before the FSC of r₁ and r₂ sinks below three standard errors or, if it never does, the last one that
the mask does not smear with the emptiness beyond the edge of the data.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from emsplat.errors import InputError
from emsplat.fourier import maps
from emsplat.runtime.files import replacing
from emsplat.validation.bands import moments_by_bands, smear
from emsplat.validation.combination import Combination
from emsplat.validation.correlation import (
    Curve,
    Moments,
    correlation_with_truth,
    directional_agreement,
    fsc,
    inverse,
    moments,
    normalised,
    pooling_matrix,
    resolution_at,
    unevenness,
    variance_of_mean,
)

ResolutionKind = Literal["measured", "better_than", "not_measurable"]

FIRST_SHELL = 6  # the shells before hold too few terms, and little but the particle's outline
POOLED_ABOVE = 0.02  # standard error of c_map beyond which neighbours are pooled
SE_MARGIN = 1.15  # factor on the first-order standard error, for the second order and the bends the pooling misses
SIGNIFICANCE = 3.0  # standard errors of the FSC of the direct inversions that count as signal
SECTORS_AGREEING = 12  # of 24 sectors of directions, for anything to count as measurable
C_AT_RESOLUTION = 0.5
_BANDS = 6  # bands of shells for which the summary says where the map came from
RANDOMISED_BELOW = 0.8  # phases are randomised from where the unmasked FSC falls below this


@dataclass(frozen=True)
class Validation:
    """Curves over shells 1 .. D//2, and the resolution they allow. NaN where a quotient has no value."""

    frequency: Curve  # 1/Å
    raw_half_unmasked: Curve  # FSC of the direct inversions in the whole box
    raw_half_masked: Curve  # FSC of the direct inversions within the mask; mask effects included
    raw_half_corrected: Curve  # the same less what the mask alone correlates (phase randomisation)
    gaussian_half: Curve  # FSC of the Gaussian half maps: overstates, both share the prior's errors
    c_half: Curve  # correlation of one half's Gaussian map with the truth
    c_map: Curve  # correlation of the map with the truth: of the average of the half maps that were judged
    c_map_se: Curve  # its standard error
    c_gaussians: Curve  # correlation of the average of the Gaussian half maps with the truth
    inversion_share: Curve  # part of the map's power that the direct inversion brings, 0 for the Gaussians alone
    gain: Curve  # least-squares factor from the average of the Gaussian half maps to the truth, zero beyond last_shell
    resolution: float | None  # Å, where c_map = 0.5 or, "better_than", at the limit of measurability
    resolution_kind: ResolutionKind
    limit_shell: int  # last shell in which anything can be measured, 0 for none
    last_shell: int  # last shell of the map: the limit's or, if the signal has not faded there, the data's
    nyquist: float  # resolution of the last shell in Å

    @property
    def shells(self) -> NDArray[np.int64]:
        """(D//2,) shell numbers from 1."""
        return np.arange(1, len(self.frequency) + 1)

    def unclaimed(self) -> Validation:
        """A copy without any claim about the map, because the poses may be wrong: only the FSCs of halves remain."""
        nothing = np.full(len(self.frequency), np.nan)
        return replace(
            self, c_half=nothing, c_map=nothing, c_map_se=nothing, c_gaussians=nothing, inversion_share=nothing,
            resolution=None, resolution_kind="not_measurable", limit_shell=0,
        )  # fmt: skip

    def sources(self) -> list[dict[str, float]]:
        """Where the map came from, in at most six bands of equal width up to the limit; empty for Gaussians alone.

        Each band has its ends in Å (``from``, ``to``), the means of its shells' shares (``inversion``, ``gaussians``)
        and of the correlations with the truth (``c_map``, ``c_gaussians``).
        """
        if not np.any(self.inversion_share > 0):
            return []
        bands = [band for band in np.array_split(np.arange(self.limit_shell), _BANDS) if len(band)]
        return [
            {
                "from": round(float(1 / self.frequency[band[0]]), 3),
                "to": round(float(1 / self.frequency[band[-1]]), 3),
                "inversion": round(float(np.mean(self.inversion_share[band])), 3),
                "gaussians": round(float(np.mean(1 - self.inversion_share[band])), 3),
                "c_map": round(float(np.mean(self.c_map[band])), 4),
                "c_gaussians": round(float(np.mean(self.c_gaussians[band])), 4),
            }
            for band in bands
        ]

    def sources_text(self, fitted: str = "Gaussians") -> str:
        """The first and the last of these bands in words. Args: fitted: what was fitted, in the plural."""
        bands = self.sources()
        if not bands:
            return f"the {fitted} alone"
        parts = [f"{100 * b['inversion']:.0f} % from {b['from']:.3g} to {b['to']:.3g} Å" for b in (bands[0], bands[-1])]
        return f"the direct inversion brings {' and '.join(parts)} of the map's power; the {fitted} bring the rest"


def validate(
    raw_half_1: NDArray[np.float32],
    raw_half_2: NDArray[np.float32],
    gaussian_half_1: NDArray[np.float32],
    gaussian_half_2: NDArray[np.float32],
    mask: NDArray[np.float32],
    pixel_size: float,
    seed: int,
    symmetry: NDArray[np.float64] | None = None,
    density: NDArray[np.float64] | None = None,
    by_bands: bool = False,
) -> Validation:
    """The FSC family and the resolution of two Gaussian half maps, judged by the direct inversions of the halves.

    Args:
        raw_half_1, .. gaussian_half_2, mask: (D, D, D) of one box.
        pixel_size: Å.
        seed: seed of the random phases.
        symmetry: (m, 3, 3) operators that the maps were made with.
        density: density of what the views have measured, from `directions.measured_density`.
        by_bands: whether the mask may end so abruptly that coarse detail leaks through it (see `bands`), as one that a
            user gives; those that are made from the data do not.
    """
    volumes = (raw_half_1, raw_half_2, gaussian_half_1, gaussian_half_2, mask)
    if len({v.shape for v in volumes}) > 1:
        raise InputError(f"maps of shapes {[v.shape for v in volumes]}: half maps and mask need one box")
    box_size = len(mask)
    raw = [maps.half_spectrum(v) for v in (raw_half_1, raw_half_2)]
    yardstick = _Yardstick.of(raw_half_1, raw_half_2, mask, by_bands)
    sums = yardstick.masked_moments(gaussian_half_1, gaussian_half_2)
    judged = yardstick.moments(gaussian_half_1, gaussian_half_2) if by_bands else sums
    unmasked, has_signal = _unmasked(raw, sums, box_size)
    masked_fsc = normalised(sums.r1r2, sums.r1r1, sums.r2r2)
    found = yardstick.judged(judged)

    edge = _edge(has_signal)
    reach = edge - smear(mask)
    limit = min(_limit(found.raw_fsc, found.se_without_signal), reach)
    if limit < FIRST_SHELL or _agreement(raw, box_size, limit, symmetry, density) < np.sqrt(SECTORS_AGREEING):
        limit = 0
    # A signal that has not faded by the last shell that can be judged does not end there.
    last = edge if limit == reach else limit
    frequency = np.arange(1, box_size // 2 + 1) / (box_size * pixel_size)
    resolution, kind = _resolution(found.c_map, frequency, limit)
    return Validation(
        frequency=frequency,
        raw_half_unmasked=unmasked,
        raw_half_masked=masked_fsc,
        raw_half_corrected=phase_randomised(raw, unmasked, masked_fsc, mask, seed),
        gaussian_half=normalised(sums.v1v2, sums.v1v1, sums.v2v2),
        c_half=found.c_half,
        c_map=found.c_map,
        c_map_se=found.se,
        c_gaussians=found.c_map,
        inversion_share=np.zeros_like(found.c_map),
        gain=_gain(judged, yardstick.pooling, found.uncertain, limit, last),
        resolution=resolution,
        resolution_kind=kind,
        limit_shell=limit,
        last_shell=last,
        nyquist=float(1 / frequency[-1]),
    )


def validate_combination(
    validation: Validation,
    combination: Combination,
    raw_half_1: NDArray[np.float32],
    raw_half_2: NDArray[np.float32],
    mask: NDArray[np.float32],
    by_bands: bool = False,
) -> Validation:
    """The validation of the Gaussian half maps, with c_map, c_half and the resolution of their combination.

    What can be measured at all depends on the direct inversions alone, and stays as it was.

    Args:
        raw_half_1, raw_half_2, mask, by_bands: as for `validate`.
    """
    yardstick = _Yardstick.of(raw_half_1, raw_half_2, mask, by_bands)
    found = yardstick.judged(yardstick.moments(*combination.halves), combination.optimism)
    resolution, kind = _resolution(found.c_map, validation.frequency, validation.limit_shell)
    return replace(
        validation,
        c_half=found.c_half,
        c_map=found.c_map,
        c_map_se=found.se,
        inversion_share=combination.inversion_share,
        resolution=resolution,
        resolution_kind=kind,
    )


@dataclass(frozen=True)
class _Judgement:
    """What the direct inversions say about two half maps, over shells 1 .. D//2."""

    c_map: Curve
    se: Curve
    c_half: Curve
    uncertain: NDArray[np.bool_]  # where neighbours were pooled
    raw_fsc: Curve  # pooled FSC of the direct inversions
    se_without_signal: Curve  # standard error of the pooled FSC if there is no signal


@dataclass(frozen=True)
class _Yardstick:
    """The direct inversions within a mask, against which other half maps are judged."""

    raw: tuple[NDArray[np.float32], NDArray[np.float32]]
    mask: NDArray[np.float32]
    by_bands: bool
    pooling: Curve
    variances: tuple[Curve, Curve]  # 1/n of single shells, and of pooled ones

    @staticmethod
    def of(
        raw_1: NDArray[np.float32], raw_2: NDArray[np.float32], mask: NDArray[np.float32], by_bands: bool
    ) -> _Yardstick:
        n_shells = len(mask) // 2
        pooling = pooling_matrix(n_shells)
        single, pooled = np.split(variance_of_mean(mask, np.concatenate([np.eye(n_shells), pooling])), 2)
        return _Yardstick((raw_1, raw_2), mask, by_bands, pooling, (single, pooled))

    def moments(self, half_1: NDArray[np.float32], half_2: NDArray[np.float32]) -> Moments:
        """Moments of two half maps (D, D, D) and the direct inversions, by which the half maps are judged."""
        if not self.by_bands:
            return self.masked_moments(half_1, half_2)
        return moments_by_bands({name: maps.half_spectrum(v) for name, v in self._four(half_1, half_2)}, self.mask)

    def masked_moments(self, half_1: NDArray[np.float32], half_2: NDArray[np.float32]) -> Moments:
        """The same with whatever leaks through the mask."""
        masked = {name: maps.half_spectrum(v * self.mask) for name, v in self._four(half_1, half_2)}
        return moments(masked, len(self.mask))

    def _four(
        self, half_1: NDArray[np.float32], half_2: NDArray[np.float32]
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        return zip(("r1", "r2", "v1", "v2"), (*self.raw, half_1, half_2), strict=True)

    def judged(self, sums: Moments, optimism: Curve | float = 0.0) -> _Judgement:
        """Args: optimism: (D//2,) by which ½(⟨V₁,r₂⟩ + ⟨V₂,r₁⟩) is too large, over ⟨V̄,V̄⟩, if the noise is even."""
        scaled = sums.normalised()
        too_large = optimism * unevenness(scaled) * np.sqrt(sums.mean_map) * inverse((sums.r1r1 * sums.r2r2) ** 0.25)
        one = np.eye(len(self.pooling))
        single, pooled = self.variances
        c_map, se, _, _ = correlation_with_truth(scaled, one, single, too_large)
        c_pool, se_pool, f_pool, se_null = correlation_with_truth(scaled, self.pooling, pooled, too_large)
        uncertain = ~(se <= POOLED_ABOVE)
        return _Judgement(
            c_map=np.where(uncertain, c_pool, c_map),
            se=SE_MARGIN * np.where(uncertain, se_pool, se),
            c_half=_c_half(scaled, self.pooling, uncertain),
            uncertain=uncertain,
            raw_fsc=f_pool,
            se_without_signal=se_null,
        )


def _unmasked(raw: list[NDArray[np.complex64]], sums: Moments, box_size: int) -> tuple[Curve, NDArray[np.bool_]]:
    """FSC of the direct inversions without a mask, and the shells in which the maps hold anything.

    Masking smears the power of a shell over its neighbours: beyond a low-pass, masked maps hold only what leaked
    in, and agree perfectly.
    """
    a, b = raw
    aa, bb, ab = (maps.shell_correlation(x, y, box_size)[1:] for x, y in ((a, a), (b, b), (a, b)))
    return normalised(ab, aa, bb), aa + bb > 0.1 * (sums.r1r1 + sums.r2r2)


def _c_half(m: Moments, pooling: Curve, uncertain: NDArray[np.bool_]) -> Curve:
    """FSC(V₁,r₂)/sqrt(FSC(r₁,r₂)), the mean of both directions, pooled where c_map is."""
    crossed = 0.5 * (normalised(m.v1r2, m.v1v1, m.r2r2) + normalised(m.v2r1, m.v2v2, m.r1r1))
    with np.errstate(divide="ignore", invalid="ignore"):
        single, pooled = crossed / np.sqrt(m.r1r2), (pooling @ crossed) / np.sqrt(pooling @ m.r1r2)
    return np.where(uncertain, pooled, single)


def _gain(m: Moments, pooling: Curve, uncertain: NDArray[np.bool_], limit: int, last: int) -> Curve:
    """½(⟨V₁,r₂⟩ + ⟨V₂,r₁⟩) / ⟨V̄,V̄⟩, pooled where c_map is, not below 0; 1 if there is no limit.

    Shells beyond the limit and up to the last one of the map keep the limit's gain.
    """
    if limit == 0:
        return np.ones_like(m.terms)
    single = m.crossed * inverse(m.mean_map)
    gain = np.maximum(np.where(uncertain, pooling @ single, single), 0)
    gain[limit:last] = gain[limit - 1]
    gain[last:] = 0
    return gain


def _edge(has_signal: NDArray[np.bool_]) -> int:
    """The last shell in which the direct inversions hold anything, 0 for none."""
    return int(np.max(np.flatnonzero(has_signal) + 1, initial=0))


def _limit(fsc_pooled: Curve, se_without_signal: Curve) -> int:
    """The last shell before the pooled FSC of r first falls below three standard errors, from FIRST_SHELL on."""
    failing = np.flatnonzero(~(fsc_pooled[FIRST_SHELL - 1 :] > SIGNIFICANCE * se_without_signal[FIRST_SHELL - 1 :]))
    return FIRST_SHELL - 1 + int(failing[0]) if len(failing) else len(fsc_pooled)


def _agreement(
    raw: list[NDArray[np.complex64]],
    box_size: int,
    limit: int,
    symmetry: NDArray[np.float64] | None,
    density: NDArray[np.float64] | None,
) -> float:
    return directional_agreement(raw[0], raw[1], box_size, (FIRST_SHELL, limit), symmetry, density)


def _resolution(c_map: Curve, frequency: Curve, limit: int) -> tuple[float | None, ResolutionKind]:
    """Where c_map first falls below 0.5, beyond FIRST_SHELL and up to the limit shell."""
    if limit == 0 or not c_map[FIRST_SHELL - 1] >= C_AT_RESOLUTION:
        return None, "not_measurable"
    crossing = resolution_at(c_map[:limit], frequency[:limit], C_AT_RESOLUTION, FIRST_SHELL)
    if crossing is None:
        return float(1 / frequency[limit - 1]), "better_than"
    return crossing, "measured"


def phase_randomised(
    raw: list[NDArray[np.complex64]], unmasked: Curve, masked: Curve, mask: NDArray[np.float32], seed: int
) -> Curve:
    """The masked FSC t less the part n that the mask alone makes: (t − n)/(1 − n), from the third random shell on.

    n is the masked FSC after the phases of both halves are made random from where the unmasked FSC falls below 0.8.
    Source: Chen et al. (2013), Ultramicroscopy 135:24; as relion_postprocess does it.
    """
    box_size = len(mask)
    below = np.flatnonzero(unmasked < RANDOMISED_BELOW)
    if len(below) == 0:
        return masked.copy()
    first = int(below[0]) + 1
    rng = np.random.default_rng(seed)
    halves = [maps.from_half_spectrum(_random_phases(spectrum, first, box_size, rng), box_size) for spectrum in raw]
    n = fsc(halves[0], halves[1], mask)
    with np.errstate(divide="ignore", invalid="ignore"):
        corrected = (masked - n) / (1 - n)
    return np.where(np.arange(1, len(masked) + 1) < first + 2, masked, corrected)


def _random_phases(
    spectrum: NDArray[np.complex64], first_shell: int, box_size: int, rng: np.random.Generator
) -> NDArray[np.complex64]:
    """The spectrum with random phases from a shell on; the transform of white noise gives phases with its symmetry."""
    noise = maps.half_spectrum(rng.standard_normal((box_size,) * 3, dtype=np.float32))
    noise *= np.abs(spectrum) / np.maximum(np.abs(noise), np.finfo(np.float32).tiny)
    return np.where(maps.shell_index(box_size) >= first_shell, noise, spectrum)


CSV_COLUMNS = (
    "shell",
    "frequency",
    "raw_half_unmasked",
    "raw_half_masked",
    "raw_half_corrected",
    "gaussian_half",
    "c_half",
    "c_map",
    "c_map_se",
    "c_gaussians",
    "inversion_share",
)


def write_fsc_csv(path: str | Path, validation: Validation) -> None:
    """Writes one row for each shell; NaN is written as nan. The file appears whole or not at all."""
    rows = np.stack([getattr(validation, name) for name in CSV_COLUMNS[1:]], axis=1)
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        writer.writerows([shell, *(f"{x:.6f}" for x in row)] for shell, row in enumerate(rows, start=1))

"""Heterogeneity: six sets with known states, sets of one state, and a mixture from another program."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import SHARED, Report, arguments
from conformations import maps_of
from emsplat.errors import InputError
from emsplat.heterogeneity.result import Heterogeneity
from emsplat.heterogeneity.run import find_heterogeneity
from emsplat.io import read_map
from emsplat.io.images import ImageSource
from emsplat.particles.parts import Part, PartWeights
from emsplat.runtime.reporting import Reporter, peak_memory_in_bytes
from emsplat.settings import HeterogeneitySettings, SimulationSettings
from emsplat.simulation import simulate
from emsplat.statistics.accumulate import AccumulationSettings, accumulate
from emsplat.validation.correlation import fsc

_IMAGES_SCORED = 100
_BASE = SimulationSettings(b_factor_in_square_angstroms=60.0)


@dataclass(frozen=True)
class Set:
    """A set of the benchmark."""

    name: str
    conformations: str
    number: int
    box_size: int
    pixel_size: float
    n_images: int
    snr: float
    populations: tuple[float, ...] | None = None
    periodic: bool = False  # the conformations close a circle


_UNEQUAL = (20.0, 8.0, 15.0, 5.0, 18.0, 10.0, 14.0, 10.0)
SETS = (
    Set("hinge circle 64²", "circle", 36, 64, 6.0, 10_000, 0.05, periodic=True),
    Set("hinge circle 64², SNR .01", "circle", 36, 64, 6.0, 10_000, 0.01, periodic=True),
    Set("two-angle hinge 64²", "two_angles", 50, 64, 6.0, 10_000, 0.05),
    Set("hinge circle 128²", "circle", 36, 128, 3.0, 10_000, 0.035, periodic=True),
    Set("MsbA 70/30", "two_states", 2, 64, 3.0, 6000, 0.05, (70, 30)),
    Set("8 compositions", "compositions", 8, 64, 3.5, 8000, 0.05, _UNEQUAL),
    Set("bend and twist", "bend_and_twist", 50, 64, 4.0, 6000, 0.05),
)
_SMALL = (
    Set("hinge circle 48²", "circle", 36, 48, 6.0, 4000, 0.05, periodic=True),
    Set("MsbA 70/30", "two_states", 2, 64, 3.0, 3000, 0.05, (70, 30)),
    Set("8 compositions", "compositions", 8, 64, 3.5, 4000, 0.05, _UNEQUAL),
)
_QUICK = (Set("8 compositions, 32²", "compositions", 8, 32, 7.0, 800, 0.2, _UNEQUAL),)
NULLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "contrast ±20 %": {"contrast_sigma": 0.2},
    "junk 20 %": {"junk": 0.2},
    "coloured noise": {"noise": "coloured"},
    "uneven views": {"orientations": "uneven"},
    "poses off by 2°, .6 px": {"angle_error_in_degrees": 2.0, "shift_error_in_angstroms": 2.1},
    "the same, refined": {"angle_error_in_degrees": 2.0, "shift_error_in_angstroms": 2.1, "refine": "poses,shifts"},
}

_TEXT = """The score is the mean FSC over shells 1 to D/2 − 1, in the mask of all conformations, of the map decoded at
an image's latent with that image's true map, over up to 100 images. "direct inversion, true labels" is the same of an
inversion of all images of the same conformation. "claimed" and "true" are the means over states, and over shells up to
the limit of measurability, of a state's c_map and of the FSC of its map with the average of its images' true maps.
"latents" is how well a quadratic regression on one half's latents predicts the other half's images: the median error in
degrees on a circle, else the share of conformations that are right."""


def simulation(one: Set, work: Path, seed: int) -> Path:
    """The star of a set, made once."""
    folder = work / f"{one.name.replace(' ', '-')}-{seed}"
    star = folder / "particles.star"
    if not star.exists():
        settings = replace(
            _BASE, n_images=one.n_images, box_size=one.box_size, pixel_size_in_angstroms=one.pixel_size, snr=one.snr,
            seed=seed, populations=one.populations,
        )  # fmt: skip
        simulate(maps_of(one.conformations, one.number, one.box_size, one.pixel_size, work), folder, settings)
    return star


def states_of(star: Path) -> NDArray[np.int64]:
    """(N,) conformation of each image, from 0."""
    with star.with_name("labels.csv").open(newline="") as file:
        return np.array([int(row["state"]) - 1 for row in csv.DictReader(file)])


def truths_of(star: Path) -> list[NDArray[np.float32]]:
    """The map of each conformation."""
    return [read_map(path).values for path in sorted(star.with_name("truths").glob("*.mrc"))]


def score(volume: NDArray[np.float32], truth: NDArray[np.float32], mask: NDArray[np.float32]) -> float:
    """Mean FSC over shells 1 to D/2 − 1."""
    return float(np.nanmean(fsc(volume, truth, mask)[: len(mask) // 2 - 1]))


def decoded(found: Heterogeneity, image: int) -> NDArray[np.float32]:
    """The map at an image's latent, the average of both halves' decoders."""
    if found.halves is None:
        return found.consensus.map
    z = found.latents.mean[image]
    size, pixel = len(found.consensus.map), found.consensus.pixel_size_in_angstroms
    first, second = (half.decoder.at(z).voxelise(size, pixel) for half in found.halves)
    return 0.5 * (first + second)


def with_true_labels(found: Heterogeneity, labels: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """The direct inversion of each conformation's images."""
    table = found.consensus.particles
    parts = PartWeights.one_part_each([Part(state=s) for s in range(labels.max() + 1)], labels)
    box = table.box_size
    settings = AccumulationSettings(box, box, found.consensus.preview.noise, np.eye(3)[None], 600 << 20)
    with ImageSource(table) as images:
        return [s.raw_map() for s in accumulate(table, images, parts, settings).values()]


def latent_quality(one: Set, found: Heterogeneity, labels: NDArray[np.int64]) -> str:
    """How well a quadratic regression on one half's latents predicts the other half's states."""
    z = found.latents.mean
    i, j = np.triu_indices(z.shape[1])
    features = np.concatenate([np.ones((len(z), 1)), z, z[:, i] * z[:, j]], axis=1)
    half = found.latents.half == 1
    if one.periodic:
        angle = 2 * np.pi * labels / one.number
        target = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        target = np.eye(labels.max() + 1)[labels]
    solved = np.linalg.lstsq(features[half], target[half], rcond=None)[0]
    guess = features[~half] @ solved
    if one.periodic:
        error = np.angle(np.exp(1j * (np.arctan2(guess[:, 1], guess[:, 0]) - angle[~half])))
        return f"{np.rad2deg(np.median(np.abs(error))):.1f}°"
    return f"{100 * np.mean(guess.argmax(axis=1) == labels[~half]):.0f} %"


def honesty(found: Heterogeneity, labels: NDArray[np.int64], truths: list[NDArray[np.float32]]) -> tuple[float, float]:
    """Mean claimed and true correlations of the states' maps."""
    claimed, true = [], []
    for number, state in enumerate(found.states):
        shown = labels[found.latents.state == number]
        limit = state.validation.limit_shell
        if limit == 0 or len(shown) == 0:
            continue
        shares = np.bincount(shown, minlength=len(truths)) / len(shown)
        mean = sum(share * truth for share, truth in zip(shares, truths, strict=True))
        curve = fsc(0.5 * (state.half_maps[0] + state.half_maps[1]), np.float32(mean), state.mask)
        claimed.append(np.nanmean(state.validation.c_map[:limit]))
        true.append(np.nanmean(curve[:limit]))
    return float(np.mean(claimed)), float(np.mean(true))


def row_of(one: Set, work: Path, seed: int) -> dict[str, Any]:
    """One set, from images to scores."""
    star = simulation(one, work, seed)
    started, cpu = time.perf_counter(), time.process_time()
    found = find_heterogeneity(star, HeterogeneitySettings(seed=seed), Reporter())
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    labels, truths = states_of(star), truths_of(star)
    mask = read_map(star.with_name("mask.mrc")).values
    inversions = with_true_labels(found, labels)
    images = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), _IMAGES_SCORED)).astype(int)).tolist()
    row: dict[str, Any] = {"set": one.name, "images": one.n_images, "seed": seed, "K": found.components.count}
    row["consensus"] = f"{np.mean([score(found.consensus.map, truths[labels[i]], mask) for i in images]):.3f}"
    row["decoder"] = f"{np.mean([score(decoded(found, i), truths[labels[i]], mask) for i in images]):.3f}"
    row["direct inversion, true labels"] = (
        f"{np.mean([score(inversions[labels[i]], truths[labels[i]], mask) for i in images]):.3f}"
    )
    row["latents"] = latent_quality(one, found, labels) if found.components.count else "–"
    claimed, true = honesty(found, labels, truths) if found.states else (np.nan, np.nan)
    row |= {"claimed": f"{claimed:.3f}", "true": f"{true:.3f}", "CPU s": round(cpu), "s": round(seconds)}
    return row | {"GB": f"{peak_memory_in_bytes() / 1e9:.2f}"}


def null_row(name: str, one: Set, work: Path, seed: int) -> dict[str, Any]:
    """One set of one state: how many components are found, and what is said."""
    options = dict(NULLS[name])
    refine = options.pop("refine", None)
    folder = work / f"null-{name.replace(' ', '-').replace('%', '')}-{one.box_size}-{seed}"
    if not (folder / "particles.star").exists():
        settings = replace(
            _BASE, n_images=one.n_images, box_size=one.box_size, pixel_size_in_angstroms=one.pixel_size, snr=one.snr,
            seed=seed, **options,
        )  # fmt: skip
        simulate(maps_of(one.conformations, one.number, one.box_size, one.pixel_size, work)[0], folder, settings)
    found = find_heterogeneity(folder / "particles.star", HeterogeneitySettings(seed=seed, refine=refine), Reporter())
    seen = found.components.seen
    return {
        "one state": name,
        "seed": seed,
        "K": found.components.count,
        "largest canonical correlation": f"{found.components.canonical.max():.2f}",
        "strongest direction, σ": f"{min(max(s.significance) for s in seen):.1f}",
        "warned of poses": any("poses were off" in warning for warning in found.reporter.warnings),
    }


def foreign_row(work: Path) -> dict[str, Any]:
    """tomoDRGN's mixture of two ribosomal classes: are the classes told apart?"""
    folder = SHARED.parent / "foreign" / "tomodrgn-10076"
    del work
    found = find_heterogeneity(folder / "10076_both_32_sim.star", HeterogeneitySettings(invert=True), Reporter())
    names = [str(found.consensus.particles.stacks[s].name) for s in found.consensus.particles.stack]
    label = np.array(["classE" in name for name in names]).astype(int)
    row: dict[str, Any] = {"set": "tomodrgn-10076", "images": len(label), "K": found.components.count}
    if found.components.count:
        row["classes told apart"] = latent_quality(Set("", "", 2, 32, 1.0, 0, 0.0), found, label)
        for number, state in enumerate(found.states, 1):
            shown = label[found.latents.state == number - 1]
            row[f"state {number}"] = f"{100 * state.population:.0f} %, class E {100 * np.mean(shown):.0f} %"
    return row


def main() -> None:
    args = arguments(
        __doc__, seeds=(1, "seeds of each set"), null_seeds=(2, "seeds of each null"), small=(0, "1: fewer")
    )
    report = Report("heterogeneity", "Heterogeneity", args)
    sets = _QUICK if args.quick else _SMALL if args.small else SETS
    rows: list[dict[str, Any]] = []
    for one in sets:
        for seed in range(1, args.seeds + 1):
            rows.append(row_of(one, args.work, seed))
            report.table("Sets with known states", rows, _TEXT)
    null_set = _QUICK[0] if args.quick else _SMALL[2]
    rows = []
    for name in list(NULLS)[: 2 if args.quick else None]:
        for seed in range(1, (1 if args.quick else args.null_seeds) + 1):
            rows.append(null_row(name, null_set, args.work, seed))
            report.table("Sets of one state", rows, "**Required: K = 0, or a plain warning where poses are wrong.**")
    try:
        report.table("Another program's mixture", [foreign_row(args.work)])
    except InputError as error:
        report.table("Another program's mixture", [{"skipped": str(error)}])


if __name__ == "__main__":
    main()

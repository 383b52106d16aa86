"""The check from top to bottom: the table, a sample of its images, their power spectra, a small map, its agreement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.check.agreement import (
    SHUFFLES,
    Agreement,
    agreement_finding,
    measure_agreement,
    shuffled_half_maps,
)
from emsplat.check.coverage import coverage_findings
from emsplat.check.facts import Facts, fact_rows, gather_facts, table_findings
from emsplat.check.findings import Finding, note, problem
from emsplat.check.gallery import Gallery, choose_gallery
from emsplat.check.inversion import QuickMap, SmallData, gather_parts, map_findings, quarters, quick_map
from emsplat.check.oddities import Odd, find_odd_images, image_findings, masked_findings, ramp_findings
from emsplat.check.picks import Picks, closeness_findings, read_picks
from emsplat.check.readings import Reading, alternatives, compare, reading_finding
from emsplat.check.sample import ImageStatistics, Sample, choose_rows, look_at_images, take_sample, with_box
from emsplat.check.settings import CheckSettings
from emsplat.check.symmetry import Symmetric, look_for_symmetry, symmetry_findings
from emsplat.check.thon import ThonFit, fit_thon_rings, images_are_multiplied, thon_findings
from emsplat.errors import InputError
from emsplat.imaging.noise import noise_spectra
from emsplat.io import as_asked, read_as_said
from emsplat.io.images import ImageSource, flipped_back, reading_order
from emsplat.particles.coverage import Coverage, measure_coverage
from emsplat.particles.table import Particles
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.threads import threads
from emsplat.symmetry import named_by, symmetry_operators
from emsplat.validation.correlation import Curve
from emsplat.validation.ctf_test import REMEDY, CtfEvidence, compare_ctfs

_FEWEST = 16  # images that are needed for a useful map, and particles for its parts to have none in common


@dataclass(frozen=True)
class Inversion:
    """The small map, and what it explains."""

    data: SmallData
    quick: QuickMap
    agreement: Agreement
    shuffled_fsc: tuple[Curve, ...]  # FSC of half maps with shuffled poses
    readings: list[Reading]
    symmetry: Symmetric
    ctfs: CtfEvidence | None  # of the CTFs of the file, where they are not used


@dataclass(frozen=True)
class Check:
    """Everything that was found."""

    particles: Particles
    settings: CheckSettings
    facts: Facts
    coverage: Coverage
    sample: Sample
    statistics: ImageStatistics  # of the sample, or of all images
    odd: Odd
    thon: ThonFit | None
    inversion: Inversion | None  # None if there is too little for a map
    gallery: Gallery
    findings: list[Finding]

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == "problem"]


def check(path: Path | str, settings: CheckSettings | None = None, reporter: Reporter | None = None) -> Check:
    """Check a particle file.

    Args:
        path: any particle file that `read_particles` reads.
        reporter: is told the facts as soon as the table is read, and the progress.
    Raises:
        InputError: the file or its stacks cannot be read, or none of the images can be used.
    """
    path, settings, reporter = Path(path), settings or CheckSettings(), reporter or Reporter()
    with threads(settings.threads):
        with reporter.stage("table"):
            said = read_as_said(path, settings)
            table = as_asked(said, settings)
            picks = read_picks(path, table)
            facts = gather_facts(table, picks.n_micrographs if picks else None, settings.pixel_size is not None)
            symmetry = symmetry_operators(named_by(table.symmetry_axes, settings.symmetry))
            coverage = measure_coverage(table.rotations(), symmetry, settings.seed)
        _tell(facts, reporter)
        with ImageSource(table, settings.invert) as images:
            sample, statistics = _look(table, images, settings, reporter)
            with reporter.stage("power spectra"):
                thon = fit_thon_rings(sample.powers, sample.full)
            inversion, excuse = _invert(sample, said, thon, settings, reporter)
            gallery = choose_gallery(sample, images, *((inversion.data, inversion.quick.map) if inversion else ()))
    odd = find_odd_images(statistics, table)
    findings = [
        *(note("file", warning) for warning in table.warnings),
        *table_findings(facts),
        *coverage_findings(coverage, len(table), settings.symmetry),
        *image_findings(statistics, odd, table),
        *masked_findings(sample),
        *ramp_findings(statistics),
        *thon_findings(thon, sample.full, sample.signal_share),
        *([excuse] if excuse else []),
        *(_inversion_findings(inversion, facts, picks, table, settings) if inversion else []),
    ]
    return Check(table, settings, facts, coverage, sample, statistics, odd, thon, inversion, gallery, findings)


def _tell(facts: Facts, reporter: Reporter) -> None:
    for name, value in fact_rows(facts):
        reporter.line(f"{name:>16}  {value}")


def _look(
    table: Particles, images: ImageSource, settings: CheckSettings, reporter: Reporter
) -> tuple[Sample, ImageStatistics]:
    rows = choose_rows(table, settings.n_images, settings.seed)
    with reporter.stage("images"):
        with reporter.bar("looking at a sample", "images") as advance:
            sample = take_sample(table, images, rows, advance)
        if not settings.every_image or len(rows) == len(table):
            return sample, sample.statistics
        with reporter.bar("looking at every image", "images") as advance:
            return sample, look_at_images(table, images, reading_order(table), advance)


def _invert(
    sample: Sample, said: Particles, thon: ThonFit | None, settings: CheckSettings, reporter: Reporter
) -> tuple[Inversion | None, Finding | None]:
    """The small map and its agreement with the images, or the reason why there is none.

    Args: said: the table with the CTFs that the file gives.
    """
    n_images = len(sample.small)
    if n_images < _FEWEST:
        text = f"{n_images} images are too few for a map: contrast and poses cannot be judged"
        return None, note("poses", text)
    try:
        data = SmallData(_in_parts(sample.small), sample.images, noise_spectra(sample.images, sample.small))
    except InputError:  # blank beside the particle, which `masked_findings` says
        return None, note("poses", "without noise beside the particle they cannot be judged")
    multiplied = bool(images_are_multiplied(thon, sample.signal_share)) or any(
        g.premultiplied for g in data.particles.optics
    )
    tried = alternatives(data, sample.full.pixel_size_in_angstroms, multiplied)
    steps = 1 + 2 + SHUFFLES + len(tried)
    with reporter.stage("map and poses"), _steps(reporter, "trying poses and shifts", steps) as step:
        part = quarters(data.particles.particle, settings.seed)
        symmetric = look_for_symmetry(data, part, settings.symmetry)
        symmetry = symmetry_operators(symmetric.name)
        parts = gather_parts(data, part, symmetry)
        quick = quick_map(parts, data.particles.pixel_size_in_angstroms)
        step()
        agreement = measure_agreement(data, part, parts, settings.seed, step)
        shuffled = shuffled_half_maps(data, part, symmetry, settings.seed, step)
        readings = compare(data, part, agreement.own, tried, symmetry, step)
        ctfs = None
        if said.has_ctf and not sample.small.has_ctf:
            ignored = with_box(said.select(sample.rows), sample.small.box_size)
            with_their_ctfs = replace(data, particles=ignored, images=_with_phases_of(ignored, data.images))
            theirs = gather_parts(with_their_ctfs, part, symmetry)
            a, b = ((one[0] + one[1], one[2] + one[3]) for one in (theirs, parts))
            ctfs = compare_ctfs(ignored, a, b)
    return Inversion(data, quick, agreement, shuffled, readings, symmetric, ctfs), None


def _with_phases_of(particles: Particles, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, d, d) the images as they are read where the CTFs of the file are used: flipped phases are flipped back."""
    flipped = particles.phase_flipped
    if not flipped.any():
        return images
    images = images.copy()
    images[flipped] = flipped_back(images[flipped], particles.select(flipped))
    return images


def _in_parts(particles: Particles) -> Particles:
    """The particles; their images one by one if there are few, as in a set of a few tilt series.

    Whether poses belong to images can be told from tilts of one particle, too, though not how good a map is.
    """
    if len(np.unique(particles.particle)) >= _FEWEST:
        return particles
    return replace(particles, particle=np.arange(len(particles)))


@contextmanager
def _steps(reporter: Reporter, title: str, total: int) -> Iterator[Any]:
    """A progress bar that moves by one at every call."""
    done = 0
    with reporter.bar(title, "maps") as advance:

        def step() -> None:
            nonlocal done
            done += 1
            advance(done, total)

        yield step


def _inversion_findings(
    inversion: Inversion, facts: Facts, picks: Picks | None, table: Particles, settings: CheckSettings
) -> list[Finding]:
    wrong = reading_finding(inversion.readings, inversion.agreement)
    found = [wrong or agreement_finding(inversion.agreement)]
    if inversion.ctfs and inversion.ctfs.is_sure:
        found.append(problem("CTF", f"the images have the CTFs of the table: {inversion.ctfs.text()}", REMEDY))
    if not inversion.agreement.is_sure:  # the map shows nothing
        return found
    return [
        *found,
        *symmetry_findings(inversion.symmetry, settings.symmetry),
        *map_findings(inversion.quick, settings.invert, facts.box_in_angstroms),
        *closeness_findings(picks, table, inversion.quick.diameter),
    ]


# --- what is said and written -----------------------------------------------------------------------------------------


def closing_line(result: Check) -> str:
    """The check in one line."""
    n, notes = len(result.problems), sum(finding.verdict == "note" for finding in result.findings)
    text = f"{n} problem{'s' * (n > 1)} found" if n else "nothing wrong found"
    return text + (f", {notes} note{'s' * (notes > 1)}" if notes else "")

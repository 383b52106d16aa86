"""The run folder of a reconstruction, written whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.figures import reconstruction as figures
from emsplat.figures.local_resolution import figure_local_resolution
from emsplat.figures.refinement import figure_refinement
from emsplat.figures.uncertainty import figure_uncertainty
from emsplat.io.mrc import write_map
from emsplat.io.stacks import stacks_read
from emsplat.io.write_refined import write_refined
from emsplat.outputs.claims import check_output
from emsplat.outputs.evidence import Evidence, gather_evidence, write_evidence
from emsplat.reconstruction.identity import digests
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.report.page import write_report
from emsplat.runs.closing import Summary, closing_rows, resolution_text
from emsplat.runs.run_folder import RunFolder
from emsplat.runtime.copied import in_two_processes
from emsplat.runtime.folders import filling
from emsplat.runtime.reporting import Reporter, peak_memory_in_bytes
from emsplat.settings import MODEL_NAMES
from emsplat.validation.validate import write_fsc_csv
from emsplat.versions import versions


def write_run(
    folder: Path | str,
    reconstruction: Reconstruction,
    reporter: Reporter | None = None,
    *,
    overwrite: bool = False,
    truth: NDArray[np.float64] | None = None,
    addition: Callable[[RunFolder], None] | None = None,
    **facts: object,
) -> Summary:
    """Write maps, Gaussians, curves, figures, settings, log and summary. An old run stays until all are complete.

    Args:
        reporter: the reporter that was given to `reconstruct`; its log and its times are written too.
        truth: (D//2,) correlation of the map with a known truth, which is drawn beside the estimate.
        addition: writes what another job has to add, in place of refined particles, before the report is made.
        facts: further entries for the summary, or others in place of its own.
    Returns:
        The contents of summary.json.
    """
    folder, reporter = Path(folder), reporter or reconstruction.reporter
    check_output(folder, overwrite)
    with filling(folder, last=RunFolder.SUMMARY, obsolete=RunFolder.CHECKPOINTS) as staging:
        files = RunFolder(staging)
        with reporter.stage("writing"):
            _write_maps(files, reconstruction)
            _write_gaussians(files, reconstruction)
            write_fsc_csv(files.curves, reconstruction.validation)
            write_json(files.configuration, configuration(reconstruction))
            if addition is None:
                _write_particles(files, reconstruction, reporter)
                _warn_of_particles(RunFolder(folder), reconstruction, reporter)
        with reporter.stage("figures"):
            draw_figures(files, reconstruction, truth, resolution_text({**verdict(reconstruction), **facts}))
            if addition is not None:
                addition(files)
        evidence: Evidence = {}
        with reporter.stage("report"), costing_no_run(folder, reporter):
            evidence = gather_evidence(reconstruction, truth)
        write_evidence(files, evidence)
        summary = summarise(reconstruction, reporter) | facts
        write_json(files.summary, summary)
        stacks = [stack.line() for stack in stacks_read(reconstruction.particles)]
        closing = [f"{name}: {text}" for name, text in closing_rows(summary, folder)]
        log = [*reporter.log, "", *closing, "", "stacks that were read:", *stacks]
        files.log.write_text("\n".join(log) + "\n", encoding="utf-8")
        files.report.touch()
        with costing_no_run(folder, reporter):
            write_report(staging, name=folder.resolve().name)
    _remove_replaced(RunFolder(folder), reconstruction, of_search=addition is not None)
    return summary


def _remove_replaced(files: RunFolder, r: Reconstruction, of_search: bool) -> None:
    """Remove the files of the run that this one replaced, where this one has none of their kind.

    Args:
        of_search: whether this is the run of a search for poses.
    """
    missing = [*files.models] if r.gaussians is None else []
    if r.local_resolution is None:
        missing += [files.local_resolution, files.figure("local_resolution")]
    if r.standard_error is None:
        missing += [files.uncertainty, files.figure("uncertainty")]
    if r.refinement is None:
        missing.append(files.figure("refinement"))
    if not of_search:
        missing.append(files.figure("ab_initio"))
    for path in missing:
        path.unlink(missing_ok=True)


@contextmanager
def costing_no_run(folder: Path, reporter: Reporter) -> Iterator[None]:
    """Warn of an error in the block and continue, because the result of hours is worth more than its report.

    The files of the report are then empty, so that those of an older run do not stay.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        reporter.warn(
            f"the report is not complete ({reason}), but everything else is; emsplat report {folder} makes it again"
        )


def _write_maps(files: RunFolder, r: Reconstruction) -> None:
    first, second = r.halves
    local = None if r.local_resolution is None else r.local_resolution.filled()
    volumes = (r.map, *r.half_maps, first.raw, second.raw, r.mask, local, r.standard_error)
    for path, volume in zip(files.maps, volumes, strict=True):
        if volume is not None:
            write_map(path, volume, r.pixel_size_in_angstroms)


def _write_gaussians(files: RunFolder, r: Reconstruction) -> None:
    """Write the Gaussians if they are what was fitted."""
    box = {
        "box_size": str(len(r.map)),
        "pixel_size_in_angstroms": f"{r.pixel_size_in_angstroms:.6g}",
        "symmetry": r.symmetry,
    }
    models = (r.gaussians, *(half.gaussians for half in r.halves))
    for path, model in zip(files.models, models, strict=True):
        if model is not None:
            model.save(path, **box)


def _write_particles(files: RunFolder, r: Reconstruction, reporter: Reporter) -> None:
    """Write the particles back if they were refined."""
    if r.refinement is None:
        return
    contrast = 1 + r.refinement.changes[:, 5]
    path = write_refined(r.particles, contrast, r.settings.refined, files.path, by_column=r.settings.poses is None)
    reporter.line(f"{path.name} holds the refined particles; its images are named as in {r.particles.source}")
    if r.particles.dark is not None and r.particles.dark.any() and path.suffix == ".star":
        reporter.warn(f"{path.name} cannot say that images are dark; read it with --invert")


def _warn_of_particles(there: RunFolder, r: Reconstruction, reporter: Reporter) -> None:
    """Warn of particle files that look like refined ones of this run. They stay, because they may be the user's own."""
    source = Path(r.particles.source).absolute()
    for path in there.refined_particles if r.refinement is None else ():
        if path.is_file() and path.absolute() != source:
            reporter.warn(f"{path} was there before; it does not belong to this run, which refined no particles")


def draw_figures(
    files: RunFolder, r: Reconstruction, truth: NDArray[np.float64] | None = None, resolution: str | None = None
) -> None:
    """Draw the figures of a run into their folder, which must not exist yet.

    Args:
        resolution: what is said of it; by default what was measured.
    """
    files.figures.mkdir()
    raw = 0.5 * (r.halves[0].raw + r.halves[1].raw)
    histories = [half.history for half in r.halves]
    steps = [np.arange(len(history.losses)) for history in histories]
    pixel_size = r.pixel_size_in_angstroms
    title = f"resolution: {resolution or resolution_text(verdict(r))}"
    at, angles = files.figure, r.particles.euler_angles_in_degrees
    losses, checks = [h.losses for h in histories], [h.checks for h in histories]
    drawings = [
        partial(figures.figure_fsc, r.validation, at("fsc"), truth, title, MODEL_NAMES[r.settings.model]),
        partial(figures.figure_slices, r.map, at("slices"), pixel_size, raw),
        partial(figures.figure_projections, r.map, at("projections"), pixel_size, raw),
        partial(figures.figure_orientations, angles, at("orientations")),
    ]
    if r.standard_error is not None:
        drawings.append(partial(figure_uncertainty, r.standard_error, r.map, r.mask, at("uncertainty"), pixel_size))
    if r.local_resolution is not None:
        resolutions = r.local_resolution, r.map, at("local_resolution"), pixel_size, r.validation.resolution
        drawings.append(partial(figure_local_resolution, *resolutions))
    drawings.append(partial(figures.figure_loss, steps, losses, checks, at("loss")))
    if r.refinement is not None:
        drawings.append(partial(figure_refinement, r.refinement.moved(), r.particles.half_set, at("refinement")))
    in_two_processes(drawings, only_one=r.settings.threads == 1)


def configuration(r: Reconstruction) -> dict[str, Any]:
    """Every setting, and what was found from the data for settings that were left out."""
    return {
        "command": command_line(),
        "directory": os.getcwd(),
        "particles": str(Path(r.particles.source).absolute()),
        "settings": asdict(r.settings),
        "digests": digests(r.settings),
        "stacks": [asdict(stack) for stack in stacks_read(r.particles)],
        "found": {
            "pixel_size_in_angstroms": r.pixel_size_in_angstroms,
            "box_size": len(r.map),
            "diameter_in_angstroms": r.preview.diameter_in_angstroms,
            "n_gaussians_of_halves": [half.n_gaussians for half in r.halves],
            "fit_steps_of_halves": [half.n_steps for half in r.halves],
        },
    }


def command_line() -> str:
    """The command that the user typed, or the program that made the run."""
    if Path(sys.argv[0]).name in ("emsplat", "__main__.py"):
        return shlex.join(["emsplat", *sys.argv[1:]])
    return shlex.join(sys.orig_argv)


def verdict(r: Reconstruction) -> Summary:
    """The part of the summary that `resolution_text` puts into words."""
    v = r.validation
    return {
        "resolution": v.resolution,
        "resolution_kind": v.resolution_kind,
        "poses_shared": r.poses_shared,
        "has_ctf": r.particles.has_ctf,
        "mask": None if r.settings.mask is None else str(r.settings.mask),  # None: made from the data
        "measurable_limit": float(1 / v.frequency[v.limit_shell - 1]) if v.limit_shell else None,
        "nyquist": v.nyquist,
    }


def summarise(r: Reconstruction, reporter: Reporter) -> Summary:
    """The contents of summary.json, with lengths in Å, times in seconds and memory in bytes."""
    seconds = r.seconds | reporter.seconds
    return {
        **verdict(r),
        "sources": r.validation.sources(),
        "local_resolution": None if r.local_resolution is None else r.local_resolution.summary(),
        "standard_error": _errors(r),
        "refinement": r.refinement.summary(r.particles.half_set) if r.refinement else None,
        "n_images": r.n_images,
        "n_particles": len(np.unique(r.particles.particle)),
        "model": r.settings.model,
        "n_gaussians": None if r.gaussians is None else len(r.gaussians),
        "n_gaussians_of_halves": [half.n_gaussians for half in r.halves],
        "n_parameters_of_halves": [half.n_parameters for half in r.halves],
        "box_size": len(r.map),
        "pixel_size": r.pixel_size_in_angstroms,
        "symmetry": r.symmetry,
        "b_factor": r.b_factor,
        "seconds": {stage: round(time, 3) for stage, time in seconds.items()},
        "resumed": reporter.resumed,  # if so, the seconds count from then
        "images_per_second": round(r.n_images / seconds["pass"], 1) if not reporter.resumed else None,
        "peak_memory_in_bytes": peak_memory_in_bytes(),
        "peak_memory_after_in_bytes": reporter.peak_memory_in_bytes,
        "seed": r.settings.seed,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "warnings": reporter.warnings,
        "versions": versions(),
    }


def _errors(r: Reconstruction) -> dict[str, float]:
    """The standard error over the particle, and how many times it the map is there, root mean square over that."""
    particle = r.mask >= 0.5
    if r.standard_error is None or not particle.any():
        return {}
    errors, values = r.standard_error[particle], r.map[particle]
    return {
        "median": float(np.median(errors)),
        **{f"percentile_{p}": float(np.percentile(errors, p)) for p in (5, 95)},
        "map_over_error": float(np.sqrt(np.mean(np.square(values)) / max(float(np.mean(np.square(errors))), 1e-30))),
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def write_ids(path: Path, ids: NDArray[np.str_]) -> None:
    """Write a list of particles that `emsplat subset` takes."""
    path.write_text("\n".join(["id", *ids.tolist()]) + "\n", encoding="utf-8")

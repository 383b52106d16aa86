"""The run folder of a search for poses from none: a reconstruction's, with the poses, the verdict and its evidence."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from emsplat.abinitio.run import AbInitio
from emsplat.figures.abinitio import figure_ab_initio
from emsplat.io.write_refined import write_posed
from emsplat.outputs import claims
from emsplat.outputs import reconstruction as outputs
from emsplat.reconstruction.identity import digests
from emsplat.runs.closing import Summary
from emsplat.runs.run_folder import RunFolder
from emsplat.runtime.reporting import Reporter
from emsplat.settings import AbInitioSettings

SETTINGS = "ab_initio_settings"  # entry of config.json


def is_complete(folder: Path, particles: Path, settings: AbInitioSettings, reporter: Reporter) -> bool:
    """Whether the folder holds a complete search of these particles with these settings."""
    return claims.is_complete(folder, particles, settings, reporter, SETTINGS)


def write_ab_initio(
    folder: Path, found: AbInitio, reporter: Reporter, overwrite: bool = False, ranks: int = 1, **facts: Any
) -> Summary:
    """Write everything that `outputs.reconstruction.write_run` writes, the particles with their poses, and the verdict.

    Unless the search has converged, no resolution and no error is claimed anywhere: a wrong map can have half maps
    that agree.

    Args:
        facts: further entries for the summary, or others in place of its own.
    """
    particles = found.reconstruction.particles

    def addition(files: RunFolder) -> None:
        paths = write_posed(particles, files.path, by_column=found.settings.ctf is None and not found.settings.no_ctf)
        configuration = json.loads(files.configuration.read_text(encoding="utf-8"))
        configuration[SETTINGS] = asdict(found.settings)
        configuration["digests"] = digests(found.settings)
        text = json.dumps(configuration, indent=2, ensure_ascii=False, default=str)
        files.configuration.write_text(text + "\n", encoding="utf-8")
        if not found.shown.all():
            outputs.write_ids(files.junk, particles.ids[~found.shown])
            named = f"{files.junk.name} lists the images that probably show no particle, by their ids in"
            reporter.line(f"{named} {particles.source}; the option --drop leaves them out")
        names = " and ".join(path.name for path in paths)
        reporter.line(f"{names}: the particles with the poses found; images are named as in {particles.source}")
        if found.settings.invert:
            reporter.warn(f"{names}: the images are dark, so read them with --invert")
        box = particles.box_size * particles.pixel_size_in_angstroms
        rings = np.arange(1, len(found.agreement.correlations) + 1)
        figure_ab_initio(
            [(np.array(s.first.evidence), np.array(s.second.evidence)) for s in found.starts],
            found.starts[0].pictures,
            found.agreement.correlations,
            box / rings,
            found.certainty,
            particles.euler_angles_in_degrees,
            particles.half_set,
            f"ab initio: {found.status}",
            files.figure("ab_initio"),
        )

    reconstruction = found.reconstruction
    if found.status != "converged":
        unclaimed = reconstruction.validation.unclaimed()
        reconstruction = replace(reconstruction, validation=unclaimed, standard_error=None)
    summary = outputs.write_run(
        folder,
        reconstruction,
        reporter,
        overwrite=overwrite,
        addition=addition,
        ab_initio=found.summary(),
        ranks=ranks,
        **facts,
    )
    if found.shown.all():
        RunFolder(folder).junk.unlink(missing_ok=True)  # of the run that this one replaced
    return summary

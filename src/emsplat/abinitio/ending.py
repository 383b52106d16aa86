"""How far the halves agree at the end, on their refined maps and with their refined poses.

Each half has been refined against its own map alone, so its last map is as independent of the other half as its first.
The comparison is that of `halves`, on the same rings and the same grid; only the maps and the poses are better.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from emsplat.abinitio import full, volume
from emsplat.abinitio.alternation import weighted_map
from emsplat.abinitio.halves import Agreement, Start, compare, on_box
from emsplat.abinitio.job import Job
from emsplat.abinitio.stochastic import Trace, power_share
from emsplat.reconstruction.reconstruct import Reconstruction


def compared_again(
    job: Job, found: Reconstruction, starts: tuple[Start, Start], before: Agreement
) -> tuple[tuple[Start, Start], Agreement]:
    """Both halves after refinement in the form of starts, and their agreement.

    Args:
        starts: the starts from which the refinement began; which images show a particle is taken over from them.
        before: their agreement.
    """
    halves, spectra = job.read(job.scales.fine_rings)
    search = job.search_settings(halves, spectra)
    box_size = volume.map_box(halves[0].grid)
    table, seed = found.particles, job.settings.seed
    rotations, centres = table.rotations(), -table.origin_in_angstroms / table.pixel_size_in_angstroms
    last = []
    for half, rows in enumerate(job.rows):
        map_ = on_box(weighted_map(found, half), box_size)
        rng = np.random.default_rng((seed, 300, half))
        with job.reporter.bar(f"comparing half {half + 1}", "images") as advance:
            what = halves[half], map_, centres[rows], search.fine, search.full, rng
            there = full.round_of(*what, advance=advance)
        there = replace(there, rotations=rotations[rows], centres=centres[rows], junk=starts[half].found.junk)
        trace = Trace([float(there.evidence.mean())], [float(there.top.mean())], [1.0])
        trace.power.append(power_share(map_, search.fine.signal))
        inversion = on_box(found.halves[half].raw, box_size)
        last.append(replace(starts[half], map=map_, inversion=inversion, found=there, second=trace))
    both = last[0], last[1]
    agreement = compare(halves, both, search, np.random.default_rng((seed, 301)))
    return both, replace(agreement, modes_before=before.modes)

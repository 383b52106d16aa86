"""Whether the images ask for the symmetry that was imposed.

Poses that were searched under a group tell nothing of it: every criterion is taken modulo the group, and the maps of
both halves have it, whether the particle does or not. One half is therefore searched without it as well, from as many
starts as are allowed, because a poor map without the symmetry would say nothing. If the particle has the symmetry, its
symmetric map holds less noise, and images of the other half are likelier under it. If not, the symmetric map lacks what
the symmetry has averaged away, and they are likelier under one of the others.
"""

from __future__ import annotations

import numpy as np

from emsplat.abinitio.classes import of_class
from emsplat.abinitio.halves import Agreement, Start, compare, start
from emsplat.abinitio.job import Job
from emsplat.abinitio.verdict import Criterion

# The map of a symmetric particle holds less noise if it is symmetrised, so that the ratio comes down to 1 from above as
# images become many; it was 1.1 to 1.2 for 8BK7 with D2. An antibody with C2, and a pseudo-sixfold ring with C6, had
# 0.88 to 0.98.
_AS_LIKELY, _LESS_LIKELY = 0.99, 0.5
_MOST = 2.0  # a search without the symmetry that finds nothing says nothing against it


def symmetry_holds(job: Job, starts: tuple[Start, Start], agreement: Agreement) -> Criterion:
    """The criterion of the verdict on the imposed symmetry.

    Args:
        starts: the searches of both halves under the symmetry; agreement: how far they agree.
    """
    seed, reporter, world = job.settings.seed, job.reporter, job.context.world
    with reporter.stage("search"):
        halves, spectra = job.read(job.scales.fine_rings)
        free = job.search_settings(halves, spectra).free
        assert free is not None
        without = -np.inf
        for attempt in range(job.settings.starts):
            title, name = f"half 1 without the symmetry, start {attempt + 1}", f"free{attempt + 1}"
            rng, checkpoint = np.random.default_rng((seed, 302, attempt)), job.context.checkpoints.named(name, world)
            found = start(halves[0], free.weighted(), rng, title, reporter, checkpoint)
            found = of_class(found, 0, np.arange(len(halves[0])), free.fine.signal)
            both = compare(halves, (found, starts[1]), free, np.random.default_rng((seed, 303, attempt)))
            without = max(without, both.other_evidence)
            if agreement.other_evidence < _AS_LIKELY * without:
                break
    reporter.line(
        f"images of half 2 have a log-likelihood of {agreement.other_evidence:.2f} under the symmetric map of half 1, "
        f"and of {without:.2f} under its map without the symmetry"
    )
    ratio = min(agreement.other_evidence / max(without, 1e-6), _MOST)
    what = "the images' likelihood under the symmetric map over that under one without the symmetry"
    return Criterion("symmetry", ratio, _AS_LIKELY, _LESS_LIKELY, what)

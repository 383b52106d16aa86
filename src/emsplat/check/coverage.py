"""Checks whether the viewing directions leave gaps in Fourier space."""

from __future__ import annotations

from emsplat.check.findings import Finding, fine, note, problem
from emsplat.particles.coverage import CAP_IN_DEGREES, Coverage

_FEWEST = 200  # images; fewer cannot cover anything
_UNEVEN, _POOR, _HOLE = 0.8, 0.5, 0.02  # efficiency below which there is a note or a problem; share of empty directions


def coverage_findings(coverage: Coverage, n_images: int, symmetry: str) -> list[Finding]:
    """The verdict on whether views are missing."""
    if n_images < _FEWEST:
        return [note("views", f"{n_images:,} images are too few to judge the coverage")]
    rot, tilt = coverage.preferred
    text = (
        f"as good as {100 * coverage.efficiency:.0f} % of the images with even views; "
        f"{100 * coverage.densest_cap:.0f} % within {CAP_IN_DEGREES:.0f}° of one direction (13 % if even)"
    )
    if coverage.efficiency >= _UNEVEN and coverage.empty < _HOLE:
        return [fine("views", text)]
    text += f", rot {rot:.0f}° tilt {tilt:.0f}°"
    symmetric = "if the particle is symmetric, give --symmetry" if symmetry.upper() == "C1" else None
    if coverage.efficiency >= _POOR and coverage.empty < _HOLE:
        return [note("views", text, symmetric)]
    text += f"; {100 * coverage.empty:.0f} % of Fourier space is all but empty"
    remedy = "expect a map smeared along it: thin out the preferred views or record tilted images"
    return [problem("views", text, f"{remedy}; {symmetric}" if symmetric else remedy)]

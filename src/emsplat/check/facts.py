"""The facts in the table, before any image is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.check.findings import Finding, fine, note, problem
from emsplat.conventions import electron_wavelength_in_angstroms
from emsplat.io.mrc import StackReader
from emsplat.particles.table import OpticsGroup, Particles

Range = tuple[float, float, float]  # lowest, median, highest

_LEAST_DEFOCUS, _LARGEST_DEFOCUS = 1_000.0, 120_000.0  # Å; beyond these it is in nm or µm, or not a defocus
_LARGEST_SHIFT = 0.25  # share of the box; an image that is further off centre has lost part of the particle
_LARGEST_IMBALANCE = 0.1  # relative difference of the half sets


@dataclass(frozen=True)
class Facts:
    """Facts of a table, with lengths in Å, angles in degrees and dose in e/Å²."""

    n_images: int
    n_particles: int
    n_stacks: int
    n_micrographs: int | None  # None: the file does not say
    box_size: int
    pixel_size: float
    pixel_size_source: str
    has_ctf: bool  # False: it is taken as 1
    optics: tuple[tuple[OpticsGroup, int], ...]  # each group that occurs, and its number of images
    defocus: Range  # mean of U and V
    astigmatism: Range  # |U − V|
    phase_shift: Range
    b_factor: Range
    pre_exposure: Range
    shift_rms: float  # root mean square length of the shifts
    shift_largest: float
    n_views: int  # different pairs of rot and tilt
    half_sets: tuple[int, int]  # images in each; 0, 0 if the file has no half sets

    @property
    def box_in_angstroms(self) -> float:
        return self.box_size * self.pixel_size


def gather_facts(particles: Particles, n_micrographs: int | None, pixel_size_given: bool) -> Facts:
    """Counts and ranges of a table whose stacks exist."""
    u, v = particles.defocus_u_in_angstroms, particles.defocus_v_in_angstroms
    shift = np.hypot(*particles.origin_in_angstroms.T)
    counts = np.bincount(particles.optics_group, minlength=len(particles.optics))
    views = np.round(particles.euler_angles_in_degrees[:, :2], 3)
    return Facts(
        n_images=len(particles),
        n_particles=len(np.unique(particles.particle)),
        n_stacks=len(particles.stacks),
        n_micrographs=n_micrographs,
        box_size=particles.box_size,
        pixel_size=particles.pixel_size_in_angstroms,
        pixel_size_source="given" if pixel_size_given else _source_of_pixel_size(particles),
        has_ctf=particles.has_ctf,
        optics=tuple((group, int(n)) for group, n in zip(particles.optics, counts, strict=True) if n),
        defocus=_range(0.5 * (u + v)),
        astigmatism=_range(np.abs(u - v)),
        phase_shift=_range(particles.phase_shift_in_degrees),
        b_factor=_range(particles.b_factor_in_square_angstroms),
        pre_exposure=_range(particles.pre_exposure),
        shift_rms=float(np.sqrt(np.mean(shift**2))),
        shift_largest=float(shift.max()),
        n_views=len(np.unique(views, axis=0)),
        half_sets=(int(np.sum(particles.half_set == 1)), int(np.sum(particles.half_set == 2))),
    )


def _source_of_pixel_size(particles: Particles) -> str:
    with StackReader(particles.stacks[0]) as reader:
        header = reader.pixel_size_in_angstroms
    return "the stack's header agrees" if header else "from the table; the stack's header does not say"


def _range(values: NDArray[np.float64]) -> Range:
    return float(values.min()), float(np.median(values)), float(values.max())


# --- as rows of a table -----------------------------------------------------------------------------------------------


def fact_rows(f: Facts) -> list[tuple[str, str]]:
    """Name and value of each line of the table in the terminal."""
    counts = f"{f.n_images:,} of {f.n_particles:,} particles in {_counted(f.n_stacks, 'stack')}"
    rows = [
        ("images", counts + (f", {_counted(f.n_micrographs, 'micrograph')}" if f.n_micrographs else "")),
        ("pixel size", f"{f.pixel_size:.4g} Å ({f.pixel_size_source})"),
        ("box", f"{f.box_size} × {f.box_size} pixels, {f.box_in_angstroms:.0f} Å; {_limits(f)}"),
    ]
    for number, (group, n) in enumerate(f.optics):
        rows.append((_counted(len(f.optics), "optics group") if number == 0 else "", _optics(group, n, f.has_ctf)))
    astigmatism = f"astigmatism {f.astigmatism[1]:,.0f} Å, at most {f.astigmatism[2]:,.0f}"
    rows += [
        ("defocus", f"{_spread(f.defocus)} Å; {astigmatism}") if f.has_ctf else ("CTF", "taken as 1"),
        *_if_any("phase shift", f.phase_shift, "°"),
        *_if_any("CTF B-factor", f.b_factor, " Å²"),
        *_if_any("pre-exposure", f.pre_exposure, " e/Å²"),
        ("shifts", f"{f.shift_rms:.3g} Å rms, at most {f.shift_largest:.3g} Å" if f.shift_largest else "none"),
        ("views", f"{f.n_views:,} different viewing directions"),
        ("half sets", f"{f.half_sets[0]:,} and {f.half_sets[1]:,} images" if any(f.half_sets) else "not given"),
    ]
    return rows


def _limits(f: Facts) -> str:
    """Nyquist's resolution, and that at which the CTF at the median defocus turns by π per shell, if it is coarser."""
    wavelength = float(electron_wavelength_in_angstroms(f.optics[0][0].voltage_in_kilovolts))
    nyquist, ctf = 2 * f.pixel_size, 2 * wavelength * abs(f.defocus[1]) / f.box_in_angstroms
    return f"Nyquist {nyquist:.3g} Å" + (f"; the box holds the CTF only to {ctf:.3g} Å" if ctf > nyquist else "")


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _optics(group: OpticsGroup, n: int, has_ctf: bool) -> str:
    extra = [
        *["CTF-premultiplied"] * group.premultiplied,
        *["beam tilt"] * any(group.beam_tilt_in_milliradians),
        *["higher aberrations"] * (any(group.odd_zernike) or any(group.even_zernike)),
        *["anisotropic magnification"] * (group.magnification != (1.0, 0.0, 0.0, 1.0)),
    ]
    values = (
        f"{group.voltage_in_kilovolts:g} kV, Cs {group.spherical_aberration_in_millimetres:g} mm, "
        f"amplitude contrast {group.amplitude_contrast:g}"
    )
    return ", ".join([f"{group.name}: {n:,} images", *[values] * has_ctf, *extra])


def _spread(values: Range) -> str:
    low, median, high = values
    return f"{low:,.0f}" if low == high else f"{low:,.0f} … {high:,.0f}, median {median:,.0f}"


def _if_any(name: str, values: Range, unit: str) -> list[tuple[str, str]]:
    return [(name, _spread(values) + unit)] if any(values) else []


# --- verdicts ---------------------------------------------------------------------------------------------------------


def table_findings(f: Facts) -> list[Finding]:
    """Verdicts on the table alone."""
    return [*_defocus_findings(f), *_shift_findings(f), *_row_findings(f)]


def _defocus_findings(f: Facts) -> list[Finding]:
    low, median, high = f.defocus
    if high < _LEAST_DEFOCUS and high > 0:
        text = f"{low:.4g} to {high:.4g} Å is almost none; it must be in Å, and 1 µm is 10,000 Å"
        return [problem("defocus", text, "convert it to Å in the particle file")]
    if median > _LARGEST_DEFOCUS:
        return [problem("defocus", f"median {median:,.0f} Å; it must be in Å", "convert it to Å in the particle file")]
    if median < 0:
        text = f"median {median:,.0f} Å is overfocus; underfocus is positive"
        return [problem("defocus", text, "negate rlnDefocusU and rlnDefocusV, unless it was overfocus")]
    return []


def _shift_findings(f: Facts) -> list[Finding]:
    share = f.shift_largest / f.box_in_angstroms
    if share <= _LARGEST_SHIFT:
        return []
    text = f"at most {f.shift_largest:.0f} Å, {100 * share:.0f} % of the box"
    return [problem("shifts", text, "check that they are in Å; if so, extract again at the refined positions")]


def _row_findings(f: Facts) -> list[Finding]:
    found: list[Finding] = []
    if f.n_views == 1 and f.n_images > 1:
        text = "all images share one rot and tilt, as after 2D classification"
        found.append(problem("views", text, "poses of a 3D refinement are needed"))
    first, second = f.half_sets
    if first + second == 0:
        text = "not given: drawn by lot, so a resolution will be an upper bound"
        found.append(note("half sets", text, "keep rlnRandomSubset (or the split) of the refinement"))
    elif not (first and second):
        text = f"{first:,} and {second:,} images: all are in one"
        found.append(problem("half sets", text, "use the file of both halves, or remove the column"))
    elif abs(first - second) > max(_LARGEST_IMBALANCE * f.n_images, 3 * np.sqrt(f.n_images)):
        text = f"{first:,} and {second:,} images: uneven halves measure the worse of the two"
        found.append(note("half sets", text))
    else:
        found.append(fine("half sets", f"given, {first:,} and {second:,} images"))
    return found

"""Inputs from the field that other programs' users met: what the program makes of each, and what is right."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import foreign_sets
from common import SHARED, Report, arguments
from emsplat.check.run import check
from emsplat.check.settings import CheckSettings
from emsplat.errors import InputError
from emsplat.io import read_map
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings

_CASES = SHARED.parent / "cases"  # beside the shared data
_TEXT = """Each row is one file of `make_cases.py`, given to `reconstruct` or to `check` with the options named. **FSC**
is the mean FSC of the map with the truth inside its mask; the images without a fault reach 0.960. **right** says what
the program should do: reach an FSC of at least that number, refuse with these words, find nothing measurable, or warn
with these words. Masks and origins are those of `emsplat fsc`, tested in `tests/io/test_masks.py`."""


@dataclass(frozen=True)
class Input:
    """A file, what is done with it, and which outcome is right."""

    folder: str
    file: str
    options: dict[str, Any]
    right: float | str  # least FSC, or "refused: words", "no resolution", "warned: words", "fine"
    truth: str = "base"
    checked: bool = False

    def row(self, work: Path, score: ModuleType) -> dict[str, Any]:
        """The row of an input: what the program makes of it, and whether that is right."""
        os.chdir(work / self.folder)
        options = {name: Path(v) if name in ("poses", "ctf") else v for name, v in self.options.items()}
        said, fsc, resolution = "", None, ""
        reporter = Reporter()
        try:
            if self.checked:
                found = check(Path(self.file), CheckSettings(threads=1, **options), reporter)
                said = "; ".join(finding.line() for finding in found.problems) or "nothing wrong found"
            else:
                settings = ReconstructSettings(threads=1, device="cpu", **options)
                result = reconstruct(Path(self.file), settings, reporter)
                truth, mask = (read_map(work / self.truth / name).values for name in ("truth.mrc", "mask.mrc"))
                fsc = round(score.mean_fsc(result.map, truth, mask), 3)
                v = result.validation
                resolution = v.resolution_kind + (f" {v.resolution:.2f} Å" if v.resolution else "")
                said = "; ".join(reporter.warnings)
        except InputError as error:
            said = f"refused: {error}"
        return {
            "input": f"{self.folder}/{self.file}" + (" (check)" if self.checked else ""),
            "options": " ".join(f"{k}={v}" for k, v in self.options.items()),
            "FSC": "" if fsc is None else fsc,
            "resolution": resolution,
            "right": self.right if isinstance(self.right, str) else f"FSC {self.right}",
            "as it should": self.is_right(said, fsc, resolution),
            "said": said[:160],
        }

    def is_right(self, said: str, fsc: float | None, resolution: str) -> bool:
        """Whether this outcome is the right one."""
        if isinstance(self.right, float):
            return fsc is not None and fsc >= self.right
        kind, _, words = self.right.partition(": ")
        if kind == "no resolution":
            return resolution == "not_measurable"
        return words in said and (kind == "refused") == said.startswith("refused")


_C01, _C17, _C20 = "C01-repeated-rows", "C17b-not-plain-mrc", "C20-no-ctf"
_C30 = "C30-D3-cryosparc"
_NONE: dict[str, Any] = {}
_INPUTS = (
    Input("base", "particles.star", _NONE, 0.955),
    Input(_C01, "single.star", _NONE, "no resolution"),
    Input(_C01, "twice.star", _NONE, "no resolution"),
    Input(_C01, "twice_other_half.star", _NONE, "no resolution"),
    Input(_C01, "expanded_C4.star", {"symmetry": "C4"}, "no resolution"),
    Input(_C01, "twice.star", {"poses": "poses.pkl", "ctf": "ctf.pkl"}, "no resolution"),
    Input(_C01, "twice.star", _NONE, "warned: explain nothing", checked=True),
    Input("C02-optics-twice", "p.star", _NONE, "refused: group 1 is there twice"),
    Input("C02-optics-twice", "p_other_order.star", _NONE, "refused: group 1 is there twice"),
    Input("C03-unsigned-bytes", "imod.star", _NONE, 0.955),
    Input("C03-unsigned-bytes", "old.star", _NONE, 0.955),
    Input("C03-unsigned-bytes", "signed.star", _NONE, 0.955),
    Input("C04-wrong-stack", "Select/job009/particles.star", _NONE, 0.955),
    Input("C13-phase-flipped", "said.star", _NONE, 0.955),
    Input("C13-phase-flipped", "unsaid.star", _NONE, "warned: phases flipped already", checked=True),
    Input(_C30, "J3/d3y.cs", {"symmetry": "D3"}, 0.965, truth=f"{_C30}/J2y"),
    Input(_C30, "J3/d3x.cs", {"symmetry": "D3"}, 0.965, truth=f"{_C30}/J2x"),
    Input("base", "particles.star", {"symmetry": "C4"}, "refused: do not have the symmetry C4"),
    Input("base", "particles.star", {"symmetry": "T"}, "refused: do not have the symmetry T"),
    Input("base", "particles.star", {"symmetry": "C4"}, "warned: do not have the symmetry C4", checked=True),
    Input("C33-pixel-sizes", "v30_pix_vs_mag.star", _NONE, "refused: two values of the pixel size"),
    Input("C33-pixel-sizes", "v30_mag_only.star", _NONE, 0.955),
    Input("C38-ramps", "ramp0.03.star", _NONE, 0.955),
    Input("C38-ramps", "ramp0.01.star", _NONE, 0.955),
    Input("C16-extended-header", "particles.star", _NONE, "refused: extended header"),
    Input(_C17, "gz.star", _NONE, "refused: gunzip"),
    Input(_C17, "bz2.star", _NONE, "refused: bunzip2"),
    Input(_C17, "hdf.star", _NONE, "refused: HDF5"),
    Input(_C17, "tif.star", _NONE, "refused: TIFF"),
    Input(_C17, "lfs.star", _NONE, "refused: large-file storage"),
    Input(_C17, "html.star", _NONE, "refused: web page"),
    Input(_C17, "particles.star.gz", _NONE, 0.955),
    Input("C15-cistem", "cistem.star", _NONE, 0.955),
    Input("C21-names", "gt.star", _NONE, 0.955),
    Input("C21-names", "mrcs_for_mrc.star", _NONE, 0.955),
    Input(_C20, "p.star", _NONE, 0.865, truth=_C20),
    Input(_C20, "particles.star", _NONE, 0.865, truth=_C20),
    Input(_C20, "particles.star", {"no_ctf": True}, 0.865, truth=_C20),
    Input("base", "particles.star", {"no_ctf": True}, "refused: leave out --no-ctf"),
    Input("C35-blank", "particles.star", _NONE, "refused: leave it out with --drop"),
    Input("C35-blank", "particles.star", {"every_image": True}, "warned: leave them out with --drop", checked=True),
    Input("C36-broken-link", "particles.star", _NONE, "refused: is a link to"),
)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def main() -> None:
    args = arguments(__doc__, foreign=(0, "1: only the foreign sets; the table of the cases stays as it is"))
    report = Report("cases", "Inputs from the field", args, keep=bool(args.foreign))
    if not _CASES.is_dir():
        sys.exit(f"{_CASES} is missing: it holds the script that makes the inputs")
    work = Path(args.work).absolute() / "field"
    if not work.exists():
        subprocess.run([sys.executable, str(_CASES / "make_cases.py"), str(work)], check=True)
    if not args.foreign:
        score = _module(_CASES / "scoring.py")
        rows: list[dict[str, Any]] = []
        for one in _INPUTS[:3] if args.quick else _INPUTS:
            rows.append(one.row(work, score))
            report.table("Cases", rows, _TEXT)
    if not args.quick:
        report.table("Foreign sets", foreign_sets.checked(work), foreign_sets.TEXT)
        report.table("Classes of a foreign simulation", foreign_sets.classes(work), foreign_sets.CLASSES_TEXT)
    report.extra["wrong"] = sum(not row["as it should"] for row in report.tables["Cases"])
    report.write()


if __name__ == "__main__":
    main()

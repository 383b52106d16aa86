"""What `emsplat check` says of every particle file of other people's data that is at hand."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common import SHARED
from emsplat.check.run import check
from emsplat.check.settings import CheckSettings
from emsplat.errors import InputError
from emsplat.io import read_map
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.settings import ReconstructSettings
from emsplat.validation.correlation import fsc

_FOREIGN = SHARED.parent / "foreign"  # beside the shared data
_RIBOSOMES, _10076, _TOY, _HAND = "real/ribosome-sta", "tomodrgn-10076", "cryodrgn-toy", "cryodrgn-hand"
TEXT = """Every particle file of the shared data and of the foreign sets, as `emsplat check` sees it. **problems** are
the warnings; a file whose images are not there is refused. Each warning was compared with what is known of the set, and
is right: the simulations of EMPIAR-10076 have uneven views; the toy projections are centred although their pickle has
random shifts, and they are blank beside the particle; the table of five images puts all of them into one half."""
CLASSES_TEXT = """The two classes of the foreign simulation of EMPIAR-10076, each by itself with `--invert`. **FSC** is
that of the map with the true map of the class, in the last shell that can be measured and in the next one."""


def _sets(work: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every particle file, with the options it needs."""
    special = {
        f"{_RIBOSOMES}/sta_testing_bin8.star": [
            {"pixel_size": 14.56},
            {name: SHARED / _RIBOSOMES / f"sta_{file}.pkl" for name, file in (("poses", "pose"), ("ctf", "ctf"))},
        ],
        "real/ribosome-tilts/particles.star": [{}],
    }
    for path in sorted([*SHARED.rglob("*.star"), *SHARED.rglob("*.cs")]):
        for options in special.get(str(path.relative_to(SHARED)), [{}]):
            yield path, options
    for path in sorted((_FOREIGN / _10076).glob("*.star")):
        yield path, {"invert": True}
    poses, ctf = (_FOREIGN / _TOY / name for name in ("toy_rot_trans.pkl", "test_ctf.pkl"))
    for name in ("toy_projections.mrcs", "toy_projections.star"):
        yield _FOREIGN / _TOY / name, {"poses": poses, "ctf": ctf}
    none = work / "no_ctf.pkl"
    none.write_bytes(pickle.dumps(np.tile([64.0, 1.0, 0, 0, 0, 300.0, 0, 1.0, 0], (100, 1))))
    yield _FOREIGN / _HAND / "hand.mrcs", {"poses": _FOREIGN / _HAND / "hand_rot_trans.pkl", "ctf": none}


def checked(work: Path) -> list[dict[str, Any]]:
    """The row of each set."""
    return [_row(path, options) for path, options in _sets(work)]


def _row(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "file": "/".join(path.parts[-2:]),
        "options": " ".join(f"{k}={v.name if isinstance(v, Path) else v}" for k, v in options.items()),
        "images": "",
        "problems": "",
        "notes": "",
    }
    try:
        found = check(path, CheckSettings(threads=1, **options))
    except InputError as error:
        return row | {"problems": f"refused: {_without_places(str(error), path)[:140]}"}
    notes = [finding.topic for finding in found.findings if finding.verdict == "note"]
    problems = "; ".join(_without_places(finding.line(), path) for finding in found.problems)
    return row | {"images": len(found.particles), "problems": problems or "none", "notes": ", ".join(notes)}


def _without_places(text: str, path: Path) -> str:
    """A message without the folders of this machine, which are nobody's business."""
    return text.replace(f"{path.parent}/", "").replace(f"{SHARED.parent}/", "").replace(str(path.parent), "its folder")


def classes(work: Path) -> list[dict[str, Any]]:
    """Reconstruct each class of the foreign simulation."""
    both = _FOREIGN / _10076 / "10076_both_32_sim.star"
    return [_class(both, name, work) for name in "DE"]


def _class(both: Path, name: str, work: Path) -> dict[str, Any]:
    stack = f"10076_class{name}_32_sim.mrcs"
    star = work / f"class{name}.star"
    lines = both.read_text().splitlines(keepends=True)
    star.write_text("".join(line for line in lines if "@" not in line or f"@{stack}" in line))
    settings = ReconstructSettings(invert=True, datadir=both.parent, threads=1, device="cpu")
    result = reconstruct(star, settings)
    truth = read_map(both.parent / f"10076_class{name}_32.mrc").values
    curve, last = fsc(result.map, truth), result.validation.limit_shell
    v = result.validation
    return {
        "class": name,
        "images": result.n_images,
        "particles": len(np.unique(result.particles.particle)),
        "resolution": v.resolution_kind + (f" {v.resolution:.2f} Å" if v.resolution else ""),
        "FSC in the last shell": float(curve[last - 1]),
        "FSC in the next": float(curve[last]),
    }

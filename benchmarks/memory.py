"""Peak resident memory of `emsplat reconstruct` by number of images and box."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cases import MANY, QUICK, resized
from common import Report, arguments, simulated
from emsplat.io import Table, read_star, write_star
from programs import GB, run_emsplat

_LIMIT = 1.5

_TEXT = f"""Peak resident size of a process of its own. More images than the stack holds: the star names each several
times. **Required: under {_LIMIT} GB at 128² for any number of images.**"""


def with_images(star: Path, n: int) -> Path:
    """A star of n rows beside this one, with its first rows, or its rows over and over."""
    blocks = read_star(star)
    rows = len(blocks["particles"])
    columns = {name: [values[i % rows] for i in range(n)] for name, values in blocks["particles"].columns.items()}
    target = star.with_name(f"particles-{n}.star")
    write_star(target, blocks | {"particles": Table(columns)})
    return target


def row(star: Path, work: Path, box_size: int, n: int, *options: object) -> dict[str, Any]:
    """The row of one run."""
    output = work / "memory-run"
    shutil.rmtree(output, ignore_errors=True)
    took = run_emsplat(star, output, *options)
    summary = json.loads((output / "summary.json").read_text())
    return {
        "box": box_size,
        "images": n,
        "options": " ".join(map(str, options)) or "none",
        "Gaussians a half": int(summary["n_gaussians"] // 2),
        "peak, GB": took.peak_bytes / GB,
        "seconds": took.seconds,
    }


def main() -> None:
    args = arguments(__doc__)
    case = QUICK if args.quick else MANY
    report = Report("memory", "Memory", args)
    rows: list[dict[str, Any]] = []
    for n in (100, 500) if args.quick else (1000, 10_000, 50_000):
        star = with_images(simulated(case, args.work), n)
        rows.append(row(star, args.work, case.settings.box_size, n))
        rows[-1][f"under {_LIMIT} GB"] = rows[-1]["peak, GB"] < _LIMIT
        report.table("By number of images", rows, _TEXT)
    large: list[dict[str, Any]] = []
    for box_size in (48,) if args.quick else (192, 256):
        star = simulated(resized(case, box_size, 100 if args.quick else 400), args.work)
        for count in (200,) if args.quick else (8000, 32_000):
            large.append(row(star, args.work, box_size, 100 if args.quick else 400, "--n-gaussians", count))
            report.table("Larger boxes", large, "Few images: their number does not matter, as the table above shows.")


if __name__ == "__main__":
    main()

"""More images than fit in the memory of a run: its rate and its peak memory beside those of a tenth of the images.

The benchmark writes 13 GB, and removes them in the end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import emsplat
from cases import MANY, QUICK
from common import Case, Report, arguments, simulated
from emsplat.io import StackReader, StackWriter, Table, read_star, write_star
from memory import with_images
from programs import GB, measured

_RATE = 0.9  # of the rate of a tenth
_BYTES_AN_IMAGE = 1000  # that memory may grow by: the table's row, not the image, which has 65,536 at 128²
_DISTINCT, _BLOCK = 4000, 500  # noise-free images; images that are written together

_TEXT = """One stack, a tenth of it and all of it, each run a process of its own; what the system holds of files in
memory is dropped before each. Where the machine allows it (Linux, as root), run and page cache together are held to
{limit:g} GB by a memory cgroup, so that most of the large stack cannot be in the page cache. The images are
{distinct:,} simulated ones over and over, each time with noise of its own. Peak resident size is the program's alone.
**Required: of all images at least {rate} of the rate of a tenth in the pass, on which what is done once weighs; flat
memory, which is to say that no more than {bytes_an_image:,} bytes an image come with more of them: a row of the table,
not an image.**"""


def tiled(case: Case, n: int, work: Path) -> Path:
    """A star of n images: those of a noise-free case over and over, with noise of the SNR of MANY."""
    source = simulated(case, work)
    folder = work / f"many-{n}-{case.settings.box_size}"
    star = folder / "particles.star"
    if star.exists():
        return star
    print(f"writing {n:,} images: {folder.name}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    box_size, rng = case.settings.box_size, np.random.default_rng(0)
    blocks = read_star(source)
    columns = blocks["particles"].columns
    distinct = len(columns["rlnImageName"])
    with StackReader(source.parent / "particles.mrcs") as stack:
        some = stack.read(np.arange(0, distinct, max(1, distinct // 200)))
        sigma = np.float32(np.sqrt(some.var(axis=(1, 2)).mean() / MANY.settings.snr))
        with StackWriter(folder / "particles.mrcs", box_size, case.settings.pixel_size_in_angstroms) as out:
            for first in range(0, n, _BLOCK):
                numbers = np.arange(first, min(first + _BLOCK, n)) % distinct
                noise = rng.standard_normal((len(numbers), box_size, box_size), dtype=np.float32)
                out.append(stack.read(numbers) + sigma * noise)
    repeated = {name: [values[i % distinct] for i in range(n)] for name, values in columns.items()}
    repeated["rlnImageName"] = [f"{i + 1:06d}@particles.mrcs" for i in range(n)]
    write_star(star, blocks | {"particles": Table(repeated)})
    return star


def dropped_caches() -> bool:
    """Drop what the system caches of files; return whether it could."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


@contextmanager
def held_to(gigabytes: float) -> Iterator[Path | None]:
    """A cgroup whose processes and page cache get no more memory than this; None where none can be made."""
    limits = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")
    made = None
    for root, limit in limits:
        group = Path(root) / f"emsplat-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(int(gigabytes * GB)))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        made = group
        break
    try:
        yield made
    finally:
        if made:
            made.rmdir()


def row(star: Path, work: Path, n: int, group: Path | None, limit: float) -> dict[str, Any]:
    """The row of one run."""
    output = work / "many-run"
    shutil.rmtree(output, ignore_errors=True)
    dropped = dropped_caches()
    start = "import sys; from emsplat.cli import main; sys.exit(main())"
    command: list[object] = [sys.executable, "-c", start, "reconstruct", star, "-o", output]
    if group:
        command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', group, *command]
    environ = {"PYTHONPATH": str(Path(emsplat.__file__).parents[1])}
    took = measured(command, star.parent, environ=environ)
    summary = json.loads((output / "summary.json").read_text())
    spent = re.search(r"accumulation: (.*)", (output / "run.log").read_text())
    shutil.rmtree(output)
    return {
        "images": n,
        "stack, GB": n * 4 * summary["box_size"] ** 2 / GB,
        "caches dropped": dropped,
        "memory held to, GB": limit if group else None,
        "read, s": summary["seconds"]["read"],
        "pass, s": summary["seconds"]["pass"],
        "of which": spent[1] if spent else None,
        "images/s in the pass": n / summary["seconds"]["pass"],
        "whole job, s": took.seconds,
        "peak, GB": took.peak_bytes / GB,
        "resolution, Å": summary["resolution"],
    }


def verdict(rows: list[dict[str, Any]], few: int, many: int) -> dict[str, Any]:
    """The whole set beside its tenth, as medians of the runs."""

    def median(n: int, column: str) -> float:
        return statistics.median(r[column] for r in rows if r["images"] == n)

    rate = median(many, "images/s in the pass") / median(few, "images/s in the pass")
    grown = (median(many, "peak, GB") - median(few, "peak, GB")) * GB / (many - few)
    return {
        "rate, all / a tenth": rate,
        f"at least {_RATE}": rate > _RATE,
        "memory, bytes an image more": grown,
        "flat": grown < _BYTES_AN_IMAGE,
    }


def main() -> None:
    args = arguments(
        __doc__,
        repeats=(1, "runs of all images; of a tenth one more"),
        images=(200_000, "all images, a multiple of ten"),
        held_to=(3.0, "GB of memory, page cache included"),
    )
    many = 1000 if args.quick else args.images
    few = many // 10
    base, distinct = (QUICK, 100) if args.quick else (MANY, _DISTINCT)
    case = Case("7PBL without noise", base.model, replace(base.settings, n_images=distinct, snr=np.inf))
    report = Report("many", "More images than memory", args)
    text = _TEXT.format(limit=args.held_to, distinct=distinct, rate=_RATE, bytes_an_image=_BYTES_AN_IMAGE)
    star = tiled(case, many, args.work)
    try:
        small = with_images(star, few)
        rows: list[dict[str, Any]] = []
        with held_to(args.held_to) as group:
            for n in [few, many] * args.repeats + [few]:
                rows.append(row(small if n == few else star, args.work, n, group, args.held_to))
                report.table("Runs", rows, text)
        report.table("All beside a tenth", [verdict(rows, few, many)])
    finally:
        shutil.rmtree(star.parent)


if __name__ == "__main__":
    main()

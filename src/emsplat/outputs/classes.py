"""The folder of a search for poses with several classes: a run folder for each, and which images belong to which."""

from __future__ import annotations

import csv
import shutil
import time
from dataclasses import asdict
from itertools import count
from pathlib import Path

import numpy as np

from emsplat.abinitio.run_classes import Classified
from emsplat.outputs.abinitio import SETTINGS, write_ab_initio
from emsplat.outputs.claims import check_output
from emsplat.outputs.reconstruction import command_line, write_ids, write_json
from emsplat.reconstruction.identity import digests
from emsplat.runs.classes_folder import ClassesFolder
from emsplat.runs.closing import Summary, resolution_text
from emsplat.runtime.folders import filling
from emsplat.runtime.reporting import Reporter, peak_memory_in_bytes
from emsplat.versions import versions


def write_classes(
    folder: Path, found: Classified, reporter: Reporter, overwrite: bool = False, ranks: int = 1
) -> Summary:
    """Write everything; an old run stays until all files are complete. Returns the contents of summary.json."""
    check_output(folder, overwrite, ClassesFolder)
    with filling(folder, last=ClassesFolder.SUMMARY, obsolete=ClassesFolder.CHECKPOINTS) as staging:
        files = ClassesFolder(staging)
        of_classes = [
            write_ab_initio(
                files.of_class(number).path,
                of_class,
                reporter,
                ranks=ranks,
                images_per_second=None,
                seconds={stage: round(took, 3) for stage, took in seconds.items()},
            )
            for number, (of_class, seconds) in enumerate(zip(found.classes, found.seconds, strict=True), 1)
        ]
        ids = found.particles.ids
        for number in range(1, len(found.classes) + 1):
            write_ids(files.ids(number), ids[found.labels == number])
        write_ids(files.junk, ids[found.labels == 0])
        _write_table(files.table, found)
        configuration = {
            "command": command_line(),
            "particles": str(Path(found.particles.source).absolute()),
            SETTINGS: asdict(found.settings),
            "digests": digests(found.settings),
        }
        write_json(files.configuration, configuration)
        summary = {
            "classes": [
                {
                    "number": number,
                    "folder": f"class{number}",
                    "n_images": int(np.count_nonzero(found.labels == number)),
                    "status": of_class["ab_initio"]["status"],
                    "agreed": round(agreed, 4),
                    **{name: of_class[name] for name in _OF_A_CLASS},
                    "ab_initio": of_class["ab_initio"],
                }
                for number, (of_class, agreed) in enumerate(zip(of_classes, found.agreed, strict=True), 1)
            ],
            "n_images": len(found.particles),
            "n_junk": found.n_junk,
            "n_unplaced": int(np.count_nonzero(found.labels < 0)),
            "seconds": {stage: round(seconds, 3) for stage, seconds in reporter.seconds.items()},
            "resumed": reporter.resumed,
            "ranks": ranks,
            "peak_memory_in_bytes": peak_memory_in_bytes(),
            "seed": found.settings.seed,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "warnings": reporter.warnings,
            "versions": versions(),
        }
        write_json(files.summary, summary)
        closing = [f"{name}: {text}" for name, text in closing_rows(summary, folder)]
        files.log.write_text("\n".join([*reporter.log, "", *closing]) + "\n", encoding="utf-8")
    if overwrite:
        _remove_further(ClassesFolder(folder), len(found.classes))
    return summary


# What `resolution_text` needs to know of a class.
_OF_A_CLASS = ("resolution", "resolution_kind", "poses_shared", "measurable_limit", "nyquist")


def closing_rows(summary: Summary, folder: Path) -> list[tuple[str, str | Path]]:
    """Name and value of each line of the table that closes the run."""
    files, n = ClassesFolder(folder), summary["n_images"]
    rows: list[tuple[str, str | Path]] = []
    for of_class in summary["classes"]:
        share = f"{of_class['n_images']:,} images ({100 * of_class['n_images'] / n:.0f} %)"
        rows.append((f"class {of_class['number']}", f"{of_class['status']}, {share}: {resolution_text(of_class)}"))
    if summary["n_unplaced"]:
        rows.append(("too small", f"{summary['n_unplaced']:,} images are in classes too small for a map"))
    return [
        *rows,
        (
            "no particle",
            f"{summary['n_junk']:,} images ({100 * summary['n_junk'] / n:.0f} %), which {files.junk} lists",
        ),
        ("classes", files.table),
        (
            "time",
            f"{sum(summary['seconds'].values()):.1f} s{' since the run was resumed' if summary['resumed'] else ''}",
        ),
        ("peak memory", f"{summary['peak_memory_in_bytes'] / 1e9:.2f} GB"),
    ]


def _remove_further(files: ClassesFolder, n_classes: int) -> None:
    """Remove the classes that the replaced run had beyond so many."""
    for number in count(n_classes + 1):
        if not (files.of_class(number).path.exists() or files.ids(number).exists()):
            return
        shutil.rmtree(files.of_class(number).path, ignore_errors=True)
        files.ids(number).unlink(missing_ok=True)


def _write_table(path: Path, found: Classified) -> None:
    n_classes = found.posteriors.shape[1] - 1
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "class", *(f"posterior{k + 1}" for k in range(n_classes)), "posterior_of_no_particle"])
        for name, label, posteriors in zip(found.particles.ids, found.labels, found.posteriors, strict=True):
            writer.writerow([name, label, *(f"{p:.4f}" for p in posteriors)])

"""The search for the settings of the neural fields, on a set that the comparison does not use.

python benchmarks/fields_tuning.py --work WORK
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cases import MSBA, QUICK, resized
from common import Report, arguments
from emsplat.fit.by_statistics import FitSettings, fit_statistics
from emsplat.fit.fields import initial_field
from emsplat.models.encodings import Encoding, HashGrid, PositionalEncoding
from emsplat.models.neural_field import NeuralField
from emsplat.runtime.context import Task
from emsplat.runtime.threads import threads
from emsplat.splat.bandlimit import boost
from fields_data import Recorder
from study_data import Data, prepared

_TEXT = """One half of 1,000 images of 8TSO (48², 3.4 Å a pixel, SNR 0.05), which the comparison in fields.md does not
use. Each row is one fit with a given number of steps, the last fifth of which anneal. There is no search, so that a fit
that goes too far shows itself: "best F" is the largest on the way, "F" that at the end. F is the mean FSC with the
truth within the true mask. "First size" is the step size of the network, "second" that of the table. ◀ marks what the
program uses. Times are processor seconds on one thread."""


class Unblurred(NeuralField):
    """A field that stands for the density itself, which is then blurred by the widening of the splats."""

    def density(self) -> Tensor:
        spectrum = torch.fft.rfftn(super().density()) / torch.from_numpy(boost(self.extent))
        return torch.fft.irfftn(spectrum, s=(self.extent,) * 3)


def variants(d: int) -> list[dict[str, Any]]:
    """What is varied, around the program's own settings. Args: d: edge of the cube in voxels."""
    hashed = {"encoding": HashGrid(12, 4, d, 12), "widths": (64,), "first": 5e-3, "second": 0.04, "steps": 40}
    network = {"encoding": PositionalEncoding(d // 2, d / 2), "widths": (64, 64, 64), "first": 1e-2, "steps": 240}
    short = network | {"steps": 160}
    return [
        hashed | {"name": "◀"},
        *(hashed | {"name": f"2^{rows} rows", "encoding": HashGrid(12, 4, d, rows)} for rows in (10, 11, 14, 16)),
        *(hashed | {"name": f"{levels} levels", "encoding": HashGrid(levels, 4, d, 12)} for levels in (6, 8, 16)),
        hashed | {"name": "finest grid of ¾", "encoding": HashGrid(12, 4, 3 * d // 4, 12)},
        hashed | {"name": "no hidden layer", "widths": ()},
        hashed | {"name": "two hidden layers", "widths": (64, 64)},
        *(hashed | {"name": f"steps of {size} in the table", "second": size} for size in (0.01, 0.02)),
        hashed | {"name": "the density itself, blurred", "unblurred": True},
        network | {"name": "◀"},
        short | {"name": "fewer steps"},
        *(short | {"name": f"{n} frequencies", "encoding": PositionalEncoding(n, d / 2)} for n in (6, 12)),
        short | {"name": "two layers of 128", "widths": (128, 128)},
        short | {"name": "smaller steps", "first": 5e-3},
        short | {"name": "larger steps", "first": 1.5e-2},
    ]


def fitted(data: Data, variant: dict[str, Any], quick: bool) -> dict[str, Any]:
    """A row of the table."""
    encoding: Encoding = variant["encoding"]
    scale = initial_field("hash-grid", data.seen, data.data_mask, data.extent, 0).scale
    start = NeuralField.random(data.extent, encoding, variant["widths"], scale, 0)
    if variant.get("unblurred"):
        start = Unblurred(start.extent, start.encoding, start.leaves, start.scale, start.positive)
    steps = 10 if quick else variant["steps"]
    sizes = {name: variant["second"] if name == "table" else variant["first"] for name in start.leaves}
    settings = FitSettings(
        max_steps=steps, approach_steps=steps - steps // 5, anneal_steps=steps // 5, step_sizes=sizes
    )
    recorder = Recorder(lambda model: data.quality(model.on_grid(len(data.truth))), every=max(1, steps // 12))
    with recorder.running():
        model, _ = fit_statistics(data.seen, data.unseen, start, settings, Task(watch=recorder.watch))
    quality = data.quality(model.on_grid(len(data.truth)))
    return {
        "variant": variant["name"],
        "hidden layers": " ".join(map(str, variant["widths"])) or "none",
        "first size": variant["first"],
        "second": variant.get("second"),
        "parameters": len(model),
        "steps": steps,
        "best F": max([quality, *(f for _, f, _ in recorder.curve(0))]),
        "F": quality,
        "fit, s": recorder.seconds,
    }


def main() -> None:
    args = arguments(__doc__, only=("", "hash grid or neural field; without it, both"))
    case = resized(MSBA, 48, 1000)
    case = QUICK if args.quick else replace(case, settings=replace(case.settings, pixel_size_in_angstroms=3.4))
    report = Report("fields-tuning", "Settings of the neural fields", args, keep=True)
    with threads(1):
        data = prepared(case, args.work)
        inverted = data.quality((data.seen + data.unseen).raw_map())
        gaussians = data.quality(data.volume(_gaussians(data)))
        facts = f"F of the direct inversion is {inverted:.3f} here, and that of one fit of Gaussians {gaussians:.3f}. "
        for variant in variants(data.extent)[:: 5 if args.quick else 1]:
            heading = "Hash grid" if "second" in variant else "Neural field"
            rows = report.tables.get(heading, [])
            if heading.lower() in (args.only or heading.lower()) and variant["name"] not in {
                r["variant"] for r in rows
            }:
                row = fitted(data, variant, args.quick)
                report.table(heading, [*rows, row], facts + _TEXT)


def _gaussians(data: Data) -> Any:
    model, _ = fit_statistics(data.seen, data.unseen, data.start(), FitSettings())
    return model.parameters.gaussians(data.particles.pixel_size_in_angstroms)


if __name__ == "__main__":
    main()

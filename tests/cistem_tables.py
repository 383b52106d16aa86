"""cisTEM's tables of a few images, written by hand: as star files, and as binary files with cisTEM's own codes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Columns = Mapping[str, Sequence]

# code and type of each column, as cisTEM's cistem_parameters.h has them; type 8 is a text
CODES = {
    "PositionInStack": (1, "I", 9),
    "ImageActivity": (2, "i", 2),
    "AnglePsi": (4, "f", 3),
    "XShift": (8, "f", 3),
    "YShift": (16, "f", 3),
    "Defocus1": (32, "f", 3),
    "Defocus2": (64, "f", 3),
    "DefocusAngle": (128, "f", 3),
    "PhaseShift": (256, "f", 3),
    "Occupancy": (512, "f", 3),
    "LogP": (1024, "f", 3),
    "Score": (4096, "f", 3),
    "PixelSize": (16384, "f", 3),
    "MicroscopeVoltagekV": (32768, "f", 3),
    "MicroscopeCsMM": (65536, "f", 3),
    "AmplitudeContrast": (131072, "f", 3),
    "BeamTiltX": (262144, "f", 3),
    "BeamTiltY": (524288, "f", 3),
    "ImageShiftX": (1048576, "f", 3),
    "AngleTheta": (4194304, "f", 3),
    "AnglePhi": (8388608, "f", 3),
    "StackFilename": (16777216, "s", 8),
    "Reference3DFilename": (67108864, "s", 8),
    "ParticleGroup": (536870912, "i", 2),
    "PreExposure": (1073741824, "f", 3),
    "AssignedSubset": (4294967296, "i", 2),
}


def table(n: int, pixel_size: float = 1.5, stack: str = "stack.mrcs") -> dict[str, Sequence]:
    """A refinement of n images."""
    rng = np.random.default_rng(5)
    uniform = {name: np.round(rng.uniform(-90, 90, n), 3) for name in ("AnglePsi", "AngleTheta", "AnglePhi")}
    return {
        "PositionInStack": list(range(1, n + 1)),
        **uniform,
        "XShift": np.round(rng.normal(0, 3, n), 3),
        "YShift": np.round(rng.normal(0, 3, n), 3),
        "Defocus1": np.round(rng.uniform(9000, 12000, n), 1),
        "Defocus2": np.round(rng.uniform(8000, 9000, n), 1),
        "DefocusAngle": np.round(rng.uniform(-90, 90, n), 2),
        "PhaseShift": [90.0] * n,
        "ImageActivity": [1] * n,
        "Occupancy": [100.0] * n,
        "LogP": [-500] * n,
        "Score": [20.0] * n,
        "PixelSize": [pixel_size] * n,
        "MicroscopeVoltagekV": [300.0] * n,
        "MicroscopeCsMM": [2.7] * n,
        "AmplitudeContrast": [0.07] * n,
        "StackFilename": [stack] * n,
    }


def write_cistem_star(path: Path, columns: Columns) -> Path:
    names = "".join(f"_cisTEM{name} #{i}\n" for i, name in enumerate(columns, start=1))
    rows = zip(*columns.values(), strict=True)
    text = "".join(" ".join(f"'{v}'" if isinstance(v, str) else f"{v:10}" for v in row) + " \n" for row in rows)
    path.write_text(f"# Written by cisTEM Version 2.0.0\n \ndata_\n \nloop_\n{names}{text}")
    return path


def write_cistem_binary(path: Path, columns: Columns) -> Path:
    n = len(columns["PositionInStack"])
    radians = {"PhaseShift": np.deg2rad(np.asarray(columns["PhaseShift"], float))} if "PhaseShift" in columns else {}
    columns = {**columns, **radians}
    raw = struct.pack("<2i", len(columns), n)
    raw += b"".join(struct.pack("<qB", CODES[name][0], CODES[name][2]) for name in columns)
    for row in zip(*columns.values(), strict=True):
        for name, value in zip(columns, row, strict=True):
            letter = CODES[name][1]
            text = str(value).encode()
            raw += struct.pack("<i", len(text)) + text if letter == "s" else struct.pack(f"<{letter}", value)
    path.write_bytes(raw)
    return path


def values_of_binary(raw: bytes, name: str) -> list[float]:
    """One column of numbers of a binary file, read without the program's help."""
    n_columns, n_rows = struct.unpack_from("<2i", raw)
    name_of = {code: column for column, (code, _, _) in CODES.items()}
    columns = [name_of[code] for code, _ in struct.iter_unpack("<qB", raw[8 : 8 + 9 * n_columns])]
    at, found = 8 + 9 * n_columns, []
    for _ in range(n_rows):
        for column in columns:
            letter = CODES[column][1]
            (value,) = struct.unpack_from("<i" if letter == "s" else f"<{letter}", raw, at)
            at += 4 + (value if letter == "s" else 0)
            if column == name:
                found.append(value)
    return found

"""cryoSPARC projects of a few images, with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

N_IMAGES, BOX_SIZE = 6, 8  # of the stack that write_stack writes
UID = np.array([9, 2**64 - 1, 5, 12345678901234567890, 0, 77], dtype=np.uint64)

Columns = Mapping[str, NDArray]


def column(value, kind: str = "<f4") -> NDArray:
    """The same value for every image."""
    return np.array([value] * N_IMAGES, dtype=kind)


def complete() -> dict[str, NDArray]:
    rng = np.random.default_rng(4)
    return {
        "uid": UID,
        "blob/path": column(b"J1/extract/stack.mrcs", "S"),
        "blob/idx": np.arange(N_IMAGES, dtype="<u4")[::-1],
        "blob/shape": column((BOX_SIZE, BOX_SIZE), "<u4"),
        "blob/psize_A": column(1.5),
        "blob/sign": column(-1),
        "ctf/exp_group_id": np.array([7, 3] * (N_IMAGES // 2), dtype="<u4"),
        "ctf/accel_kv": column(300),
        "ctf/cs_mm": column(2.7),
        "ctf/amp_contrast": column(0.1),
        "ctf/df1_A": 10000 + np.arange(N_IMAGES, dtype="<f4"),
        "ctf/df2_A": 9000 + np.arange(N_IMAGES, dtype="<f4"),
        "ctf/df_angle_rad": column(np.pi / 6),
        "ctf/phase_shift_rad": column(np.pi / 2),
        "ctf/bfactor": column(50),
        "ctf/scale": column(0.5),
        **alignment("alignments3D", rng),
        "alignments3D/split": np.array([0, 1] * (N_IMAGES // 2), dtype="<u4"),
        "alignments3D/alpha": column(1.5),
    }


def alignment(slot: str, rng: np.random.Generator) -> dict[str, NDArray]:
    return {
        f"{slot}/pose": rng.normal(size=(N_IMAGES, 3)).astype("<f4"),
        f"{slot}/shift": rng.normal(size=(N_IMAGES, 2)).astype("<f4"),
        f"{slot}/psize_A": column(1.5),
    }


def write_cs(path: Path, columns: Columns) -> Path:
    types = [(name, values.dtype, values.shape[1:]) for name, values in columns.items()]
    table = np.zeros(len(next(iter(columns.values()))), dtype=types)
    for name, values in columns.items():
        table[name] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # by name, np.save would add its own suffix
        np.save(file, table)
    return path


def only(columns: Columns, *prefixes: str) -> dict[str, NDArray]:
    return {name: values for name, values in columns.items() if name == "uid" or name.startswith(prefixes)}


def class_columns(n_classes: int, prefix: str) -> tuple[dict[str, NDArray], NDArray[np.intp]]:
    """One slot a class, and each image's most probable class."""
    rng = np.random.default_rng(1)
    posterior = rng.dirichlet(np.ones(n_classes), N_IMAGES).astype("<f4")
    slots: dict[str, NDArray] = {}
    for k in range(n_classes):
        slots |= alignment(f"{prefix}{k}", rng)
        slots[f"{prefix}{k}/class_posterior"] = posterior[:, k]
        slots[f"{prefix}{k}/alpha"] = column(1 + k)
    return slots, posterior.argmax(axis=1)


def as_one_slot(slots: Columns, n_classes: int, prefix: str) -> dict[str, NDArray]:
    fields = ("pose", "shift", "class_posterior", "alpha")
    stacked = {f: np.stack([slots[f"{prefix}{k}/{f}"] for k in range(n_classes)], axis=1) for f in fields}
    return {f"alignments3D_multi/{f}": v for f, v in stacked.items()} | {"alignments3D_multi/psize_A": column(1.5)}


NO_PLAIN = {name: None for name in complete() if name.startswith("alignments3D/")}


def write_project(folder: Path, write_stack: Callable, changes: Mapping[str, NDArray | None] | None = None) -> Path:
    """A project with one stack and J2/particles.cs, the table `complete` with changes; None takes a column out."""
    (folder / "J1/extract").mkdir(parents=True, exist_ok=True)
    write_stack(folder / "J1/extract/stack.mrcs")
    columns = {**complete(), **(changes or {})}
    return write_cs(folder / "J2/particles.cs", {name: v for name, v in columns.items() if v is not None})

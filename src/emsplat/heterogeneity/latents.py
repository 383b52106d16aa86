"""The latents of all particles and what else is known of each image, in the order of the particle table."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emsplat.particles.table import Particles
from emsplat.runtime.files import replacing


@dataclass(frozen=True)
class Latents:
    """The table of latents, with one row for each image."""

    ids: NDArray[np.str_]  # (N,) as in the particle file
    half: NDArray[np.int8]  # (N,)
    mean: NDArray[np.float64]  # (N, K)
    covariance: NDArray[np.float64]  # (N, K, K)
    contrast: NDArray[np.float64]  # (N,) scale of the particle in the image
    junk: NDArray[np.float64]  # (N,) probability that the image shows no particle
    log_likelihood: NDArray[np.float64]  # (N,) of the image under the model, less that of noise alone
    state: NDArray[np.int32]  # (N,) from 0; −1 for none

    @property
    def count(self) -> int:
        """Number of latents, K."""
        return self.mean.shape[1]

    @staticmethod
    def empty(table: Particles, count: int) -> Latents:
        """A table in which nothing is known yet."""
        n = len(table)
        nowhere = np.full(n, -1, dtype=np.int32)
        return Latents(
            table.ids, table.half_set, np.zeros((n, count)), np.zeros((n, count, count)), np.ones(n), np.zeros(n),
            np.zeros(n), nowhere,
        )  # fmt: skip

    @staticmethod
    def nothing(table: Particles) -> Latents:
        """The table for particles that do not vary."""
        return Latents.empty(table, 0)

    @staticmethod
    def of(table: Particles, found: tuple[NDArray[np.float64], ...]) -> Latents:
        """The table with what `found` gave."""
        mean, covariance, contrast, junk, log_likelihood = found
        nowhere = np.full(len(table), -1, dtype=np.int32)
        return Latents(table.ids, table.half_set, mean, covariance, contrast, junk, log_likelihood, nowhere)

    def found(self) -> tuple[NDArray[np.float64], ...]:
        """What was found of the images: mean, covariance, contrast, junk and log-likelihood."""
        return self.mean, self.covariance, self.contrast, self.junk, self.log_likelihood

    def put(
        self,
        rows: NDArray[np.int64],
        mean: NDArray[np.float64],
        covariance: NDArray[np.float64],
        contrast: NDArray[np.float64],
        junk: NDArray[np.float64],
        log_likelihood: NDArray[np.float64],
    ) -> None:
        """Fill in the results for some images."""
        self.mean[rows], self.covariance[rows] = mean, covariance
        self.contrast[rows], self.junk[rows], self.log_likelihood[rows] = contrast, junk, log_likelihood


def write_latents(path: Path, latents: Latents) -> None:
    """Write a CSV table, in which the covariance is given as its upper triangle, row by row."""
    k = latents.count
    upper = np.triu_indices(k)
    header = [
        "id",
        "half",
        *(f"z{i + 1}" for i in range(k)),
        *(f"cov{i + 1}{j + 1}" for i, j in zip(*upper, strict=True)),
    ]
    header += ["contrast", "state", "log_likelihood", "junk"]
    numbers = np.concatenate([latents.mean, latents.covariance[:, upper[0], upper[1]]], axis=1)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for i, (name, row) in enumerate(zip(latents.ids.tolist(), numbers.tolist(), strict=True)):
            state = latents.state[i] + 1 if latents.state[i] >= 0 else ""
            writer.writerow(
                [name, int(latents.half[i]), *(f"{x:.5g}" for x in row), f"{latents.contrast[i]:.4f}", state,
                 f"{latents.log_likelihood[i]:.3f}", f"{latents.junk[i]:.4f}"]
            )  # fmt: skip

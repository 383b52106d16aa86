"""A particle of two conformations, and what a search for heterogeneity makes of it.

As a program, it searches on the rank that its environment says, together with the other ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import gemmi
import numpy as np
from numpy.typing import NDArray

from emsplat.heterogeneity import rounds, subspace
from emsplat.heterogeneity.fit_decoder import DecoderSettings
from emsplat.heterogeneity.result import Heterogeneity
from emsplat.heterogeneity.run import find_heterogeneity
from emsplat.runtime.checkpoint import NO_CHECKPOINTS, Checkpoints
from emsplat.runtime.ranks import World, joined
from emsplat.settings import HeterogeneitySettings
from emsplat.simulation import simulate
from simulations import TINY

SETTINGS = replace(TINY, n_images=800, snr=0.2, contrast_sigma=0.1)
SEARCH = HeterogeneitySettings(components=1, states=2, n_gaussians=100, max_resolution=12.0, threads=1)


def two_conformations(one_chain: Path, folder: Path, n_images: int = SETTINGS.n_images) -> Path:
    """The star of a particle of which 40 % lack the last third of the chain."""
    structure = gemmi.read_structure(str(one_chain))
    shorter = structure[0].clone()
    for chain in shorter:
        for _ in range(len(chain) // 3):
            del chain[len(chain) - 1]
    shorter.num = 2
    structure.add_model(shorter)
    structure.write_pdb(str(folder / "two.pdb"))
    return simulate(folder / "two.pdb", folder / "images", replace(SETTINGS, n_images=n_images, populations=(60, 40)))


@contextmanager
def hurried() -> Iterator[None]:
    """While it lasts, searches have all of their stages, and few iterations and steps in each."""
    few_steps = partial(DecoderSettings, most_steps=5, anneal_steps=3)
    with (
        mock.patch.object(subspace, "STAGES", ((16, 6, 4), (24, 10, 2))),
        mock.patch.object(rounds, "DecoderSettings", few_steps),
    ):
        yield


def found(star: Path, checkpoints: Checkpoints = NO_CHECKPOINTS, world: World | None = None) -> Heterogeneity:
    with hurried():
        return find_heterogeneity(star, SEARCH, checkpoints=checkpoints, world=world)


def results(one: Heterogeneity) -> dict[str, NDArray]:
    """What a search came to, in arrays."""
    arrays = {"z": one.latents.mean, "covariance": one.latents.covariance, "state": one.latents.state}
    for number, half in enumerate(one.halves or (), 1):
        arrays[f"slopes{number}"] = half.decoder.mass_slopes.numpy()
        arrays[f"centres{number}"] = half.decoder.gaussians.centres.numpy()
    for number, state in enumerate(one.states, 1):
        arrays |= {f"map{number}": state.map, f"difference{number}": state.difference.map, f"raw{number}": state.raw[0]}
        arrays[f"c_map{number}"] = state.validation.c_map
    return arrays


def assert_same(one: dict[str, NDArray], other: dict[str, NDArray]) -> None:
    """Two searches came to the same, to the last bit."""
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], name)


if __name__ == "__main__":
    with joined() as this:
        made = found(Path(sys.argv[1]), world=this)
        np.savez(f"{sys.argv[2]}/rank{this.rank}.npz", **results(made))  # type: ignore[arg-type]

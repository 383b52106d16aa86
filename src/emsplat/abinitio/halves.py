"""Two searches that share no image, and how far their results agree.

Each half set is searched by itself, from random poses of its own. The second half's map is then brought onto that of
the first by rotation, shift and hand, and three questions are asked: whether the two unregularised inversions
correlate; whether the images of one half are as likely under the other half's map, to which they did not contribute, as
under their own; and whether they get the same poses there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from emsplat.abinitio import full, volume
from emsplat.abinitio.alignment import Alignment, align, shell_correlations
from emsplat.abinitio.axes import frame_of
from emsplat.abinitio.centring import search_fully
from emsplat.abinitio.full import Found, FullSettings, Rounds
from emsplat.abinitio.imitation import Imitation, imitate
from emsplat.abinitio.modes import Modes, modes_of
from emsplat.abinitio.polar import PolarImages
from emsplat.abinitio.stochastic import NOTHING, StageSettings, StochasticSettings, Trace, first_stage
from emsplat.abinitio.volume import SliceSums
from emsplat.fourier import maps
from emsplat.runtime.checkpoint import UNKEPT, Checkpoint
from emsplat.runtime.packing import packed, unpacked
from emsplat.runtime.reporting import Reporter

_COMPARED = 4000  # largest number of images of a half that are posed in the other half's map
_FEW, _IMITATED = 150, 600
_SYMMETRIC = 0.6  # least correlation of a map with itself, turned about the axes that an imposed symmetry may take
_FEWEST_SHOWN = 40  # with fewer images of a particle, all images are compared


@dataclass(frozen=True)
class Start:
    """The result of one search of one half."""

    map: NDArray[np.float32]  # (N, N, N)
    inversion: NDArray[np.float32]  # (N, N, N) unregularised
    found: Found
    first: Trace
    second: Trace
    pictures: list[NDArray[np.float32]]  # the map as it grew

    @property
    def evidence(self) -> float:
        """Mean log-likelihood of an image, less that of no particle; images without a particle count as 0."""
        return float(((1 - self.found.junk) * self.found.evidence).mean())

    @property
    def shown(self) -> NDArray[np.bool_]:
        """(n,) whether each image probably shows a particle."""
        return self.found.junk <= 0.5


@dataclass(frozen=True)
class Agreement:
    """How far two halves agree."""

    alignment: Alignment  # alignment of the second map onto the first
    correlations: NDArray[np.float64]  # (R,) FSC of the unregularised inversions, rings from 1
    expected_power: float  # `stochastic.power_share` of a correct map, given how far the halves correlate
    modes: Modes  # modes of the turns between the poses of an image in the two maps
    own_evidence: float  # evidence of images under their own half's map
    other_evidence: float  # evidence of the same images under the other half's map
    top: float  # mean largest posterior in the other half's map
    imitation: Imitation  # what images of the first map itself would show
    modes_before: Modes | None = None  # the modes before refinement, if the halves are compared after it


@dataclass(frozen=True)
class Search:
    """What the search of a half needs besides its images."""

    coarse: StageSettings
    fine: StageSettings
    stochastic: StochasticSettings
    full: FullSettings
    free: Search | None = None  # the same without the symmetry, for a first stage that does not impose it yet

    def weighted(self) -> Search:
        """The same search, in which every image counts by the probability that it shows a particle."""
        coarse, fine = (replace(stage, n_classes=1) for stage in (self.coarse, self.fine))
        return replace(self, coarse=coarse, fine=fine, free=None if self.free is None else self.free.weighted())


@dataclass
class _Halfway:
    """A search after its first stage, as it is kept to be resumed."""

    first: Trace
    pictures: list[NDArray[np.float32]]
    rounds: Rounds
    generator: dict[str, Any]  # the state of the random numbers


def start(
    images: PolarImages,
    settings: Search,
    rng: np.random.Generator,
    title: str = "",
    reporter: Reporter | None = None,
    checkpoint: Checkpoint = UNKEPT,
    show: Callable[[NDArray[np.float32]], None] = lambda map_: None,
) -> Start:
    """Search for the poses of one half's images, starting from random poses.

    Args:
        title: what the progress bars call this search.
        checkpoint: the state after the first stage and after every round of the second is offered to it, and the search
            resumes from what it loads.
        show: called with the map, or the maps of all classes, after every batch and every round.
    """
    reporter = reporter or Reporter()
    state = checkpoint.load()
    if state is None:
        begun = _first(images, settings, rng, title, reporter, show)
        checkpoint.offer(lambda: packed(begun))
    else:
        begun = unpacked(state, _Halfway, Trace, Rounds, SliceSums, Found)
        rng.bit_generator.state = begun.generator
    first, pictures, rounds = begun.first, begun.pictures, begun.rounds
    if first.evidence[-1] < NOTHING:
        return _nothing(rounds.map, len(images), first, pictures, rng)

    def after_round() -> None:
        begun.generator = dict(rng.bit_generator.state)
        checkpoint.offer(lambda: packed(begun))
        show(rounds.map)

    search_fully(
        images, rounds, settings.fine, settings.full, rng, after_round,
        lambda number: reporter.bar(f"{title}, round {number}", "images"),
    )  # fmt: skip
    if len(rounds.looks) > 1:
        shares = ", ".join(f"{100 * share:.0f} %" for share in rounds.looks)
        reporter.line(f"{title}: of the particles, {shares} lay elsewhere in their images than was thought")
    assert rounds.sums is not None and rounds.found is not None
    inversion = volume.unregularised(rounds.sums, images.grid.n_rings)
    return Start(rounds.map, inversion, rounds.found, first, rounds.trace, [*pictures, rounds.map])


def _first(
    images: PolarImages,
    settings: Search,
    rng: np.random.Generator,
    title: str,
    reporter: Reporter,
    show: Callable[[NDArray[np.float32]], None],
) -> _Halfway:
    """The search after its first stage. If that imposed no symmetry, its map is brought to the axes of the group."""
    centres = np.zeros((len(images), 2))
    pictures: list[NDArray[np.float32]] = []
    here = settings.free or settings
    n_iterations = here.stochastic.iterations
    with reporter.bar(title, "batches") as advance:

        def watch(done: int, map_: NDArray[np.float32], trace: Trace) -> None:
            advance(done, n_iterations)
            show(map_)
            if done in (1, n_iterations // 10, n_iterations // 3, n_iterations):
                pictures.append(map_)

        coarse_images = images.coarser(here.full.coarse_rings)
        coarse, first = first_stage(coarse_images, centres, here.coarse, here.stochastic, rng, watch)
    if settings.free is not None and first.evidence[-1] >= NOTHING:
        frames = [frame_of(map_, settings.coarse.symmetry, here.full.coarse_rings) for map_ in _of_classes(coarse)]
        told = ", ".join(f"{frame.correlation:.2f}" for frame in frames)
        reporter.line(
            f"{title}: the first map, made without the symmetry, has axes of the group with a correlation of {told}"
        )
        if min(frame.correlation for frame in frames) < _SYMMETRIC:
            return _first(images, replace(settings, free=None), rng, title, reporter, show)
        symmetrised = [
            frame.symmetrised(map_, settings.coarse.symmetry)
            for frame, map_ in zip(frames, _of_classes(coarse), strict=True)
        ]
        coarse = np.array(symmetrised).reshape(coarse.shape)
    rounds = Rounds(on_box(coarse, volume.map_box(images.grid)), centres)
    return _Halfway(first, pictures, rounds, dict(rng.bit_generator.state))


def _of_classes(map_: NDArray[np.float32]) -> NDArray[np.float32]:
    """(K, N, N, N) maps of all classes, of which there may be one, (N, N, N)."""
    return map_.reshape(-1, *map_.shape[-3:])


def _nothing(
    map_: NDArray[np.float32], n: int, first: Trace, pictures: list[NDArray[np.float32]], rng: np.random.Generator
) -> Start:
    """The result of a search that found nothing: a map that explains no image, and poses drawn at random."""
    found = Found.empty(n, len(map_) if map_.ndim == 4 else 1)
    found.rotations[:] = Rotation.random(n, random_state=rng).as_matrix()
    found.evidence[:] = first.evidence[-1]
    last = Trace(evidence=[first.evidence[-1]], top=[first.top[-1]], beta=[1.0], power=[first.power[-1]])
    return Start(map_, map_, found, first, last, pictures)


def on_box(volume_: NDArray[np.float32], box_size: int) -> NDArray[np.float32]:
    """A map with another number of voxels; its transform is unchanged at the frequencies that both have."""
    if volume_.ndim == 4:
        return np.stack([on_box(of_class, box_size) for of_class in volume_])
    return maps.fourier_resize(volume_, box_size) * np.float32((len(volume_) / box_size) ** 3)


def compare(
    images: tuple[PolarImages, PolarImages],
    starts: tuple[Start, Start],
    settings: Search,
    rng: np.random.Generator,
) -> Agreement:
    """How far the halves agree; images that probably show no particle are left out."""
    first, second = starts
    n_rings = images[0].grid.n_rings
    alignment = align(first.map, second.map, n_rings)
    sphere = volume.sphere(len(first.map), settings.fine.diameter)
    correlations = shell_correlations(first.inversion * sphere, alignment.applied(second.inversion) * sphere, n_rings)
    # Posteriors of images that say nothing are spread over all poses; many of them take time and tell no more.
    most = _COMPARED if min(first.evidence, second.evidence) > 10 * NOTHING else _FEW
    shown = np.flatnonzero(second.shown)
    if len(shown) < _FEWEST_SHOWN:
        shown = np.arange(len(images[1]))
    rows = np.sort(shown[rng.permutation(len(shown))[:most]])
    unseen = images[1].select(rows)
    scale = settings.fine.box_size / len(first.map)
    rotations, centres = alignment.poses(second.found.rotations[rows], second.found.centres[rows], scale)
    there = full.round_of(unseen, first.map, centres.copy(), settings.fine, settings.full, rng)
    some = rows[:: max(1, len(rows) // _IMITATED)]
    among = np.searchsorted(rows, some)
    return Agreement(
        alignment,
        correlations,
        _expected_power(correlations, settings.fine.signal),
        modes_of(there.rotations, rotations, settings.fine.symmetry),
        float(second.found.evidence[rows].mean()),
        float(there.evidence.mean()),
        float(there.top.mean()),
        imitate(images[1].select(some), first.map, centres[among], settings.fine, settings.full, rng),
    )


def _expected_power(correlations: NDArray[np.float64], signal: NDArray[np.float64]) -> float:
    """The share of the images' power that the map of one half has if it is correct, in the outer half of the rings.

    A map ``b / (T + 1/S)`` has the power ``S c`` where the correlation of two such inversions is c.
    """
    half = len(signal) // 2
    return float((np.clip(correlations, 0, 1) * signal)[half:].sum() / signal[half:].sum())

"""From linear latents to a decoder: bins of latent space, the fit to them, and every image's place under that fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.heterogeneity.alignment import Alignment, places_alike
from emsplat.heterogeneity.bins import fill_bins, landmarks, shares, sparse
from emsplat.heterogeneity.decoder import Decoder
from emsplat.heterogeneity.fit_decoder import VARIANTS, Bin, DecoderHistory, DecoderSettings, Fitted, fit_decoder
from emsplat.heterogeneity.gtm import PointPosterior, point_posterior, shares_of_bins
from emsplat.heterogeneity.kept import kept, of_both_halves
from emsplat.heterogeneity.latents import Latents
from emsplat.heterogeneity.observations import Observations
from emsplat.heterogeneity.point_maps import PointMaps, information_of
from emsplat.heterogeneity.posterior import Posterior
from emsplat.heterogeneity.subspace import Subspace, embed
from emsplat.heterogeneity.work import Work
from emsplat.particles.parts import TRAINING, PartWeights

MOST_ROUNDS = 8  # rounds after the bins of linear latents
_CLOSE = 0.01  # a variant is tried again if its held-out loss was within this share of the least
_POINTS = 6  # points of a bin; half as many, which take half the memory, for more images than the following number
_MANY = 200_000
_SAMPLE = 500  # images from which the information in each shell is taken
_WORTH_A_ROUND = 0.02  # gain in log-likelihood per image above which a round's latents are taken


@dataclass(frozen=True)
class Rounds:
    """What the rounds came to."""

    decoders: tuple[Decoder, Decoder]
    histories: tuple[tuple[tuple[DecoderHistory, ...], ...], ...]  # by half and round, the chosen variant first
    latents: Latents
    points: NDArray[np.float64]  # (P, K)
    posterior: NDArray[np.float32]  # (N, P) of every image over the points
    log_likelihoods: tuple[float, ...]  # per image, under the decoder of the other half, after every round


def embedded(work: Work, spaces: tuple[Subspace, Subspace], alignment: Alignment) -> Latents:
    """The linear latents of all images, with those of half 2 in the frame of half 1."""

    def make() -> tuple[NDArray[np.float64], ...]:
        latents = Latents.empty(work.table, spaces[0].count)
        filled = np.zeros(len(work.table), dtype=bool)
        for half in (1, 2):
            space = spaces[half - 1]

            def found(observations: Observations, space: Subspace = space) -> Posterior:
                return embed(space, observations)

            for rows, posterior in work.in_blocks(half, found, f"latents of half {half}"):
                mean, covariance = (
                    posterior.mean[:, : space.count],
                    posterior.covariance[:, : space.count, : space.count],
                )
                if half == 2:
                    mean, covariance = alignment.mean(mean), alignment.covariance(covariance)
                latents.put(rows, mean, covariance, posterior.contrast, posterior.junk, posterior.log_evidence)
                filled[rows] = True
        work.shared(filled, *latents.found())
        return latents.found()

    return Latents.of(work.table, kept(work.context, "latents", make))


def run_rounds(work: Work, spaces: tuple[Subspace, Subspace], latents: Latents) -> Rounds:
    """Fit decoders to bins of latents, place the images anew, and repeat while they become more likely.

    The likelihood that counts is that of some of the images under the decoder of the half that they are not in. Their
    own half's decoder was fitted to them in the end.
    """
    count, seed, coarse = spaces[0].count, work.settings.seed, work.for_rounds()
    n_bins, n_points = bins_and_points(count, len(work.table))
    bins, points = _first_bins(work, latents, n_bins), landmarks(latents.mean[latents.junk < 0.5], n_points, seed + 1)
    split = PartWeights.half_sets(work.table, seed)
    held_out = split.holds(np.array([p.split != TRAINING for p in split.parts]))
    starts = [_consensus_decoder(work, half, count) for half in (1, 2)]
    histories: list[tuple[tuple[DecoderHistory, ...], ...]] = []
    likelihoods: list[float] = []
    best: Rounds | None = None
    for turn in range(MOST_ROUNDS + 1):
        fitted = _fitted(coarse, bins, split, starts, histories[-1:], turn)
        starts = [one.training for one in fitted]
        histories.append(tuple(one.histories for one in fitted))
        decoders = fitted[0].decoder, fitted[1].decoder
        found, posterior, likelihood = _placed(work, spaces, decoders, points, held_out, turn)
        likelihoods.append(likelihood)
        work.reporter.line(
            f"round {turn}: log-likelihood of an image under the other half's decoder {likelihood:.3f}; "
            + ", ".join(f"half {h}: {one.histories[0].variant}" for h, one in enumerate(fitted, 1))
        )
        if best is not None and likelihoods[-1] < likelihoods[-2] + _WORTH_A_ROUND:
            break
        best = Rounds(decoders, (), found, points, posterior, ())
        bins = _in_one_frame(work, decoders, _bins_of(found, posterior, points, n_bins, seed))
        points = landmarks(_drawn(found, seed), n_points, seed + 1)
    assert best is not None
    if coarse is not work:  # the bins are those of the best round
        fitted = _fitted(work, bins, split, starts, histories[-1:], len(histories))
        histories.append(tuple(one.histories for one in fitted))
        decoders = fitted[0].decoder, fitted[1].decoder
        # Half 2's decoder is now in the frame to which its bins were moved, and the latents must follow it.
        found, posterior, likelihood = _placed(work, spaces, decoders, best.points, held_out, len(likelihoods))
        likelihoods.append(likelihood)
        best = replace(best, decoders=decoders, latents=found, posterior=posterior)
    by_half = tuple(tuple(of_round[half] for of_round in histories) for half in (0, 1))
    return replace(best, histories=by_half, log_likelihoods=tuple(likelihoods))


@dataclass(frozen=True)
class _Bins:
    """Which images each bin holds, and where they lie."""

    weights: NDArray[np.float32]  # (N, G) share of every image in every bin
    places: tuple[NDArray[np.float64], NDArray[np.float64]]  # (G, K) mean latent of each half's images in every bin


def _first_bins(work: Work, latents: Latents, n_bins: int) -> _Bins:
    """Bins of linear latents."""
    centres = landmarks(latents.mean[latents.junk < 0.5], n_bins, work.settings.seed)
    particle = 1 - latents.junk[:, None]
    with work.reporter.stage("latents"):
        weights = sparse(shares(latents.mean, latents.covariance, centres) * (1e-6 + particle))
        weights *= particle.astype(np.float32)
    first, second = (_means(weights[latents.half == half], latents.mean[latents.half == half]) for half in (1, 2))
    return _Bins(weights, (first, second))


def _bins_of(
    latents: Latents, posterior: NDArray[np.float32], points: NDArray[np.float64], n_bins: int, seed: int
) -> _Bins:
    """Bins from the (N, P) posterior of every image over the points.

    An image that may be in one of two bins is taken to be in the place of each, not between them in both.
    """
    centres = landmarks(_drawn(latents, seed), n_bins, seed)
    particle = (1 - latents.junk[:, None]).astype(np.float32)
    of_points = shares_of_bins(points, centres)
    masses = ((particle * posterior)[latents.half == half].sum(axis=0) for half in (1, 2))
    first, second = (_means(mass[:, None] * of_points, points) for mass in masses)
    return _Bins(sparse(posterior @ of_points) * particle, (first, second))


def _in_one_frame(work: Work, decoders: tuple[Decoder, Decoder], bins: _Bins) -> _Bins:
    """The bins with the places of half 2 in the frame of half 1's decoder, to which the next fit leads half 2's."""
    first, second = bins.places
    shares = bins.weights[work.table.half_set == 2].sum(axis=0, dtype=np.float64)
    shares /= max(float(shares.sum()), 1e-12)
    size, pixel_size = work.table.box_size, work.table.pixel_size_in_angstroms
    moved = places_alike(*decoders, second, shares, size, pixel_size, work.limit_shell)
    return replace(bins, places=(first, moved))


def _means(weights: NDArray[np.floating], latents: NDArray[np.float64]) -> NDArray[np.float64]:
    """(G, K) means of latents, (n, K), with the (n, G) weights of each bin."""
    weights = weights.astype(np.float64)
    return (weights.T @ latents) / np.maximum(weights.sum(axis=0), 1e-12)[:, None]


def _drawn(latents: Latents, seed: int) -> NDArray[np.float64]:
    """(n, K) latents of the images that show a particle, drawn from their posteriors.

    Taken together, they are spread as the latents of the particles are. Posterior means are spread less, and points
    among them would draw closer together from round to round.
    """
    chosen = latents.junk < 0.5
    values, vectors = np.linalg.eigh(latents.covariance[chosen])
    noise = np.random.default_rng(seed).standard_normal(latents.mean[chosen].shape)
    return latents.mean[chosen] + np.einsum("nkl,nl->nk", vectors * np.sqrt(np.maximum(values, 0))[:, None], noise)


def bins_and_points(n_components: int, n_images: int) -> tuple[int, int]:
    """The largest number of bins, and that of points at which images are placed."""
    n_bins = min({1: 8, 2: 16}.get(n_components, 24), max(3, n_images // 150))
    return n_bins, (_POINTS if n_images <= _MANY else _POINTS // 2) * n_bins


def _consensus_decoder(work: Work, half: int, count: int) -> Decoder:
    """The half's consensus Gaussians, which do not follow the latents yet."""
    model = work.consensus.halves[half - 1].gaussians
    assert model is not None  # `for_consensus` asks for Gaussians
    return Decoder(model, torch.zeros(len(model), count), torch.zeros(len(model), count, 3))


def _worth_trying(histories: tuple[DecoderHistory, ...]) -> tuple[str, ...]:
    """The variants whose held-out loss was near the least with the bins of linear latents, which are blurred."""
    least = min(one.best for one in histories)
    return tuple(one.variant for one in histories if one.best <= least + _CLOSE * abs(least))


def _fitted(
    work: Work,
    bins: _Bins,
    split: PartWeights,
    starts: list[Decoder],
    before: list[tuple[tuple[DecoderHistory, ...], ...]],
    turn: int,
) -> tuple[Fitted, Fitted]:
    """Both halves' decoders, fitted to their bins. Args: before: the histories of the round before, if there is one."""
    reporter, context = work.reporter, work.context
    filled: dict[int, list[Bin]] = {}
    name = f"bins{turn}" if work.world.size == 1 else f"bins{turn}-rank{work.world.rank}of{work.world.size}"
    accumulations = {half: context.checkpoints.named(f"{name}-half{half}") for half in (1, 2)}

    def fill(half: int) -> None:
        with reporter.stage("bins"), context.task(f"bins of half {half}", "images", accumulations[half]) as task:
            filled[half] = fill_bins(
                work.table,
                work.images,
                half,
                bins.weights,
                bins.places[half - 1],
                split,
                work.accumulation,
                work.grid.extent,
                task,
            )

    def fit(half: int) -> Fitted:
        variants, settings = VARIANTS, DecoderSettings()
        if before:
            last = before[0][half - 1]
            variants, settings = _worth_trying(last) if turn == 1 else (last[0].variant,), settings.warm()
        with reporter.stage("decoder"), reporter.bar(f"decoder of half {half}", "steps") as advance:
            own, grid = filled.pop(half), work.grid
            return fit_decoder(starts[half - 1], own, grid.pixel_size, grid.extent, settings, variants, advance)

    found = of_both_halves(context, f"decoder{turn}", fit, fill)
    for half, one in enumerate(found, 1):
        accumulations[half].remove()
        reporter.line(
            f"half {half}, round {turn}: held-out loss "
            + ", ".join(f"{h.variant} {h.best:.4f} after {h.best_at} steps" for h in one.histories)
        )
    return found


def _placed(
    work: Work,
    spaces: tuple[Subspace, Subspace],
    decoders: tuple[Decoder, Decoder],
    points: NDArray[np.float64],
    judged: NDArray[np.bool_],
    turn: int,
) -> tuple[Latents, NDArray[np.float32], float]:
    """Every image's latent among the points, its (N, P) posterior, and a mean log-likelihood.

    Args: judged: (N,) the images whose log-likelihood under the decoder of the other half is averaged.
    """

    def make() -> tuple[tuple[NDArray[np.float64], ...], NDArray[np.float32], float]:
        latents = Latents.empty(work.table, points.shape[1])
        weights = np.zeros((len(work.table), len(points)), dtype=np.float32)
        likelihoods = []
        with work.reporter.stage("posterior"):
            found_maps = _maps(work, decoders, points)
            even = np.full(len(points), 1 / len(points))
            for half in (1, 2):
                rows = work.rows(half)
                tests = rows[judged[rows]]
                own, others = _inner_products(work, half, found_maps[half - 1], found_maps[2 - half], rows, tests)
                prior = spaces[half - 1].contrast
                posterior, _ = point_posterior(*own, even, prior, work.latent[rows])
                weights[rows] = posterior.weights
                _put(latents, rows, posterior, points)
                likelihoods.append(point_posterior(*others, even, prior, work.latent[tests])[0].log_likelihood)
        return latents.found(), weights, float(np.concatenate(likelihoods).mean())

    found, weights, likelihood = kept(work.context, f"posterior{turn}", make)
    return Latents.of(work.table, found), weights, likelihood


def _maps(work: Work, decoders: tuple[Decoder, Decoder], points: NDArray[np.float64]) -> list[PointMaps]:
    """Both decoders' maps at the points, in the working box of the last frequencies."""
    table, stage = work.table, work.stages[-1]
    information = information_of(work.observe(work.rows(1)[:_SAMPLE], stage.box_size, stage.limit_shell))
    return [
        PointMaps.of_decoder(one, points, table.box_size, stage.box_size, table.pixel_size_in_angstroms, information)
        for one in decoders
    ]


_Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def _inner_products(
    work: Work,
    half: int,
    own: PointMaps,
    others: PointMaps,
    rows: NDArray[np.int64],
    tests: NDArray[np.int64],
) -> tuple[_Pair, _Pair]:
    """The (n, P) inner products of a half's images with maps.

    Args:
        own: maps for all of them; others: maps for the tests only.
        rows: all rows of the half, as `work.rows` gives them; tests: some of these, in this order.
    """
    place, test_place = np.full(len(work.table), -1), np.full(len(work.table), -1)
    place[rows], test_place[tests] = np.arange(len(rows)), np.arange(len(tests))
    found = [np.zeros((n, own.count), dtype=np.float32) for n in (len(rows), len(rows), len(tests), len(tests))]
    filled, test_filled = np.zeros(len(rows), dtype=bool), np.zeros(len(tests), dtype=bool)

    def inner(observations: Observations) -> tuple[_Pair, _Pair]:
        chosen = np.flatnonzero(test_place[observations.rows] >= 0)
        return own.inner(observations), others.inner(observations.part(chosen))

    for block, pairs in work.in_blocks(half, inner, f"posterior of half {half}"):
        test_block = block[test_place[block] >= 0]
        for array, at, values in zip(
            found, (place[block], place[block], test_place[test_block], test_place[test_block]), sum(pairs, ()),
            strict=True,
        ):  # fmt: skip
            array[at] = values
        filled[place[block]], test_filled[test_place[test_block]] = True, True
    work.shared(filled, *found[:2])
    work.shared(test_filled, *found[2:])
    return (found[0], found[1]), (found[2], found[3])


def _put(latents: Latents, rows: NDArray[np.int64], found: PointPosterior, points: NDArray[np.float64]) -> None:
    latents.put(rows, found.mean(points), found.covariance(points), found.contrast, found.junk, found.log_likelihood)

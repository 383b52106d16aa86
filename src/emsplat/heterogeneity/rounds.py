"""From linear latents to a decoder: bins of latent space, the fit to them, and every image's place under that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from emsplat.fourier import maps
from emsplat.heterogeneity.alignment import Alignment
from emsplat.heterogeneity.bins import fill_bins, landmarks, shares, sparse
from emsplat.heterogeneity.decoder import Decoder
from emsplat.heterogeneity.fit_decoder import VARIANTS, Bin, DecoderHistory, DecoderSettings, Fitted, fit_decoder
from emsplat.heterogeneity.gtm import PointPosterior, inner_with_points, point_posterior, shares_of_bins
from emsplat.heterogeneity.kept import kept, of_both_halves
from emsplat.heterogeneity.latents import Latents
from emsplat.heterogeneity.observations import Observations
from emsplat.heterogeneity.posterior import Posterior
from emsplat.heterogeneity.subspace import Subspace, embed
from emsplat.heterogeneity.work import Work
from emsplat.particles.parts import TRAINING, PartWeights

MOST_ROUNDS = 2  # rounds after the bins of linear latents
_WORTH_A_ROUND = 0.02  # gain in log-likelihood per image above which a round's latents are taken


@dataclass(frozen=True)
class Rounds:
    """What the rounds came to."""

    decoders: tuple[Decoder, Decoder]
    histories: tuple[tuple[tuple[DecoderHistory, ...], ...], ...]  # by half and round, the chosen variant first
    latents: Latents
    points: NDArray[np.float64]  # (P, K)
    posterior: NDArray[np.float32]  # (N, P) of every image over the points
    log_likelihoods: tuple[float, ...]  # per held-out image, after every round


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
    """Fit decoders to bins of latents, place the images anew, and repeat while held-out images become more likely."""
    count = spaces[0].count
    n_bins, n_points = bins_and_points(count, len(work.table))
    surely = latents.junk < 0.5
    centres = landmarks(latents.mean[surely], n_bins, work.settings.seed)
    points = landmarks(latents.mean[surely], n_points, work.settings.seed + 1)
    of_points = shares_of_bins(points, centres)
    with work.reporter.stage("latents"):
        weights = sparse(shares(latents.mean, latents.covariance, centres) * (1e-6 + (1 - latents.junk[:, None])))
        weights *= (1 - latents.junk[:, None]).astype(np.float32)
    split = PartWeights.half_sets(work.table, work.settings.seed)
    held_out = split.holds(np.array([p.split != TRAINING for p in split.parts]))
    starts = [_consensus_decoder(work, half, count) for half in (1, 2)]
    histories: list[tuple[tuple[DecoderHistory, ...], ...]] = []
    likelihoods: list[float] = []
    best: tuple[tuple[Decoder, Decoder], Latents, NDArray[np.float32]] | None = None
    for turn in range(MOST_ROUNDS + 1):
        fitted = _fitted(work, weights, latents.mean, split, starts, turn)
        starts = [one.training for one in fitted]
        histories.append(tuple(one.histories for one in fitted))
        decoders = fitted[0].decoder, fitted[1].decoder
        found, posterior = _placed(work, spaces, decoders, points, turn)
        likelihoods.append(float(found.log_likelihood[held_out].mean()))
        work.reporter.line(
            f"round {turn}: log-likelihood of a held-out image {likelihoods[-1]:.3f}; "
            + ", ".join(f"half {h}: {one.histories[0].variant}" for h, one in enumerate(fitted, 1))
        )
        if best is not None and likelihoods[-1] < likelihoods[-2] + _WORTH_A_ROUND:
            break
        best, latents = (decoders, found, posterior), found
        weights = sparse(posterior @ of_points) * (1 - found.junk[:, None]).astype(np.float32)
    assert best is not None
    by_half = tuple(tuple(of_round[half] for of_round in histories) for half in (0, 1))
    return Rounds(best[0], by_half, best[1], points, best[2], tuple(likelihoods))


def bins_and_points(n_components: int, n_images: int) -> tuple[int, int]:
    """The largest number of bins, and that of points at which images are placed."""
    n_bins = min({1: 8, 2: 16}.get(n_components, 24), max(3, n_images // 150))
    return n_bins, 2 * n_bins


def _consensus_decoder(work: Work, half: int, count: int) -> Decoder:
    """The half's consensus Gaussians, which do not follow the latents yet."""
    model = work.consensus.halves[half - 1].gaussians
    assert model is not None  # `for_consensus` asks for Gaussians
    return Decoder(model, torch.zeros(len(model), count), torch.zeros(len(model), count, 3))


def _fitted(
    work: Work,
    weights: NDArray[np.float32],
    latents: NDArray[np.float64],
    split: PartWeights,
    starts: list[Decoder],
    turn: int,
) -> tuple[Fitted, Fitted]:
    """Both halves' decoders, fitted to their bins."""
    reporter, context = work.reporter, work.context
    bins: dict[int, list[Bin]] = {}
    name = f"bins{turn}" if work.world.size == 1 else f"bins{turn}-rank{work.world.rank}of{work.world.size}"
    accumulations = {half: context.checkpoints.named(f"{name}-half{half}") for half in (1, 2)}

    def fill(half: int) -> None:
        with reporter.stage("bins"), context.task(f"bins of half {half}", "images", accumulations[half]) as task:
            bins[half] = fill_bins(
                work.table, work.images, half, weights, latents, split, work.accumulation, work.grid.extent, task
            )

    def fit(half: int) -> Fitted:
        settings = DecoderSettings() if turn == 0 else replace(DecoderSettings(), most_steps=20)
        with reporter.stage("decoder"), reporter.bar(f"decoder of half {half}", "steps") as advance:
            own = bins.pop(half)
            return fit_decoder(
                starts[half - 1], own, work.grid.pixel_size, work.grid.extent, settings, VARIANTS, advance
            )

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
    turn: int,
) -> tuple[Latents, NDArray[np.float32]]:
    """Every image's latent among the points, and its (N, P) posterior."""

    def make() -> tuple[tuple[NDArray[np.float64], ...], NDArray[np.float32]]:
        latents = Latents.empty(work.table, points.shape[1])
        weights = np.zeros((len(work.table), len(points)), dtype=np.float32)
        for half in (1, 2):
            with work.reporter.stage("posterior"):
                rows, power, overlap = _inner_products(work, half, decoders[half - 1], points)
                even = np.full(len(points), 1 / len(points))
                posterior, _ = point_posterior(
                    power, overlap, even, spaces[half - 1].contrast, work.table.particle[rows]
                )
                weights[rows] = posterior.weights
                _put(latents, rows, posterior, points)
        return latents.found(), weights

    found, weights = kept(work.context, f"posterior{turn}", make)
    return Latents.of(work.table, found), weights


def _inner_products(
    work: Work, half: int, decoder: Decoder, points: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """The rows of a half, and the (n, P) inner products of their images with the decoder's maps at the points."""
    stage, pixel_size = work.stages[-1], work.table.pixel_size_in_angstroms
    volumes = [
        maps.fourier_resize(decoder.at(z).voxelise(work.table.box_size, pixel_size), stage.box_size) for z in points
    ]
    rows = work.rows(half)
    place = np.full(len(work.table), -1)
    place[rows] = np.arange(len(rows))
    power, overlap = (np.zeros((len(rows), len(points)), dtype=np.float32) for _ in range(2))
    filled = np.zeros(len(rows), dtype=bool)
    inner: Callable[[Observations], tuple[NDArray[np.float32], NDArray[np.float32]]] = partial(
        inner_with_points, volumes
    )
    for block, pair in work.in_blocks(half, inner, f"posterior of half {half}"):
        power[place[block]], overlap[place[block]] = pair
        filled[place[block]] = True
    work.shared(filled, power, overlap)
    return rows, power, overlap


def _put(latents: Latents, rows: NDArray[np.int64], found: PointPosterior, points: NDArray[np.float64]) -> None:
    latents.put(rows, found.mean(points), found.covariance(points), found.contrast, found.junk, found.log_likelihood)

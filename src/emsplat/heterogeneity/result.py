"""The result of a search for heterogeneity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.heterogeneity.agreement import LEAST_SIGNIFICANCE, Seen
from emsplat.heterogeneity.decoder import Decoder
from emsplat.heterogeneity.fit_decoder import DecoderHistory
from emsplat.heterogeneity.latents import Latents
from emsplat.heterogeneity.protection import Leak
from emsplat.heterogeneity.states import State
from emsplat.heterogeneity.subspace import Subspace
from emsplat.reconstruction.reconstruct import Reconstruction
from emsplat.runtime.reporting import Reporter
from emsplat.settings import HeterogeneitySettings


@dataclass(frozen=True)
class Half:
    """The result of one half; latents are in the frame that both halves share."""

    space: Subspace
    decoder: Decoder
    histories: tuple[tuple[DecoderHistory, ...], ...]  # for every decoder fit, with the chosen variant first


@dataclass(frozen=True)
class Components:
    """The number of components, and the reasons for it."""

    count: int  # K
    found: int  # number that the data show, whatever number was asked for
    seen: tuple[Seen, Seen]  # half 1's components in half 2's images, and the reverse
    canonical: NDArray[np.float64]  # (6,) correlations of the halves' subspaces
    pose_errors: tuple[float, float]  # standard deviations learnt from the images: degrees, pixels
    not_sought: str = ""  # why nothing was looked for, if so

    @property
    def why_none(self) -> str:
        """The explanation for the user if there are no components."""
        strongest = min(float(seen.significance.max(initial=0)) for seen in self.seen)
        if strongest < LEAST_SIGNIFICANCE:
            return "neither half's components vary among the other half's images"
        return (
            "what varies among the other half's images is only a small part of what a half makes of it. Errors of "
            "poses look like this: try --refine poses,shifts"
        )


@dataclass(frozen=True)
class Heterogeneity:
    """The result of a run."""

    consensus: Reconstruction
    components: Components
    halves: tuple[Half, Half] | None  # None if nothing varies
    latents: Latents
    states: tuple[State, ...]
    leaks: tuple[Leak, ...]
    log_likelihoods: tuple[float, ...]  # per image, under the decoder of the other half, in every round
    settings: HeterogeneitySettings
    reporter: Reporter

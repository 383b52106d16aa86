"""Trajectories: paths through the populated part of latent space, one along each component."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emsplat.heterogeneity.latents import Latents

N_POINTS = 10
_ENDS = (0.05, 0.95)  # quantiles of a component's latents between which a trajectory runs
_NEAREST = 0.1  # least share of the images that are averaged about each point
_FEWEST = 20  # least number of these images


@dataclass(frozen=True)
class Trajectory:
    """Points along one component; the other components follow the images that lie there."""

    component: int  # number of the component, from 0
    points: NDArray[np.float64]  # (n, K)
    images: NDArray[np.int64]  # (n,) how many images lie nearest to each point along the component


def trajectories(latents: Latents, n_points: int = N_POINTS) -> tuple[Trajectory, ...]:
    """One trajectory for each component.

    A straight line along a component may lead to points without images. At each value of the component, the other
    latents are therefore the mean over the images whose values are nearest.
    """
    z = latents.mean[latents.junk < 0.5]
    return tuple(_along(z, component, n_points) for component in range(z.shape[1]) if len(z) >= _FEWEST)


def _along(z: NDArray[np.float64], component: int, n_points: int) -> Trajectory:
    along = z[:, component]
    first, last = np.quantile(along, _ENDS).tolist()
    values = np.linspace(first, last, n_points)
    count = min(len(z), max(_FEWEST, int(_NEAREST * len(z))))
    points = np.empty((n_points, z.shape[1]))
    for i, value in enumerate(values.tolist()):
        nearest = np.argpartition(np.abs(along - value), count - 1)[:count]
        points[i] = z[nearest].mean(axis=0)
        points[i, component] = value
    edges = np.concatenate([[-np.inf], 0.5 * (values[1:] + values[:-1]), [np.inf]])
    return Trajectory(component, points, np.histogram(along, edges)[0].astype(np.int64))

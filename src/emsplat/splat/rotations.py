"""Rotations for the splats: matrices of quaternions, and small turns of the pose of an image."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_of_quaternions(quaternions: Tensor) -> Tensor:
    """(K, 3, 3) rotation matrices of quaternions (K, 4) w, x, y, z of any non-zero length."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=1).unbind(dim=1)
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, dim=1).view(-1, 3, 3)


def turned(rotations: Tensor, tangents: Tensor) -> Tensor:
    """Poses turned by small rotations in the frame of the image: ``exp([ω]×) A``.

    ω is the tangent vector that pose gradients are taken with respect to, from the left: ω_z turns an image in its
    plane, ω_x and ω_y tilt the particle about the image's axes, whatever the view.

    Args:
        rotations: (B, 3, 3) A, ``x_image = A x_volume``.
        tangents: (B, 3) ω in radians, x, y, z of the image; their gradient is also right at 0.
    Returns:
        (B, 3, 3) rotation matrices, of the rotations' dtype.
    """
    x, y, z = tangents.to(rotations.dtype).unbind(dim=1)
    o = torch.zeros_like(x)
    cross = torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=1).view(-1, 3, 3)
    return torch.linalg.matrix_exp(cross) @ rotations

"""Screenshots and turntables, which the browser that asks for them renders and then receives as files."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

if TYPE_CHECKING:
    import viser

_FRAMES, _FRAME_MS = 72, 60
_VIDEO_WIDTH = 640  # largest width in pixels, because GIF compresses badly
_PATIENCE = 30.0  # seconds for one picture


def screenshot(client: viser.ClientHandle) -> bytes:
    """A PNG of what a browser shows, on white and in the same size."""
    return _png(_render(client, client.camera.image_width, np.eye(3), "png"))


def turntable(
    client: viser.ClientHandle,
    progress: Callable[[int, int], None],
    frames: int = _FRAMES,
    each: Callable[[int, int], None] = lambda number, frames: None,
) -> bytes:
    """An animated GIF of one turn about the upright axis through the point that the camera looks at.

    Args:
        each: called before each frame with its number, from 0, and the number of frames; it may change the scene.
        progress: called with the number of frames that are done, and of all frames.
    Raises:
        RuntimeError: the browser has gone.
    """
    up = np.asarray(client.camera.up_direction)
    up = up / np.linalg.norm(up)
    pictures = []
    for number in range(frames):
        each(number, frames)
        turn = Rotation.from_rotvec(2 * np.pi * number / frames * up).as_matrix()
        pictures.append(Image.fromarray(_render(client, _VIDEO_WIDTH, turn)))
        progress(number + 1, frames)
    # All frames share one palette, made from views all around. With a palette for each, colours would flicker.
    sample = Image.fromarray(np.concatenate([np.asarray(p) for p in pictures[:: max(1, frames // 4)]]))
    palette = sample.quantize(255, method=Image.Quantize.MEDIANCUT)
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures)
    buffer = BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=_FRAME_MS, loop=0)
    return buffer.getvalue()


def _render(
    client: viser.ClientHandle, width: int, turn: NDArray[np.float64], transport_format: Literal["png", "jpeg"] = "jpeg"
) -> NDArray[np.uint8]:
    """(rows, columns, 3) picture on white of limited width, with the camera turned about the point it looks at."""
    camera = client.camera
    columns = min(width, camera.image_width)
    rows = max(1, round(camera.image_height * columns / camera.image_width))
    middle, place = np.asarray(camera.look_at), np.asarray(camera.position)
    w, x, y, z = camera.wxyz
    facing = Rotation.from_matrix(turn) * Rotation.from_quat([x, y, z, w])
    x, y, z, w = facing.as_quat()
    picture = client.get_render(
        rows, columns, wxyz=(w, x, y, z), position=middle + turn @ (place - middle), fov=camera.fov, timeout=_PATIENCE,
        transport_format=transport_format,
    )  # fmt: skip
    if picture.shape[2] == 3:
        return picture
    opacity = picture[..., 3:] / np.float32(255)
    return np.rint(picture[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)


def _png(picture: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

"""The device of an accumulation: a graphics card only if every rank has one with enough memory."""

from __future__ import annotations

import torch

from emsplat.runtime import devices
from emsplat.runtime.ranks import World
from emsplat.runtime.reporting import Reporter
from emsplat.statistics.accumulate import AccumulationSettings


def with_room(
    device: torch.device,
    n_parts: int,
    full_box_size: int,
    settings: AccumulationSettings,
    asked: devices.Choice,
    finest_in_angstroms: float,
    reporter: Reporter,
    world: World,
) -> torch.device:
    """The device, or the CPU if its memory is too small for the accumulation or not every rank has such a device.

    Args:
        n_parts: number of parts whose grids are filled at once.
        full_box_size: box of the images in pixels.
        asked: the option that chose the device.
        finest_in_angstroms: the finest resolution of the grids.
    """
    if device.type == "cuda":
        from emsplat.statistics.accumulate_gpu import bytes_needed  # Triton may only exist where there is a card

        needed = bytes_needed(n_parts, full_box_size, settings)
        device = devices.with_room(device, needed, asked, finest_in_angstroms, reporter)
    if {device.type} != set(world.gather(device.type)):
        reporter.warn("working on the CPU, because not every rank has a graphics card that it can use")
        return devices.CPU
    return device

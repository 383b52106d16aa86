"""``emsplat demo``."""

from __future__ import annotations

from emsplat.commands.arguments import Output


def demo(output: Output, seed: int = 0, overwrite: bool = False) -> None:
    """Simulate images of a bundled protein, reconstruct them, and compare the claimed resolution with the true one.

    Args:
        output: Folder that the run is written to.
        seed: Seed of all random numbers.
        overwrite: Replace a run that the folder holds.

    Examples:
        # Run the demonstration, which takes about a minute:
        emsplat demo -o demo
        # Repeat it with other images:
        emsplat demo -o demo --seed 1 --overwrite
    """
    from emsplat.commands.run_demo import run_demo

    run_demo(output, seed, overwrite)

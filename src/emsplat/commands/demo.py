"""``emsplat demo``."""

from __future__ import annotations

from emsplat.commands.arguments import Output


def demo(output: Output, seed: int = 0, overwrite: bool = False) -> None:
    """Simulate images of a bundled protein, reconstruct them, and compare the resolution claimed with the true one.

    Args:
        output: the folder to write to.
        seed: of everything that is drawn.
        overwrite: replace a run the folder holds.
    """
    from emsplat.commands.run_demo import run_demo

    run_demo(output, seed, overwrite)

"""The command line: subcommands, and every exception a user can cause as one line that names the remedy.

Nothing heavy is imported before a command runs, so that help comes at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

import emsplat
from emsplat.errors import InputError
from emsplat.settings import ReconstructSettings, SimulationSettings
from emsplat.threads import relax_openmp

_BAD_INPUT, _FAILED, _INTERRUPTED, _BROKEN_PIPE = 2, 1, 130, 141
_DEFAULT = SimulationSettings()

Output = Annotated[Path, arg(aliases=["-o"], metavar="DIR")]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):
        print(f"emsplat {emsplat.__version__}")
        return 0
    relax_openmp()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a queue's cancel cleans up as Ctrl-C does
    try:
        tyro.extras.subcommand_cli_from_dict(
            _COMMANDS,
            prog="emsplat",
            description="From cryo-EM particle images to a 3D map made of Gaussians, with a resolution that can be "
            "believed. emsplat COMMAND --help tells the options of a command, emsplat --version the version.",
            args=arguments,
            config=(FlagCreatePairsOff, DisallowNone),
        )
        sys.stdout.flush()
    except InputError as error:
        return _complain(str(error), _BAD_INPUT)
    except KeyboardInterrupt:
        return _complain("interrupted; no half-written file is left", _INTERRUPTED)
    except MemoryError as error:
        return _complain(f"out of memory: {error}; look at coarser detail with --max-resolution", _FAILED)
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`: not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it exits
        return _BROKEN_PIPE
    except OSError as error:
        return _complain(*_of_the_system(error))
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # how torch runs out of it
            raise
        return _complain("out of memory; look at coarser detail with --max-resolution", _FAILED)
    return 0


def _complain(text: str, code: int) -> int:
    print("emsplat: " + " ".join(text.split()), file=sys.stderr)
    return code


def _of_the_system(error: OSError) -> tuple[str, int]:
    """What the operating system refused, and the exit code."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space or choose another output folder", _BAD_INPUT
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; check the path and its permissions", _BAD_INPUT


# --- the commands -----------------------------------------------------------------------------------------------------


def reconstruct(
    particles: Annotated[Positional[Path], arg(metavar="PARTICLES.star")],
    output: Output,
    settings: OmitArgPrefixes[ReconstructSettings] = ReconstructSettings(),  # noqa: B008 (frozen)
    overwrite: bool = False,
) -> None:
    """Particle images with poses and CTFs → map, half maps, Gaussians, figures, and a resolution.

    Args:
        particles: a RELION star file, 3.0 or 3.1.
        output: the folder to write to.
        settings: what is left out is found from the data and said in the log.
        overwrite: replace a run the folder holds; it stays until the new one is complete.
    """
    from emsplat.console import ConsoleReporter

    reporter = ConsoleReporter()
    reporter.line(f"emsplat {emsplat.__version__}: {particles} → {output}")
    with reporter.stage("loading"):
        from emsplat import outputs
        from emsplat.reconstruction import reconstruct

    outputs.check_output(output, overwrite)
    result = reconstruct(particles, settings, reporter)
    summary = outputs.write_run(output, result, reporter, overwrite=overwrite)
    reporter.table(outputs.closing_rows(summary, output))


def simulate(
    model: Annotated[Positional[Path], arg(metavar="MODEL")],
    output: Output,
    n_images: int = _DEFAULT.n_images,
    box_size: int = _DEFAULT.box_size,
    pixel_size: float = _DEFAULT.pixel_size_in_angstroms,
    snr: float = _DEFAULT.snr,
    seed: int = _DEFAULT.seed,
    b_factor: float | None = None,
    solvent: bool = True,
    noise: Literal["white", "coloured"] = _DEFAULT.noise,
    orientations: Literal["uniform", "uneven"] = _DEFAULT.orientations,
    shift: float = _DEFAULT.shift_sigma_in_angstroms,
    defocus: tuple[float, float] = _DEFAULT.defocus_range_in_angstroms,
    astigmatism: float = _DEFAULT.astigmatism_in_angstroms,
    phase_shift: float = _DEFAULT.phase_shift_in_degrees,
    assembly: str | None = None,
    like: Path | None = None,
    overwrite: bool = False,
) -> None:
    """An atomic model or a map → particle images with poses and CTFs, and the truth they are made from.

    Args:
        model: PDB or mmCIF, also .gz, or a cubic MRC map.
        output: the folder to write particles.star, particles.mrcs, truth.mrc and mask.mrc to.
        n_images: number of images.
        box_size: pixels.
        pixel_size: Å.
        snr: variance of the noise-free images over that of the noise; inf for no noise.
        seed: of everything that is drawn.
        b_factor: of every atom, Å²; left out: as in the file.
        solvent: with it (the default) the particle lies in ice, which it displaces; without, in vacuum.
        noise: white, or with a spectrum that falls with frequency.
        orientations: uniform, or most of the views about one direction.
        shift: standard deviation in x and in y, Å.
        defocus: lowest and highest, Å, underfocus positive.
        astigmatism: standard deviation of U − V, Å.
        phase_shift: of a phase plate, degrees.
        assembly: name of a biological assembly to build; left out: the coordinates as deposited.
        like: a star file whose poses, shifts and CTFs are used instead of drawn ones.
        overwrite: replace a simulation the folder holds.
    """
    from emsplat.console import ConsoleReporter
    from emsplat.simulation import simulate

    settings = SimulationSettings(
        n_images=n_images,
        box_size=box_size,
        pixel_size_in_angstroms=pixel_size,
        snr=snr,
        seed=seed,
        b_factor_in_square_angstroms=b_factor,
        solvent=solvent,
        noise=noise,
        orientations=orientations,
        shift_sigma_in_angstroms=shift,
        defocus_range_in_angstroms=defocus,
        astigmatism_in_angstroms=astigmatism,
        phase_shift_in_degrees=phase_shift,
        assembly=assembly,
        like=like,
    )
    reporter = ConsoleReporter()
    with reporter.stage("simulation"), reporter.bar("simulating", "images") as advance:
        star = simulate(model, output, settings, overwrite, advance)
    reporter.line(f"{n_images:,} images of {box_size} × {box_size} pixels: {star}")


def fsc(
    first: Annotated[Positional[Path], arg(metavar="A.mrc")],
    second: Annotated[Positional[Path], arg(metavar="B.mrc")],
    mask: Path | None = None,
    output: Annotated[Path, arg(aliases=["-o"], metavar="FIGURE")] = Path("fsc.png"),
    pixel_size: float | None = None,
) -> None:
    """The Fourier shell correlation of two maps: curve, where it falls below 0.5 and 0.143, and a figure.

    Args:
        first: a cubic map.
        second: a map of the same box and pixel size.
        mask: a map between 0 and 1 that both are multiplied by.
        output: the figure to draw: .png, .svg or .pdf.
        pixel_size: Å; overrides the maps' headers.
    """
    from emsplat.compare import compare

    compare(first, second, mask, output, pixel_size)


def demo(output: Output, seed: int = 0, overwrite: bool = False) -> None:
    """Simulate images of a bundled protein, reconstruct them, and compare the resolution claimed with the true one.

    Args:
        output: the folder to write to.
        seed: of everything that is drawn.
        overwrite: replace a run the folder holds.
    """
    from emsplat.demo import run_demo

    run_demo(output, seed, overwrite)


_COMMANDS: dict[str, Callable[..., Any]] = {"reconstruct": reconstruct, "simulate": simulate, "fsc": fsc, "demo": demo}

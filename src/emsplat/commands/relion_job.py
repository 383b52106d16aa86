"""``emsplat-relion``: a reconstruction as a job of type External in RELION's pipeline.

RELION starts ``EXECUTABLE --o External/job010/ --in_parts PARTICLES --label value ... --j 4`` in its project folder.
From then on it only looks at files in the job's folder: a file called RELION_JOB_EXIT_SUCCESS, _FAILURE or _ABORTED
ends the job, RELION_OUTPUT_NODES.star lists its results, and RELION_JOB_ABORT_NOW asks it to stop. RELION believes
that a job without such a file runs forever. A second process therefore does the work, so that the file is written
whatever ends that process: a misspelt option, the operating system, or RELION.

Source: RELION 3.1, 4 and 5, ``getCommandsExternalJob``, ``prepareFinalCommand``, ``getOutputNodesFromStarFile`` and
the types of nodes in ``pipeline_jobs.h``.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from emsplat.errors import InputError
from emsplat.export.relion import HALF_1, MAP, MASK, write_relion_maps
from emsplat.io.star import Table, write_star
from emsplat.runs.run import open_run

SUCCESS, FAILURE, ABORTED = (f"RELION_JOB_EXIT_{end}" for end in ("SUCCESS", "FAILURE", "ABORTED"))
ABORT_NOW = "RELION_JOB_ABORT_NOW"
OUTPUT_NODES = "RELION_OUTPUT_NODES.star"
# File, type in RELION 3.1, type in RELION 4 and 5. As of a 3D auto-refinement, of which RELION finds the second half.
_NODES = ((MAP, 6, "DensityMap.mrc"), (HALF_1, 10, "DensityMap.mrc.halfmap"), (MASK, 7, "Mask3D.mrc"))
_OTHER_INPUTS = ("in_movies", "in_mics", "in_coords", "in_3dref")
_EXAMPLES = """\
examples:
  # What RELION runs for an external job with the executable emsplat-relion:
  emsplat-relion --o External/job010/ --in_parts Extract/job009/particles.star --j 4
  # The same with two parameters of the job, which are options of emsplat reconstruct:
  emsplat-relion --o External/job010/ --in_parts Extract/job009/particles.star --symmetry D2 --sharpen auto
"""


@dataclass(frozen=True)
class Work:
    """The second process, and how it is watched."""

    program: tuple[str, ...] = (sys.executable, "-m", "emsplat")
    between_looks: float = 1.0  # seconds between two looks at whether RELION asks for a stop
    cleaning_up: float = 60.0  # seconds that the reconstruction has to clean up after itself


def main(arguments: Sequence[str] | None = None, work: Work = Work()) -> int:
    """Run one job and return the exit code: 0, 1 (failed) or 130 (aborted)."""
    options, passed_on = _parser().parse_known_args(arguments)
    folder = Path(options.o)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (SUCCESS, FAILURE, ABORTED, ABORT_NOW, OUTPUT_NODES):
            (folder / name).unlink(missing_ok=True)  # of the job's last run
    except OSError as error:
        print(f"emsplat-relion: {folder}: cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):  # as a queue cancels, as a terminal is lost
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    end = FAILURE
    try:
        end = _run(options, passed_on, folder, work)
    except InputError as error:
        print(f"emsplat-relion: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        end = ABORTED
    finally:
        (folder / end).touch()
    return {SUCCESS: 0, FAILURE: 1, ABORTED: 130}[end]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emsplat-relion",
        description="Runs emsplat reconstruct as a job of type External in RELION's pipeline.\n"
        "All options that are not listed here are passed on to emsplat reconstruct.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--o", required=True, metavar="DIR", help="folder of the job")
    parser.add_argument("--in_parts", metavar="PARTICLES", help="particle file")
    parser.add_argument("--in_mask", metavar="MASK", help="mask within which the map is combined and judged")
    parser.add_argument("--j", default=None, metavar="N", help="number of threads")
    parser.add_argument("--pipeline_control", metavar="DIR", help="folder of the job again; some versions give it")
    for name in _OTHER_INPUTS:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace, passed_on: Sequence[str], folder: Path, work: Work) -> str:
    """The name of the file that tells how the job ended; InputError for inputs that are not understood."""
    for name in _OTHER_INPUTS:
        if getattr(options, name):
            raise InputError(f"--{name}: a reconstruction takes particles and a mask only; leave this input empty")
    if not options.in_parts:
        raise InputError("no particles: fill in the job's input particles")
    command = [*work.program, "reconstruct", options.in_parts, "-o", str(folder), "--overwrite"]
    if options.in_mask:
        command += ["--mask", options.in_mask]
    if options.j:
        command += ["--threads", options.j]
    end = _watched(subprocess.Popen([*command, *passed_on]), folder, work)
    if end == SUCCESS:
        write_relion_maps(open_run(folder), folder)
        _write_nodes(folder)
    return end


def _watched(process: subprocess.Popen, folder: Path, work: Work) -> str:
    """Waits for the process to end, or stops it where RELION asks for that."""
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return SUCCESS if process.wait(work.between_looks) == 0 else FAILURE
            if (folder / ABORT_NOW).exists():
                (folder / ABORT_NOW).unlink()
                return ABORTED
    finally:
        _stop(process, work)


def _stop(process: subprocess.Popen, work: Work) -> None:
    """Ends the process if it still runs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(work.cleaning_up)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _write_nodes(folder: Path) -> None:
    columns = {
        "rlnPipeLineNodeName": [f"{folder}/{name}" for name, _, _ in _NODES],  # from the project's folder
        "rlnPipeLineNodeType": [str(number) for _, number, _ in _NODES],
        "rlnPipeLineNodeTypeLabel": [label for _, _, label in _NODES],
    }
    write_star(folder / OUTPUT_NODES, {"output_nodes": Table(columns)})


if __name__ == "__main__":
    sys.exit(main())

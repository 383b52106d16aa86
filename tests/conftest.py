"""Fixtures for all rooms."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chromium import CHROMIUM, FLAGS
from emsplat.errors import InputError
from emsplat.runtime.reporting import Reporter
from emsplat.runtime.threads import relax_openmp
from emsplat.settings import ReconstructSettings

if TYPE_CHECKING:
    from emsplat.reconstruction.reconstruct import Reconstruction

relax_openmp()  # before the first test imports torch

# Files that take longest, by the processor's time or by waiting, the longest first.
LONGEST = (
    "test_lost_ranks.py",
    "test_accumulate_gpu.py",
    "test_rounds.py",
    "test_resume.py",
    "test_reconstruction.py",
    "test_reconstruction_by_images.py",
    "test_ranks.py",
    "test_simulate.py",
    "test_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process works on one of them alone at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of other people's data (see its README); a test that needs it skips where it is absent."""
    beside_the_repository = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EMSPLAT_SHARED_DATA", beside_the_repository))
    if not folder.is_dir():
        pytest.skip(f"NO SHARED DATA at {folder}: real images untested; set EMSPLAT_SHARED_DATA")
    return folder


@pytest.fixture
def signals_of_a_terminal() -> Iterator[None]:
    """SIGINT and SIGHUP do what they do to a program in a terminal, here and in the processes that a test starts.

    A shell has a command that it puts in the background (``&``, ``nohup``) ignore them, and so would all its children.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def refuses() -> Callable[..., AbstractContextManager[None]]:
    """``with refuses("culprit", ...)``: the block raises InputError, in one line that names each culprit."""

    @contextmanager
    def expect(*culprits: str) -> Iterator[None]:
        with pytest.raises(InputError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for culprit in culprits:
            assert culprit in message

    return expect


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 600 images of 7PBL, 48 × 48 pixels of 3.4 Å, at an SNR the fit has to work for; with the truth."""
    from emsplat.simulation import SimulationSettings, bundled_model, simulate

    settings = SimulationSettings(n_images=600, box_size=48, pixel_size_in_angstroms=3.4, snr=0.02, seed=1)
    return simulate(bundled_model(), tmp_path_factory.mktemp("simulated"), settings, overwrite=True).parent


@pytest.fixture(scope="session")
def reconstructed(simulated: Path) -> tuple[Reconstruction, Reporter]:
    """The main job on `simulated`, and what it told."""
    from emsplat.reconstruction.reconstruct import reconstruct

    reporter = Reporter()
    return reconstruct(simulated / "particles.star", ReconstructSettings(seed=3, threads=2), reporter), reporter


@pytest.fixture(scope="session")
def run_folder(reconstructed: tuple[Reconstruction, Reporter], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the reconstruction of 600 simulated images, with a truth beside it."""
    from emsplat.outputs.reconstruction import write_run

    result, reporter = reconstructed
    folder = tmp_path_factory.mktemp("reported") / "run"
    write_run(folder, result, reporter, truth=result.validation.c_map, true_resolution=8.0)
    return folder


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM: untested in a browser; install chromium or set EMSPLAT_CHROMIUM")
    module = pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: untested in a browser")
    with module.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Any) -> Iterator[Any]:
    launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield launched
    launched.close()


@pytest.fixture(scope="session")
def one_chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tenth of 7PBL, for what any model can show."""
    import gzip

    import gemmi

    from emsplat.simulation import bundled_model

    structure = gemmi.read_structure(str(bundled_model()))
    for name in [chain.name for chain in structure[0]][1:]:
        structure[0].remove_chain(name)
    path = tmp_path_factory.mktemp("model") / "one.pdb.gz"
    path.write_bytes(gzip.compress(structure.make_pdb_string().encode()))
    return path

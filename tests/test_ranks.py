"""The main job on several ranks: the same map, and a clean end for all when something is wrong with one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from emsplat.cli import main
from emsplat.correlation import fsc
from emsplat.errors import InputError
from emsplat.fit_images import Cut
from emsplat.io import read_map
from emsplat.ranks import World
from emsplat.ranks.launch import first_host, launch
from emsplat.shared_pass import deal
from emsplat.simulation import SimulationSettings, bundled_model, simulate
from hosts import NoHostsError, hosts

HERE = Path(__file__).parent
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "7"}
QUICK = ("--n-gaussians", 60, "--max-resolution", 14, "--threads", 1, "--seed", 3)

# The command, which loses patience soon, and dwells in the pass for as long as the test likes.
PROGRAM = """
import sys, time
import emsplat.ranks.watch as watch
watch.PATIENCE, watch._PATIENCE_INTERRUPTED = 6.0, 4.0
import emsplat.shared_pass as shared_pass
def dwell(*_):
    print("in the pass", flush=True)
    while True:
        time.sleep(0.1)
if {dwells}:
    shared_pass.fill_grids = dwell
from emsplat.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = SimulationSettings(n_images=240, box_size=32, pixel_size_in_angstroms=5.0, snr=0.2)
    return simulate(bundled_model(), tmp_path_factory.mktemp("images"), settings, overwrite=True).parent


def arguments(images: Path, output: Path, *options: object) -> list[str]:
    return [str(a) for a in ("reconstruct", images / "particles.star", "-o", output, *QUICK, *options)]


def start(
    commands: Sequence[Sequence[object]], dwells: bool = False, wrap: object = None, **environment: str
) -> list[subprocess.Popen]:
    """A rank for every command, as srun starts them."""
    program = PROGRAM.format(dwells=dwells)
    ranks = []
    for rank, command in enumerate(commands):
        step = {"SLURM_STEP_NUM_TASKS": str(len(commands)), "SLURM_STEP_NODELIST": "localhost"}
        step |= {"SLURM_PROCID": str(rank), "SLURM_JOB_ID": str(time.time_ns() // 1000 % 1_000_000)[-6:]}
        step |= {"MASTER_PORT": str(20_000 + os.getpid() % 9_000)} | environment
        step["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # as `joined` sets it before torch is loaded, which is too late here
        line = [sys.executable, "-c", program, *map(str, command)]
        line = wrap(rank, line) if callable(wrap) else line
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        ranks.append(subprocess.Popen(line, env=os.environ | step, text=True, **streams))
    return ranks


def ends(ranks: Sequence[subprocess.Popen], within: float = 60.0) -> tuple[list[int], list[str]]:
    """Exit codes, and all lines of their standard errors."""
    until = time.monotonic() + within
    try:
        said = [rank.communicate(timeout=max(1.0, until - time.monotonic()))[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], "".join(said).splitlines()


def until_in_the_pass(ranks: Sequence[subprocess.Popen]) -> None:
    for rank in ranks:
        assert rank.stdout is not None
        while (line := rank.stdout.readline()) != "in the pass\n":
            assert line, ends(ranks)
    time.sleep(2.5)  # the stage is told with the next pulse


# --- the same map -----------------------------------------------------------------------------------------------------


def test_two_ranks_make_the_map_of_one(images: Path, tmp_path: Path) -> None:
    """To the last bit, by the statistics and the refinement."""
    options = ("--refine", "poses")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "emsplat"]
    command += arguments(images, tmp_path / "two", *options, "--quiet")
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    assert main(arguments(images, tmp_path / "one", *options, "--quiet")) == 0
    for name in ("raw_half1.mrc", "raw_half2.mrc", "map_half1.mrc", "map_half2.mrc"):
        one, two = (read_map(tmp_path / run / name).values for run in ("one", "two"))
        shells = fsc(one, two, np.ones_like(one))[: 32 * 5 // 14]  # beyond the resolution asked for there is nothing
        assert shells.min() > 0.9999, (name, shells)
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_every_image_goes_to_one_rank(size: int) -> None:
    rng = np.random.default_rng(size)
    order, owner = rng.permutation(1001), rng.integers(2, size=1001) * World(size=size).owner(2)
    dealt = deal(order, owner, size)
    assert sorted(np.concatenate(dealt)) == list(range(1001))
    assert max(map(len, dealt)) < 1.25 * 1001 / size + 1
    if size % 2 == 0:  # no half is in two groups of ranks
        of = owner[np.argsort(order)]
        assert all(len(np.unique(of[rows])) == 1 for rows in dealt)
    for rows in dealt:  # in the order of the disk, half by half
        at = np.argsort(order)[rows]
        assert np.sum(np.diff(at) < 0) <= 1


@pytest.mark.parametrize("n", [1, 3, 16, 100, 256])
def test_ranks_render_a_batch_once(n: int) -> None:
    alone = Cut(40, World()).pieces(n)
    assert [i for piece in alone for i in range(n)[piece]] == list(range(n))
    for size in (2, 3, 4):
        shares = [Cut(40, World(rank, size)).share(n) for rank in range(size)]
        assert sorted(i for share in shares for i in range(n)[share]) == list(range(n))
        assert n < 16 or Cut(40, World(0, size)).pieces(n) == alone  # the same sums, whatever the number of ranks


# --- how ranks find each other ----------------------------------------------------------------------------------------


def test_launch() -> None:
    found = launch(TORCHRUN)
    assert found is not None
    assert (found.rank, found.size, found.address, found.port, found.serves) == (1, 2, "a", 7, False)
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "n[07-09],m", "SLURM_JOB_ID": "5"}
    found = launch(step)
    assert found is not None
    assert (found.rank, found.size, found.address, found.serves) == (0, 8, "n07", True)
    assert launch(step | {"MASTER_ADDR": "b", "MASTER_PORT": "9"}).address == "b"  # type: ignore[union-attr]
    assert launch({}) is None
    assert launch(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert launch({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None  # the batch script itself
    for broken in ({"RANK": "2"}, {"RANK": "one"}, {"MASTER_ADDR": ""}):
        with pytest.raises(InputError):
            launch(TORCHRUN | broken)


@pytest.mark.parametrize(
    ("nodes", "first"), [("a", "a"), ("gpu[07-09,12],x", "gpu07"), ("r1-n[3]-ib", "r1-n3-ib"), ("b2,c[1-4]", "b2")]
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_the_script_for_slurm(images: Path, tmp_path: Path) -> None:
    script = HERE.parent / "docs" / "cluster.sh"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").symlink_to(HERE / "fake_srun.py")
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", script, images / "particles.star", tmp_path / "run", *map(str, QUICK)]
    ended = subprocess.run(command, env=os.environ | {"PATH": path, "FAKE_TASKS": "2"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("resolution  ") == 1  # one rank speaks
    assert "2 ranks on" in ended.stdout
    assert (tmp_path / "run" / "map.mrc").exists()
    assert subprocess.run(["bash", script], capture_output=True).returncode == 2


# --- when something is wrong ------------------------------------------------------------------------------------------


def test_other_particles_on_a_rank(images: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "images"
    shutil.copytree(images, fewer)
    star = fewer / "particles.star"
    star.write_text("".join(star.read_text().splitlines(keepends=True)[:-3]))
    codes, said = ends(start([arguments(folder, tmp_path / "run") for folder in (images, fewer)]))
    assert codes == [2, 2]
    assert len(said) == 1, said
    assert "differ: images 240 against" in said[0]
    assert not (tmp_path / "run").exists()


def test_more_ranks_than_images(images: Path, tmp_path: Path) -> None:
    few = tmp_path / "images"
    shutil.copytree(images, few)
    lines = (few / "particles.star").read_text().splitlines(keepends=True)
    rows = [number for number, line in enumerate(lines) if "@" in line]
    (few / "particles.star").write_text("".join(lines[: rows[2]]))
    codes, said = ends(start([arguments(few, tmp_path / "run")] * 3))
    assert codes == [2, 2, 2]
    assert len(said) == 1, said
    assert "2 images for 3 ranks" in said[0]


def test_images_that_one_rank_cannot_read(images: Path, tmp_path: Path) -> None:
    """As a stack that is cut short on one machine."""
    short = tmp_path / "images"
    shutil.copytree(images, short)
    os.truncate(short / "particles.mrcs", 100_000)
    codes, said = ends(start([arguments(folder, tmp_path / "run") for folder in (images, short)]))
    assert codes == [2, 2]
    assert len(said) == 1, said
    assert "rank 1 on" in said[0]
    assert str(short / "particles.mrcs") in said[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGSTOP, 3), (signal.SIGTERM, 130)])
def test_a_rank_that_hangs_or_is_told_to_end(number: int, code: int, images: Path, tmp_path: Path) -> None:
    ranks = start([arguments(images, tmp_path / "run")] * 2, dwells=True)
    until_in_the_pass(ranks)
    ranks[1].send_signal(number)
    if number == signal.SIGTERM:
        codes, said = ends(ranks)
        assert codes == [code, code]
    else:
        codes, said = ends(ranks[:1])
        ranks[1].kill()
        assert codes == [code]
        assert "rank 1 on" in said[0]
        assert "in stage pass" in said[0]
    assert len(said) == 1, said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def two_hosts() -> Iterator[object]:
    try:
        with hosts(2) as made:
            yield made
    except NoHostsError as error:
        pytest.skip(f"NO NETWORK NAMESPACES ({error}): a machine that is cut off is untested here")


def test_a_machine_that_is_cut_off(two_hosts: object, images: Path, tmp_path: Path) -> None:
    """Mid-pass: both sides end, each with a line on the other."""
    commands = [arguments(images, tmp_path / "run")] * 2
    ranks = start(commands, dwells=True, wrap=two_hosts.command, MASTER_ADDR=two_hosts.address(0))  # type: ignore[attr-defined]
    until_in_the_pass(ranks)
    two_hosts.cut_off(1)  # type: ignore[attr-defined]
    codes, said = ends(ranks)
    assert codes == [3, 3]
    assert len(said) == 2, said
    assert "rank 1 on h1 has not been heard of" in said[0]
    assert "rank 1 on h1, in stage pass: rank 0 on h0, where the ranks meet, cannot be reached" in said[1]
    assert not (tmp_path / "run").exists()

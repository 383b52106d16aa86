"""The main job on several ranks: the same map, and a clean end for all when something is wrong with one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import many_ranks
from emsplat.errors import InputError
from emsplat.fit.by_images import Cut
from emsplat.io import read_input, read_map
from emsplat.particles.agreement import check_agreement
from emsplat.particles.parts import Kind, PartWeights
from emsplat.particles.table import Particles
from emsplat.reconstruction.reconstruct import Reconstruction, reconstruct
from emsplat.reconstruction.tuning import Tuning
from emsplat.runtime.ranks import World
from emsplat.runtime.ranks.launch import first_host, launch
from emsplat.settings import ReconstructSettings
from emsplat.simulation import SimulationSettings, bundled_model, simulate
from emsplat.statistics.accumulate import AccumulationSettings
from emsplat.statistics.schedule import Share, deal, gives_whole_grids, ranks_told_apart
from emsplat.validation.correlation import fsc
from hosts import NoHostsError, hosts
from phantom import numbered_parts
from processes import PATIENCE

TESTS = Path(__file__).parents[1]
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "7"}
FEW = ReconstructSettings(n_gaussians=60, n_fits=1, max_resolution=14.0, threads=1, seed=3)
QUICK = ("--n-gaussians", 60, "--n-fits", 1, "--max-resolution", 14, "--threads", 1, "--seed", 3)
PORTS = count(20_000 + os.getpid() % 9_000)

# The command, which loses patience soon, with many blocks of images and a state written after each of them; told to
# dwell, it stays in the pass after the first.
PROGRAM = """
import sys, time
{first}
import functools
import emsplat.runtime.ranks as ranks
patience = ranks.Patience(silence=8.0, silence_when_interrupted=3.0, period=0.3, leaving=2.0)
ranks.joined = functools.partial(ranks.joined, patience=patience)
import emsplat.runtime.checkpoint as checkpoint
import emsplat.reconstruction.reconstruct as room, emsplat.statistics.distributed as shared_pass
from emsplat.reconstruction.tuning import Tuning
job, states = room.reconstruct, checkpoint.checkpoints_of
room.reconstruct = lambda *what: job(*what, tuning=Tuning({block_bytes}))
checkpoint.checkpoints_of = lambda *what: states(*what, pace=checkpoint.Pace(0.0, 0.0))
fill = shared_pass.fill_grids
def dwell(*arguments):
    def after_a_block(done):
        print("in the pass", flush=True)
        while True:
            time.sleep(0.1)
    fill(*arguments[:6], after_a_block, *arguments[7:])
if {dwells}:
    shared_pass.fill_grids = dwell
from emsplat.cli import main
sys.exit(main())
"""
OTHER_VERSION = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: "0.1" if name == "scipy" else real(name)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = SimulationSettings(n_images=120, box_size=32, pixel_size_in_angstroms=5.0, snr=0.2)
    return simulate(bundled_model(), tmp_path_factory.mktemp("images"), settings, overwrite=True).parent


@pytest.fixture(scope="module")
def in_blocks(images: Path) -> Reconstruction:
    """What one process makes of them in the blocks of `PROGRAM`."""
    return reconstruct(images / "particles.star", FEW, tuning=Tuning(many_ranks.BLOCK_BYTES))


def arguments(images: Path, output: Path, *options: object) -> list[str]:
    return [str(a) for a in ("reconstruct", images / "particles.star", "-o", output, *QUICK, *options)]


def step(rank: int, size: int, port: int) -> dict[str, str]:
    """What srun puts into the environment of a rank."""
    return {
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_PROCID": str(rank),
        "SLURM_JOB_ID": "1",
        "MASTER_PORT": str(port),
        "TORCH_CPP_LOG_LEVEL": "FATAL",  # as `joined` sets it before torch is loaded, which is too late here
    }


def start(
    commands: Sequence[Sequence[object]],
    dwells: bool = False,
    wrap: object = None,
    first: Mapping[int, str] | None = None,
    **environment: str,
) -> list[subprocess.Popen]:
    """A rank for every command; `first`: what some of them do before all else."""
    port, ranks = next(PORTS), []
    for rank, command in enumerate(commands):
        before = (first or {}).get(rank, "")
        program = PROGRAM.format(first=before, block_bytes=many_ranks.BLOCK_BYTES, dwells=dwells)
        line = [sys.executable, "-c", program, *map(str, command)]
        line = wrap(rank, line) if callable(wrap) else line
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        place = step(rank, len(commands), port) | environment
        ranks.append(subprocess.Popen(line, env=os.environ | place, text=True, **streams))
    return ranks


def ends(ranks: Sequence[subprocess.Popen], within: float = PATIENCE) -> tuple[list[int], list[str]]:
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
    time.sleep(1.0)  # the stage is told with the next pulse


def same_maps(run: Path, alone: Reconstruction) -> None:
    """A run folder has what one process made, to the last bit."""
    expected = {"map": alone.map}
    for number, (half, combined) in enumerate(zip(alone.halves, alone.half_maps, strict=True), 1):
        expected |= {f"raw_half{number}": half.raw, f"map_half{number}": combined}
    for name, values in expected.items():
        np.testing.assert_array_equal(read_map(run / f"{name}.mrc").values, values, name)


# --- the same map -----------------------------------------------------------------------------------------------------


def test_four_ranks_make_what_one_makes(images: Path, tmp_path: Path) -> None:
    """To the last bit, by the statistics, the refinement, the images and soft parts, with more or fewer threads."""
    port, folders = next(PORTS), [tmp_path / name for name in ("four", "one")]
    for folder in folders:
        folder.mkdir()
    line = [sys.executable, TESTS / "many_ranks.py", images / "particles.star", folders[0]]
    path = f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"
    ranks = [subprocess.Popen(line, env=os.environ | step(rank, 4, port) | {"PYTHONPATH": path}) for rank in range(4)]
    many_ranks.make(images / "particles.star", folders[1], World(), threads=2)
    assert [rank.wait(PATIENCE) for rank in ranks] == [0] * 4
    for name in (*many_ranks.JOBS, many_ranks.PARTS):
        four, one = (np.load(folder / f"{name}.npz") for folder in folders)
        for entry in one:
            if entry == "changes":  # float64, by LAPACK, whose last digits depend on where in memory a matrix lies
                np.testing.assert_allclose(four[entry], one[entry], rtol=0, atol=1e-12)
            else:
                np.testing.assert_array_equal(four[entry], one[entry], f"{name}: {entry}")


def dealt(order: np.ndarray, parts: PartWeights, owners: list[int], size: int) -> list[Share]:
    """Shares of ranks, of images of 128² in blocks of the usual size."""
    settings = AccumulationSettings(128, 128, np.ones((1, 65)), np.eye(3)[None])
    everything = np.ones(len(parts.parts), dtype=bool)
    return deal(order, parts, everything, owners, size, 128, settings, gives_whole_grids(len(parts.parts), size))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_grid_is_filled_by_one_rank(size: int) -> None:
    rng = np.random.default_rng(size)
    order, subset = rng.permutation(4000), (rng.integers(2, size=4000) * 2 + (rng.random(4000) < 0.2)).astype(np.int8)
    parts, owners = numbered_parts(subset), [World(size=size).owner(1 + number // 2) for number in range(4)]
    shares = dealt(order, parts, owners, size)
    assert sorted(grid for share in shares for grid in share.grids) == [(s, kind) for s in range(4) for kind in (0, 1)]
    read = np.zeros(4000, dtype=int)
    work = []
    [alone] = [share.blocks for share in dealt(order, parts, [0] * 4, 1)]
    for share in shares:
        mine = {number for number, _ in share.grids}
        expected = [block[np.isin(subset[block], list(mine))] for block in alone]
        assert [block.tolist() for block in share.blocks] == [block.tolist() for block in expected]
        rows = np.concatenate(share.blocks)
        with_b = np.isin(subset[rows], [number for number, kind in share.grids if kind == 0])
        read[rows[with_b]] += 1
        work.append(np.sum(with_b) + np.sum(np.isin(subset[rows], [n for n, kind in share.grids if kind == 1])))
    assert (read == 1).all()
    assert max(work) < 1.3 * 2 * 4000 / size
    if size <= 2:  # the halves' owners have all of theirs
        assert all(owners[number] == rank for rank, share in enumerate(shares) for number, _ in share.grids)


@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_more_ranks_share_the_images(size: int) -> None:
    rng = np.random.default_rng(size)
    order, subset = rng.permutation(1001), rng.integers(4, size=1001).astype(np.int8)
    owners = [World(size=size).owner(1 + number // 2) for number in range(4)]
    shares = dealt(order, numbered_parts(subset), owners, size)
    of_ranks = [np.concatenate(share.blocks) for share in shares]
    assert sorted(np.concatenate(of_ranks)) == list(range(1001))
    assert max(map(len, of_ranks)) < 1.25 * 1001 / size + 1
    half = subset // 2
    if size % 2 == 0:  # no half is in two groups of ranks
        assert all(len(np.unique(half[rows])) == 1 for rows in of_ranks)
    for rank, (rows, share) in enumerate(zip(of_ranks, shares, strict=True)):
        at = np.argsort(order)[rows]  # in the order of the disk, half by half
        assert np.sum(np.diff(at) < 0) <= 1
        held = {number // 2 for number, _ in share.grids}
        assert held == {*half[rows].tolist()} | {n // 2 for n in range(4) if owners[n] == rank}


@pytest.mark.parametrize("size", [1, 3, 4, 7, 16, 40])
@pytest.mark.parametrize("whole", [True, False])
def test_every_image_is_added_once_to_each_of_its_parts(size: int, whole: bool) -> None:
    """Of thirty soft parts of 1,500 images, by whole grids and by stretches, some parts at a time; evenly."""
    rng = np.random.default_rng(size)
    weights = rng.dirichlet(np.full(15, 0.1), 1500)
    parts = numbered_parts(rng.integers(-1, 2, 1500)).with_states(weights, threshold=0.02)
    order = rng.permutation(1500)
    group = rng.random(30) < 0.8
    owners = rng.integers(size, size=30).tolist()
    settings = AccumulationSettings(128, 128, np.ones((1, 65)), np.eye(3)[None], block_bytes=100 * 4 * 128**2)
    shares = deal(order, parts, group, owners, size, 128, settings, whole)
    everything = parts.entries(np.arange(1500), Kind.T, group)
    of_rank = []
    added = {kind: np.zeros((1500, 30), dtype=int) for kind in Kind}
    for share in shares:
        of_rank.append(0.0)
        for kind in Kind:
            mine = np.isin(np.arange(30), [number for number, k in share.grids if k == kind])
            for block in share.blocks:
                entries = parts.entries(block, kind, mine)
                np.add.at(added[kind], (entries.rows[entries.places], entries.numbers), 1)
                of_rank[-1] += len(entries.numbers)
    expected = np.zeros((1500, 30), dtype=int)
    expected[everything.rows[everything.places], everything.numbers] = 1
    for kind in Kind:
        np.testing.assert_array_equal(added[kind], expected)
    if whole:
        filled = [grid for share in shares for grid in share.grids]
        assert len(filled) == len(set(filled)) == 2 * group.sum()
    if size <= 16:
        assert max(of_rank) < 1.35 * sum(of_rank) / size


def test_ranks_that_go_on_with_each_others_states() -> None:
    assert len({ranks_told_apart(size) for size in (1, 2, 3, 4)}) == 1
    assert len({ranks_told_apart(size) for size in (4, 5, 6, 8)}) == 4


@pytest.mark.parametrize("n", [1, 3, 16, 100, 256])
def test_ranks_render_a_batch_once(n: int) -> None:
    alone = Cut(40, World()).pieces(n)
    assert [i for piece in alone for i in range(n)[piece]] == list(range(n))
    for size in (2, 3, 4):
        shares = [Cut(40, World(rank, size)).share(n) for rank in range(size)]
        assert sorted(i for share in shares for i in range(n)[share]) == list(range(n))
        assert Cut(40, World(0, size)).pieces(n) == alone  # the same sums, whatever the number of ranks


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
    script = TESTS.parent / "docs" / "cluster.sh"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").symlink_to(TESTS / "fake_srun.py")
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", script, images / "particles.star", tmp_path / "run", *map(str, QUICK)]
    alone = reconstruct(images / "particles.star", FEW)
    ended = subprocess.run(command, env=os.environ | {"PATH": path, "FAKE_TASKS": "2"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("resolution  ") == 1  # one rank speaks
    assert "2 ranks on" in ended.stdout
    same_maps(tmp_path / "run", alone)
    assert subprocess.run(["bash", script], capture_output=True).returncode == 2


def test_six_ranks_by_torchrun(images: Path, tmp_path: Path) -> None:
    """They share the images: sums are rounded otherwise, which the fit magnifies to what another seed changes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "6", "-m", "emsplat"]
    ended = subprocess.run(
        [*command, *arguments(images, tmp_path / "run")], capture_output=True, text=True, timeout=PATIENCE
    )
    assert ended.returncode == 0, ended.stderr
    assert "6 ranks on" in ended.stdout
    alone = reconstruct(images / "particles.star", FEW)
    for number, half in enumerate(alone.halves, 1):
        raw = read_map(tmp_path / "run" / f"raw_half{number}.mrc").values
        assert np.linalg.norm(raw - half.raw) < 1e-5 * np.linalg.norm(half.raw)
    made = read_map(tmp_path / "run" / "map.mrc").values
    measurable = slice(alone.validation.limit_shell)
    assert alone.validation.limit_shell > 4
    assert fsc(made, alone.map, np.ones_like(made))[measurable].min() > 0.95  # steps and splits may fall otherwise


# --- when something is wrong ------------------------------------------------------------------------------------------


def test_another_version_on_a_rank(images: Path, tmp_path: Path) -> None:
    codes, said = ends(start([arguments(images, tmp_path / "run")] * 2, first={1: OTHER_VERSION}))
    assert codes == [2, 2]
    assert len(said) == 1, said
    assert "differ: scipy " in said[0]
    assert "against 0.1; install one version of everything on all machines" in said[0]
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class InThreads(World):
    """Ranks that are threads of this process, as far as telling each other something goes."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    told: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        self.told[self.rank] = value
        self.barrier.wait(PATIENCE)
        result = list(self.told)
        self.barrier.wait(PATIENCE)
        return result

    def broadcast(self, value: Any, source: int = 0) -> Any:
        return self.gather(value)[source]


def agreed(*ranks: tuple[Particles, ReconstructSettings]) -> set[str]:
    """What `check_agreement` says on the ranks."""
    size = len(ranks)
    barrier, told, hosts = threading.Barrier(size), [None] * size, tuple(f"h{rank}" for rank in range(size))

    def check(rank: int) -> str:
        try:
            check_agreement(*ranks[rank], InThreads(rank, size, hosts, barrier=barrier, told=told))
        except InputError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(size) as pool:
        return set(pool.map(check, range(size)))


def test_ranks_that_would_not_do_the_same(images: Path) -> None:
    particles = read_input(images / "particles.star", FEW)
    fewer, two = (particles.select(np.arange(n)) for n in (117, 2))
    turned = replace(particles, euler_angles_in_degrees=particles.euler_angles_in_degrees + 1e-6)
    one = particles, FEW
    assert agreed(one, one) == {""}
    [said] = agreed(one, one, (fewer, FEW))
    assert said.startswith(f"{particles.source}: rank 0 on h0 and rank 2 on h2 differ: images 120 against 117")
    assert said.endswith("give all ranks the same file")
    [said] = agreed(one, (turned, FEW))
    assert "differ: content " in said
    [said] = agreed(one, (particles, replace(FEW, seed=4)))
    assert said == "rank 0 on h0 and rank 1 on h1 differ: --seed 3 against 4; start all ranks with the same command"
    assert agreed((two, FEW), (two, FEW)) == {""}
    [said] = agreed(*[(two, FEW)] * 3)
    assert said == f"{particles.source}: 2 images for 3 ranks; each needs one: start fewer"


def test_images_that_one_rank_cannot_read(images: Path, tmp_path: Path) -> None:
    """As a stack that is cut short on one machine."""
    short = tmp_path / "images"
    shutil.copytree(images, short)
    os.truncate(short / "particles.mrcs", 50_000)
    codes, said = ends(start([arguments(folder, tmp_path / "run") for folder in (images, short)]))
    assert codes == [2, 2]
    assert len(said) == 1, said
    assert "rank 1 on" in said[0]
    assert str(short / "particles.mrcs") in said[0]


def test_a_rank_that_hangs_or_is_told_to_end(images: Path, in_blocks: Reconstruction, tmp_path: Path) -> None:
    """Mid-pass; what was done by then is gone on with, to the same maps."""
    jobs = {name: start([arguments(images, tmp_path / name)] * 2, dwells=True) for name in ("hangs", "told")}
    for ranks in jobs.values():
        until_in_the_pass(ranks)
    jobs["told"][1].send_signal(signal.SIGTERM)
    jobs["hangs"][1].send_signal(signal.SIGSTOP)
    codes, said = ends(jobs["told"])
    assert codes == [130, 130]
    assert len(said) == 1, said
    codes, said = ends(jobs["hangs"][:1])
    jobs["hangs"][1].kill()
    assert codes == [3]
    assert len(said) == 1, said
    assert "rank 1 on" in said[0]
    assert "in stage pass" in said[0]
    kept = sorted(path.name for path in (tmp_path / "hangs" / "checkpoints").glob("pass-*of2-*.safetensors"))
    assert [name[: len("pass-rank0")] for name in kept] == ["pass-rank0", "pass-rank1"]

    ranks = start([arguments(images, tmp_path / "hangs", "--resume")] * 2)
    outputs = [rank.communicate(timeout=PATIENCE) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert "resuming from pass-rank0of2" in outputs[0][0]
    same_maps(tmp_path / "hangs", in_blocks)


@pytest.mark.parametrize(("size", "cut", "left"), [(2, 1, 1), (4, 2, 4)])
def test_a_machine_that_is_cut_off(
    size: int, cut: int, left: int, images: Path, in_blocks: Reconstruction, tmp_path: Path
) -> None:
    """Mid-pass: both sides end, each with a line on the other; the run goes on to the same maps, without it or with."""
    try:
        with hosts(size) as machines:
            place = {"wrap": machines.command, "MASTER_ADDR": machines.address(0)}
            ranks = start([arguments(images, tmp_path / "run")] * size, dwells=True, **place)
            until_in_the_pass(ranks)
            machines.cut_off(cut)
            codes, said = ends(ranks)
            assert codes == [3] * size
            assert len(said) == 2, said
            for line in (
                f"rank {cut} on h{cut} has not been heard of",
                f"rank {cut} on h{cut}, in stage pass: rank 0 on h0, where the ranks meet, cannot be reached",
            ):
                assert any(line in one for one in said), said
            assert not (tmp_path / "run" / "map.mrc").exists()

            if left == size:
                machines.plug_in(cut)
            ranks = start([arguments(images, tmp_path / "run", "--resume")] * left, **place)
            outputs = [rank.communicate(timeout=PATIENCE) for rank in ranks]
    except NoHostsError as error:
        pytest.skip(f"NO NETWORK NAMESPACES ({error}): a machine that is cut off is untested here")
    assert [rank.returncode for rank in ranks] == [0] * left, outputs
    assert (f"resuming from pass-rank0of{size}" in outputs[0][0]) == (left == size)
    assert not (tmp_path / "run" / "checkpoints").exists()
    same_maps(tmp_path / "run", in_blocks)

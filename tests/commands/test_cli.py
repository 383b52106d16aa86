"""The command line: what a user types, mistakes included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import emsplat
from emsplat.cli import main
from emsplat.commands import run_demo as demo
from emsplat.io.mrc import read_map, write_map
from emsplat.io.star import Table, read_star, write_star
from emsplat.simulation import SimulationSettings, bundled_model, simulate
from processes import PATIENCE

N, BOX = 24, 32


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = SimulationSettings(n_images=N, box_size=BOX, pixel_size_in_angstroms=5.0, snr=1.0)
    return simulate(bundled_model(), tmp_path_factory.mktemp("pristine"), settings, overwrite=True).parent


@dataclass
class Case:
    """A folder with a star and its stack, to be spoilt."""

    folder: Path

    @property
    def star(self) -> Path:
        return self.folder / "particles.star"

    @property
    def stack(self) -> Path:
        return self.folder / "particles.mrcs"

    @property
    def output(self) -> Path:
        return self.folder / "run"

    def edit(self, change: Callable[[dict[str, list[str]], dict[str, list[str]]], None]) -> None:
        """`change` is given the columns of the optics and of the particles."""
        blocks = read_star(self.star)
        columns = {name: dict(table.columns) for name, table in blocks.items()}
        change(columns["optics"], columns["particles"])
        write_star(self.star, {name: Table(columns[name], blocks[name].is_loop) for name in blocks})

    def paint(self, image: int, value: float, where: slice = slice(None)) -> None:
        """Sets pixels of one image (from 0)."""
        with self.stack.open("r+b") as file:
            file.seek(1024 + 4 * BOX * BOX * image)
            pixels = np.frombuffer(file.read(4 * BOX * BOX), "<f4").copy()
            pixels[where] = value
            file.seek(1024 + 4 * BOX * BOX * image)
            file.write(pixels.tobytes())

    def set_pixel_size(self, value: float) -> None:
        """In the stack's header."""
        with self.stack.open("r+b") as file:
            file.seek(40)
            file.write(np.array([BOX * value, BOX * value, value], "<f4").tobytes())


@pytest.fixture
def case(pristine: Path, tmp_path: Path) -> Case:
    for file in pristine.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return Case(tmp_path)


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


# Bad input to `reconstruct`: each spoils a case and returns further options; then what the one line must name


def no_star(case: Case) -> None:
    case.star.unlink()


def no_stack(case: Case) -> None:
    case.stack.unlink()


def short_stack(case: Case) -> None:
    case.edit(lambda _, p: p["rlnImageName"].__setitem__(3, f"{N + 1:06d}@particles.mrcs"))


def cut_stack(case: Case) -> None:
    os.truncate(case.stack, 1024 + 4 * BOX * BOX * (N - 2))


def image_zero(case: Case) -> None:
    case.edit(lambda _, p: p["rlnImageName"].__setitem__(3, "000000@particles.mrcs"))


def no_pose(case: Case) -> None:
    case.edit(lambda _, p: p.pop("rlnAngleTilt"))


def no_defocus(case: Case) -> None:
    case.edit(lambda _, p: p.pop("rlnDefocusV"))


def no_voltage(case: Case) -> None:
    case.edit(lambda o, _: o.pop("rlnVoltage"))


def nan_pixel(case: Case) -> None:
    case.paint(7, np.nan, slice(5, 6))


def infinite_pixel(case: Case) -> None:
    case.paint(0, np.inf, slice(100, 101))


def constant_image(case: Case) -> None:
    case.paint(N - 1, 3.0)


def no_pixel_size(case: Case) -> None:
    case.edit(lambda o, _: o.pop("rlnImagePixelSize"))
    case.set_pixel_size(1.0)


def two_pixel_sizes(case: Case) -> None:
    case.set_pixel_size(5.2)


def two_box_sizes(case: Case) -> None:
    write_map(case.folder / "other.mrcs", np.random.default_rng(0).normal(size=(4, 24, 24)), 5.0)
    case.edit(lambda _, p: p["rlnImageName"].__setitem__(3, "000001@other.mrcs"))


def empty_file(case: Case) -> None:
    case.star.write_text("")


def no_rows(case: Case) -> None:
    case.edit(lambda _, p: [values.clear() for values in p.values()])


def one_particle(case: Case) -> None:
    case.edit(lambda _, p: [values.__delitem__(slice(1, None)) for values in p.values()])


def a_run_is_there(case: Case) -> None:
    case.output.mkdir()
    (case.output / "summary.json").write_text("{}")


def a_file_is_there(case: Case) -> None:
    case.output.write_text("precious")


def nothing(case: Case) -> None:
    pass


def dark_particles(case: Case) -> None:
    write_map(case.stack, -read_map(case.stack, cubic=False).values, 5.0)


BAD_INPUT = [
    (no_star, [], ["particles.star", "check the path"]),
    (no_stack, [], ["particles.mrcs", "--datadir"]),
    (short_stack, [], ["particles.mrcs", f"{N}", f"{N + 1}"]),
    (cut_stack, [], ["particles.mrcs", "truncated"]),
    (image_zero, [], ["row 4", "000000@particles.mrcs"]),
    (no_pose, [], ["rlnAngleTilt"]),
    (no_defocus, [], ["rlnDefocusV"]),
    (no_voltage, [], ["rlnVoltage"]),
    (nan_pixel, [], ["000008@particles.mrcs", "NaN"]),
    (infinite_pixel, [], ["000001@particles.mrcs", "infinite"]),
    (constant_image, [], [f"{N:06d}@particles.mrcs", "constant"]),
    (no_pixel_size, [], ["--pixel-size"]),
    (two_pixel_sizes, [], ["5.2", "--pixel-size"]),
    (two_box_sizes, [], ["two box sizes", "24", "32"]),
    (empty_file, [], ["particles.star"]),
    (no_rows, [], ["particles.star"]),
    (one_particle, [], ["1 particle"]),
    (a_run_is_there, [], ["run", "--overwrite"]),
    (a_file_is_there, [], ["run", "not a folder"]),
    (nothing, ["--n-gaussians", "0"], ["--n-gaussians 0"]),
    (nothing, ["--n-gaussians", "-5"], ["--n-gaussians -5"]),
    (nothing, ["--pixel-size", "-1.5"], ["--pixel-size"]),
    (nothing, ["--pixel-size", "nan"], ["--pixel-size"]),
    (nothing, ["--sharpen", "nan"], ["--sharpen"]),
    (nothing, ["--max-resolution", "inf"], ["--max-resolution"]),
    (nothing, ["--threads", "0"], ["--threads"]),
    (nothing, ["--mask-diameter", "0"], ["--mask-diameter"]),
    (nothing, ["--seed", "-1"], ["--seed"]),
    (nothing, ["--symmetry", "X7"], ["X7", "D1"]),
    (dark_particles, [], ["dark", "add --invert"]),
    (nothing, ["--invert"], ["dark", "leave out --invert"]),
]


@pytest.mark.parametrize(
    ("spoil", "options", "culprits"), BAD_INPUT, ids=[" ".join([f.__name__, *o]) for f, o, _ in BAD_INPUT]
)
def test_bad_input_is_one_line(
    spoil: Callable[[Case], None], options: list[str], culprits: list[str], case: Case, run: Callable[..., Outcome]
) -> None:
    spoil(case)
    before = files_below(case.folder)
    done = run("reconstruct", case.star, "-o", case.output, *options)
    assert done.code == 2
    assert done.err.startswith("emsplat: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.out + done.err
    for culprit in culprits:
        assert culprit in done.err
    assert files_below(case.folder) == before


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        (["simulate", "missing.pdb"], ["missing.pdb"]),
        (["simulate", "particles.star"], ["particles.star"]),
        (["simulate", "truth.mrc", "--snr", "0"], ["snr"]),
        (["simulate", "truth.mrc", "--n-images", "0"], ["n_images"]),
        (["simulate", "truth.mrc", "--like", "missing.star"], ["missing.star"]),
    ],
)
def test_bad_input_to_simulate(
    arguments: list[str], culprits: list[str], case: Case, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(case.folder)
    before = files_below(case.folder)
    done = run(*arguments, "-o", "images", "--box-size", BOX, "--pixel-size", 5)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert all(culprit in done.err for culprit in culprits)
    assert files_below(case.folder) == before


@pytest.mark.parametrize("option", [["--n-gaussians", "many"], ["--no-such-option"], ["--output"]])
def test_misspelt_options_exit_with_2(option: list[str], case: Case, run: Callable[..., Outcome]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("reconstruct", case.star, "-o", case.output, *option)
    assert caught.value.code == 2


# fsc


def test_fsc_of_two_maps(case: Case, run: Callable[..., Outcome]) -> None:
    truth = read_map(case.folder / "truth.mrc").values
    noise = np.random.default_rng(0).normal(0, 2 * truth.std(), truth.shape)
    write_map(case.folder / "noisy.mrc", truth + noise, 5.0)
    files = (case.folder / "truth.mrc", case.folder / "noisy.mrc")
    figure = case.folder / "figure.png"
    done = run("fsc", *files, "--mask", case.folder / "mask.mrc", "-o", figure)
    assert (done.code, done.err) == (0, "")
    assert "masked = 0.5: " in done.out
    assert "= 0.143: " in done.out
    curve = [line.split() for line in done.out.splitlines()[1 : BOX // 2 + 1]]
    assert [int(row[0]) for row in curve] == list(range(1, BOX // 2 + 1))
    assert float(curve[7][1]) == pytest.approx(BOX * 5.0 / 8, abs=0.01)
    assert float(curve[0][3]) > 0.9
    assert figure.stat().st_size > 10_000
    assert "0.143: not reached" in run("fsc", files[0], files[0], "-o", figure).out


def not_cubic(folder: Path) -> None:
    write_map(folder / "b.mrc", np.ones((32, 32, 24)), 5.0)


def truncated(folder: Path) -> None:
    os.truncate(folder / "b.mrc", 5000)


def other_box(folder: Path) -> None:
    write_map(folder / "b.mrc", np.ones((24, 24, 24)), 5.0)


def other_pixel_size(folder: Path) -> None:
    write_map(folder / "b.mrc", np.ones((32, 32, 32)), 4.0)


def missing(folder: Path) -> None:
    (folder / "b.mrc").unlink()


def no_map(folder: Path) -> None:
    (folder / "b.mrc").write_text("not a map " * 200)


def one_voxel(folder: Path) -> None:
    for name in ("truth.mrc", "b.mrc"):
        write_map(folder / name, np.ones((1, 1, 1)), 5.0)


def not_finite(folder: Path) -> None:
    write_map(folder / "b.mrc", np.full((32, 32, 32), np.nan), 5.0)


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (not_cubic, "cube"),
        (truncated, "truncated"),
        (other_box, "24"),
        (other_pixel_size, "--pixel-size"),
        (missing, "b.mrc"),
        (no_map, "b.mrc"),
        (not_finite, "NaN"),
        (one_voxel, "a box of 1"),
    ],
)
def test_bad_maps_to_fsc(spoil: Callable[[Path], None], culprit: str, case: Case, run: Callable[..., Outcome]) -> None:
    (case.folder / "b.mrc").write_bytes((case.folder / "truth.mrc").read_bytes())
    spoil(case.folder)
    done = run("fsc", case.folder / "truth.mrc", case.folder / "b.mrc", "-o", case.folder / "figure.png")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert culprit in done.err
    assert not (case.folder / "figure.png").exists()


@pytest.mark.parametrize("size", ["-2", "0", "nan", "inf"])
def test_bad_pixel_size_to_fsc(size: str, case: Case, run: Callable[..., Outcome]) -> None:
    truth = case.folder / "truth.mrc"
    done = run("fsc", truth, truth, "--pixel-size", size, "-o", case.folder / "figure.png")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--pixel-size" in done.err


def test_a_reader_that_goes_away(case: Case) -> None:
    """As with `emsplat fsc A B | head -0`."""
    truth = case.folder / "truth.mrc"
    command = [sys.executable, "-m", "emsplat", "fsc", truth, truth, "-o", case.folder / "figure.png"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=PATIENCE) == 141


# Disk and keyboard


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("NO RIGHT TO MOUNT: a disk that fills up is untested here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up(case: Case, small_disk: Path, run: Callable[..., Outcome]) -> None:
    for arguments in (
        ("reconstruct", case.star, "-o", small_disk / "run"),
        ("simulate", case.folder / "truth.mrc", "-o", small_disk / "images", "--box-size", 64, "--pixel-size", 5),
    ):
        done = run(*arguments)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert "disk is full" in done.err
        assert os.listdir(small_disk) == []


@pytest.mark.usefixtures("signals_of_a_terminal")
def test_interrupts_leave_nothing(case: Case) -> None:
    """Ctrl-C, and a queue's SIGTERM, while the job is at work."""
    for sent in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-m", "emsplat", "reconstruct", case.star, "-o", case.output],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        while "images of" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(sent)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        assert err.splitlines() == ["emsplat: interrupted; no half-written file is left"]
        assert files_below(case.folder) == {"particles.star", "particles.mrcs", "truth.mrc", "mask.mrc"}


# What succeeds


def test_reconstruct_and_overwrite(case: Case, run: Callable[..., Outcome]) -> None:
    options = ("--n-gaussians", 50, "--sharpen", -20, "--symmetry", "c2", "--max-resolution", 12, "--threads", 1)
    done = run("reconstruct", case.star, "-o", case.output, *options)
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out  # no control characters where there is no terminal
    assert "\r" not in done.out
    for said in ("resolution", "images", "Gaussians", "peak memory", str(case.output / "map.mrc"), "figures"):
        assert said in done.out
    before = (case.output / "summary.json").stat().st_mtime_ns
    assert run("reconstruct", case.star, "-o", case.output).code == 2
    assert (case.output / "summary.json").stat().st_mtime_ns == before
    assert run("reconstruct", case.star, "-o", case.output, *options, "--overwrite").code == 0
    assert (case.output / "summary.json").stat().st_mtime_ns > before


def test_simulate(case: Case, run: Callable[..., Outcome]) -> None:
    arguments = ("simulate", case.folder / "truth.mrc", "-o", case.folder / "images", "--box-size", 24)
    done = run(*arguments, "--pixel-size", 6, "--n-images", 5, "--noise", "coloured", "--like", case.star)
    assert (done.code, done.err) == (0, "")
    assert files_below(case.folder / "images") == {"particles.star", "particles.mrcs", "truth.mrc", "mask.mrc"}
    assert "--overwrite" in run(*arguments).err


def test_demo(tmp_path: Path, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it on few images; the resolution claimed stands beside the true one."""
    small = replace(demo.IMAGES, n_images=200, box_size=40, pixel_size_in_angstroms=4.0)
    monkeypatch.setattr(demo, "IMAGES", small)
    done = run("demo", "-o", tmp_path / "demo", "--seed", -1)
    assert (done.code, done.err.count("\n")) == (2, 1)
    done = run("demo", "-o", tmp_path / "demo")
    assert (done.code, done.err) == (0, "")
    closing = done.out[done.out.index("\nresolution") :]
    assert "\ntrue resolution" in closing
    assert str(tmp_path / "demo" / "map.mrc") in closing
    assert str(tmp_path / "demo" / "figures") in closing
    assert "true_resolution" in (tmp_path / "demo" / "summary.json").read_text()


def test_version_and_help_come_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"emsplat {emsplat.__version__}\n"
    code = (
        "import sys, emsplat, emsplat.cli\n"
        "heavy = {'torch', 'numba', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "emsplat.cli.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("reconstruct", "simulate", "fsc", "demo"):
        assert command in done.stdout
    done = subprocess.run([sys.executable, "-m", "emsplat", "--version"], capture_output=True, text=True)
    assert done.stdout == f"emsplat {emsplat.__version__}\n"


def test_public_names() -> None:
    for name in emsplat.__all__:
        assert getattr(emsplat, name) is not None
    assert callable(emsplat.reconstruct)
    assert callable(emsplat.simulate)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = emsplat.nonsense

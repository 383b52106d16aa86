"""`emsplat subset` and `emsplat export` as typed: what is said, and the exit code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emsplat.cli import main
from emsplat.io.star import read_star
from emsplat.models.gaussians import Gaussians

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Runs a command in an empty folder; exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def test_subset(typed: Typed, simulated: Path) -> None:
    Path("ids.csv").write_text("000003@particles.mrcs\n000001@particles.mrcs\n")
    star = simulated / "particles.star"
    assert typed("subset", star, "-o", "few.star", "--keep", "ids.csv") == (0, "2 of 600 particles: few.star\n", "")
    assert len(read_star("few.star")["particles"]) == 2
    code, _, err = typed("subset", star, "-o", "few.star", "--drop", "ids.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert "--overwrite" in err
    assert typed("subset", star, "-o", "few.star", "--drop", "ids.csv", "--overwrite")[0] == 0
    assert len(read_star("few.star")["particles"]) == 598

    shutil.copy("few.star", "copy.star")
    before = Path("copy.star").read_bytes()
    code, _, err = typed("subset", "copy.star", "-o", "copy.star", "--keep", "ids.csv", "--overwrite")
    assert (code, err.count("\n")) == (2, 1)
    assert Path("copy.star").read_bytes() == before


def test_export(typed: Typed) -> None:
    os.mkdir("run")
    Path("run/summary.json").write_text('{"box_size": 32, "pixel_size": 2.0}')
    one = Gaussians(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.zeros(1))
    one.save(Path("run/gaussians.safetensors"))
    assert typed("export", "run", "--format", "mrc", "--pixel-size", 1.5, "--box-size", 40) == (0, "run.mrc\n", "")
    assert typed("export", "run", "--format", "cif", "-o", "atom.cif") == (0, "atom.cif\n", "")
    for arguments in (("run", "--format", "mrc"), ("nowhere", "--format", "ply"), ("run", "--format", "relion")):
        code, _, err = typed("export", *arguments)
        assert (code, err.count("\n")) == (2, 1)


def test_an_unknown_format_is_told_the_known_ones(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        typed("export", "run", "--format", "obj")
    assert caught.value.code == 2
    captured = capsys.readouterr()
    for known in ("ply", "cif", "mrc", "relion"):
        assert known in captured.out + captured.err

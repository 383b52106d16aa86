"""What is handed out: a wheel with every file that the program needs, and the facts about how to cite it."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from emsplat.versions import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as pip builds it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "hatchling" in built.stderr and "No matching distribution" in built.stderr:
        pytest.skip("the build backend cannot be fetched here")
    assert built.returncode == 0, built.stderr
    [path] = folder.glob("emsplat-*.whl")
    return path


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("emsplat/")}
    files = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "src/emsplat"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name.removeprefix("src/") for name in files} == packed
    assert {
        "emsplat/data/7pbl.pdb.gz",
        "emsplat/report/vendor/three.min.js",
        "emsplat/report/templates/report.html",
    } <= packed


def test_the_wheel_has_commands_licences_and_version(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        facts = [name for name in archive.namelist() if ".dist-info/" in name]
        texts = {name.partition("dist-info/")[2]: archive.read(name).decode() for name in facts}
    assert "emsplat = emsplat.cli:main" in texts["entry_points.txt"]
    assert "emsplat-relion = emsplat.commands.relion_job:main" in texts["entry_points.txt"]
    assert f"\nVersion: {__version__}\n" in texts["METADATA"]
    assert {"licenses/LICENSE", "licenses/src/emsplat/report/vendor/three.LICENSE"} <= set(texts)


def test_the_program_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    found = "import emsplat.cli, sys; print(emsplat.cli.__file__); sys.exit(emsplat.cli.main(['--help']))"
    ran = subprocess.run(
        [sys.executable, "-c", found], capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path)}
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(tmp_path))
    assert "reconstruct" in ran.stdout


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^version: {re.escape(__version__)}$", text, re.M)
    assert text.startswith("cff-version: 1.2.0\n")

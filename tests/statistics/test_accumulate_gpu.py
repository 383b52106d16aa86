"""What runs on a graphics card, without one: by Triton's interpreter, and compiled for cards that are not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="NO TRITON: kernels for graphics cards untested; pip install triton")
on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card here")
TESTS = Path(__file__).resolve().parents[1]
PARTS = ("splats", "statistics", "insertion", "search")
ONLY_ON_A_CARD = {"splats": 2}  # tests of memory, streams and graphs


def run(arguments: list[str], **environment: str) -> str:
    """The output of a Python of its own, which must end well; Triton reads its environment when it is imported."""
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS.parent,
        env=os.environ | environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def passes(part: str, interpret: bool) -> None:
    file = TESTS / "interpreted" / f"{part}.py"
    output = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)], TRITON_INTERPRET=str(int(interpret)))
    assert " passed" in output
    skipped = re.search(r"(\d+) skipped", output)
    assert int(skipped[1] if skipped else 0) == (ONLY_ON_A_CARD.get(part, 0) if interpret else 0)


@pytest.fixture(scope="module")
def interpreted() -> Iterator[dict[str, Future[None]]]:
    """All parts, two at a time: each keeps one core busy for long."""
    with ThreadPoolExecutor(2) as pool:
        yield {part: pool.submit(passes, part, interpret=True) for part in PARTS}


@pytest.mark.parametrize("part", PARTS)
def test_by_the_interpreter(part: str, interpreted: dict[str, Future[None]]) -> None:
    interpreted[part].result()


@on_a_card
@pytest.mark.parametrize("part", PARTS)
def test_on_the_card(part: str) -> None:
    passes(part, interpret=False)


# As it is launched: torch's memory begins at multiples of 16 bytes and more, which the compiler makes use of.
COMPILE = r"""
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from emsplat.fourier.insertion_gpu import _VALUES, _insert
from splat.gpu_compile import resources

arrays = {"grids": "*fp32", "slices": "*fp32", "frames": "*fp32", "ends": "*fp32", "sets": "*i32", "images": "*i32",
          "weights": "*fp32", "samples": "*i32"}
numbers = dict.fromkeys(("n_samples", "box_size", "planes", "across"), "i32")
names = {**arrays, "taps": "*fp32", "scale": "fp32", **numbers, "LISTED": "constexpr", "COMPONENTS": "constexpr",
         "BLOCK": "constexpr"}
for capability in (80, 90):
    for lanes, listed in ((4, False), (8, False), (8, True)):
        constants = {"LISTED": listed, "COMPONENTS": lanes // 4, "BLOCK": _VALUES // lanes}
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(names.values()) if kind.startswith("*")}
        source = ASTSource(fn=_insert, signature=names, constexprs=constants, attrs=aligned)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
        adds = re.findall(r"(?:red|atom)[.]global[.][\w.]+", made.asm["ptx"])
        [of_adds] = set(re.findall(r"atomic_rmw.* #(\w+)[>][)] -[>]", made.asm["ttgir"]))
        layout = re.search(rf"#{of_adds} = .*?sizePerThread = \[1, (\d+)\], threadsPerWarp = \[\d+, (\d+)\]",
                           made.asm["ttgir"])
        spilled = resources(made.asm["cubin"])["STACK"]
        print(capability, lanes, listed, *sorted(set(adds)), len(adds), *layout.groups(), spilled)
"""


def test_the_insertion_kernel_compiles_for_cards() -> None:
    """To reductions without a result and without a fence, a row of taps by neighbouring lanes, no register spilled.

    For compute capability 9 a lane has both parts of a complex value, and adds them at once.
    """
    found = run(["-W", "ignore", "-c", COMPILE], PYTHONPATH=os.pathsep.join([str(TESTS), *sys.path])).splitlines()
    one, two = "red.global.gpu.relaxed.add.f32 128", "red.global.gpu.relaxed.add.v2.f32 64"
    assert found == [
        *(f"80 4 False {one} 1 4 0", f"80 8 False {one} 1 8 0", f"80 8 True {one} 1 8 0"),
        *(f"90 4 False {one} 1 4 0", f"90 8 False {two} 2 4 0", f"90 8 True {two} 2 4 0"),
    ]

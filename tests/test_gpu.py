"""What runs on a graphics card, without one: by Triton's interpreter, and compiled for cards that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="NO TRITON: kernels for graphics cards untested; pip install triton")
HERE = Path(__file__).resolve().parent


def run(arguments: list[str], **environment: str) -> str:
    """The output of a Python of its own, which must end well; Triton reads its environment when it is imported."""
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=HERE.parent, env=os.environ | environment, timeout=600
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("part", ["insertion", "statistics"])
def test_by_the_interpreter(part: str) -> None:
    output = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted" / f"{part}.py")],
                 TRITON_INTERPRET="1")  # fmt: skip
    assert " passed" in output
    assert "skipped" not in output


COMPILE = r"""
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from emsplat.insertion_gpu import _VALUES, _insert

arrays = {"grids": "*fp32", "slices": "*fp32", "frames": "*fp32", "ends": "*fp32", "sets": "*i32", "samples": "*i32"}
numbers = dict.fromkeys(("n_samples", "box_size", "planes", "across"), "i32")
names = {**arrays, "taps": "*fp32", "scale": "fp32", **numbers, "COMPONENTS": "constexpr", "BLOCK": "constexpr"}
for capability in (80, 90):
    for lanes in (4, 8):
        constants = {"COMPONENTS": lanes // 4, "BLOCK": _VALUES // lanes}
        source = ASTSource(fn=_insert, signature=names, constexprs=constants)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert len(made.asm["cubin"]) > 0
        adds = re.findall(r"(?:red|atom)[.]global[.][\w.]+", made.asm["ptx"])
        layouts = re.findall(r"threadsPerWarp = \[(\d+), (\d+)\]", made.asm["ttgir"])
        print(capability, lanes, *sorted(set(adds)), len(adds), (str(32 // lanes), str(lanes)) in layouts)
"""


def test_the_insertion_kernel_compiles_for_cards() -> None:
    """To reductions without a result and without a fence, a row of the kernel by neighbouring lanes."""
    found = run(["-W", "ignore", "-c", COMPILE]).splitlines()
    assert found == [
        f"{capability} {lanes} red.global.gpu.relaxed.add.f32 128 True" for capability in (80, 90) for lanes in (4, 8)
    ]

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clouds import gaussians
from emsplat.splat import project, voxelise
from parity import poses

pytest.importorskip("triton", reason="NO TRITON: the splats' kernels for graphics cards untested; pip install triton")
HERE = Path(__file__).resolve().parent


def output_of(command: list[str]) -> str:
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout


def test_every_kernel_compiles_and_only_the_way_there_has_atomics() -> None:
    """What the interpreter lets pass, a compiler may refuse; no card is needed for it."""
    rows = json.loads(output_of([str(HERE / "gpu_compile.py")]))
    names = {row["kernel"] for row in rows}
    assert {row["kernel"] for row in rows if row["atomics"]} == {"gpu._splat", "gpu_projection._splat"}
    assert names > {"gpu._gradients", "gpu_projection._moments", "gpu_projection._pull_back", "gpu_projection._shadows"}
    assert len(rows) == 2 * len(names)
    for row in rows:
        assert row["spilled, bytes"] == 0, row


def test_importing_needs_no_triton_and_a_kernel_says_what_to_install() -> None:
    program = """
import sys
import emsplat.splat, emsplat.models.gaussians, torch
from emsplat.errors import InputError
from emsplat.splat.functions_gpu import kernels
assert not [name for name in sys.modules if name.startswith("emsplat.splat.gpu")]
sys.modules["triton"] = None
try:
    kernels("emsplat.splat.gpu", torch.device("cuda"))
except InputError as error:
    print(error)
"""
    message = output_of(["-c", program]).strip()
    assert message.count("\n") == 0
    assert "Triton" in message
    assert "pip install 'emsplat[gpu]'" in message


def test_a_tensor_elsewhere_is_refused() -> None:
    model, view = gaussians(3, 8), poses(2)
    with pytest.raises(ValueError, match="takes tensors on a CUDA device, and these are on cpu; use 'auto'"):
        voxelise(*model, 8, implementation="gpu")
    with pytest.raises(ValueError, match="takes tensors on a CUDA device, and these are on cpu; use 'auto'"):
        project(*model, *view, 8, implementation="gpu")
    with pytest.raises(ValueError, match="'gpu'"):
        voxelise(*model, 8, implementation="cuda")

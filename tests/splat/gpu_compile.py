"""Compiles every kernel of both splats for cards that need not be there, and prints what each takes, as JSON.

`test_gpu` and `benchmarks/gpu.py` run it in a process of its own: without Triton's interpreter, which lets pass what a
compiler refuses.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from emsplat.splat import gpu, gpu_projection

ARCHITECTURES = (80, 90)
TYPES = {
    **dict.fromkeys(("centres", "covariances", "precisions", "weights", "rotations", "origins"), "*fp64"),
    **dict.fromkeys(("found", "of_gaussians", "of_programs"), "*fp64"),
    **dict.fromkeys(("images", "volume", "cotangent", "moments", "numbers", "peaks"), "*fp32"),
    **dict.fromkeys(("n", "n_images", "box_size", "share"), "i32"),
    "order": "*i64",
    "reach": "*i32",
    "cutoff": "fp32",
}
CONSTANTS = {
    gpu._splat: dict(zip(("GAUSSIANS", "LANES"), gpu._ADDING, strict=True)),
    gpu._gradients: dict(zip(("GAUSSIANS", "LANES"), gpu._READING, strict=True)),
    gpu_projection._shadows: {"GAUSSIANS": gpu_projection._WIDE, "IMAGES": gpu_projection._IN_TURN},
    gpu_projection._splat: {"GAUSSIANS": gpu_projection._GAUSSIANS, "LANES": gpu_projection._ADDING},
    gpu_projection._moments: {"GAUSSIANS": gpu_projection._GAUSSIANS, "LANES": gpu_projection._READING},
    gpu_projection._pull_back: {"GAUSSIANS": gpu_projection._PULLED},
}
WARPS = {"_shadows": 4}


def kernels(module: ModuleType) -> list[Any]:
    """Those that are launched."""
    functions = [value for value in vars(module).values() if isinstance(value, triton.JITFunction)]
    return [f for f in functions if f.do_not_specialize]


def compiled(kernel: Any, constants: dict[str, int], architecture: int) -> Any:
    signature = {name: "constexpr" if name in constants else TYPES[name] for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": WARPS.get(kernel.__name__, 1), "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a lane, and bytes of stack: a spilled register lies there."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"\b(REG|STACK):(\d+)", text)}


def main() -> None:
    rows = []
    for module in (gpu_projection, gpu):
        for kernel in kernels(module):
            for architecture in ARCHITECTURES:
                found = compiled(kernel, CONSTANTS[kernel], architecture)
                used = resources(found.asm["cubin"])
                ptx = found.asm["ptx"]
                rows.append(
                    {
                        "kernel": f"{module.__name__.split('.')[-1]}.{kernel.__name__}",
                        "architecture": f"sm_{architecture}",
                        "registers": used["REG"],
                        "spilled, bytes": used["STACK"],
                        "shared memory, bytes": found.metadata.shared,
                        "atomics": len(re.findall(r"\b(?:red|atom)\.", ptx)),
                    }
                )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

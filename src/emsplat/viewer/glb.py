"""Triangles with colours as binary glTF, which browsers can draw.

Source: Khronos, glTF 2.0 specification, sections 3.6 to 3.9 and 4 (binary container).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLOAT, _UNSIGNED_INT = 5126, 5125
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963
_ROUGHNESS = 0.65


@dataclass(frozen=True)
class Mesh:
    """Triangles whose corners run counter-clockwise as seen from outside."""

    places: NDArray[np.float32]  # (V, 3) Å, x y z
    normals: NDArray[np.float32]  # (V, 3) outwards
    faces: NDArray[np.uint32]  # (F, 3)

    def glb(self, colours: NDArray[np.floating], opacity: float = 1.0) -> bytes:
        """A binary glTF file; (V, 3) colours in shares of 1, as a screen takes them."""
        linear = np.asarray(colours, dtype=np.float32) ** np.float32(2.2)  # glTF wants linear light
        arrays = (
            (self.places, "VEC3", _FLOAT, _ARRAY_BUFFER),
            (self.normals, "VEC3", _FLOAT, _ARRAY_BUFFER),
            (linear, "VEC3", _FLOAT, _ARRAY_BUFFER),
            (self.faces.reshape(-1), "SCALAR", _UNSIGNED_INT, _ELEMENT_BUFFER),
        )
        views: list[dict[str, Any]] = []
        accessors: list[dict[str, Any]] = []
        data = b""
        for number, (array, kind, component, target) in enumerate(arrays):
            raw = np.ascontiguousarray(array).astype("<f4" if component == _FLOAT else "<u4").tobytes()
            views.append({"buffer": 0, "byteOffset": len(data), "byteLength": len(raw), "target": target})
            accessors.append({"bufferView": number, "componentType": component, "count": len(array), "type": kind})
            data += raw
        accessors[0] |= {"min": self.places.min(axis=0).tolist(), "max": self.places.max(axis=0).tolist()}
        attributes = {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}
        material = {
            "pbrMetallicRoughness": {
                "baseColorFactor": [1, 1, 1, opacity], "metallicFactor": 0, "roughnessFactor": _ROUGHNESS,
            },
            "alphaMode": "OPAQUE" if opacity >= 1 else "BLEND",
        }  # fmt: skip
        description = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [{"attributes": attributes, "indices": 3, "material": 0}]}],
            "materials": [material],
            "buffers": [{"byteLength": len(data)}],
            "bufferViews": views,
            "accessors": accessors,
        }
        text = json.dumps(description).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + len(data)
        header = struct.pack("<4sII", b"glTF", 2, total) + struct.pack("<I4s", len(text), b"JSON")
        return header + text + struct.pack("<I4s", len(data), b"BIN\x00") + data

"""Arrays come out of pickles as `pickle` itself gives them; everything else is refused and nothing is executed."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from emsplat.errors import InputError
from emsplat.io.unpickle import read_arrays

POSES = (np.arange(45.0).reshape(5, 3, 3), np.linspace(-1, 1, 10).reshape(5, 2))
VALUES = [
    POSES,
    POSES[0],
    (POSES[0],),
    POSES[0].astype(np.float32),
    np.arange(6, dtype=np.int16).reshape(2, 3),
    np.asfortranarray(POSES[1]),
    POSES[1].astype(">f4"),
    (POSES[0], POSES[0]),  # one object twice: fetched from the pickle's memory
]


def assert_same(found, value):
    expected = value if isinstance(value, tuple) else (value,)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype.newbyteorder("=")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_arrays_of_every_protocol(tmp_path, value, protocol):
    path = tmp_path / "value.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert_same(read_arrays(path), value)


@pytest.mark.parametrize("version", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_either_version_of_numpy(tmp_path, version):
    raw = pickle.dumps(POSES, 2)  # names are lines of text in this protocol
    written_here = next(name for name in (b"numpy._core.multiarray", b"numpy.core.multiarray") if name in raw)
    path = tmp_path / "value.pkl"
    path.write_bytes(raw.replace(written_here, version.encode()))
    assert_same(read_arrays(path), POSES)


def test_real_pickles(shared_data):
    for name in ("real/ribosome-sta/sta_pose.pkl", "real/ribosome-sta/sta_ctf.pkl", "metadata/pose.cs.pkl"):
        assert_same(read_arrays(shared_data / name), pickle.loads((shared_data / name).read_bytes()))


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


OTHER = {
    "None": None,
    "a number": 3.0,
    "a list": [POSES[0]],
    "a dictionary": {"rotations": POSES[0]},
    "an empty tuple": (),
    "no translations": (POSES[0], None),
    "nested": (POSES,),
    "objects": np.array([None]),
    "texts": np.array(["a"]),
    "records": np.zeros(3, "f4,i4"),
    "dates": np.zeros(3, "M8[s]"),
    "complex": np.zeros(3, complex),
    "a scalar": np.float64(3),
    "a type": np.ndarray,
    "a large array": Hostile(np.zeros, 10**13),
}


@pytest.mark.parametrize("case", OTHER)
def test_anything_else_is_refused(tmp_path, refuses, case):
    path = tmp_path / "value.pkl"
    path.write_bytes(pickle.dumps(OTHER[case]))
    with refuses("value.pkl", "only a pickle of NumPy arrays"):
        read_arrays(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("inside", [lambda call: call, lambda call: (POSES[0], call), lambda call: (call, POSES[1])])
def test_nothing_is_executed(tmp_path, refuses, protocol, inside):
    trace, path = tmp_path / "trace", tmp_path / "value.pkl"
    for call in (Hostile(os.system, f"touch {trace}"), Hostile(eval, f"open({str(trace)!r}, 'w')")):
        raw = pickle.dumps(inside(call), protocol)
        path.write_bytes(raw)
        with refuses("value.pkl"):
            read_arrays(path)
        assert not trace.exists()
        pickle.loads(raw)  # the attack is real
        assert trace.exists()
        trace.unlink()


def claims() -> dict[str, bytes]:
    """Pickles of a few bytes that claim a lot of memory."""
    shape = b"(\x8a\x06" + (10**13).to_bytes(6, "little") + b"t"
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R(K\x03X\x01\x00\x00\x00<tb"
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    return {
        "size at construction": b"\x80\x03" + reconstruct + shape + b"C\x01b\x87R.",
        "size of the state": b"\x80\x03"
        + reconstruct
        + b"K\x00\x85C\x01b\x87R(K\x01"
        + shape
        + dtype
        + b"\x89C\x01xtb.",
        "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"few.",
        "a byte array": b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b"few.",
        "a text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"few.",
        "a frame": b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"N.",
        "a place in memory": b"\x80\x03K\x01r" + struct.pack("<I", 2**32 - 1) + b".",
        "a number": b"\x80\x03\x8b" + struct.pack("<i", 2**31 - 1) + b"few.",
        "a negative length": b"\x80\x03\x8b" + struct.pack("<i", -5) + b"few.",
        "many instructions": b"\x80\x03" + b"K\x01" * 20_000 + b".",
        "nothing": b"",
        "no end": b"\x80\x03K\x01",
        "an empty stack": b"\x80\x03.",
        "an unknown place in memory": b"\x80\x03h\x07.",
    }


@pytest.mark.parametrize("case", claims())
def test_claims_cost_no_memory(tmp_path, refuses, case):
    path = tmp_path / "value.pkl"
    path.write_bytes(claims()[case])
    tracemalloc.start()
    with refuses("value.pkl"):
        read_arrays(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_damaged_pickles_are_arrays_or_one_line(tmp_path, protocol):
    raw = pickle.dumps(POSES, protocol)
    rng = np.random.default_rng(protocol)
    path = tmp_path / "value.pkl"
    refused = 0
    for _ in range(200):
        damaged = bytearray(raw[: rng.integers(len(raw))] if rng.random() < 0.3 else raw)
        for position in rng.integers(len(damaged), size=rng.integers(1, 4)) if damaged else ():
            damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            arrays = read_arrays(path)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert all(isinstance(array, np.ndarray) and array.dtype.kind in "fiu" for array in arrays)
    assert refused > 50


def test_what_is_no_file(tmp_path, refuses):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("absent.pkl", "cannot be read"), (".", "not a file"), ("pipe", "not a file")):
        with refuses(reason):
            read_arrays(tmp_path / name)

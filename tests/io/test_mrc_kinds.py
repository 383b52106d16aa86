"""Bytes with and without sign, origins of either sign, and files that are no MRC files at all."""

from __future__ import annotations

import bz2
import gzip

import numpy as np
import pytest

from emsplat.io import StackReader, read_map

STAMP, SIGNED, STANDARD_ORIGIN = 1146047817, 1, 4
RAMP = np.arange(-128, 128).reshape(4, 8, 8)


def written(
    path, values, mode, *, flags=None, span=None, version=0, origin=(0.0, 0.0, 0.0), extended=0, start=(0, 0, 0)
):
    words = np.zeros(256, "<i4")
    reals = words.view("<f4")
    sections, rows, columns = values.shape
    words[:4] = columns, rows, sections, mode
    words[4:7] = start
    words[7:10] = columns, rows, sections
    reals[10:13] = 2.0 * np.array([columns, rows, sections])
    reals[13:16] = 90
    words[16:19] = 1, 2, 3
    reals[19:21] = (values.min(), values.max()) if span is None else span
    words[23], words[27] = extended, version
    if flags is not None:
        words[38:40] = STAMP, flags
    reals[49:52] = origin
    words[52:54] = np.frombuffer(b"MAP DD\0\0", "<i4")
    path.write_bytes(words.tobytes() + values.tobytes())
    return path


def read(path):
    with StackReader(path) as reader:
        return reader.read(np.arange(reader.shape[0]))


@pytest.mark.parametrize(
    ("type_", "options"),
    [
        ("i1", {"flags": SIGNED}),
        ("u1", {"flags": 0}),
        ("i1", {}),  # by its range
        ("u1", {}),
        ("i1", {"flags": SIGNED, "span": (0, 0)}),
        ("u1", {"flags": 0, "span": (0, 0)}),
        ("i1", {"span": (0, -1), "version": 20140}),  # nothing but the standard
        ("u1", {"span": (0, 255), "version": 20140}),  # which its writer did not keep to
    ],
)
def test_bytes_have_the_sign_that_stamp_and_range_say(tmp_path, type_, options):
    values = RAMP.astype("i1") if type_ == "i1" else (RAMP + 128).astype("u1")
    np.testing.assert_array_equal(read(written(tmp_path / "a.mrcs", values, 0, **options)), values.astype("f4"))


def test_bytes_of_which_nothing_tells_the_sign_are_refused(tmp_path, refuses):
    with refuses("nothing tells whether they are signed", "mode 2"):
        read(written(tmp_path / "a.mrcs", RAMP.astype("i1"), 0, span=(0, 0)))
    with refuses("nothing tells whether they are signed", "0 to 300"):  # a range that bytes cannot have
        read(written(tmp_path / "a.mrcs", RAMP.astype("i1"), 0, span=(0, 300)))
    with refuses("signed", "range from 0 to 255", "mode 2"):
        read(written(tmp_path / "a.mrcs", (RAMP + 128).astype("u1"), 0, flags=SIGNED))
    with refuses("unsigned", "range from -128 to 127"):
        read(written(tmp_path / "a.mrcs", RAMP.astype("i1"), 0, flags=0))
    with refuses("4-bit"):
        read(written(tmp_path / "a.mrcs", RAMP.astype("i1"), 0, flags=16))


def test_words_that_range_beyond_their_sign_have_none(tmp_path):
    values = (np.arange(128) * 512).reshape(2, 8, 8).astype("u2")
    np.testing.assert_array_equal(read(written(tmp_path / "a.mrcs", values, 1)), values.astype("f4"))
    signed = (values.astype("i4") - 32768).astype("i2")
    np.testing.assert_array_equal(read(written(tmp_path / "a.mrcs", signed, 1)), signed.astype("f4"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (-40, 20, 8)),
        ({"flags": STANDARD_ORIGIN}, (-40, 20, 8)),
        ({"flags": 0}, (40, -20, -8)),
        ({"flags": 0, "version": 20140}, (-40, 20, 8)),
    ],
)
def test_the_origin_has_the_sign_of_the_standard(tmp_path, options, expected):
    cube = np.random.default_rng(0).random((8, 8, 8)).astype("f4")
    found = read_map(written(tmp_path / "a.mrc", cube, 2, origin=(-40, 20, 8), **options))
    np.testing.assert_array_equal(found.origin_in_angstroms, expected)


def test_start_indices_place_a_map_without_an_origin(tmp_path):
    cube = np.random.default_rng(0).random((8, 8, 8)).astype("f4")
    found = read_map(written(tmp_path / "a.mrc", cube, 2, start=(-4, 2, 1)))
    np.testing.assert_array_equal(found.origin_in_angstroms, (-8, 4, 2))


def test_a_missing_extended_header_is_named(tmp_path, refuses):
    with refuses("short by 1024 bytes", "extended header"):
        read(written(tmp_path / "a.mrcs", RAMP.astype("f4"), 2, extended=1024))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(bytes(5000), mtime=0), ["gzip", "gunzip -k"]),
        (bz2.compress(bytes(5000)), ["bzip2", "bunzip2 -k"]),
        (b"\x28\xb5\x2f\xfd" + bytes(3000), ["zstd", "unzstd -k"]),
        (b"\x89HDF\r\n\x1a\n" + bytes(3000), ["HDF5", "convert"]),
        (b"II*\0\x08\0\0\0" + bytes(3000), ["TIFF", "convert"]),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
            ["large-file storage", "git lfs pull"],
        ),
        (b"../../.git/annex/objects/a/b/SHA256E-s5--0/SHA256E-s5--0", ["git-annex", "git annex get"]),
        (b"/annex/objects/SHA256E-s5--0\n", ["git-annex"]),
        (b"<!DOCTYPE html><html>" + b"x" * 2000, ["web page", "download"]),
        (b"\n<HTML>" + b"x" * 2000, ["web page"]),
        (b"7z\xbc\xaf\x27\x1c" + bytes(3000), ["7z archive", "7z x"]),
        (b"\x04\x22\x4d\x18" + bytes(3000), ["lz4", "unlz4"]),
        (b"\x1f\x9d" + bytes(3000), ["compress", "uncompress"]),
        (b"stack.mrcs".ljust(257, b"\0") + b"ustar\0" + bytes(3000), ["tar archive", "tar xf"]),
        (b"%PDF-1.7\n" + bytes(3000), ["PDF"]),
        (b'{"Message": "not found"}\n' + b" " * 2000, ["text file", '{"Message": "not found"}']),
        (b"no such key", ["text file", "no such key"]),
    ],
)
def test_other_files_are_named_as_what_they_are(tmp_path, refuses, content, said):
    (tmp_path / "a.mrcs").write_bytes(content)
    with refuses("not an MRC file", *said):
        read(tmp_path / "a.mrcs")

"""Compressed maps and star files: what is read of them, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from importlib import import_module, util

import numpy as np
import pytest

from emsplat.check.compare import compare
from emsplat.io import read_map, read_particles, read_star, write_map
from emsplat.io.compressed import Bound, open_plain
from emsplat.io.subset import subset
from emsplat.settings import InputSettings
from emsplat.simulation import SimulationSettings, simulate


def _zstd(data: bytes) -> bytes:
    if util.find_spec("zstandard") is None:
        pytest.skip("NO ZSTANDARD: compressed files of that kind are untested")
    return import_module("zstandard").compress(data)


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd}


@pytest.fixture(params=COMPRESS)
def packed(request):
    """Writes a compressed copy of a file beside it, and returns its path."""

    def pack(path):
        copy = path.with_name(path.name + request.param)
        copy.write_bytes(COMPRESS[request.param](path.read_bytes()))
        return copy

    return pack


@pytest.fixture
def volume(tmp_path):
    values = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    write_map(tmp_path / "a.map", values, 3.0, [1.0, 2.0, 3.0])
    return tmp_path / "a.map"


def test_a_map_is_the_same(packed, volume):
    plain, found = read_map(volume), read_map(packed(volume))
    np.testing.assert_array_equal(found.values, plain.values)
    assert found.pixel_size_in_angstroms == 3.0
    np.testing.assert_array_equal(found.origin_in_angstroms, plain.origin_in_angstroms)
    assert compare(volume, packed(volume), None, volume.with_name("f.png"))[0.5] is None


def test_an_extended_header_is_passed_over(packed, volume):
    raw = bytearray(volume.read_bytes())
    raw[92:96] = (5000).to_bytes(4, "little")
    volume.write_bytes(bytes(raw[:1024]) + bytes(5000) + bytes(raw[1024:]))
    np.testing.assert_array_equal(read_map(packed(volume)).values, read_map(volume).values)


def test_a_star_is_the_same_and_a_part_of_it_is_written(packed, dataset, tmp_path):
    star = dataset()
    found = read_particles(packed(star))
    np.testing.assert_array_equal(found.ids, read_particles(star).ids)
    assert {n: t.columns for n, t in read_star(packed(star)).items()} == {
        n: t.columns for n, t in read_star(star).items()
    }
    (tmp_path / "ids").write_text(found.ids[0])
    outs = [tmp_path / "one.star", tmp_path / "other.star"]
    for source, out in zip((star, packed(star)), outs, strict=True):
        subset(source, out, InputSettings(drop=tmp_path / "ids"))
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_a_map_can_be_simulated_from(packed, volume, dataset, tmp_path):
    settings = SimulationSettings(n_images=4, box_size=16, pixel_size_in_angstroms=3.0)
    names = {}
    for model in (volume, packed(volume)):
        folder = tmp_path / f"of_{model.suffix}"
        simulate(model, folder, settings)
        names[model] = (folder / "truth.mrc").read_bytes()
    assert len(set(names.values())) == 1


@pytest.mark.parametrize("cut", [30, 700])
def test_damaged_files_are_refused(packed, volume, dataset, refuses, cut):
    for path, read in ((packed(volume), read_map), (packed(dataset()), read_particles)):
        whole = path.read_bytes()
        path.write_bytes(whole[:-cut])
        with refuses(path.name):
            read(path)
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes(b ^ 0x55 for b in whole[middle : middle + 8]) + whole[middle + 8 :])
        with refuses(path.name):
            read(path)


@pytest.mark.parametrize("cut", [3, 1 << 16])
def test_a_star_that_lost_its_end_is_not_a_shorter_star(packed, tmp_path, refuses, cut):
    star = tmp_path / "long.star"
    numbers = np.random.default_rng(0).normal(size=30_000)
    rows = (f"{row}@a.mrcs {number:.6f}" for row, number in enumerate(numbers, 1))
    star.write_text("\n".join(["data_particles", "loop_", "_rlnImageName #1", "_rlnAngleRot #2", *rows, ""]))
    path = packed(star)
    assert len(read_star(path)["particles"]) == 30_000
    path.write_bytes(path.read_bytes()[:-cut])
    with refuses(path.name, "cannot be unpacked"):
        read_star(path)


def test_the_frames_of_zstd_follow_one_another(tmp_path):
    texts = [b"a" * 5_000_000, b"", b"bc" * 3]
    (tmp_path / "a.zst").write_bytes(b"".join(map(_zstd, texts)))
    with open_plain(tmp_path / "a.zst") as file:
        assert file.read() == b"".join(texts)


def test_a_wrong_checksum_is_found_behind_the_last_voxel(volume, refuses):
    path = volume.with_suffix(".gz")
    raw = bytearray(gzip.compress(volume.read_bytes()))
    raw[-8] ^= 1  # of the CRC
    path.write_bytes(raw)
    with refuses(path.name, "cannot be unpacked", "CRC"):
        read_map(path)


def test_a_truncated_map_is_refused_as_what_it_is(packed, volume, refuses):
    volume.write_bytes(volume.read_bytes()[:-4000])
    path = packed(volume)
    with refuses(path.name, "truncated", "of 16"):
        read_map(path)


def test_a_map_of_more_bytes_than_the_machine_has_is_not_unpacked(packed, volume, refuses):
    raw = bytearray(volume.read_bytes())
    raw[:12] = b"".join((60000).to_bytes(4, "little") for _ in range(3))
    volume.write_bytes(raw)
    with refuses("memory"):
        read_map(packed(volume))


def test_a_bomb_is_bounded(tmp_path, refuses):
    path = tmp_path / "a.star.gz"
    path.write_bytes(gzip.compress(b"data_\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n" + b"1@a 1\n" * 200_000))
    small = Bound(in_bytes=1000, ratio=1)
    with refuses("a.star.gz", "unpack to more than"), open_plain(path, small) as file:
        while file.read(1 << 16):
            pass
    with open_plain(path) as file:
        assert sum(iter(lambda: len(file.read(1 << 16)), 0)) > 1_000_000
    assert small.of(5000) == 5000
    assert small.of(10) == 1000


def test_bytes_after_the_map_are_bounded(tmp_path, volume, refuses):
    path = tmp_path / "b.map.gz"
    path.write_bytes(gzip.compress(volume.read_bytes() + bytes(1000)))
    assert read_map(path).values.shape == (16, 16, 16)
    path.write_bytes(gzip.compress(volume.read_bytes() + bytes(65 << 20), 1))
    with refuses("b.map.gz", "far more than its header claims"):
        read_map(path)


def test_zstd_without_its_module_says_what_to_install(tmp_path, monkeypatch, refuses):
    (tmp_path / "a.map.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(2000))
    for name in ("zstandard", "compression.zstd", "compression"):
        monkeypatch.setitem(sys.modules, name, None)
    with refuses("a.map.zst", "pip install zstandard", "unzstd -k"):
        read_map(tmp_path / "a.map.zst")


def test_other_compressed_tables_are_named(tmp_path, refuses):
    (tmp_path / "a.cs.gz").write_bytes(gzip.compress(b"\x93NUMPY" + bytes(5000)))
    with refuses("a.cs.gz", "compressed with gzip", "gunzip -k"):
        read_particles(tmp_path / "a.cs.gz")

"""Files of unexpected kinds, recognised by their first bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What a file is, and what to do with it; `remedy` may hold ``{path}``."""

    name: str
    remedy: str


_UNPACK = "unpack it first: {command} {{path}}"
_STARTS = (
    (b"\x1f\x8b\x08", Kind("compressed with gzip", _UNPACK.format(command="gunzip -k"))),
    (b"BZh", Kind("compressed with bzip2", _UNPACK.format(command="bunzip2 -k"))),
    (b"\x28\xb5\x2f\xfd", Kind("compressed with zstd", _UNPACK.format(command="unzstd -k"))),
    (b"\xfd7zXZ\0", Kind("compressed with xz", _UNPACK.format(command="unxz -k"))),
    (b"PK\x03\x04", Kind("a zip archive", _UNPACK.format(command="unzip"))),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", _UNPACK.format(command="7z x"))),
    (b"\x04\x22\x4d\x18", Kind("compressed with lz4", _UNPACK.format(command="unlz4 -k"))),
    (b"\x1f\x9d", Kind("compressed with compress", _UNPACK.format(command="uncompress"))),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file", "convert it, with EMAN2: e2proc2d.py {path} particles.mrcs")),
    (b"II*\0", Kind("a TIFF file", "convert it, with IMOD: tif2mrc {path} particles.mrcs")),
    (b"MM\0*", Kind("a TIFF file", "convert it, with IMOD: tif2mrc {path} particles.mrcs")),
    (b"II+\0", Kind("a BigTIFF file", "convert it, with IMOD: tif2mrc {path} particles.mrcs")),
    (b"\x89PNG", Kind("a PNG picture", "give the stack of images that belongs there")),
    (b"%PDF-", Kind("a PDF document", "give the stack of images that belongs there")),
    (b"SIMPLE  =", Kind("a FITS file", "convert it to MRC")),
    (b"\x93NUMPY", Kind("a NumPy array or a cryoSPARC table", "give the stack of images that it names")),
    (b"version https://git-lfs", Kind(
        "a pointer of Git's large-file storage, without the data", "fetch them where it came from: git lfs pull"
    )),
    (b"/annex/objects/", Kind("a pointer of git-annex, without the data", "fetch them: git annex get {path}")),
    (b"data_", Kind("a star file", "give the stack of images that it names")),
)  # fmt: skip
_TAR, _TAR_AT = b"ustar", 257  # the mark of a tar archive, and its place
_WEB_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def kind_of_file(start: bytes) -> Kind | None:
    """The kind of a file that begins with these bytes; None where it is not known."""
    for beginning, kind in _STARTS:
        if start.startswith(beginning):
            return kind
    if start[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return Kind("a tar archive", "unpack it first: tar xf {path}")
    if start[:200].lstrip().lower().startswith(_WEB_PAGES):
        return Kind("a web page", "a server answered with a page in place of the file: download it again")
    if start[:200].startswith((b"../", b".git/annex/", b"/")) and b"annex/objects" in start[:400]:
        return Kind("a pointer of git-annex, without the data", "fetch them: git annex get {path}")
    return None


def is_text(start: bytes) -> bool:
    """Whether a file that begins with these bytes is text, such as a server's error message in place of the file."""
    text = start[:200]
    return len(text) > 0 and all(9 <= byte <= 13 or 32 <= byte <= 126 for byte in text)

"""Files spoilt as a disk, a network, an editor or ill will may spoil them: for the readers' tests and benchmark."""

from __future__ import annotations

import struct
from collections.abc import Callable

from numpy.random import Generator

Mutation = Callable[[bytes, Generator], bytes]


def _somewhere(data: bytes, rng: Generator) -> int:
    return int(rng.integers(0, max(1, len(data))))


def _piece(data: bytes, rng: Generator) -> tuple[int, int]:
    a, b = sorted(rng.integers(0, len(data) + 1, 2))
    return int(a), int(b)


def _flipped(data: bytes, rng: Generator, first: int = 0, last: int | None = None) -> bytes:
    """One to eight bits, of the bytes from `first` to `last`."""
    found = bytearray(data)
    for place in rng.integers(first, min(last or len(data), len(data)), rng.integers(1, 9)):
        found[place] ^= 1 << int(rng.integers(0, 8))
    return bytes(found)


def _inserted(what: bytes) -> Mutation:
    def mutation(data: bytes, rng: Generator) -> bytes:
        place = _somewhere(data, rng)
        return data[:place] + what + data[place:]

    return mutation


def _removed(data: bytes, rng: Generator) -> bytes:
    a, b = _piece(data, rng)
    return data[:a] + data[b:]


def _repeated(data: bytes, rng: Generator) -> bytes:
    a, b = _piece(data, rng)
    return data[:b] + data[a:]


def _zeroed(data: bytes, rng: Generator) -> bytes:
    a, b = _piece(data, rng)
    return data[:a] + bytes(b - a) + data[b:]


def _scrambled(data: bytes, rng: Generator) -> bytes:
    a, b = _piece(data, rng)
    return data[:a] + rng.bytes(b - a) + data[b:]


def _cut_at_block(data: bytes, rng: Generator) -> bytes:
    """As of a disk that was full, or a copy that broke off."""
    return data[: int(rng.integers(0, len(data) // 512 + 1)) * 512]


def _swapped(size: int) -> Mutation:
    """The bytes of each word in the other order."""
    return lambda data, rng: b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))


ANY: dict[str, Mutation] = {
    "cut anywhere": lambda data, rng: data[: _somewhere(data, rng)],
    "cut at a disk block": _cut_at_block,
    "last byte lost": lambda data, rng: data[:-1],
    "empty": lambda data, rng: b"",
    "bits flipped": _flipped,
    "bits flipped at the start": lambda data, rng: _flipped(data, rng, 0, 256),
    "bytes set": lambda data, rng: _scrambled_few(data, rng),
    "piece zeroed": _zeroed,
    "piece scrambled": _scrambled,
    "piece removed": _removed,
    "piece repeated": _repeated,
    "bytes appended": lambda data, rng: data + rng.bytes(int(rng.integers(1, 5000))),
    "zeros appended": lambda data, rng: data + bytes(int(rng.integers(1, 5000))),
    "halves exchanged": lambda data, rng: data[len(data) // 2 :] + data[: len(data) // 2],
    "noise": lambda data, rng: rng.bytes(len(data)),
    "words of 4 bytes swapped": _swapped(4),
    "line ends changed": lambda data, rng: data.replace(b"\n", b"\r\n"),
    "byte-order mark": lambda data, rng: b"\xef\xbb\xbf" + data,
}


def _scrambled_few(data: bytes, rng: Generator) -> bytes:
    found = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        found[place] = int(rng.integers(0, 256))
    return bytes(found)


def _line_changed(change: Callable[[list[bytes], int, Generator], None]) -> Mutation:
    def mutation(data: bytes, rng: Generator) -> bytes:
        lines = data.split(b"\n")
        change(lines, int(rng.integers(0, len(lines))), rng)
        return b"\n".join(lines)

    return mutation


def _word_changed(new: Callable[[bytes, Generator], bytes]) -> Mutation:
    """One word of one line that has several: most often a value."""

    def mutation(data: bytes, rng: Generator) -> bytes:
        lines = data.split(b"\n")
        rows = [i for i, line in enumerate(lines) if len(line.split()) > 2] or [0]
        row = int(rng.choice(rows))
        words = lines[row].split() or [b""]
        column = int(rng.integers(0, len(words)))
        words[column] = new(words[column], rng)
        lines[row] = b" ".join(words)
        return b"\n".join(lines)

    return mutation


_STRANGE_WORDS = (
    *(b"nan", b"inf", b"-inf", b"1e999", b"-1e999", b"1e-999", b"0x10", b"1_0", b"1,5", b"1.2.3", b"--1", b"1e", b"."),
    *(
        b"None",
        b"''",
        b'"',
        b"'a b'",
        b"#",
        b"_x",
        b"data_",
        b"loop_",
        b"@",
        b"0@a",
        b"1@",
        b"-1@a.mrcs",
        b"1@/dev/zero",
    ),
    *(
        b"9" * 30,
        b"9" * 5000,
        b"1" * 19 + b"@a.mrcs",
        b"\xef\xbc\x91",
        b"\xc3\xa9",
        b"\xe9",
        b"1@" + b"../" * 2000 + b"a",
    ),
    *(b"1@" + b"n" * 300 + b".mrcs", b"[", b"[1,", b"[,]", b"[nan]", b"[" + b"1," * 2000 + b"1]", b"2", b"-1", b"0"),
)

TEXT: dict[str, Mutation] = {
    "cut at a line's end": lambda data, rng: b"\n".join(
        data.split(b"\n")[: int(rng.integers(0, data.count(b"\n") + 1))]
    ),
    "line removed": _line_changed(lambda lines, i, rng: lines.__delitem__(i)),
    "line repeated": _line_changed(lambda lines, i, rng: lines.insert(i, lines[i])),
    "lines exchanged": _line_changed(
        lambda lines, i, rng: lines.insert(int(rng.integers(0, len(lines))), lines.pop(i))
    ),
    "blank line": _line_changed(lambda lines, i, rng: lines.insert(i, b"")),
    "comment": _line_changed(lambda lines, i, rng: lines.insert(i, b"# comment")),
    "comment behind a line": _line_changed(lambda lines, i, rng: lines.__setitem__(i, lines[i] + b" # comment")),
    "word removed": _word_changed(lambda word, rng: b""),
    "word added": _word_changed(lambda word, rng: word + b" 1"),
    "word parted": _word_changed(lambda word, rng: word[: len(word) // 2] + b" " + word[len(word) // 2 :]),
    "word quoted": _word_changed(lambda word, rng: b"'" + word + b"'"),
    "word strange": _word_changed(lambda word, rng: _STRANGE_WORDS[int(rng.integers(0, len(_STRANGE_WORDS)))]),
    "digits changed": _word_changed(lambda word, rng: bytes(rng.choice(list(b"0123456789.e-+"), max(1, len(word))))),
    "quote": _inserted(b"'"),
    "double quote": _inserted(b'"'),
    "NUL": _inserted(b"\0"),
    "Latin-1": _inserted(b"\xe9"),
    "strange space": _inserted("\u00a0\u2028\x1c\x0b".encode()),
    "line end": _inserted(b"\n"),
    "carriage return": _inserted(b"\r"),
    "UTF-16": lambda data, rng: data.decode("utf-8").encode("utf-16"),
    "tabs": lambda data, rng: data.replace(b" ", b"\t"),
    "large word": _inserted(b"9" * 3_000_000),
    "many words": _inserted(b" 1" * 1_000_000),
    "many quotes": _inserted(b" 'a" * 300_000),
    "many short lines": _inserted(b"\n1" * 300_000),
    "many blank lines": _inserted(b"\n" * 1_000_000),
}

STAR: dict[str, Mutation] = {
    "no loop_": lambda data, rng: data.replace(b"loop_", b""),
    "loop_ twice": lambda data, rng: data.replace(b"loop_", b"loop_\nloop_"),
    "block twice": lambda data, rng: data + data,
    "column twice": lambda data, rng: data.replace(b"_rlnAngleRot", b"_rlnAngleTilt"),
    "column numbers gone": lambda data, rng: b"\n".join(
        line.split(b"#")[0] if line.startswith(b"_") else line for line in data.split(b"\n")
    ),
    "blocks without names": lambda data, rng: data.replace(b"data_particles", b"data_").replace(
        b"data_optics", b"data_"
    ),
    "many columns": lambda data, rng: data.replace(
        b"loop_\n", b"loop_\n" + b"".join(b"_c%d\n" % i for i in range(100_000))
    ),
    "many keys": lambda data, rng: b"data_k\n" + b"".join(b"_c%d 1\n" % i for i in range(100_000)) + data,
    "many blocks": lambda data, rng: b"".join(b"data_%d\n" % i for i in range(10_000)) + data,
}


def _integer_at(offsets: tuple[int, ...], values: tuple[int, ...], code: str = "<i") -> Mutation:
    """One of the values at one of the places."""

    def mutation(data: bytes, rng: Generator) -> bytes:
        found = bytearray(data)
        struct.pack_into(code, found, int(rng.choice(offsets)), int(rng.choice(values)))
        return bytes(found)

    return mutation


def _float_at(offsets: tuple[int, ...], values: tuple[float, ...]) -> Mutation:
    def mutation(data: bytes, rng: Generator) -> bytes:
        found = bytearray(data)
        struct.pack_into("<f", found, int(rng.choice(offsets)), float(rng.choice(values)))
        return bytes(found)

    return mutation


_STRANGE_INTEGERS = (0, -1, 1, 2, 3, 7, 2**15, 2**16 - 1, 2**16, 2**28, 2**30, 2**31 - 1, -(2**31))
_STRANGE_FLOATS = (0.0, 1.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))

MRC: dict[str, Mutation] = {
    "size claimed": _integer_at((0, 4, 8), _STRANGE_INTEGERS),
    "terabytes claimed": lambda data, rng: struct.pack("<3i", 60000, 60000, 60000) + data[12:],
    "mode": _integer_at((12,), (-1, 0, 1, 2, 3, 4, 5, 6, 7, 12, 16, 101, 2**24, 2**31 - 1)),
    "start": _integer_at((16, 20, 24), _STRANGE_INTEGERS),
    "sampling": _integer_at((28, 32, 36), _STRANGE_INTEGERS),
    "cell": _float_at((40, 44, 48), _STRANGE_FLOATS),
    "axes": _integer_at((64, 68, 72), (-1, 0, 1, 2, 3, 4, 2**31 - 1)),
    "extended header claimed": _integer_at((92,), (-1, -1024, 1, 3, 1024, 2**29, 2**30, 2**31 - 1)),
    "origin": _float_at((196, 200, 204), _STRANGE_FLOATS),
    "machine stamp": _integer_at((212,), (0, 0x11, 0x1111, 0x44, 0x4144, -1)),
    "header's bits flipped": lambda data, rng: _flipped(data, rng, 0, 224),
    "pixels not finite": lambda data, rng: (
        data[:1024] + struct.pack("<f", float(rng.choice(_STRANGE_FLOATS))) + data[1028:]
    ),
}


def _header_text(change: Callable[[bytes, Generator], bytes]) -> Mutation:
    """The header of a NumPy array file, its length field left as it was or corrected."""

    def mutation(data: bytes, rng: Generator) -> bytes:
        (length,) = struct.unpack_from("<H", data, 8)
        header = change(data[10 : 10 + length], rng)
        said = len(header) if rng.random() < 0.7 else length
        return data[:8] + struct.pack("<H", min(said, 65535)) + header + data[10 + length :]

    return mutation


def _replaced(old: bytes, *new: bytes) -> Mutation:
    return lambda data, rng: data.replace(old, new[int(rng.integers(0, len(new)))], 1)


NPY: dict[str, Mutation] = {
    "rows claimed": _header_text(
        lambda header, rng: (
            header[: header.index(b"'shape'")]
            + b"'shape': ("
            + (b"10**12", b"1000000000000", b"-1", b"1e3", b"9" * 5000, b"3, 4", b"", b"True", b"'a'")[
                int(rng.integers(0, 9))
            ]
            + b",), }\n"
        )
    ),
    "type": _header_text(
        _replaced(b"'<f4'", b"'|O'", b"'<f8'", b"'<f4000000000'", b"'|S1000000000'", b"'|V0'", b"'M8'", b"None")
    ),
    "objects": _header_text(_replaced(b"'<u8'", b"'|O'", b"'O'", b"object")),
    "order": _header_text(_replaced(b"'fortran_order': False", b"'fortran_order': True", b"'fortran_order': 1", b"")),
    "code": _header_text(lambda header, rng: b"__import__('os').system('touch executed')"),
    "nested": _header_text(lambda header, rng: b"(" * 60000),
    "length of the header": lambda data, rng: data[:8] + rng.bytes(2) + data[10:],
    "version": lambda data, rng: data[:6] + bytes([int(rng.choice([0, 2, 3, 9, 255])), 0]) + data[8:],
    "header's bits flipped": lambda data, rng: _flipped(data, rng, 0, 1024),
}

# Each would make a file called "executed" in the working directory if it were obeyed.
_COMMAND, _CODE = b"touch executed", b"__import__('os').mkdir('executed')"
HOSTILE_PICKLES = (
    b"cos\nsystem\n(S'" + _COMMAND + b"'\ntR.",
    b"\x80\x02cposix\nsystem\nX\x0e\0\0\0" + _COMMAND + b"\x85R.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0e" + _COMMAND + b"\x85R.",
    b"(S'" + _COMMAND + b"'\nios\nsystem\n.",
    b"\x80\x02c__builtin__\neval\nX" + struct.pack("<I", len(_CODE)) + _CODE + b"\x85R.",
    b"\x80\x04\x8c\x05numpy\x8c\x04load\x93\x8c\x08executed\x85R.",
    b"\x80\x02(" + b"(" * 100_000 + b"t" * 100_000 + b".",
    b"\x80\x02]" + b"q\0(h\0h\0h\0h\0h\0h\0h\0h\0l" * 50 + b".",
    b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    b"\x80\x04\x8a\x04" + b"\xff\xff\xff\x7f.",
    b"\x80\x04\x8b" + struct.pack("<i", -5) + b".",
)

PICKLE: dict[str, Mutation] = {
    "hostile": lambda data, rng: HOSTILE_PICKLES[int(rng.integers(0, len(HOSTILE_PICKLES)))],
    "hostile before": lambda data, rng: HOSTILE_PICKLES[int(rng.integers(0, 5))][:-1] + b"0" + data,
    "other module": _replaced(b"numpy", b"posix", b"types", b"shutil"),
    "other name": _replaced(b"_reconstruct", b"fromfile____", b"scalar______"),
    "shape": _replaced(b"K\x03K\x03", b"K\xffK\xff", b"J\xff\xff\xff\xffK\x03", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f"),
}


def _safetensors_header(change: Callable[[bytes, Generator], bytes]) -> Mutation:
    def mutation(data: bytes, rng: Generator) -> bytes:
        (length,) = struct.unpack_from("<Q", data)
        header = change(data[8 : 8 + length], rng)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]

    return mutation


SAFETENSORS: dict[str, Mutation] = {
    "length of the header": lambda data, rng: (
        struct.pack("<Q", int(rng.choice([0, 1, 7, 2**20, 2**40, 2**62]))) + data[8:]
    ),
    "shape": _safetensors_header(
        _replaced(b"[40,3]", b"[3,40]", b"[1000000000000,3]", b"[-1,3]", b"[120]", b"[40,3,1]")
    ),
    "type": _safetensors_header(_replaced(b'"F32"', b'"F64"', b'"I32"', b'"XYZ"', b'"BOOL"', b"32")),
    "offsets": _safetensors_header(
        _replaced(b'"data_offsets":[0', b'"data_offsets":[4', b'"data_offsets":[-1', b'"data_offsets":[1e3')
    ),
    "name": _safetensors_header(_replaced(b'"centres"', b'"centre"', b'"log_masses"', b"centres")),
    "nested": _safetensors_header(lambda header, rng: b"[" * 100_000),
    "header's bits flipped": lambda data, rng: _flipped(data, rng, 8, 900),
    "values not finite": lambda data, rng: data[:-4] + struct.pack("<f", float(rng.choice(_STRANGE_FLOATS))),
}

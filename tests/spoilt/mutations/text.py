"""Mutations of text: its lines, its words, its encoding; and those of STAR files."""

from __future__ import annotations

from collections.abc import Callable

from numpy.random import Generator

from spoilt.mutations.tools import Mutation, insert

# fmt: off
_ODD_NUMBERS = (
    b"nan", b"inf", b"-inf", b"1e999", b"-1e999", b"1e-999", b"0x10", b"1_0", b"1,5", b"1.2.3", b"--1", b"1e", b".",
)
_SYNTAX = (b"None", b"''", b'"', b"'a b'", b"#", b"_x", b"data_", b"loop_")
_ODD_IMAGE_NAMES = (b"@", b"0@a", b"1@", b"-1@a.mrcs", b"1@/dev/zero")
_LONG_OR_FOREIGN = (
    b"9" * 30, b"9" * 5000, b"1" * 19 + b"@a.mrcs", b"\xef\xbc\x91", b"\xc3\xa9", b"\xe9",
    b"1@" + b"../" * 2000 + b"a", b"1@" + b"n" * 300 + b".mrcs",
)
_ODD_LISTS = (b"[", b"[1,", b"[,]", b"[nan]", b"[" + b"1," * 2000 + b"1]")
_SMALL_NUMBERS = (b"2", b"-1", b"0")  # where they count or choose something
# fmt: on
_STRANGE_WORDS = (*_ODD_NUMBERS, *_SYNTAX, *_ODD_IMAGE_NAMES, *_LONG_OR_FOREIGN, *_ODD_LISTS, *_SMALL_NUMBERS)


def change_a_line(change: Callable[[list[bytes], int, Generator], None]) -> Mutation:
    """Change the lines about one that is drawn; `change` is given all lines and the number of that one."""

    def mutation(data: bytes, rng: Generator) -> bytes:
        lines = data.split(b"\n")
        change(lines, int(rng.integers(0, len(lines))), rng)
        return b"\n".join(lines)

    return mutation


def change_a_word(new: Callable[[bytes, Generator], bytes]) -> Mutation:
    """Change one word of one line that has several: most often a value."""

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


def cut_at_a_line(data: bytes, rng: Generator) -> bytes:
    """Lose the end from some line on."""
    return b"\n".join(data.split(b"\n")[: int(rng.integers(0, data.count(b"\n") + 1))])


def move_a_line(lines: list[bytes], number: int, rng: Generator) -> None:
    """Put a line in another place."""
    lines.insert(int(rng.integers(0, len(lines))), lines.pop(number))


def strange_word(word: bytes, rng: Generator) -> bytes:
    """A word that a program would not write there."""
    return _STRANGE_WORDS[int(rng.integers(0, len(_STRANGE_WORDS)))]


def other_digits(word: bytes, rng: Generator) -> bytes:
    """As many characters of which numbers are made."""
    return bytes(rng.choice(list(b"0123456789.e-+"), max(1, len(word))))


TEXT: dict[str, Mutation] = {
    "cut at a line's end": cut_at_a_line,
    "line removed": change_a_line(lambda lines, i, rng: lines.__delitem__(i)),
    "line repeated": change_a_line(lambda lines, i, rng: lines.insert(i, lines[i])),
    "lines exchanged": change_a_line(move_a_line),
    "blank line": change_a_line(lambda lines, i, rng: lines.insert(i, b"")),
    "comment": change_a_line(lambda lines, i, rng: lines.insert(i, b"# comment")),
    "comment behind a line": change_a_line(lambda lines, i, rng: lines.__setitem__(i, lines[i] + b" # comment")),
    "word removed": change_a_word(lambda word, rng: b""),
    "word added": change_a_word(lambda word, rng: word + b" 1"),
    "word parted": change_a_word(lambda word, rng: word[: len(word) // 2] + b" " + word[len(word) // 2 :]),
    "word quoted": change_a_word(lambda word, rng: b"'" + word + b"'"),
    "word strange": change_a_word(strange_word),
    "digits changed": change_a_word(other_digits),
    "quote": insert(b"'"),
    "double quote": insert(b'"'),
    "NUL": insert(b"\0"),
    "Latin-1": insert(b"\xe9"),
    "strange space": insert("\u00a0\u2028\x1c\x0b".encode()),
    "line end": insert(b"\n"),
    "carriage return": insert(b"\r"),
    "UTF-16": lambda data, rng: data.decode("utf-8").encode("utf-16"),
    "tabs": lambda data, rng: data.replace(b" ", b"\t"),
    "large word": insert(b"9" * 3_000_000),
    "many words": insert(b" 1" * 1_000_000),
    "many quotes": insert(b" 'a" * 300_000),
    "many short lines": insert(b"\n1" * 300_000),
    "many blank lines": insert(b"\n" * 1_000_000),
}


def without_column_numbers(data: bytes, rng: Generator) -> bytes:
    """The names of columns without "#1", "#2", ... behind them."""
    lines = data.split(b"\n")
    return b"\n".join(line.split(b"#")[0] if line.startswith(b"_") else line for line in lines)


def without_block_names(data: bytes, rng: Generator) -> bytes:
    """All blocks nameless."""
    return data.replace(b"data_particles", b"data_").replace(b"data_optics", b"data_")


def many_columns(data: bytes, rng: Generator) -> bytes:
    """A hundred thousand more columns in every loop."""
    return data.replace(b"loop_\n", b"loop_\n" + b"".join(b"_c%d\n" % i for i in range(100_000)))


def many_keys(data: bytes, rng: Generator) -> bytes:
    """A block of a hundred thousand keys before the others."""
    return b"data_k\n" + b"".join(b"_c%d 1\n" % i for i in range(100_000)) + data


def many_blocks(data: bytes, rng: Generator) -> bytes:
    """Ten thousand empty blocks before the others."""
    return b"".join(b"data_%d\n" % i for i in range(10_000)) + data


STAR: dict[str, Mutation] = {
    "no loop_": lambda data, rng: data.replace(b"loop_", b""),
    "loop_ twice": lambda data, rng: data.replace(b"loop_", b"loop_\nloop_"),
    "block twice": lambda data, rng: data + data,
    "column twice": lambda data, rng: data.replace(b"_rlnAngleRot", b"_rlnAngleTilt"),
    "column numbers gone": without_column_numbers,
    "blocks without names": without_block_names,
    "many columns": many_columns,
    "many keys": many_keys,
    "many blocks": many_blocks,
}

"""Search for files that another file names: first by the path as it is written, then by shorter ends of it.

A table names its stacks relative to a folder that it does not name: RELION and cryoSPARC mean the project's folder,
other programs the table's own. A table in a run folder keeps the names of the table that the run has read, and the
run's config.json says which files they were. A path that exists as it is written is taken. Where two different files
could be meant, none is taken, because a stack of the right name and size with other images in it would give a wrong
map.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

from emsplat.errors import InputError
from emsplat.io.repeats import same_files

_CONFIGURATION = "config.json"  # of a run folder, which `runs.run_folder` names, too
_OTHER_ENDING = {".mrcs": ".mrc", ".mrc": ".mrcs"}
_UNPACK = {".gz": "gunzip -k", ".bz2": "bunzip2 -k", ".zst": "unzstd -k", ".xz": "unxz -k", ".zip": "unzip"}


@dataclass(frozen=True)
class FoundFile:
    """A file on this disk."""

    path: Path
    as_written: bool  # False: only the end of the name led to it


class Finder:
    """Looks for the files that `source` names."""

    def __init__(self, source: Path, datadir: Path | None, strip_prefix: str | None) -> None:
        """Args: datadir, strip_prefix: as the user gives them; the first is where names are relative to."""
        self.source, self.datadir, self.strip_prefix = source, datadir, strip_prefix
        self._above = source.absolute().parent.parents
        self._is_folder = lru_cache(maxsize=1 << 16)(_is_folder)

    def find(self, name: str, what: str) -> FoundFile:
        """The file called `name`.

        Args:
            what: what error messages call the file.
        Raises:
            InputError: there is none, or there are two different ones.
        """
        here = self._as_path(name)
        spellings = [spelled for spelled in (here, _with_other_ending(here)) if spelled]
        for spelled in spellings:
            if self.datadir and _is_file(self.datadir / spelled):
                return FoundFile(self.datadir / spelled, as_written=True)
        places = ([*self._as_written(spelled), *self._recorded(spelled)] for spelled in spellings)
        exact = next(filter(None, (self._one_of(name, paths, what) for paths in places)), None)
        given = self._by_its_end(spellings, self.datadir)
        if exact:
            self._one_of(name, [exact, *([given] if given else [])], what)
            return FoundFile(exact, as_written=True)
        ends = (path for spelled in spellings for end in _ends_of(spelled) for path in self._recorded(end))
        recorded = next(filter(_is_file, ends), None)
        found = given or recorded or self._by_its_end(spellings, self.source.parent)
        if found is None:
            raise self._missing(name, here, what)
        return FoundFile(found, as_written=False)

    @cached_property
    def _read_by_the_run(self) -> tuple[Path, ...]:
        """The stacks that a run has read, if `source` lies in its folder; the shortest paths first."""
        try:
            configuration = json.loads((self.source.parent / _CONFIGURATION).read_text(encoding="utf-8"))
            return tuple(sorted((Path(stack["path"]) for stack in configuration["stacks"]), key=lambda p: len(p.parts)))
        except (OSError, ValueError, LookupError, TypeError):  # no run folder, or one of something else
            return ()

    def _recorded(self, name: str) -> list[Path]:
        """The stack of this name that the run has read, if there is one.

        Of two stacks whose paths end in the name, the one with the shorter path is meant: the other one has a longer
        name in the table, or the two could not have been told apart.
        """
        parts = PurePosixPath(name).parts
        return [path for path in self._read_by_the_run if parts and path.parts[-len(parts) :] == parts][:1]

    def _by_its_end(self, spellings: Sequence[str], folder: Path | None) -> Path | None:
        """The file in a folder to which the longest end of a name leads."""
        if folder is None:
            return None
        candidates = (folder / shorter for spelled in spellings for shorter in _ends_of(spelled))
        return next(filter(_is_file, candidates), None)

    def _as_path(self, name: str) -> str:
        here = name.removeprefix(">")  # cryoSPARC's mark of a name it made
        here = here.removesuffix(":mrcs")  # this tells RELION that a file of another name is a stack
        if self.strip_prefix and here.startswith(self.strip_prefix):
            here = here.removeprefix(self.strip_prefix).lstrip("/")  # relative, wherever the prefix ended
        return here.replace("\\", "/") if "\\" in here and "/" not in here else here

    def _as_written(self, name: str) -> Iterator[Path]:
        """Paths from the table's folder, the working directory and, for a name with folders, those above the table."""
        yield self.source.parent / name
        yield Path(name)
        folders = PurePosixPath(name).parent
        if folders.is_absolute() or str(folders) == ".":
            return
        yield from (above / name for above in self._above if self._is_folder(above / folders))

    def _one_of(self, name: str, candidates: Iterable[Path], what: str) -> Path | None:
        """The candidate that exists; InputError where two exist and differ."""
        present = list(dict.fromkeys(filter(_is_file, candidates)))
        if len(present) > 1:
            numbers = same_files(present)
            other = next((path for path, n in zip(present, numbers, strict=True) if n != numbers[0]), None)
            if other is not None:
                raise InputError(
                    f"{self.source}: {what} {name} may be {present[0]} or {other}, which differ; "
                    "say which folder such names are relative to with --datadir"
                )
        return present[0] if present else None

    def _missing(self, name: str, here: str, what: str) -> InputError:
        looked = self._where_was_looked(here)
        advice = "say where it is with --datadir, and what to cut off its name with --strip-prefix"
        for path in [*([self.datadir / here] if self.datadir else []), *self._as_written(here)]:
            if _is_link(path):
                target = os.readlink(path)
                if "annex/objects" in target:
                    return InputError(
                        f"{self.source}: {what} {name} is a link of git-annex, whose data are not there; fetch them: "
                        f"git annex get {path}"
                    )
                return InputError(
                    f"{self.source}: {what} {name} not found: {path} is a link to {target}, which is not there; "
                    f"make the link anew, or {advice}"
                )
            if path.suffix and _is_folder(path):
                return InputError(f"{self.source}: {what} {name} is {path}, a folder and not a file; {advice}")
            for ending, command in _UNPACK.items():
                packed = Path(f"{path}{ending}")
                if _is_file(packed):
                    return InputError(
                        f"{self.source}: {what} {name} not found, but {packed} is there, compressed; "
                        f"unpack it first: {command} {packed}"
                    )
        return InputError(f"{self.source}: {what} {name} not found ({looked}); {advice}")

    def _where_was_looked(self, name: str) -> str:
        """The places where a file of this name was looked for, in words."""
        path, folder = PurePosixPath(name), self.source.parent
        places = [str(self.datadir)] if self.datadir else []
        places += [str(folder.absolute() if folder == Path() else folder)]
        if not path.is_absolute():
            places += ["the folders above it"] * (len(path.parts) > 1)
            places += [f"the working directory {Path.cwd()}"] * (folder.absolute() != Path.cwd())
        read = (stack for end in (name, *_ends_of(name)) for stack in self._recorded(end))
        gone = next((f"; the run in {folder} has read {stack}, which is not there now" for stack in read), "")
        return f"looked in {', '.join(dict.fromkeys(places))}{gone}"


def _ends_of(name: str) -> Iterator[str]:
    """The ends of a path as its first folders are cut off, one after the other; the last is the bare name."""
    parts = [part for part in PurePosixPath(name).parts if part != "/"]
    yield from ("/".join(parts[first:]) for first in range(0 if name.startswith("/") else 1, len(parts)))
    if len(parts) == 1:
        yield name


def _with_other_ending(name: str) -> str:
    """A stack's name with the ending that another program gives it; empty where there is none."""
    stem, ending = os.path.splitext(name)
    return stem + _OTHER_ENDING[ending] if ending in _OTHER_ENDING else ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, a NUL in it, a folder that may not be looked into
        return False


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except (OSError, ValueError):
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def renamed(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """A warning where stacks were found under another ending than the table gives them."""
    pairs = [
        (name, path)
        for name, path in zip(names, paths, strict=True)
        if PurePosixPath(name.removesuffix(":mrcs").replace("\\", "/")).suffix != path.suffix
        and path.suffix in _OTHER_ENDING
    ]
    if not pairs:
        return []
    name, path = pairs[0]
    return [f"{len(pairs)} stacks are read under another ending than the table gives: {name} is read as {path}"]

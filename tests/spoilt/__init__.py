"""Spoilt files: what every reader makes of them, for the tests and for ``benchmarks/corruption.py``.

- ``valid_files``: a small valid file of every kind that is read
- ``mutations``: the ways in which files are spoilt, by kind of file
- ``readers``: every reader with its valid file, the ways to spoil it, and an independent look at what was read
"""

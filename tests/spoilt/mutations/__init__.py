"""Files spoilt as a disk, a network, an editor or ill will may spoil them.

A mutation makes the bytes of a spoilt file from those of a valid one and a random generator. Each kind of file has a
table of mutations by name; those whose names begin with "large" or "many" make megabytes.

- ``tools``: what the mutations are made of
- ``anything``: mutations of any file
- ``text``: of lines and words, and of STAR files; ``binary``: of MRC, NumPy, safetensors, cisTEM and gzip
  files; ``pickles``
"""

from spoilt.mutations.anything import ANY
from spoilt.mutations.binary import CISTEM, GZIP, MRC, NPY, SAFETENSORS
from spoilt.mutations.pickles import HOSTILE_PICKLES, PICKLE
from spoilt.mutations.text import STAR, TEXT
from spoilt.mutations.tools import Mutation

__all__ = [
    "ANY",
    "CISTEM",
    "GZIP",
    "HOSTILE_PICKLES",
    "MRC",
    "NPY",
    "PICKLE",
    "SAFETENSORS",
    "STAR",
    "TEXT",
    "Mutation",
]

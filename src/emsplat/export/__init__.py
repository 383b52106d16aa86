"""Results in the formats of other programs.

- ``formats``: which formats there are; ``ply``, ``cif``, ``mrc``, ``relion``: one each
"""

"""The files of a finished job, written whole or not at all.

- ``reconstruction``: maps, Gaussians, curves, figures, settings, log and summary of a reconstruction
- ``abinitio``, ``heterogeneity``: the files of these jobs; ``flip``: the other hand of a run
- ``classes``: the files of a search for poses with several classes
- ``claims``: whether a job may write its folder, and whether it is complete already
- ``evidence``: the arrays that its report needs beside these files
"""

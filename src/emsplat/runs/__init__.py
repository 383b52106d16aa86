"""Run folders: the names of their files, and what a finished run left in them.

- ``run_folder``: the names of all files, shared by everything that writes or reads a run
- ``heterogeneity_folder``: the names of the files of a search for heterogeneity
- ``classes_folder``: the names of the files of a search for several classes
- ``run``: a finished run, read from its folder; ``heterogeneity_run``: a finished search for heterogeneity
- ``closing``: the verdict on a run in words
"""

"""Run folders, as everything that comes after a run reads them.

- ``run``: what a finished run left; ``run_folder``: its folder and grid
- ``closing``: its verdict in words
"""

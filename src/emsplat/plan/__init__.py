"""`emsplat plan`: how long a job will take, how much memory and disk it needs, and why.

- ``rates``: this machine's speed, measured in seconds; ``model``: what a job costs at these rates
- ``abinitio``: the same of a search for poses; ``heterogeneity``: of a search for heterogeneity
- ``cluster``: the same for many machines; ``run``: from a particle table to the plan; ``text``: the plan in words
"""

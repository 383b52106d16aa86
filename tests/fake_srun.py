#!/usr/bin/env python3
"""What srun does to an environment, for as many tasks as FAKE_TASKS says, all of them on this machine."""

import os
import subprocess
import sys

size = int(os.environ["FAKE_TASKS"])
command = sys.argv[1:]
while command[0].startswith("-"):
    command.pop(0)
tasks = []
for rank in range(size):
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_NTASKS": str(size),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }
    tasks.append(subprocess.Popen(command, env=os.environ | step))
sys.exit(max(task.wait() for task in tasks))

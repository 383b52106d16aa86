#!/usr/bin/env bash
# A reconstruction on several machines under SLURM:
#   sbatch --nodes=4 docs/cluster.sh particles.star run
# One rank a machine on CPUs; with graphics cards one a card (--ntasks-per-node and --gpus-per-node the same number).
#SBATCH --job-name=emsplat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: sbatch $0 PARTICLES OUTPUT [options of emsplat reconstruct]" >&2
    exit 2
fi
particles=$1
output=$2
shift 2

# Asked for again: srun does not take it over from sbatch. Where one rank ends, srun ends those that are left.
exec srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    python -m emsplat reconstruct "$particles" -o "$output" "$@"

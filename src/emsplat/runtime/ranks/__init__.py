"""One job on many processes: what they exchange, and how the loss of one process ends all.

The processes ("ranks") are started by torchrun or by SLURM's srun, and PyTorch's distributed engine carries what they
exchange. This package is light to import: torch is only loaded if there is more than one rank.

- ``launch``: which rank this process is; ``join``: meeting the other ranks, and parting from them
- ``world``: the exchanges; ``watch``: the pulse of every rank
"""

from emsplat.runtime.ranks.join import joined
from emsplat.runtime.ranks.watch import Patience
from emsplat.runtime.ranks.world import World

__all__ = ["Patience", "World", "joined"]

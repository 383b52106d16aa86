"""One job on many processes: what they say to each other, and how the loss of one ends all.

The processes ("ranks") are started by torchrun or by SLURM's srun; PyTorch's distributed engine carries what they
exchange. Light to import: torch comes in only where there is more than one rank.
"""

from emsplat.runtime.ranks.join import joined
from emsplat.runtime.ranks.watch import Patience
from emsplat.runtime.ranks.world import World

__all__ = ["Patience", "World", "joined"]

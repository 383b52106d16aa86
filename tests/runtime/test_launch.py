"""How a process learns from its environment which rank it is, and where the ranks meet."""

from __future__ import annotations

import pytest

from emsplat.errors import InputError
from emsplat.runtime.ranks.launch import first_host, launch

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "7"}


def test_the_environment_tells_the_rank_and_where_to_meet() -> None:
    found = launch(TORCHRUN)
    assert found is not None
    assert (found.rank, found.size, found.address, found.port, found.serves) == (1, 2, "a", 7, False)
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "n[07-09],m", "SLURM_JOB_ID": "5"}
    found = launch(step)
    assert found is not None
    assert (found.rank, found.size, found.address, found.serves) == (0, 8, "n07", True)
    assert launch(step | {"MASTER_ADDR": "b", "MASTER_PORT": "9"}).address == "b"  # type: ignore[union-attr]
    assert launch({}) is None
    assert launch(TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert launch({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None  # the batch script itself
    for broken in ({"RANK": "2"}, {"RANK": "one"}, {"MASTER_ADDR": ""}):
        with pytest.raises(InputError):
            launch(TORCHRUN | broken)


@pytest.mark.parametrize(
    ("nodes", "first"), [("a", "a"), ("gpu[07-09,12],x", "gpu07"), ("r1-n[3]-ib", "r1-n3-ib"), ("b2,c[1-4]", "b2")]
)
def test_the_first_host_is_found_in_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first

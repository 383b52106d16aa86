"""A job on several ranks ends on all of them when something is wrong with one, with one line, and can be resumed."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from emsplat.reconstruction.reconstruct import Reconstruction
from hosts import NoHostsError, hosts
from processes import PATIENCE
from ranks import arguments, assert_same_maps, ends, start, wait_until_all_accumulate


def test_ranks_with_different_versions_are_refused(images_for_ranks: Path, tmp_path: Path) -> None:
    codes, said = ends(start([arguments(images_for_ranks, tmp_path / "run")] * 2, other_scipy=[1]))
    assert codes == [2, 2]
    assert len(said) == 1, said
    assert "differ: scipy " in said[0]
    assert "against 0.1; install one version of everything on all machines" in said[0]
    assert not (tmp_path / "run").exists()


def test_images_that_one_rank_cannot_read_end_the_job(images_for_ranks: Path, tmp_path: Path) -> None:
    """As a stack that is cut short on one machine."""
    short = tmp_path / "images"
    shutil.copytree(images_for_ranks, short)
    os.truncate(short / "particles.mrcs", 50_000)
    codes, said = ends(start([arguments(folder, tmp_path / "run") for folder in (images_for_ranks, short)]))
    assert codes == [2, 2]
    assert len(said) == 1, said
    assert "rank 1 on" in said[0]
    assert str(short / "particles.mrcs") in said[0]


def test_a_rank_that_hangs_or_is_told_to_end_ends_the_job(
    images_for_ranks: Path, made_alone: Reconstruction, tmp_path: Path
) -> None:
    """In the middle of the accumulation; from what was done by then, the job goes on to the same maps."""
    jobs = {name: start([arguments(images_for_ranks, tmp_path / name)] * 2, dwell=True) for name in ("hangs", "told")}
    for ranks in jobs.values():
        wait_until_all_accumulate(ranks)
    jobs["told"][1].send_signal(signal.SIGTERM)
    jobs["hangs"][1].send_signal(signal.SIGSTOP)
    codes, said = ends(jobs["told"])
    assert codes == [130, 130]
    assert len(said) == 1, said
    codes, said = ends(jobs["hangs"][:1])
    jobs["hangs"][1].kill()
    assert codes == [3]
    assert len(said) == 1, said
    assert "rank 1 on" in said[0]
    assert "in stage pass" in said[0]
    kept = sorted(path.name for path in (tmp_path / "hangs" / "checkpoints").glob("pass-*of2-*.safetensors"))
    assert [name[: len("pass-rank0")] for name in kept] == ["pass-rank0", "pass-rank1"]

    ranks = start([arguments(images_for_ranks, tmp_path / "hangs", "--resume")] * 2)
    outputs = [rank.communicate(timeout=PATIENCE) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert "resuming from pass-rank0of2" in outputs[0][0]
    assert_same_maps(tmp_path / "hangs", made_alone)


@pytest.mark.parametrize(("size", "cut", "left"), [(2, 1, 1), (4, 2, 4)])
def test_a_machine_that_is_cut_off_ends_the_job(
    size: int, cut: int, left: int, images_for_ranks: Path, made_alone: Reconstruction, tmp_path: Path
) -> None:
    """Both sides end, each with a line on the other, and the job resumes to the same maps, with that machine or not."""
    try:
        with hosts(size) as machines:
            place = {"on_its_host": machines.command, "MASTER_ADDR": machines.address(0)}
            ranks = start([arguments(images_for_ranks, tmp_path / "run")] * size, dwell=True, **place)
            wait_until_all_accumulate(ranks)
            machines.cut_off(cut)
            codes, said = ends(ranks)
            assert codes == [3] * size
            assert len(said) == 2, said
            for line in (
                f"rank {cut} on h{cut} has not been heard of",
                f"rank {cut} on h{cut}, in stage pass: rank 0 on h0, where the ranks meet, cannot be reached",
            ):
                assert any(line in one for one in said), said
            assert not (tmp_path / "run" / "map.mrc").exists()

            if left == size:
                machines.plug_in(cut)
            ranks = start([arguments(images_for_ranks, tmp_path / "run", "--resume")] * left, **place)
            outputs = [rank.communicate(timeout=PATIENCE) for rank in ranks]
    except NoHostsError as error:
        pytest.skip(f"NO NETWORK NAMESPACES ({error}): a machine that is cut off is untested here")
    assert [rank.returncode for rank in ranks] == [0] * left, outputs
    assert (f"resuming from pass-rank0of{size}" in outputs[0][0]) == (left == size)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert_same_maps(tmp_path / "run", made_alone)

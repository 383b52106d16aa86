"""The cost model: formulas that hold by what they mean, rates of this machine, and a plan beside the run it is of."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emsplat.cli import main
from emsplat.fourier.insertion import SliceGrid
from emsplat.plan.abinitio import EARLY_ROUNDS, LATE_ROUNDS, LOOKS, PoseRates, pose_search_stages
from emsplat.plan.cluster import Cluster
from emsplat.plan.heterogeneity import Search, SearchRates, search_stages
from emsplat.plan.model import DISK, NETWORK, PROCESSOR, Job, Stage, grid_bytes, stages
from emsplat.plan.rates import ASSUMED_CARD, Rates, disk_rate, measured_card
from emsplat.plan.run import of_rates
from emsplat.plan.text import size_text, time_text
from emsplat.reconstruction.reconstruct import reconstruct
from emsplat.runtime.reporting import Reporter
from emsplat.settings import ReconstructSettings

JOB = Job(
    n_images=100_000, box=128, working_box=128, extent=100, reach=128, n_gaussians=10_000, n_fits=2, sigma=1.2,
    n_symmetry=1,
)  # fmt: skip
RATES = Rates(
    cores=2, loading_seconds=2.0, disk_bytes_per_second=1e9, disk_bytes_per_image=4 * 128**2,
    table_seconds_per_image=1e-5, table_bytes_per_image=250.0, load_seconds_per_image=3e-5,
    transform_seconds_per_image=1e-4, insert_seconds_per_image=8e-4, pass_box=128, grids_seconds=1.0, pass_reach=128,
    preview_seconds=1.0, inversion_seconds=2e-8, convolution_seconds=1e-8, splat_seconds_per_gaussian=1e-6,
    validation_seconds=3e-8, local_seconds=1e-8, base_bytes=400_000_000,
)  # fmt: skip


def by_name(job: Job = JOB, cluster: Cluster | None = None, rates: Rates = RATES, card=None) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages(job, cluster or Cluster(), rates, card)}


def test_only_what_touches_images_grows_with_their_number() -> None:
    one, ten = by_name(), by_name(replace(JOB, n_images=10 * JOB.n_images))
    for name, stage in ten.items():
        if name in ("read", "pass"):
            assert stage.seconds > 8 * one[name].seconds
            assert stage.memory_bytes == one[name].memory_bytes
        else:
            assert stage == one[name]


def test_machines_share_the_images_and_two_of_them_the_halves() -> None:
    one, two, eight = (by_name(cluster=Cluster(machines=n)) for n in (1, 2, 8))
    assert eight["pass"].parts[PROCESSOR] == pytest.approx(one["pass"].parts[PROCESSOR] / 8)
    assert eight["fit"].seconds == two["fit"].seconds == pytest.approx(one["fit"].seconds / 2)
    for name in ("loading", "read", "preview", "validation", "local resolution", "writing"):
        assert eight[name] == one[name]


def test_processes_of_one_machine_share_its_cores() -> None:
    one, four = by_name(), by_name(cluster=Cluster(processes=4))
    assert four["pass"].parts == pytest.approx(one["pass"].parts)
    assert four["fit"].seconds == pytest.approx(one["fit"].seconds)  # two of the four rest


def test_the_slowest_resource_is_named() -> None:
    assert by_name()["pass"].limited_by == PROCESSOR
    assert by_name(cluster=Cluster(machines=8, storage=0.1))["pass"].limited_by == DISK
    many = Cluster(machines=64, storage=1e3, network=0.1)
    assert by_name(cluster=many)["pass"].limited_by == NETWORK
    on_cards = by_name(cluster=Cluster(machines=8, gpus=8), card=ASSUMED_CARD)
    assert on_cards["pass"].limited_by == DISK  # of what each machine was measured to get
    assert on_cards["pass"].memory_bytes < by_name()["pass"].memory_bytes
    assert on_cards["pass"].card_bytes == 4 * grid_bytes(128, 128)


@pytest.mark.parametrize(("box", "reach"), [(32, 40), (33, 50), (48, 30)])
def test_the_memory_of_the_grids_is_what_they_take(box: int, reach: int) -> None:
    b = SliceGrid.empty(box, box, np.complex64)
    t = SliceGrid.empty(max(reach, box), box, np.float32)
    assert grid_bytes(box, reach) == b.values.nbytes + t.values.nbytes


def test_what_machines_lack_is_said() -> None:
    def obstacles(job: Job = JOB, **cluster: float) -> str:
        machines = Cluster(**cluster)
        return " ".join(of_rates(job, machines, RATES, ASSUMED_CARD if machines.gpus else None).obstacles())

    assert obstacles(memory=64.0) == ""
    assert "a machine has 1 GB" in obstacles(memory=1.0, processes=4)
    assert "GPU memory" in obstacles(replace(JOB, working_box=1024, reach=1280), gpus=1, memory=1e6)
    assert "each needs one" in obstacles(replace(JOB, n_images=3), machines=8)


def test_texts() -> None:
    assert [time_text(s) for s in (0.04, 90, 200, 9000, 4e5)] == ["0.0 s", "90.0 s", "3.3 min", "2.5 h", "4.6 d"]
    assert [size_text(s) for s in (2e6, 2e9, 1.5e13)] == ["2 MB", "2.00 GB", "15.00 TB"]


def test_rates_of_a_device_and_a_disk(tmp_path: Path) -> None:
    """On the processor, where no card is; between what no machine is slower or faster than."""
    card = measured_card(torch.device("cpu"))
    assert 1e8 < card.bytes_per_second < 1e13
    assert 1e8 < card.link_bytes_per_second < 1e13
    assert card.measured
    (tmp_path / "stack").write_bytes(bytes(1 << 20))
    assert 1e5 < disk_rate((tmp_path / "stack",)) < 1e12


def test_a_plan_and_its_run(simulated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    star = simulated / "particles.star"
    assert main(["plan", str(star), "--json", "--n-gaussians", "2000", "--threads", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] == pytest.approx(sum(stage["seconds"] for stage in found["stages"]))
    predicted = {stage["name"]: stage["seconds"] for stage in found["stages"]}
    assert found["job"]["n_images"] == 600
    reporter = Reporter()
    start = time.perf_counter()
    reconstruct(star, ReconstructSettings(n_gaussians=2000, threads=2), reporter)
    took = time.perf_counter() - start
    compared = ("read", "preview", "pass", "inversion", "fit", "validation", "local resolution")
    # The order of magnitude, since others may slow the machine down meanwhile; benchmarks/plan.py measures it alone.
    assert 0.02 < sum(predicted[name] for name in compared) / took < 10
    assert 0.02 < predicted["fit"] / reporter.seconds["fit"] < 10


SEARCH = PoseRates(
    look_seconds=0.5, polar_seconds_per_image=1e-3, batch_seconds=0.2, n_batches=100, round_seconds=0.0,
    early_seconds_per_image=8e-3, late_seconds_per_image=3e-3, shifts_seconds_per_image=1e-3, alignment_seconds=5.0,
    samples_bytes_per_image=5000,
)  # fmt: skip


def test_of_a_search_the_first_stage_and_the_memory_do_not_grow_with_the_images() -> None:
    def found(n_images: int) -> dict[str, Stage]:
        job = replace(JOB, n_images=n_images, refined=True)
        return {stage.name: stage for stage in pose_search_stages(job, Cluster(), RATES, SEARCH)}

    one, ten = found(100_000), found(1_000_000)
    assert one["first stage"] == ten["first stage"]
    for name in ("polar images", "second stage", "search again"):
        assert ten[name].seconds == pytest.approx(10 * one[name].seconds)
        assert ten[name].memory_bytes == one[name].memory_bytes
    assert one["second stage"].seconds == pytest.approx(1e5 * (EARLY_ROUNDS * 8e-3 + LATE_ROUNDS * 3e-3 + LOOKS * 1e-3))
    faster = replace(SEARCH, late_seconds_per_image=1e-3)
    assert pose_search_stages(JOB, Cluster(), RATES, faster)[5].seconds < one["second stage"].seconds
    # Classes share the images, but each has fits of its own.
    job = replace(JOB, n_images=100_000, refined=True)
    three = {s.name: s for s in pose_search_stages(job, Cluster(), RATES, replace(SEARCH, n_classes=3))}
    assert three["fit"].seconds == pytest.approx(3 * one["fit"].seconds)
    assert three["search again"].seconds == pytest.approx(one["search again"].seconds)


def test_the_plan_of_a_search_is_measured_on_images_without_poses(
    simulated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", str(simulated / "particles.star"), "--job", "abinitio", "--threads", "2", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] == pytest.approx(sum(stage["seconds"] for stage in found["stages"]))
    names = [stage["name"] for stage in found["stages"]]
    assert names.index("polar images") < names.index("second stage") < names.index("search again") < names.index("fit")
    rates = found["abinitio"]
    assert 0 < rates["late_seconds_per_image"] <= rates["early_seconds_per_image"] < 1
    assert any("late round" in line for line in found["assumptions"])
    assert main([*command, "--solver", "images"]) == 2
    assert "--solver: emsplat abinitio has no such option" in capsys.readouterr().err


def test_the_table(simulated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(simulated / "particles.star"), "--machines", "4", "--gpus", "8", "--threads", "2"]) == 0
    text = capsys.readouterr().out
    for word in ("whole job", "limited by", "local resolution", "32 process(es)", "assumed:", "GPU"):
        assert word in text


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--machines", "0"], "--machines 0"),
        (["--gpus", "-1"], "--gpus -1"),
        (["--gpus", "4", "--processes", "2"], "--processes 2"),
        (["--storage", "nan"], "--storage nan"),
        (["--datadir", "nowhere"], "particles.mrcs"),
        (["--symmetry", "Q7"], "Q7"),
    ],
)
def test_bad_input_is_one_line(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], culprit: str
) -> None:
    star = tmp_path / "particles.star"
    star.write_bytes((simulated / "particles.star").read_bytes())
    if "--datadir" not in options:
        (tmp_path / "particles.mrcs").symlink_to(simulated / "particles.mrcs")
    assert main(["plan", str(star), *options]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("emsplat: ")
    assert complaint.count("\n") == 1
    assert culprit in complaint


def test_no_particle_file(tmp_path: Path, refuses: Callable) -> None:
    from emsplat.plan.run import plan

    with refuses(str(tmp_path / "absent.star")):
        plan(tmp_path / "absent.star", ReconstructSettings(), Cluster(), Reporter())


def test_a_search_for_heterogeneity_is_planned_stage_by_stage(
    simulated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    star = str(simulated / "particles.star")
    options = ["--threads", "1", "--max-resolution", "12", "--json"]
    assert main(["plan", star, "--job", "heterogeneity", "--components", "2", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [stage["name"] for stage in found["stages"]]
    assert names[-7:] == ["subspace", "latents", "bins", "decoder", "posterior", "states", "writing states"]
    assert all(stage["seconds"] > 0 for stage in found["stages"][-7:])
    assert any("2 components" in line for line in found["assumptions"])


def test_components_are_learnt_from_a_limited_number_of_images() -> None:
    rates = SearchRates(1e-4, (1e-5, 4e-5, 1e-4), 1e-4, 1e-5)

    def of(n_images: int) -> dict[str, Stage]:
        search = Search(replace(JOB, n_images=n_images), 3, 15)
        return {stage.name: stage for stage in search_stages(search, Cluster(), RATES, rates)}

    one, ten = of(100_000), of(1_000_000)
    assert ten["subspace"] == one["subspace"]
    assert ten["decoder"] == one["decoder"]
    for name in ("latents", "bins", "posterior"):
        assert 5 < ten[name].seconds / one[name].seconds < 10.5
    assert ten["bins"].memory_bytes == one["bins"].memory_bytes < 3e9

"""One door for every particle file: the format is told by content, and options that do not fit it are refused."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil

import numpy as np
import pytest

from emsplat.errors import InputError
from emsplat.io import read_particles
from emsplat.io.formats import Format, sniff

TOMO = "metadata/relion5-tomo/warptools_test_4-tomos_10-ptcls_box-32_angpix-12"
REAL = {
    "real/ribosome-tilts/particles.star": Format.RELION,
    "real/ribosome-sta/sta_testing_bin8.star": Format.RELION,
    "real/spa-17/sample_relion_data.star": Format.RELION,
    "metadata/relion5.star": Format.RELION,
    "metadata/relion31.6opticsgroups.star": Format.RELION,
    "metadata/empiar-10204-betagal-run_data.star": Format.RELION,
    f"{TOMO}_optimisation_set.star": Format.OPTIMISATION_SET,
    f"{TOMO}.star": Format.TOMO_PARTICLES,
    "metadata/cryosparc_P12_J24_001_particles.cs": Format.CRYOSPARC,
    "real/empiar-10076/empiar_10076_7.cs": Format.CRYOSPARC,
    "real/ribosome-tilts/particles.mrcs": Format.STACK,
    "real/empiar-10076/empiar_10076_7.mrc": Format.STACK,
    "metadata/pose.cs.pkl": Format.PICKLE,
    "metadata/ctf2.pkl": Format.PICKLE,
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("suffix", [None, "", ".dat"])
def test_content_tells_the_format_whatever_the_name(shared_data, tmp_path, name, suffix):
    path = shared_data / name
    if suffix is not None:
        path = tmp_path / f"file{suffix}"
        shutil.copy(shared_data / name, path)
    assert sniff(path) is REAL[name]


TEXTS = {
    "data/a.mrcs\n/data/b.mrcs\n": Format.STACK_LIST,
    "\n\na.mrc\r\n": Format.STACK_LIST,
    "a,b\n1,2\n": Format.UNKNOWN,
    "": Format.UNKNOWN,
    "# a comment\n\ndata_particles\n": Format.RELION,
    "data_\n\nloop_\n_cisTEMPositionInStack #1\n_cisTEMAnglePsi #2\n1 2\n": Format.CISTEM,
    "created: 2024\nresults:\n  blob:\n    metafile: '>a.cs'\n": Format.CRYOSPARC_GROUP,
    "data_\n\n_rlnTomoTomogramsFile b.star\n_rlnTomoParticlesFile a.star\n": Format.OPTIMISATION_SET,
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts(tmp_path, text):
    path = tmp_path / "file"
    path.write_text(text)
    assert sniff(path) is TEXTS[text]


def test_the_name_counts_where_content_says_nothing(tmp_path, shared_data, refuses):
    (tmp_path / "empty.star").write_text("")
    with refuses("empty.star", "no data_ block"):
        read_particles(tmp_path / "empty.star")
    assert sniff(shared_data / "real/relion31-5/relion31.mrcs") is Format.STACK  # no "MAP" in its header


def test_what_is_not_read_is_refused_with_its_remedy(shared_data, tmp_path, refuses):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(b"a.mrcs\n" * 10))
    (tmp_path / "list.txt").write_text("a.mrcs\n")
    os.mkfifo(tmp_path / "pipe")
    for path, culprits in (
        (tmp_path / "table.csv", ["unknown format", "convert"]),
        (tmp_path / "packed.txt.gz", ["compressed with gzip", "gunzip -k"]),
        (tmp_path / "list.txt", ["a list of stacks", "--poses"]),
        (shared_data / "real/relion31-5/relion31.mrcs", ["a stack of images", "--poses", "--ctf"]),
        (shared_data / "metadata/pose.cs.pkl", ["a pickle", "--poses"]),
        (shared_data / f"{TOMO}.star", ["tomography", "optimisation set"]),
        (tmp_path / "absent.star", ["cannot be read"]),
        (tmp_path, ["not a file"]),
        (tmp_path / "pipe", ["not a file"]),
    ):
        with refuses(path.name, *culprits):
            read_particles(path)


def test_options_that_do_not_fit_the_format_are_refused(dataset, shared_data, tmp_path, refuses):
    star = dataset()
    (tmp_path / "poses.pkl").write_bytes(pickle.dumps(np.eye(3)[None]))
    pickles = {"poses": tmp_path / "poses.pkl", "ctf": tmp_path / "poses.pkl"}
    with refuses("--passthrough", "cryoSPARC", "particles.star", "a star file"):
        read_particles(star, passthrough=[tmp_path / "other.cs"])
    for alone in pickles:
        with refuses("--poses and --ctf", "both"):
            read_particles(star, **{alone: pickles[alone]})
    cs = shared_data / "metadata/cryosparc_P12_J24_001_particles.cs"
    with refuses("--passthrough", "--poses"):
        read_particles(cs, passthrough=[cs], **pickles)
    with refuses("optimisation set", "--poses"):
        read_particles(shared_data / f"{TOMO}_optimisation_set.star", **pickles)


def test_every_star_there_is_gives_a_table_or_one_line(shared_data, refuses):
    refused = {
        "sample_incomplete_ctf_params.star": ["rlnVoltage"],
        "relion31.6opticsgroups.star": ["two pixel sizes, 1.24 and 1.25", "apart"],
        "empiar-10204-betagal-postprocess.star": ["rlnImageName"],
        "empiar_10076_7.star": ["rlnAngleRot"],
        f"{TOMO.split('/')[-1]}.star": ["optimisation set"],
        f"{TOMO.split('/')[-1]}_tomograms.star": ["no particle table"],
    }
    known = {
        "empiar-10204-betagal-run_data.star",
        "particles.star",
        "relion31.star",
        "relion5.star",
        "sample_particles_relion30.star",
        "sample_relion_data.star",
        "sample_relion_symmetry_group_D4.star",
        f"{TOMO.split('/')[-1]}_optimisation_set.star",
        "sta_testing_bin8.star",
    }
    read = set()
    for path in sorted(shared_data.rglob("*.star")):
        if path.name in refused:
            with refuses(path.name, *refused[path.name]):
                read_particles(path, need_stacks=False)
            continue
        try:
            assert len(read_particles(path, need_stacks=False)) > 0, path
            read.add(path.name)
        except InputError as error:  # of a file that nobody knew of when this was written
            assert "\n" not in str(error)
            assert path.name in str(error)
    assert known <= read


def test_six_optics_groups_read_with_one_pixel_size(shared_data):
    star = shared_data / "metadata/relion31.6opticsgroups.star"
    found = read_particles(star, pixel_size_in_angstroms=1.25, need_stacks=False)
    used = {found.optics[group].name for group in found.optics_group}
    assert used <= {f"opticsGroup{i}" for i in range(1, 7)}
    by_name = {group.name: group for group in found.optics}
    assert by_name["opticsGroup1"].spherical_aberration_in_millimetres == 2.6
    assert found.box_size == 196

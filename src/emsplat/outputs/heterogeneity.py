"""The folder of a search for heterogeneity, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emsplat.figures import heterogeneity as figures
from emsplat.heterogeneity.agreement import BEYOND_DOUBT, LEAST_SIGNIFICANCE, LEAST_VARIANCE, SMALL_VARIANCE
from emsplat.heterogeneity.decoder import average
from emsplat.heterogeneity.latents import write_latents
from emsplat.heterogeneity.result import Heterogeneity
from emsplat.heterogeneity.states import State
from emsplat.heterogeneity.trajectories import trajectories
from emsplat.io.mrc import write_map
from emsplat.outputs.claims import check_output
from emsplat.outputs.reconstruction import command_line, costing_no_run, write_ids, write_json, write_run
from emsplat.reconstruction.identity import digests
from emsplat.report.heterogeneity import write_heterogeneity_report
from emsplat.report.landscape import Decoded, write_landscape
from emsplat.report.volumes import surface_level
from emsplat.runs.heterogeneity_folder import HeterogeneityFolder
from emsplat.runs.heterogeneity_run import resolution_of_state, surely_differs
from emsplat.runs.run_folder import HALVES
from emsplat.runtime.folders import filling
from emsplat.runtime.reporting import peak_memory_in_bytes
from emsplat.validation.validate import Validation, write_fsc_csv
from emsplat.versions import versions


def write_heterogeneity(folder: Path, result: Heterogeneity, overwrite: bool = False, ranks: int = 1) -> dict[str, Any]:
    """Write everything; an old run stays until all files are complete. Return what summary.json holds."""
    reporter = result.reporter
    check_output(folder, overwrite, HeterogeneityFolder)
    obsolete = HeterogeneityFolder.CHECKPOINTS
    with filling(folder, last=HeterogeneityFolder.SUMMARY, obsolete=obsolete) as staging:
        files = HeterogeneityFolder(staging)
        write_run(files.consensus, result.consensus, reporter, ranks=ranks)
        with reporter.stage("writing"):
            write_latents(files.latents, result.latents)
            write_ids(files.junk, result.latents.ids[result.latents.junk > 0.5])
            _write_decoders(files, result)
            files.states.mkdir()
            for number, state in enumerate(result.states, 1):
                _write_state(files, number, state, result)
            _write_trajectories(files, result)
            write_json(files.configuration, _configuration(result))
        with reporter.stage("figures"):
            _draw(files, result)
        summary = summarise(result) | {"ranks": ranks, "resumed": reporter.resumed}
        write_json(files.summary, summary)
        with reporter.stage("report"):
            _write_landscape(files.landscape, folder.resolve().name, result, summary)
        closing = [f"{name}: {text}" for name, text in closing_rows(summary, folder)]
        files.log.write_text("\n".join([*reporter.log, "", *closing]) + "\n", encoding="utf-8")
        files.report.touch()
        with costing_no_run(folder, reporter):
            write_heterogeneity_report(staging, name=folder.resolve().name)
        drawn = {path.name for path in files.figures.iterdir()}
    if overwrite:
        _remove_former(HeterogeneityFolder(folder), result, drawn)
    return summary


def _remove_former(files: HeterogeneityFolder, result: Heterogeneity, drawn: set[str]) -> None:
    """Remove what the replaced run had and this one lacks: further states and components, or all that varied.

    Args: drawn: names of the figures of this run.
    """
    for folder_of, kept in (
        (files.state, len(result.states)), (files.trajectory, len(trajectories(result.latents)))
    ):  # fmt: skip
        for path in takewhile(Path.exists, (folder_of(number).path for number in count(kept + 1))):
            shutil.rmtree(path, ignore_errors=True)
    former = [path for path in map(files.figure, files.FIGURES) if path.name not in drawn]
    if result.halves is None:
        former += [files.landscape, files.decoder(), *map(files.decoder, HALVES)]
    for path in former:
        path.unlink(missing_ok=True)


def closing_rows(summary: dict[str, Any], folder: Path) -> list[tuple[str, str | Path]]:
    """What the user wants to know at the end: name and value of each line of the closing table."""
    files = HeterogeneityFolder(folder)
    rows: list[tuple[str, str | Path]] = []
    if summary["n_components"] == 0:
        rows.append(("heterogeneity", summary["reason"]))
    else:
        rows.append(("components", f"{summary['n_components']}: {summary['reason']}"))
        for state in summary["states"]:
            rows.append((f"state {state['number']}", _state_text(state)))
        rows += [(f"R² with {leak['what']}", _leak_text(leak)) for leak in summary["leaks"]]
        rows += [("latents", files.latents), ("landscape", files.landscape)]
    return [
        *rows,
        ("report", files.report),
        ("consensus", files.consensus),
        (
            "time",
            f"{sum(summary['seconds'].values()):.1f} s{' since the run was resumed' if summary['resumed'] else ''}",
        ),
        ("peak memory", f"{summary['peak_memory_in_bytes'] / 1e9:.2f} GB"),
    ]


def _state_text(state: dict[str, Any]) -> str:
    resolution = resolution_of_state(state)
    surely = "differs from the consensus" if surely_differs(state) else "not surely different"
    return (
        f"{100 * state['population']:.1f} % of the images, {resolution} for the average over this neighbourhood, "
        f"{surely} ({state['difference_significance']:.0f} σ)"
    )


def _leak_text(leak: dict[str, Any]) -> str:
    text = f"{max(leak['r_squared'], 0):.3f}"
    return f"{text}, more than there should be: {leak['meaning']}" if leak["worrying"] else text


def summarise(result: Heterogeneity) -> dict[str, Any]:
    """What summary.json holds; lengths in Å, times in seconds, memory in bytes."""
    found, reporter = result.components, result.reporter
    return {
        "n_components": found.count,
        "n_components_found": found.found,
        "reason": _reason(result),
        "components": {
            f"half{half}_seen_by_half{3 - half}": {
                "variance": seen.variance.tolist(),
                "significance": seen.significance.tolist(),
            }
            for half, seen in ((1, found.seen[0]), (2, found.seen[1]))
        },
        "canonical_correlations": found.canonical.tolist(),
        "pose_errors": {"degrees": found.pose_errors[0], "pixels": found.pose_errors[1]},
        "log_likelihood_under_the_other_half": list(result.log_likelihoods),
        "decoder": [
            {"half": half + 1, "round": turn, "variant": h.variant, "held_out_loss": h.best, "steps": h.best_at,
             "chosen": place == 0}
            for half, of_half in enumerate(result.halves or ())
            for turn, variants in enumerate(of_half.histories)
            for place, h in enumerate(variants)
        ],
        "states": [_state_summary(number, state) for number, state in enumerate(result.states, 1)],
        "leaks": [
            {"what": leak.what, "r_squared": leak.r_squared, "worrying": leak.is_worrying, "meaning": leak.meaning}
            for leak in result.leaks
        ],
        "n_images": len(result.latents.ids),
        "n_junk": int((result.latents.junk > 0.5).sum()),
        "box_size": len(result.consensus.map),
        "pixel_size": result.consensus.pixel_size_in_angstroms,
        "poses_shared": result.consensus.poses_shared,
        "seconds": {stage: round(seconds, 3) for stage, seconds in reporter.seconds.items()},
        "peak_memory_in_bytes": peak_memory_in_bytes(),
        "seed": result.settings.seed,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "warnings": reporter.warnings,
        "versions": versions(),
    }  # fmt: skip


def _reason(result: Heterogeneity) -> str:
    if result.components.not_sought:
        return f"not looked for: {result.components.not_sought}"
    if result.components.count == 0:
        return f"none found: {result.components.why_none}"
    if result.settings.n_components is not None:
        return f"as asked for; the halves agree on {result.components.found}"
    return "each half's components vary among the other half's images"


def _state_summary(number: int, state: State) -> dict[str, Any]:
    v = state.validation
    return {
        "number": number,
        "population": state.population,
        "z": state.z.tolist(),
        "spread": state.spread.tolist(),
        "resolution": v.resolution,
        "resolution_kind": v.resolution_kind,
        "resolution_of": "the average over this neighbourhood",
        "measurable_limit": _limit(v),
        "difference_correlation": state.difference.correlation,
        "difference_significance": state.difference.significance,
    }


def _limit(v: Validation) -> float | None:
    return float(1 / v.frequency[v.limit_shell - 1]) if v.limit_shell else None


def _configuration(result: Heterogeneity) -> dict[str, Any]:
    return {
        "command": command_line(),
        "directory": os.getcwd(),
        "particles": str(Path(result.consensus.particles.source).absolute()),
        "settings": asdict(result.settings),
        "digests": digests(result.settings),
    }


def _write_decoders(files: HeterogeneityFolder, result: Heterogeneity) -> None:
    if result.halves is None:
        return
    box = {
        "box_size": str(len(result.consensus.map)),
        "pixel_size_in_angstroms": f"{result.consensus.pixel_size_in_angstroms:.6g}",
    }
    first, second = (half.decoder for half in result.halves)
    average(first, second).save(files.decoder(), **box)
    for half, decoder in zip(HALVES, (first, second), strict=True):
        decoder.save(files.decoder(half), **box)


def _write_state(files: HeterogeneityFolder, number: int, state: State, result: Heterogeneity) -> None:
    names = files.state(number)
    names.path.mkdir()
    pixel_size = result.consensus.pixel_size_in_angstroms
    write_map(names.map(), state.map, pixel_size)
    for half, one, raw in zip(HALVES, state.half_maps, state.raw, strict=True):
        write_map(names.map(half), one, pixel_size)
        write_map(names.unregularised_map(half), raw, pixel_size)
    write_map(names.mask, state.mask, pixel_size)
    write_map(names.difference, state.difference.map, pixel_size)
    write_map(names.difference_error, state.difference.error, pixel_size)
    state.gaussians.save(
        names.gaussians(), box_size=str(len(state.map)), pixel_size_in_angstroms=f"{pixel_size:.6g}", symmetry="C1"
    )
    write_fsc_csv(names.curves, state.validation)
    write_ids(names.ids, result.latents.ids[result.latents.state == number - 1])


def _write_landscape(path: Path, name: str, result: Heterogeneity, summary: dict[str, Any]) -> None:
    """The page with all latents, if there are any."""
    if result.halves is None:
        return
    latents, table = result.latents, result.consensus.particles
    view = table.rotations()[:, 2]
    columns: dict[str, NDArray[np.floating]] = {
        "state": latents.state + 1.0,
        "half": latents.half.astype(np.float64),
        "contrast": latents.contrast,
        "log-likelihood": latents.log_likelihood,
        "junk": latents.junk,
        "defocus (Å)": 0.5 * (table.defocus_u_in_angstroms + table.defocus_v_in_angstroms),
        "view: tilt (°)": np.rad2deg(np.arccos(np.clip(view[:, 2], -1, 1))),
        "view: rot (°)": np.rad2deg(np.arctan2(view[:, 1], view[:, 0])),
    }
    states = [state | {"resolution_text": resolution_of_state(state)} for state in summary["states"]]
    write_landscape(path, name, latents.ids.tolist(), latents.mean, columns, states, summary["leaks"], _decoded(result))


def _decoded(result: Heterogeneity) -> Decoded | None:
    """What the landscape needs to show the density at any point."""
    if result.halves is None or not result.states:
        return None
    consensus, first = result.consensus, result.states[0]
    return Decoded(
        average(*(half.decoder for half in result.halves)),
        surface_level(first.map, first.mask),
        0.5 * len(consensus.map) * consensus.pixel_size_in_angstroms,
        [(f"component {t.component + 1}", t.points) for t in trajectories(result.latents)],
    )


def _write_trajectories(files: HeterogeneityFolder, result: Heterogeneity) -> None:
    """For each component: maps, a table of their points, a GIF and a script for ChimeraX."""
    if result.halves is None:
        return
    files.trajectories.mkdir()
    first, second = (half.decoder for half in result.halves)
    both = average(first, second)
    box_size, pixel_size = len(result.consensus.map), result.consensus.pixel_size_in_angstroms
    for trajectory in trajectories(result.latents):
        names_of = files.trajectory(trajectory.component + 1)
        folder = names_of.path
        folder.mkdir()
        volumes = [both.at(z).voxelise(box_size, pixel_size) for z in trajectory.points]
        names = [f"{i:02d}.mrc" for i in range(1, len(volumes) + 1)]
        for name, volume in zip(names, volumes, strict=True):
            write_map(folder / name, volume, pixel_size)
        rows = zip(names, trajectory.points.tolist(), trajectory.images.tolist(), strict=True)
        header = ["file", *(f"z{i + 1}" for i in range(trajectory.points.shape[1])), "images"]
        lines = [",".join(header), *(",".join([n, *(f"{x:.6g}" for x in z), str(count)]) for n, z, count in rows)]
        names_of.points.write_text("\n".join(lines) + "\n", encoding="utf-8")
        figures.movie(volumes, names_of.movie)
        level = float(np.quantile(np.mean(volumes, axis=0), 0.97))
        names_of.script.write_text(_chimerax(names, level), encoding="utf-8")


def _chimerax(names: list[str], level: float) -> str:
    """Commands that play maps one after another; open the script in its folder."""
    return (
        f"open {' '.join(names)} vseries true\n"
        f"volume #1 level {level:.6g} style surface\n"
        "view\n"
        "vseries play #1 loop true direction oscillate maxFrameRate 8\n"
    )


def _draw(files: HeterogeneityFolder, result: Heterogeneity) -> None:
    files.figures.mkdir()
    found = result.components
    if len(found.seen[0].variance):
        figures.figure_components(
            [seen.variance for seen in found.seen], [seen.significance for seen in found.seen],
            (LEAST_VARIANCE, LEAST_SIGNIFICANCE), (SMALL_VARIANCE, BEYOND_DOUBT), found.count,
            files.figure("components"),
        )  # fmt: skip
    if result.states:
        shares = np.array([state.population for state in result.states])
        sure = result.latents.junk < 0.5
        figures.figure_landscape(
            result.latents.mean[sure], np.array([state.z for state in result.states]), shares,
            files.figure("landscape"),
        )  # fmt: skip
        labels = [resolution_of_state(_state_summary(i, state)) for i, state in enumerate(result.states, 1)]
        figures.figure_states([state.map for state in result.states], shares, labels, files.figure("states"))
        _draw_differences(files, result)
        _draw_movement(files, result)


def _draw_differences(files: HeterogeneityFolder, result: Heterogeneity) -> None:
    states = result.states
    figures.figure_differences(
        [state.map for state in states],
        [state.difference.map for state in states],
        [state.difference.error for state in states],
        [np.maximum(state.mask, result.consensus.mask) for state in states],
        [f"{i}: {state.difference.significance:.0f} σ" for i, state in enumerate(states, 1)],
        files.figure("differences"),
    )


def _draw_movement(files: HeterogeneityFolder, result: Heterogeneity) -> None:
    """Arrows along each trajectory, if a decoder moves Gaussians."""
    assert result.halves
    both = average(*(half.decoder for half in result.halves))
    if not both.moves:
        return
    box_size, pixel_size = len(result.consensus.map), result.consensus.pixel_size_in_angstroms
    movements = []
    for trajectory in trajectories(result.latents):
        first, last = (both.at(trajectory.points[end]) for end in (0, -1))
        movements.append(
            figures.Movement(
                first.voxelise(box_size, pixel_size),
                first.centres.double().numpy(),
                first.masses().double().numpy(),
                (last.centres - first.centres).double().numpy(),
            )
        )
    figures.figure_movement(movements, pixel_size, files.figure("movement"))

"""The negative log-likelihood of images under a map and its derivatives by pose, shift, contrast and defocus.

Slices come from the map's transform on a padded grid (`simulation.slices`), through a window of 4³ taps. The slopes of
the window give the slopes of the transform from the same 64 grid points, so that the derivatives of an image cost
little more than the image: a row of four complex taps is one vector of eight lanes. Relative errors are 1e-3 for the
transform and 2e-2 for its slopes. Only sums are stored: the negative log-likelihood, its slopes by the seven
parameters, and the curvatures of the Gauss–Newton method.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from emsplat.fourier.slices import MARGIN, PADDING
from emsplat.fourier.window import Window
from emsplat.optics.ctf import ctf_at, magnified, quarter_wave_ahead, terms_of

WIDTH = 4
WINDOW = Window.for_oversampling(WIDTH, PADDING)
N_PARAMETERS = 7  # turns about the image's x, y, z (radians); shift x, y (Å); contrast; defocus (Å)
_STEPS = 1024
_LANES = 2 * WIDTH
_ROW = ir.VectorType(ir.FloatType(), _LANES)
_FAST = ("fast",)


def tap_table() -> np.ndarray:
    """((steps + 2) · 2 W,) float32: the window's taps (`Window.taps`) and their slopes by the coordinate."""
    taps = WINDOW.taps(_STEPS)
    # A tap's distance falls as the coordinate grows.
    return np.concatenate([taps, -np.gradient(taps, 1 / _STEPS, axis=0)], axis=1).astype(np.float32).ravel()


@intrinsic
def _gather(typingctx, values, offset, to_next_y, to_next_z, table, x_row, x_rest, y_row, y_rest, z_row, z_rest):
    """Re, Im of F and of its slopes by x, y, z from 4³ complex samples.

    Offsets are in floats. Each axis has the row of the table with its taps and the fraction of the way to the next.
    """
    del typingctx
    result = types.UniTuple(types.float32, 8)

    def codegen(context, builder, signature, args):
        first, next_y, next_z = args[1:4]
        data, taps_data = (context.make_array(signature.args[i])(context, builder, value=args[i]).data for i in (0, 4))

        def eight(pointer, at):
            row = builder.load(builder.bitcast(builder.gep(pointer, [at]), _ROW.as_pointer()))
            row.align = 4
            return row

        def times(a, b, plus=None):
            product = builder.fmul(a, b, flags=_FAST)
            return product if plus is None else builder.fadd(plus, product, flags=_FAST)

        def lanes(row, chosen):
            indices = ir.Constant(ir.VectorType(ir.IntType(32), len(chosen)), chosen)
            return builder.shuffle_vector(row, ir.Constant(_ROW, ir.Undefined), indices)

        def taps_of(row, rest):
            at = builder.mul(row, ir.Constant(row.type, _LANES))
            here, there = eight(taps_data, at), eight(taps_data, builder.add(at, ir.Constant(at.type, _LANES)))
            spread = builder.insert_element(ir.Constant(_ROW, ir.Undefined), rest, ir.Constant(ir.IntType(32), 0))
            return times(builder.fsub(there, here, flags=_FAST), lanes(spread, [0] * _LANES), here)

        x, y, z = (taps_of(*args[i : i + 2]) for i in (5, 7, 9))
        total = by_y = by_z = None
        for iz in range(WIDTH):
            plane = slope = None
            for iy in range(WIDTH):
                steps = (
                    builder.mul(next_z, ir.Constant(next_z.type, iz)),
                    builder.mul(next_y, ir.Constant(next_y.type, iy)),
                )
                row = eight(data, builder.add(first, builder.add(*steps)))
                plane = times(row, lanes(y, [iy] * _LANES), plane)
                slope = times(row, lanes(y, [WIDTH + iy] * _LANES), slope)
            tap, tap_slope = lanes(z, [iz] * _LANES), lanes(z, [WIDTH + iz] * _LANES)
            total, by_y, by_z = times(plane, tap, total), times(slope, tap, by_y), times(plane, tap_slope, by_z)
        taps, slopes = (lanes(x, [start + i // 2 for i in range(_LANES)]) for start in (0, WIDTH))
        add = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.FloatType(), [ir.FloatType(), ir.VectorType(ir.FloatType(), WIDTH)]),
            "llvm.vector.reduce.fadd.v4f32",
        )
        zero = ir.Constant(ir.FloatType(), 0.0)
        sums = [
            builder.call(add, [zero, lanes(row, list(range(part, _LANES, 2)))], fastmath=_FAST)
            for row in (times(total, taps), times(total, slopes), times(by_y, taps), times(by_z, taps))
            for part in range(2)
        ]
        return context.make_tuple(builder, result, sums)

    i, f = types.int64, types.float32
    return result(values, i, i, i, table, i, f, i, f, i, f), codegen


@numba.njit(inline="always")
def _place(x):
    """First tap, row of the table, and distance to the next row for a coordinate."""
    first = math.ceil(x - WIDTH / 2)
    position = (first - x + WIDTH / 2) * _STEPS
    row = int(position)
    return int(first), row, np.float32(position - row)


@numba.njit(fastmath=True, error_model="numpy")
def _transform(flat, origin, row, plane, table, kx, ky, kz):
    """F and its slopes by k at a frequency in units of 1/D, four complex numbers."""
    flip = kx < 0.0  # only kx ≥ 0 is stored
    sign = -PADDING if flip else PADDING
    x0, x_row, x_rest = _place(sign * kx)
    y0, y_row, y_rest = _place(sign * ky)
    z0, z_row, z_rest = _place(sign * kz)
    s = _gather(
        flat, origin + z0 * plane + y0 * row + 2 * x0, row, plane, table, x_row, x_rest, y_row, y_rest, z_row, z_rest
    )  # fmt: skip
    side, steps = (-1.0 if flip else 1.0), float(PADDING)  # F(−k) = F(k)*, and its slope is minus the slope's
    return (
        complex(s[0], side * s[1]),
        complex(side * steps * s[2], steps * s[3]),
        complex(side * steps * s[4], steps * s[5]),
        complex(side * steps * s[6], steps * s[7]),
    )


@numba.njit(parallel=True, nogil=True, cache=True)
def normal_equations(
    grid, table, box_size, samples, spectra, weights, parameters, defocus_slopes, symmetric, symmetric_of,
    premultiplied, rotations, centres, contrasts, step, misfits, slopes, curvatures,
):  # fmt: skip
    """Fill (n,) negative log-likelihoods, (n, 7) slopes and (n, 7, 7) curvatures of n images at their parameters.

    Args:
        grid: of the map's `FourierVolume`, made with `WINDOW`, box_size D; table: from `tap_table`.
        samples: (m, 2) int64 kx, ky of the samples that are used, in units of 1/D.
        spectra, weights: (n, m or more) of `imaging.Observed` at the samples.
        parameters: (n, 13) from `ctf_parameters`; defocus_slopes: (n,) π λ, by which the CTF's phase grows with
            defocus × s²; 0 if the defocus is not refined.
        symmetric: (groups, m or more) terms added to the CTF's phase; symmetric_of: (n,) row for each image, −1: none.
        premultiplied: (n,) whether the spectra hold C y.
        rotations: (n, 3, 3) A; centres: (n, 2) x, y of the particle in cycles per unit of 1/D.
        contrasts: (n,); step: 1/(D · pixel size) in 1/Å.
    """
    flat = grid.view(np.float32).reshape(-1)
    row, plane = 2 * grid.shape[2], 2 * grid.shape[2] * grid.shape[1]
    origin = (MARGIN + box_size) * (plane + row) + 2 * MARGIN
    for i in numba.prange(spectra.shape[0]):
        slopes[i] = 0
        curvatures[i] = 0
        misfits[i] = _image(
            flat, origin, row, plane, table, samples, spectra[i], weights[i], parameters[i], defocus_slopes[i],
            symmetric[max(symmetric_of[i], 0)], symmetric_of[i] >= 0, premultiplied[i], rotations[i], centres[i],
            contrasts[i], step, slopes[i], curvatures[i],
        )  # fmt: skip


@numba.njit(fastmath=True, error_model="numpy")
def _image(
    flat, origin, row, plane, table, samples, spectrum, weights, parameters, defocus_slope,
    symmetric, has_symmetric, times_ctf, a, centre, contrast, step, g, h,
):  # fmt: skip
    """The negative log-likelihood of one image; adds its slopes to g and its curvatures to h."""
    terms = terms_of(parameters)
    ahead = quarter_wave_ahead(terms)
    misfit = 0.0
    gain = np.float32(0)
    by_real, by_imag = np.empty(6), np.empty(6)
    reach = np.abs(samples).max() + 1
    k = np.arange(reach)
    columns = contrast * np.exp(-2j * np.pi * centre[0] * k)
    rows = np.exp(-2j * np.pi * centre[1] * np.concatenate((k, k - reach)))  # negative indices count from the end
    for i in range(samples.shape[0]):
        w = weights[i]
        if w == 0:
            continue
        kx, ky = samples[i, 0], samples[i, 1]
        x, y = magnified(terms, kx, ky)  # in the plane of the map, after magnification
        f, fx, fy, fz = _transform(
            flat, origin, row, plane, table,
            a[0, 0] * x + a[1, 0] * y, a[0, 1] * x + a[1, 1] * y, a[0, 2] * x + a[1, 2] * y,
        )  # fmt: skip
        if has_symmetric:
            gain = symmetric[i]
        c = ctf_at(terms, kx * step, ky * step, gain)
        phase = columns[kx] * rows[ky]
        before = phase * f  # the prediction before the CTF
        # The map's slopes along the image's axes; a turn ω moves the sample k by −ω × k in the image's frame.
        along_x = phase * (a[0, 0] * fx + a[0, 1] * fy + a[0, 2] * fz)
        along_y = phase * (a[1, 0] * fx + a[1, 1] * fy + a[1, 2] * fz)
        along_z = phase * (a[2, 0] * fx + a[2, 1] * fy + a[2, 2] * fz)
        by_real[0], by_imag[0] = -y * along_z.real, -y * along_z.imag
        by_real[1], by_imag[1] = x * along_z.real, x * along_z.imag
        by_real[2], by_imag[2] = y * along_x.real - x * along_y.real, y * along_x.imag - x * along_y.imag
        to_x, to_y = 2 * np.pi * step * kx, 2 * np.pi * step * ky
        by_real[3], by_imag[3] = to_x * before.imag, -to_x * before.real
        by_real[4], by_imag[4] = to_y * before.imag, -to_y * before.real
        by_real[5], by_imag[5] = before.real / contrast, before.imag / contrast
        recorded = spectrum[i]
        met = recorded * (1.0 if times_ctf else c)  # premultiplied spectra already hold the CTF
        power = w * c * c
        seen = c * c * before
        misfit += w * (before.real * (0.5 * seen.real - met.real) + before.imag * (0.5 * seen.imag - met.imag))
        real, imag = w * (seen.real - met.real), w * (seen.imag - met.imag)
        for r in range(6):
            g[r] += by_real[r] * real + by_imag[r] * imag
            for q in range(r + 1):
                h[r, q] += power * (by_real[r] * by_real[q] + by_imag[r] * by_imag[q])
        if defocus_slope != 0:
            slope = defocus_slope * (x * x + y * y) * step * step * ctf_at(ahead, kx * step, ky * step, gain)
            real, imag = c * before.real - recorded.real, c * before.imag - recorded.imag
            g[6] += w * slope * (before.real * real + before.imag * imag)
            for q in range(6):
                h[6, q] += w * slope * c * (before.real * by_real[q] + before.imag * by_imag[q])
            h[6, 6] += w * slope * slope * (before.real**2 + before.imag**2)
    for r in range(N_PARAMETERS):
        for q in range(r):
            h[q, r] = h[r, q]
    return misfit

"""The innermost loops as vector instructions: eight voxels of a Gaussian, and the taps of a sample of a slice.

The compiler does not vectorise such short rows by itself. They are therefore written as LLVM vectors, which are
portable (LLVM translates them to AVX, AVX-512 or NEON) and still pure Python.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
WIDTH = 4  # number of taps of the kernel that spreads samples
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
_FAST = ("fast",)
# 2^f on [0, 1] to a relative 8e-8 (least-squares fit reweighted towards the minimax one), constant term first.
_EXP2 = (0.999999925, 0.693153073, 0.240153621, 0.0558263055, 0.00898935502, 0.00187757051)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * LANES)


def _spread(builder, scalar, lanes=LANES):
    """A scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(ir.FloatType(), lanes), ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _exp2_negative(builder, t):
    """2^t for t ≤ 0 and well above −126."""
    # Truncation towards zero rounds a negative t up; one less is its floor, or one below it if t is whole.
    whole = builder.sub(builder.fptosi(t, _INTEGERS), ir.Constant(_INTEGERS, [1] * LANES))
    f = builder.fsub(t, builder.sitofp(whole, _VECTOR), flags=_FAST)
    p = _constant(_EXP2[-1])
    for coefficient in reversed(_EXP2[:-1]):
        p = builder.fadd(builder.fmul(p, f, flags=_FAST), _constant(coefficient), flags=_FAST)
    bits = builder.shl(builder.add(whole, ir.Constant(_INTEGERS, [127] * LANES)), ir.Constant(_INTEGERS, [23] * LANES))
    return builder.fmul(p, builder.bitcast(bits, _VECTOR), flags=_FAST)


def _gaussian(builder, dx0, constant, quadratic, cutoff2):
    """(dx, values) of eight voxels: exp(−m/2) with m = constant + quadratic·dx², 0 where m > cutoff2."""
    dx = builder.fadd(_spread(builder, dx0), ir.Constant(_VECTOR, [float(i) for i in range(LANES)]), flags=_FAST)
    scaled = builder.fmul(dx, _spread(builder, quadratic), flags=_FAST)
    m = builder.fadd(builder.fmul(dx, scaled, flags=_FAST), _spread(builder, constant), flags=_FAST)
    limit = _spread(builder, cutoff2)
    inside = builder.fcmp_ordered("<=", m, limit)
    # The clamp keeps the bits of the exponent valid in lanes that are discarded.
    m = builder.select(inside, m, limit)
    values = _exp2_negative(builder, builder.fmul(m, _constant(-0.72134752044448), flags=_FAST))
    return dx, builder.select(inside, values, _constant(0.0))


def _lanes_of(context, builder, array_type, array, offset, vector=_VECTOR):
    """Pointer to consecutive floats of a C-contiguous array, from a flat offset."""
    data = context.make_array(array_type)(context, builder, value=array).data
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


def _add_to(builder, pointer, addend):
    before = builder.load(pointer)
    before.align = 4
    builder.store(builder.fadd(before, addend, flags=_FAST), pointer).align = 4


@intrinsic
def add_gaussian(typingctx, volume, offset, dx0, constant, quadratic, weight, cutoff2):
    """volume.flat[offset : offset + 8] += weight × Gaussian."""
    del typingctx
    f = types.float32

    def codegen(context, builder, signature, args):
        array, offset_, dx0_, constant_, quadratic_, weight_, cutoff2_ = args
        _, values = _gaussian(builder, dx0_, constant_, quadratic_, cutoff2_)
        pointer = _lanes_of(context, builder, signature.args[0], array, offset_)
        _add_to(builder, pointer, builder.fmul(values, _spread(builder, weight_), flags=_FAST))
        return context.get_dummy_value()

    return types.void(volume, types.int64, f, f, f, f, f), codegen


@intrinsic
def gaussian_sums(typingctx, volume, offset, dx0, constant, quadratic, cutoff2):
    """(Σ v g, Σ v g dx, Σ v g dx²) over eight voxels, v = volume.flat[offset:], g the Gaussian."""
    del typingctx
    f = types.float32
    result = types.UniTuple(f, 3)

    def codegen(context, builder, signature, args):
        array, offset_, dx0_, constant_, quadratic_, cutoff2_ = args
        dx, values = _gaussian(builder, dx0_, constant_, quadratic_, cutoff2_)
        voxels = builder.load(_lanes_of(context, builder, signature.args[0], array, offset_))
        voxels.align = 4
        total = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.FloatType(), [ir.FloatType(), _VECTOR]), "llvm.vector.reduce.fadd.v8f32"
        )
        zero = ir.Constant(ir.FloatType(), 0.0)
        g = builder.fmul(voxels, values, flags=_FAST)
        sums = []
        for _ in range(3):
            sums.append(builder.call(total, [zero, g], fastmath=_FAST))
            g = builder.fmul(g, dx, flags=_FAST)
        return context.make_tuple(builder, result, sums)

    return result(volume, types.int64, f, f, f, f), codegen


@intrinsic
def spread_sample(typingctx, grid, offset, row, plane, value, taps, jx, fx, jy, fy, jz, fz):
    """Add value × window(z) window(y) window(x) to the 4³ points of a grid that begin at a flat offset.

    row, plane: distance from one row and from one plane of the grid to the next; value: float32 or complex64, as the
    grid; taps: (steps, 8) four taps of the window, and the increase of each up to the next row of this table; j, f: the
    row of the table, and the fraction of the way to the next one.

    Every operation is rounded as it is written here. If the compiler were free to regroup them, as elsewhere, it would
    regroup them differently in the code that it caches for later processes, and their sums would differ.
    """
    del typingctx
    f, i = types.float32, types.int64
    components = 2 if isinstance(value, types.Complex) else 1
    lanes = WIDTH * components
    vector = ir.VectorType(ir.FloatType(), lanes)

    def codegen(context, builder, signature, args):
        grid_, offset_, row_, plane_, value_, taps_, *places = args
        table = context.make_array(taps)(context, builder, value=taps_).data
        along = [_window_at(builder, table, j, f) for j, f in (places[:2], places[2:4], places[4:])]
        y, z = ([_lanes(builder, four, [tap] * lanes) for tap in range(WIDTH)] for four in along[1:])
        x = _lanes(builder, along[0], [lane // components for lane in range(lanes)])
        x = builder.fmul(x, _repeated(context, builder, value, value_, lanes))
        for c in range(WIDTH):
            start = builder.add(offset_, builder.mul(plane_, ir.Constant(ir.IntType(64), c)))
            on_plane = builder.fmul(x, z[c])
            for b in range(WIDTH):
                at = builder.add(start, builder.mul(row_, ir.Constant(ir.IntType(64), b)))
                pointer = _lanes_of(context, builder, grid, grid_, at, vector)
                before = builder.load(pointer)
                before.align = 4
                builder.store(_fma(builder, on_plane, y[b], before), pointer).align = 4
        return context.get_dummy_value()

    return types.void(grid, i, i, i, value, taps, i, f, i, f, i, f), codegen


def _lanes(builder, vector, places):
    """A vector of chosen lanes of another."""
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))


def _repeated(context, builder, value_type, value, lanes):
    """A real number in every lane; for a complex number, its real and imaginary parts alternate."""
    if not isinstance(value_type, types.Complex):
        return _spread(builder, value, lanes)
    parts = context.make_complex(builder, value_type, value)
    pair = ir.Constant(ir.VectorType(ir.FloatType(), 2), ir.Undefined)
    for place, part in enumerate((parts.real, parts.imag)):
        pair = builder.insert_element(pair, part, ir.Constant(ir.IntType(32), place))
    return _lanes(builder, pair, [lane % 2 for lane in range(lanes)])


def _window_at(builder, table, row, f):
    """Four taps of the window, interpolated between a row of the table and the next."""
    pointer = builder.gep(table, [builder.mul(row, ir.Constant(ir.IntType(64), 2 * WIDTH))])
    both = builder.load(builder.bitcast(pointer, ir.VectorType(ir.FloatType(), 2 * WIDTH).as_pointer()))
    both.align = 4
    taps, slopes = (_lanes(builder, both, list(range(first, first + WIDTH))) for first in (0, WIDTH))
    return _fma(builder, slopes, _spread(builder, f, WIDTH), taps)


def _fma(builder, a, b, c):
    """a b + c, rounded once."""
    function = ir.FunctionType(a.type, [a.type] * 3)
    name = f"llvm.fma.v{a.type.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [a, b, c])

"""The columns in which RELION 3.1 keeps the aberrations of an optics group.

Beam tilts are in mrad; the Zernike coefficients are lists, ``[0.1,0,-2]``, in radians for frequencies in 1/Å; see
`emsplat.optics.aberrations`. Source: the label definitions of RELION 3.1 (``relion_refine --print_metadata_labels``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from emsplat.errors import InputError
from emsplat.particles.table import OpticsGroup

_TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
_ODD, _EVEN = "rlnOddZernike", "rlnEvenZernike"
_COMA = (3, 4)  # Z(3,−1), Z(3,1): where a star has a column of beam tilts, RELION puts the tilt in their place
_MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
ABERRATION_COLUMNS = (*_TILT, _ODD, _EVEN, *_MAGNIFICATION)

# Bounds far beyond any microscope: a value outside them is no aberration, and would make meaningless phases.
_LARGEST_COEFFICIENT, _MOST_COEFFICIENTS = 1e9, 100
_LARGEST_TILT = 1e3  # mrad
_LARGEST_STRETCH = 2.0


def with_aberrations(group: OpticsGroup, texts: Mapping[str, str], place: str) -> OpticsGroup:
    """The optics group with the aberrations that a row of the file gives it.

    Args:
        texts: value by column, for those of `ABERRATION_COLUMNS` that the file has.
        place: file and row, for the message.
    Raises:
        InputError: a value that is no number or makes no sense, or an incomplete magnification matrix.
    """
    odd, even = (_coefficients(name, texts.get(name, "[]"), place) for name in (_ODD, _EVEN))
    if any(name in texts for name in _TILT):
        odd = tuple(0.0 if i in _COMA else coefficient for i, coefficient in enumerate(odd))
    tilt_x, tilt_y = (_number(name, texts.get(name, "0"), _LARGEST_TILT, place) for name in _TILT)
    return replace(
        group,
        beam_tilt_in_milliradians=(tilt_x, tilt_y),
        odd_zernike=odd,
        even_zernike=even,
        magnification=_magnification(texts, place),
    )


def aberration_columns(groups: Sequence[OpticsGroup]) -> dict[str, list[str]]:
    """The columns of the aberrations that any of the optics groups has, as text that loses no digits."""
    columns: dict[str, list[str]] = {}
    if any(any(g.beam_tilt_in_milliradians) for g in groups):
        columns |= {n: [repr(g.beam_tilt_in_milliradians[i]) for g in groups] for i, n in enumerate(_TILT)}
    for name, lists in ((_ODD, [g.odd_zernike for g in groups]), (_EVEN, [g.even_zernike for g in groups])):
        if any(map(any, lists)):
            columns[name] = ["[" + ",".join(map(repr, values)) + "]" for values in lists]
    if any(g.magnification != OpticsGroup.magnification for g in groups):
        columns |= {n: [repr(g.magnification[i]) for g in groups] for i, n in enumerate(_MAGNIFICATION)}
    return columns


def _number(name: str, text: str, largest: float, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{place}: {name} is {text!r}, not a number; mend or remove the column") from None
    if not abs(value) <= largest:
        raise InputError(f"{place}: {name} is {text}; it must lie within ±{largest:g}: mend or remove the column")
    return value


def _coefficients(name: str, text: str, place: str) -> tuple[float, ...]:
    words = text.strip().strip("[]").split(",")
    if words == [""]:
        return ()
    if len(words) > _MOST_COEFFICIENTS:
        raise InputError(
            f"{place}: {name} has {len(words)} coefficients; at most {_MOST_COEFFICIENTS} make sense: mend or remove "
            "the column"
        )
    return tuple(_number(name, word, _LARGEST_COEFFICIENT, place) for word in words)


def _magnification(texts: Mapping[str, str], place: str) -> tuple[float, float, float, float]:
    missing = [name for name in _MAGNIFICATION if name not in texts]
    if len(missing) == len(_MAGNIFICATION):
        return OpticsGroup.magnification
    if missing:
        raise InputError(
            f"{place}: no {', '.join(missing)}; a magnification matrix has four elements, rlnMagMat00, 01, 10, 11: "
            "add what is missing or remove the rest"
        )
    a, b, c, d = (_number(name, texts[name], _LARGEST_STRETCH, place) for name in _MAGNIFICATION)
    longest, shortest = np.linalg.svd([[a, b], [c, d]], compute_uv=False)
    if not (a * d - b * c > 0 and longest <= _LARGEST_STRETCH and shortest >= 1 / _LARGEST_STRETCH):
        raise InputError(
            f"{place}: rlnMagMat00, 01, 10, 11 are {a:g}, {b:g}, {c:g}, {d:g}; a magnification matrix is close to "
            f"1, 0, 0, 1 and changes no length more than {_LARGEST_STRETCH:g} times: mend or remove them"
        )
    return a, b, c, d

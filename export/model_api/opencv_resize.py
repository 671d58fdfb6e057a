"""OpenCV's resizing of 8-bit pictures as OpenVINO operations, for graphs that take pictures of any size.

`vae_edge.image.prepare` averages by pixel area where a side shrinks and interpolates bilinearly where a side grows,
both by `cv2.resize`. The operations built here compute the same, with the weights, the order of the sums and the
rounding of OpenCV's `resize.cpp`. On x86-64, with OpenCV 4.14 and 5.0, no value of any picture differed
(`tests/export/model_api/test_opencv_resize.py`). Where a processor fuses multiplication and addition, as Arm does, a
few values in a hundred thousand that lie halfway may be rounded the other way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_edge.export.openvino_ir import import_openvino, name_plainly


def resize_as_opencv(image: Any, height: int, width: int) -> Any:
    """Add the operations that resize a picture.

    Args:
        image: output of an OpenVINO operation, uint8 [1, H, W, 3], H and W known only when a picture arrives, at most
            32,767 each.
        height: of the result, at most 4096.
        width: of the result, at most 4096.

    Returns:
        The last operation: uint8 [1, height, width, 3].
    """
    ops = _operations()
    rows, columns = _lengths(ops, image, (1, 2))
    target = (_integer(height), _integer(width))
    shrinks = ops.logical_or(ops.greater(rows, target[0]), ops.greater(columns, target[1]))
    grows = ops.logical_or(ops.less(rows, target[0]), ops.less(columns, target[1]))
    picture = ops.squeeze(image, _integer(0))
    # A step that a picture does not need is left out: most cameras take pictures that only shrink.
    picture = _where(
        ops,
        shrinks,
        picture,
        lambda values: _averaged(ops, values, (height, width)),
        lambda values: _real(ops, values),
    )
    picture = _where(
        ops, grows, picture, lambda values: _interpolated(ops, values, (height, width)), lambda values: values
    )
    return ops.convert(ops.reshape(picture, np.array([1, height, width, 3], dtype=np.int32), False), "u8")


def _where(ops: Any, condition: Any, values: Any, then: Callable[[Any], Any], otherwise: Callable[[Any], Any]) -> Any:
    """Compute one of two functions of [H, W, 3]; only the chosen one is computed."""
    from openvino import Model

    branch = ops.if_op(condition.output(0))
    parameters, results = [], []
    for function, set_body in ((then, branch.set_then_body), (otherwise, branch.set_else_body)):
        parameter = ops.parameter([-1, -1, 3], values.get_output_element_type(0))
        result = ops.result(function(parameter))
        body = Model([result], [parameter], "body")
        # Names that count up through the whole process would make every export another file.
        name_plainly(body)
        body.input(0).get_tensor().set_names({"picture"})
        body.output(0).get_tensor().set_names({"resized"})
        set_body(body)
        parameters.append(parameter)
        results.append(result)
    branch.set_input(values.output(0), *parameters)
    branch.set_output(*results)
    return branch


def _lengths(ops: Any, picture: Any, axes: tuple[int, int]) -> tuple[Any, Any]:
    """Return height and width of a picture, each an int32 scalar."""
    sizes = ops.shape_of(picture, "i32")
    rows, columns = (ops.gather(sizes, _integer(axis), _integer(0)) for axis in axes)
    return rows, columns


@dataclass(frozen=True)
class _Taps:
    """Which pixels of a side make up each new pixel, and with what weight; both int32 [n, k]."""

    positions: Any
    overlaps: Any
    """The part of each pixel that is covered, times the new length, so that it is an integer."""


def _averaged(ops: Any, picture: Any, most: tuple[int, int]) -> Any:
    """Average uint8 [H, W, 3] by pixel area to float32 [h, w, 3] of integers, h and w at most `most`.

    Where both sides shrink by integers OpenCV adds up the pixels and multiplies once (`ResizeAreaFast_`), and
    rounds halves upwards in blocks of 2 x 2 (`ResizeAreaFastVec`); otherwise it weights each pixel of a row, adds
    these up, then does the same with the rows (`ResizeArea_`), and rounds halves to even.
    """
    old = _lengths(ops, picture, (0, 1))
    new = [ops.minimum(length, _integer(limit)) for length, limit in zip(old, most, strict=True)]
    ratios = [ops.divide(length, shorter) for length, shorter in zip(old, new, strict=True)]
    whole = ops.logical_and(
        *(ops.equal(ops.multiply(ratio, size), length) for ratio, size, length in zip(ratios, new, old, strict=True))
    )
    rows, columns = (_taps(ops, *pair) for pair in zip(old, new, strict=True))
    # A pixel's share of a new one; or 1, where the sum is divided as one.
    row_weights, column_weights = (
        _column(ops, _quotient(ops, taps.overlaps, ops.select(whole, shorter, length)))
        for taps, length, shorter in zip((rows, columns), old, new, strict=True)
    )
    # Product and sum are separate operations, and the sum goes from pixel to pixel: other orders round otherwise. The
    # pixels of a sum are brought far apart in memory, so that whole lines are multiplied and added.
    three = np.array([3], dtype=np.int32)
    height, narrow, low = (_vector(ops, length) for length in (old[0], new[1], new[0]))
    lines = _flat(ops, ops.transpose(picture, np.array([1, 0, 2], dtype=np.int32)))
    sums = _weighted(ops, lines, columns.positions, column_weights)
    sums = ops.transpose(
        ops.reshape(sums, ops.concat([narrow, height, three], 0), False), np.array([1, 0, 2], np.int32)
    )
    sums = _weighted(ops, _flat(ops, sums), rows.positions, row_weights)
    sums = ops.reshape(sums, ops.concat([low, narrow, three], 0), False)
    mean = ops.multiply(sums, ops.select(whole, _quotient(ops, _integer(1), ops.multiply(*ratios)), _number(1.0)))
    by_two = ops.logical_and(whole, ops.logical_and(*(ops.equal(ratio, _integer(2)) for ratio in ratios)))
    upwards = ops.floor(ops.add(mean, _number(0.5)))
    return ops.minimum(ops.select(by_two, upwards, ops.round(mean, "half_to_even")), _number(255.0))


def _taps(ops: Any, length: Any, shorter: Any) -> _Taps:
    """Find the pixels that each of `shorter` new ones covers (`computeResizeAreaTab`), in integers."""
    new = ops.unsqueeze(ops.range(_integer(0), shorter, _integer(1), "i32"), _integer(1))
    begin = ops.multiply(new, length)
    first = _floored(ops, begin, shorter)
    count = ops.add(ops.divide(length, shorter), _integer(2))
    pixel = ops.add(first, ops.range(_integer(0), count, _integer(1), "i32"))
    left, right = ops.multiply(pixel, shorter), ops.multiply(ops.add(pixel, _integer(1)), shorter)
    within = ops.subtract(ops.minimum(right, ops.add(begin, length)), ops.maximum(left, begin))
    # OpenCV leaves out what is a thousandth of a pixel or less; pixels outside have a negative share.
    counts = ops.greater(ops.multiply(within, _integer(1000)), shorter)
    last = ops.subtract(length, _integer(1))
    return _Taps(ops.minimum(pixel, last), ops.select(counts, within, _integer(0)))


def _flat(ops: Any, values: Any) -> Any:
    """Put the two last of three axes together."""
    return ops.reshape(values, np.array([0, -1], dtype=np.int32), True)


def _weighted(ops: Any, lines: Any, positions: Any, weights: Any) -> Any:
    """Return sums of weighted lines: those at int32 [n, k] of [m, l], times float32 [n, k, 1], to float32 [n, l]."""
    taken = _real(ops, ops.gather(lines, positions, _integer(0)))
    return ops.reduce_sum(ops.multiply(taken, weights), _integer(1), False)


def _floored(ops: Any, number: Any, by: Any) -> Any:
    """Divide int32 and round down. OpenVINO's own division may be off by one: internally it divides 32-bit floats."""
    guess = ops.divide(number, by)
    rest = ops.subtract(number, ops.multiply(guess, by))
    above, below = (_integer_of(ops, found) for found in (ops.greater_equal(rest, by), ops.less(rest, _integer(0))))
    return ops.subtract(ops.add(guess, above), below)


def _quotient(ops: Any, number: Any, by: Any) -> Any:
    """Divide int32 0 <= number <= by, to the nearest float32.

    OpenVINO replaces a division with multiplication by the reciprocal, whose result is often the neighbour of the
    nearest float. The remainder is computed without rounding, by products of at most 24 bits, and divided as well.
    """
    dividend, divisor = _real(ops, number), _real(ops, by)
    guess = ops.divide(dividend, divisor)
    rest = dividend
    left = guess
    for bits in (8, 16):
        part = ops.multiply(ops.floor(ops.multiply(left, _number(2.0**bits))), _number(2.0**-bits))
        left = ops.subtract(left, part)
        rest = ops.subtract(rest, ops.multiply(part, divisor))
    rest = ops.subtract(rest, ops.multiply(left, divisor))
    return ops.add(guess, ops.divide(rest, divisor))


def _integer_of(ops: Any, condition: Any) -> Any:
    return ops.convert(condition, "i32")


def _interpolated(ops: Any, picture: Any, new: tuple[int, int]) -> Any:
    """Interpolate float32 [h, w, 3] of integers bilinearly to float32 [height, width, 3] of integers.

    As OpenCV does with 8-bit pictures: weights are multiples of 1 / 2048, and what is cut off between the
    steps (`VResizeLinear`, `FixedPtCast`) is cut off here as well. All numbers stay below 2 ** 24, so they are exact. A
    side that does not grow comes out as it was.
    """
    rows, columns = _lengths(ops, picture, (0, 1))
    x0, x1, x_share = _neighbours(ops, columns, new[1], fade_at_border=False)
    y0, y1, y_share = _neighbours(ops, rows, new[0], fade_at_border=True)
    a0, a1 = (_column(ops, weights) for weights in _weights(ops, x_share))
    b0, b1 = (_column(ops, _column(ops, weights)) for weights in _weights(ops, y_share))
    wide = ops.add(
        ops.multiply(ops.gather(picture, x0, _integer(1)), a0), ops.multiply(ops.gather(picture, x1, _integer(1)), a1)
    )
    # ((b * (wide >> 4)) >> 16), in two halves of 8 bits each so that no product has more than 24.
    level = ops.floor(ops.multiply(wide, _number(1 / 16)))
    high = ops.floor(ops.multiply(level, _number(1 / 256)))
    low = ops.subtract(level, ops.multiply(high, _number(256.0)))

    def shifted(positions: Any, weights: Any) -> Any:
        of_high = ops.multiply(ops.gather(high, positions, _integer(0)), weights)
        of_low = ops.multiply(ops.multiply(ops.gather(low, positions, _integer(0)), weights), _number(1 / 256))
        return ops.floor(ops.multiply(ops.add(of_high, ops.floor(of_low)), _number(1 / 256)))

    total = ops.add(ops.add(shifted(y0, b0), shifted(y1, b1)), _number(2.0))
    return ops.minimum(ops.floor(ops.multiply(total, _number(1 / 4))), _number(255.0))


def _neighbours(ops: Any, length: Any, longer: int, *, fade_at_border: bool) -> tuple[Any, Any, Any]:
    """Return the two pixels around each new one, int32 [longer], and how far it is from the first, float32 [longer].

    Beyond the border OpenCV repeats the last pixel: of a row by giving it all the weight, of a column
    (`fade_at_border`) by giving it both weights, which are cut off separately.
    """
    # (new + 0.5) * length / longer - 0.5, over the common denominator.
    double = 2 * longer
    odd = ops.constant((2 * np.arange(longer) + 1).astype(np.int32))
    place = ops.subtract(ops.multiply(odd, length), _integer(longer))
    first = ops.subtract(_floored(ops, ops.add(place, _integer(double)), _integer(double)), _integer(1))
    rest = ops.subtract(place, ops.multiply(first, _integer(double)))
    # OpenCV has the place as one 32-bit number, which rounds the distance the more the larger the place is.
    whole = _real(ops, first)
    share = ops.subtract(ops.add(whole, ops.divide(_real(ops, rest), _number(float(double)))), whole)
    one, none = _integer(1), _integer(0)
    last = ops.subtract(length, one)
    if not fade_at_border:
        inside = ops.logical_and(ops.greater_equal(first, none), ops.less(first, last))
        share = ops.select(inside, share, _number(0.0))

    def clipped(positions: Any) -> Any:
        return ops.minimum(ops.maximum(positions, none), last)

    return clipped(first), clipped(ops.add(first, one)), share


def _weights(ops: Any, share: Any) -> tuple[Any, Any]:
    """Return the weights of the two pixels in units of 1 / 2048, integers as float32."""
    scale = _number(2048.0)
    first = ops.round(ops.multiply(ops.subtract(_number(1.0), share), scale), "half_to_even")
    return first, ops.round(ops.multiply(share, scale), "half_to_even")


def _operations() -> Any:
    import_openvino()
    from openvino import opset13

    return opset13


def _integer(value: int) -> Any:
    return _operations().constant(np.array(value, dtype=np.int32))


def _number(value: float) -> Any:
    return _operations().constant(np.array(value, dtype=np.float32))


def _real(ops: Any, values: Any) -> Any:
    return ops.convert(values, "f32")


def _column(ops: Any, values: Any) -> Any:
    return ops.unsqueeze(values, _integer(-1))


def _vector(ops: Any, value: Any) -> Any:
    return ops.unsqueeze(value, _integer(0))

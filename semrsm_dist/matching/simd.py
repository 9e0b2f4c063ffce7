"""The two inner loops of the matching as explicit vector code.

LLVM does not find these by itself: a search for the best entry, its index and the second best is not a reduction that its
vectoriser knows, and a float64 sum may not be reordered unless the order is written down. Both are therefore built here as
LLVM vectors, which every processor that numba supports compiles to what it has (AVX-512, AVX2, NEON). The lanes fix the order
of every operation, so the results do not depend on the processor.

After a change here, `make clean`: numba caches kernels by the file that they are in, and does not notice a change of this one.

:func:`semrsm_dist.matching.auction.best_two_plainly` and :func:`numpy.einsum` say the same plainly; the tests compare.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 16
"""Rows that :data:`best_two` scans are padded to a multiple of this."""
LOWEST = -(2**31)
"""What rows are padded with: no entry is lower."""

_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_BOOL = ir.IntType(1)
_INTS = ir.VectorType(_INT32, LANES)

PRODUCT_LANES = 8
_UNROLLED = 4
PRODUCT_STEP = PRODUCT_LANES * _UNROLLED
"""Channels that :data:`sum_of_products` takes in one step; what remains is for the caller."""
_FLOATS = ir.VectorType(ir.FloatType(), PRODUCT_LANES)
_DOUBLES = ir.VectorType(ir.DoubleType(), PRODUCT_LANES)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call an LLVM intrinsic."""
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.module.declare_intrinsic(name, fnty=function_type), arguments)


def _splat(builder: Any, value: Any) -> Any:
    """A vector with the same integer in every lane."""
    one = builder.insert_element(ir.Constant(_INTS, ir.Undefined), value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(one, ir.Constant(_INTS, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _load(builder: Any, pointer: Any, vector: Any) -> Any:
    """A vector from memory, aligned like its elements."""
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """The address of an array's first element."""
    return context.make_array(array_type)(context, builder, array).data


def _best_two(n_rows: int) -> Any:
    """The scan of ``n_rows`` rows at once."""

    @intrinsic
    def scan(_context: Any, matrix: Any, prices: Any, rows: Any, width: Any) -> Any:
        """``(best, column, second)`` of ``matrix[row] - prices`` for each of the rows, one after another in one tuple.

        ``matrix`` is int32, C-contiguous, ``width`` columns; ``prices`` int32 ``(width,)``; ``width`` a multiple of
        :data:`LANES`. Of equal bests the column is one of them, always the same one, and the second equals the best.
        """
        signature = types.UniTuple(types.int32, 3 * n_rows)(matrix, prices, rows, types.int64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            width = arguments[3]
            first = _data(context, builder, signature.args[0], arguments[0])
            prices_at = _data(context, builder, signature.args[1], arguments[1])
            starts = [
                builder.gep(first, [builder.mul(builder.extract_value(arguments[2], row), width)]) for row in range(n_rows)
            ]
            before = builder.block
            loop, after = builder.append_basic_block("scan"), builder.append_basic_block("scanned")
            builder.branch(loop)
            builder.position_at_end(loop)
            column = builder.phi(_INT64)
            column.add_incoming(ir.Constant(_INT64, 0), before)
            # Per lane: the best so far, the second best so far, and the column of lane 0 where the best was met.
            old = [[builder.phi(_INTS) for _ in range(3)] for _ in range(n_rows)]
            lowest, zero = ir.Constant(_INTS, [LOWEST] * LANES), ir.Constant(_INTS, [0] * LANES)
            price = _load(builder, builder.gep(prices_at, [column]), _INTS)
            here = _splat(builder, builder.trunc(column, _INT32))
            new = []
            for start, (best, second, at) in zip(starts, old, strict=True):
                profit = builder.sub(_load(builder, builder.gep(start, [column]), _INTS), price)
                better = builder.icmp_signed(">", profit, best)
                loser = _call(builder, "llvm.smin.v16i32", _INTS, best, profit)
                new.append(
                    (
                        _call(builder, "llvm.smax.v16i32", _INTS, best, profit),
                        _call(builder, "llvm.smax.v16i32", _INTS, second, loser),
                        builder.select(better, here, at),
                    )
                )
            following = builder.add(column, ir.Constant(_INT64, LANES))
            column.add_incoming(following, loop)
            for phis, values in zip(old, new, strict=True):
                for phi, value, initial in zip(phis, values, (lowest, lowest, zero), strict=True):
                    phi.add_incoming(initial, before)
                    phi.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, width), loop, after)
            builder.position_at_end(after)
            found = [value for lanes in new for value in _across_lanes(builder, *lanes)]
            return context.make_tuple(builder, signature.return_type, found)

        return signature, generate

    return scan


def _across_lanes(builder: Any, best: Any, second: Any, at: Any) -> tuple[Any, Any, Any]:
    """The best, its column and the second best of all lanes."""
    top = _call(builder, "llvm.vector.reduce.smax.v16i32", _INT32, best)
    is_top = builder.icmp_signed("==", best, _splat(builder, top))
    bits = builder.zext(builder.bitcast(is_top, ir.IntType(LANES)), _INT32)
    lane = _call(builder, "llvm.cttz.i32", _INT32, bits, ir.Constant(_BOOL, 1))
    column = builder.add(builder.extract_element(at, lane), lane)
    # The winning lane offers its second best, every other lane its best; two winning lanes are a tie.
    rest = _call(builder, "llvm.vector.reduce.smax.v16i32", _INT32, builder.select(is_top, second, best))
    several = builder.icmp_signed(">", _call(builder, "llvm.ctpop.i32", _INT32, bits), ir.Constant(_INT32, 1))
    return top, column, builder.select(several, top, rest)


best_two = _best_two(1)
best_two_of_2 = _best_two(2)
best_two_of_4 = _best_two(4)


@intrinsic
def sum_of_products(_context: Any, first: Any, first_at: Any, second: Any, second_at: Any, length: Any) -> Any:
    """``sum(first[first_at + c] * second[second_at + c] for c in range(length))``, products and sums in float64.

    ``first`` and ``second`` are float32 and C-contiguous, the positions those of their flat entries, ``length`` a positive
    multiple of :data:`PRODUCT_STEP`. A product of two float32 is exact in float64, so only the order of the additions rounds,
    and the lanes fix that order.
    """
    signature = types.float64(first, types.int64, second, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        starts = [builder.gep(_data(context, builder, signature.args[k], arguments[k]), [arguments[k + 1]]) for k in (0, 2)]
        before = builder.block
        loop, after = builder.append_basic_block("sum"), builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        channel = builder.phi(_INT64)
        channel.add_incoming(ir.Constant(_INT64, 0), before)
        old = [builder.phi(_DOUBLES) for _ in range(_UNROLLED)]
        new = []
        for k, total in enumerate(old):
            at = builder.add(channel, ir.Constant(_INT64, k * PRODUCT_LANES))
            x, y = (builder.fpext(_load(builder, builder.gep(start, [at]), _FLOATS), _DOUBLES) for start in starts)
            new.append(builder.fadd(total, builder.fmul(x, y)))
        following = builder.add(channel, ir.Constant(_INT64, PRODUCT_STEP))
        channel.add_incoming(following, loop)
        for phi, value in zip(old, new, strict=True):
            phi.add_incoming(ir.Constant(_DOUBLES, [0.0] * PRODUCT_LANES), before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, arguments[4]), loop, after)
        builder.position_at_end(after)
        lanes = builder.fadd(builder.fadd(new[0], new[1]), builder.fadd(new[2], new[3]))
        total = builder.extract_element(lanes, ir.Constant(_INT32, 0))
        for lane in range(1, PRODUCT_LANES):
            total = builder.fadd(total, builder.extract_element(lanes, ir.Constant(_INT32, lane)))
        return total

    return signature, generate

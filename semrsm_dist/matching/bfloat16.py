"""Affinities from features rounded to bfloat16, for processors that multiply those several times faster (AMX, AVX512-BF16).

Only the *choice* of the permutation sees the rounding: the value of the chosen permutation is recomputed from the float32
features in float64 as always. Products are accumulated and returned in float32; a result in bfloat16 would add ties. Where the
processor has no bfloat16 arithmetic NumPy multiplies the rounded features in float32: the same affinities to float32's
rounding, without the speed.

The only module outside extraction that imports torch: NumPy has no bfloat16 product.
"""

from __future__ import annotations

from functools import cache
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from semrsm_dist.matching.products import Float32Product

_UNIT_ROUNDOFF = 2.0**-8
"""Of bfloat16: 8 significant bits, rounded to nearest."""
_SMALL_PRODUCT = 10**6
"""Products of fewer multiplications than this are added in another order on some processors."""
_PRECISION = Lock()
"""PyTorch knows the precision of float32 products as one setting of the process: one thread at a time changes it."""


class BFloat16Product:
    """PyTorch's product of features rounded to bfloat16, accumulated in float32."""

    rounding = 2 * _UNIT_ROUNDOFF + _UNIT_ROUNDOFF**2
    """``|x·y − x̃·ỹ| ≤ (2u + u²) |x| |y|``, and by Cauchy–Schwarz the same over all matched positions."""
    bytes_per_feature = 4 + 2

    def operand(self, window: NDArray[np.float32]) -> torch.Tensor:
        """The window rounded to bfloat16, held in float32."""
        writeable = window if window.flags.writeable else window.copy()  # what PyTorch insists on
        return torch.from_numpy(writeable).to(torch.bfloat16).to(torch.float32)

    def multiply(self, rows: torch.Tensor, column: torch.Tensor, affinities: NDArray[np.float32]) -> None:
        """One product for all rows; the operands are exact in bfloat16, so multiplying as such loses nothing.

        Unlike float32 products, its sums do not depend on a row's place; a small product is padded until it is not one.
        """
        if not processor_multiplies_bfloat16():
            return Float32Product().multiply(rows.numpy(), column.numpy(), affinities)
        size, n_channels = column.shape
        flat = rows.reshape(-1, n_channels)
        least = _SMALL_PRODUCT // (size * n_channels) + 1
        if len(flat) >= least:
            _multiply(flat, column, torch.from_numpy(affinities.reshape(-1, size)))
        else:
            padded, out = torch.zeros(least, n_channels), torch.empty(least, size)
            padded[: len(flat)] = flat
            _multiply(padded, column, out)
            affinities.reshape(-1, size)[:] = out[: len(flat)].numpy()
        return None


@cache
def processor_multiplies_bfloat16() -> bool:
    """Whether PyTorch multiplies bfloat16 with instructions of this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _multiply(rows: torch.Tensor, column: torch.Tensor, out: torch.Tensor) -> None:
    """``rows @ column.T`` with the precision of bfloat16."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _PRECISION:
        before = settings.fp32_precision
        settings.fp32_precision = "bf16"
        try:
            torch.mm(rows, column.T, out=out)
        finally:
            settings.fp32_precision = before

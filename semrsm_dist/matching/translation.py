"""Translation invariance: the best circular shift over the map (Williams et al., NeurIPS 2021).

All ``H · W`` shifts of a pair are one circular cross-correlation, which is a product of spectra, summed over channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from semrsm_dist.matching.protocol import Matched
from semrsm_dist.matching.values import frobenius_norms
from storage_schemas.errors import InvalidInputError


@dataclass(frozen=True)
class Translation:
    """The largest inner product over circular shifts of a map.

    Parameters
    ----------
    spatial_shape
        ``(H, W)`` of the map; None is refused, since positions that form no map cannot be shifted.
    """

    spatial_shape: tuple[int, int] | None

    def __post_init__(self) -> None:
        if self.spatial_shape is None:
            raise InvalidInputError(
                "Translation invariance needs positions that form an H×W map, and these activations have no spatial shape; "
                "use the permutation invariance, or import them as (N, C, H, W)."
            )

    def _height_width(self) -> tuple[int, int]:
        assert self.spatial_shape is not None
        return self.spatial_shape

    def prepare(self, block: NDArray[np.float32]) -> NDArray[np.complex128]:
        """Spectra ``(F, n, C)`` of the maps, where ``F = H · (W // 2 + 1)``."""
        height, width = self._height_width()
        n_samples, n_positions, n_channels = block.shape
        if n_positions != height * width:
            raise InvalidInputError(
                f"{n_positions} positions are not a map of {height}×{width}, which translation invariance needs."
            )
        maps = block.reshape(n_samples, height, width, n_channels).astype(np.float64)
        spectra = scipy.fft.rfft2(maps, axes=(1, 2)).reshape(n_samples, -1, n_channels)
        return np.ascontiguousarray(spectra.transpose(1, 0, 2))

    def norms(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Frobenius norms, ``(n,)``."""
        return frobenius_norms(block)

    def inner_products(self, rows: NDArray[np.complex128], columns: NDArray[np.complex128], *, same: bool) -> Matched:
        """The best shift's inner product ``(n, m)`` of every pair."""
        height, width = self._height_width()
        values = np.empty((rows.shape[1], columns.shape[1]))
        for i in range(rows.shape[1]):
            cross = np.matmul(rows[:, i : i + 1, :].conj(), columns.transpose(0, 2, 1))[:, 0, :]
            shifts = scipy.fft.irfft2(cross.reshape(height, width // 2 + 1, -1), s=(height, width), axes=(0, 1))
            values[i] = shifts.max(axis=(0, 1))
        values = np.maximum(values, values.T) if same else values
        return Matched(values, values)

    def working_bytes(self, n_samples: int, n_positions: int, n_channels: int) -> int:
        """Spectra of two blocks, with the transform's own copies, and the shifts of one sample with all others."""
        height, width = self._height_width()
        return (2 * 3 * n_samples * n_channels + 3 * n_samples) * height * (width // 2 + 1) * 16

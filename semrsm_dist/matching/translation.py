"""Translation invariance: the best circular shift over the map (Williams et al., NeurIPS 2021).

All ``H · W`` shifts of a pair are one circular cross-correlation, which is a product of spectra, summed over channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from semrsm_dist.matching.panels import PANEL, panels, whole_panels
from semrsm_dist.matching.protocol import Matched
from semrsm_dist.matching.values import frobenius_norms, mirror
from storage_schemas.errors import InvalidInputError


@dataclass(frozen=True)
class Spectra:
    """Spectra of the maps of ``n`` samples."""

    values: NDArray[np.complex128]
    """``(F, n, C)``, where ``F = H · (W // 2 + 1)`` and ``n`` is filled up to whole panels with zeros."""
    n_samples: int


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

    def prepare(self, block: NDArray[np.float32]) -> Spectra:
        """Spectra of the maps, each transformed by itself."""
        height, width = self._height_width()
        n_samples, n_positions, n_channels = block.shape
        if n_positions != height * width:
            raise InvalidInputError(
                f"{n_positions} positions are not a map of {height}×{width}, which translation invariance needs."
            )
        spectra = np.zeros((height * (width // 2 + 1), whole_panels(n_samples), n_channels), dtype=np.complex128)
        for index, sample in enumerate(block):
            spectrum = scipy.fft.rfft2(sample.reshape(height, width, n_channels).astype(np.float64), axes=(0, 1))
            spectra[:, index] = spectrum.reshape(len(spectra), n_channels)
        return Spectra(spectra, n_samples)

    def norms(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """Frobenius norms, ``(n,)``."""
        return frobenius_norms(block)

    def inner_products(self, rows: Spectra, columns: Spectra, *, same: bool) -> Matched:
        """The best shift's inner product ``(n, m)`` of every pair."""
        height, width = self._height_width()
        values = np.zeros((rows.values.shape[1], columns.values.shape[1]))
        for i in panels(len(values)):
            conjugates = rows.values[:, i].conj()
            for j in panels(values.shape[1]):
                if not (same and j.start < i.start):
                    cross = np.matmul(conjugates, columns.values[:, j].transpose(0, 2, 1)).reshape(height, width // 2 + 1, -1)
                    shifts = scipy.fft.irfft2(cross, s=(height, width), axes=(0, 1))
                    values[i, j] = shifts.max(axis=(0, 1)).reshape(PANEL, PANEL)
        values = np.ascontiguousarray(values[: rows.n_samples, : columns.n_samples])
        if same:
            mirror(values)
        return Matched(values, values)

    def working_bytes(self, n_samples: int, n_positions: int, n_channels: int) -> int:
        """Spectra of two blocks, and of a panel its conjugates and its shifts with another, with the transform's own copies."""
        height, width = self._height_width()
        spectra = 2 * whole_panels(n_samples) * n_channels
        return (spectra + 2 * PANEL * n_channels + 4 * PANEL**2) * height * (width // 2 + 1) * 16

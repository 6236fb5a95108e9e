"""The discrete wavelet transform along time, as PyWavelets computes it, as a product with one matrix."""

import numpy as np
import pywt
import torch
from torch import nn

# PyWavelets' names of how a signal continues beyond its ends.
MODES = ('symmetric', 'reflect', 'periodic', 'constant', 'zero', 'periodization')


class WaveletTransform(nn.Module):
    """Multi-level wavelet transform of the last dimension and its inverse; differentiable, nothing to learn.

    The transform is linear. Its matrix is what PyWavelets makes of the unit vectors, in float64, and all levels are
    one product: for a window of some hundred samples this is faster than convolving level by level.

    Parameters
    ----------
    wavelet : str
        Any discrete wavelet of PyWavelets, orthogonal or biorthogonal. The inverse is exact for all but 'dmey', whose
        filters PyWavelets cuts off: its own inverse is 1 to 2 % off too.
    n_levels : int
        Number of halvings.
    mode : str
        How the signal continues beyond its ends, one of `MODES`. 'periodization' gives exactly half as many values
        per level (rounded up), the others about half a filter more.

    Raises
    ------
    ValueError
        Unknown wavelet or mode.
    """

    def __init__(self, wavelet: str, n_levels: int, mode: str = 'symmetric'):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f'no wavelet mode {mode!r}: one of {", ".join(MODES)}')
        self.wavelet, self.n_levels, self.mode = pywt.Wavelet(wavelet), n_levels, mode
        self.length = self.wavelet.dec_len
        self._matrices = {}  # see _matrix
        self._behind, self._moved = {}, {}  # see values_behind, values_moved

    def band_lengths(self, n_times: int) -> list[int]:
        """Values per channel in each band of a signal of `n_times` samples, in the order of `forward`."""
        lengths = []
        for _ in range(self.n_levels):
            n_times = (n_times + 1) // 2 if self.mode == 'periodization' else (n_times + self.length - 1) // 2
            lengths.append(n_times)
        return [*lengths, n_times]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Bands of x (..., times): details from the finest level on, then the approximation; (..., time_k) each."""
        n_times = x.shape[-1]
        return list((x @ self._matrix('forward', n_times, x)).split(self.band_lengths(n_times), dim=-1))

    def inverse(self, bands: list[torch.Tensor], n_times: int) -> torch.Tensor:
        """Signal (..., n_times) of the bands of `forward`."""
        values = torch.cat(bands, dim=-1)
        return values @ self._matrix('inverse', n_times, values)

    def forward_of_part(self, part: torch.Tensor, span: tuple[int, int], n_times: int) -> list[torch.Tensor]:
        """Bands of a signal of `n_times` samples that is zero but for a span (first, last), given as (..., samples)."""
        matrix = self._matrix('forward', n_times, part)[slice(*span)]
        return list((part @ matrix).split(self.band_lengths(n_times), dim=-1))

    def inverse_of_part(
        self, bands: list[torch.Tensor], behind: list[tuple[int, int]], span: tuple[int, int], n_times: int
    ) -> torch.Tensor:
        """Samples (..., last - first) of a span of the signal, of the values of each band that `behind` names."""
        matrix = self._matrix('inverse', n_times, bands[0])[:, slice(*span)].split(self.band_lengths(n_times))
        rows = [of_band[slice(*bounds)] for of_band, bounds in zip(matrix, behind, strict=True)]
        return torch.cat(bands, dim=-1) @ torch.cat(rows)

    def values_behind(self, span: tuple[int, int], n_times: int) -> list[tuple[int, int]]:
        """The values (first, last) of each band that the samples of a span (first, last) are made of."""
        if (span, n_times) not in self._behind:
            self._behind[span, n_times] = self._used(self._join_all(n_times)[:, slice(*span)], n_times)
        return list(self._behind[span, n_times])

    def values_moved(self, span: tuple[int, int], n_times: int) -> list[tuple[int, int]]:
        """The values (first, last) of each band that the samples of a span (first, last) count in."""
        if (span, n_times) not in self._moved:
            self._moved[span, n_times] = self._used(self._split_all(n_times)[slice(*span)].T, n_times)
        return list(self._moved[span, n_times])

    def _used(self, weights, n_times):
        """First and last row of every band with a weight other than 0, of (values of all bands, samples); or 0, 0."""
        of_bands = np.split(weights, np.cumsum(self.band_lengths(n_times))[:-1])
        used = [np.flatnonzero(of_band.any(axis=1)) for of_band in of_bands]
        return [(int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0) for rows in used]

    def _matrix(self, direction, n_times, like):
        """Matrix of either direction for signals of `n_times`; kept on the device for the next pass."""
        key = (direction, n_times, like.dtype, str(like.device))
        if key not in self._matrices:
            compute = self._split_all if direction == 'forward' else self._join_all
            self._matrices[key] = torch.from_numpy(compute(n_times)).to(like.device, like.dtype)
        return self._matrices[key]

    def _split_all(self, n_times):
        """Bands (n_times, values) of the unit vectors."""
        x, bands = np.eye(n_times), []
        for _ in range(self.n_levels):
            # PyWavelets does not reflect a single sample; there is only one way for it to go on.
            mode = 'constant' if x.shape[1] == 1 and self.mode == 'reflect' else self.mode
            x, detail = pywt.dwt(x, self.wavelet, mode)
            bands.append(detail)
        return np.concatenate([*bands, x], axis=1)

    def _join_all(self, n_times):
        """Signals (values, n_times) of the unit vectors of all bands."""
        lengths = self.band_lengths(n_times)
        *details, x = np.split(np.eye(sum(lengths)), np.cumsum(lengths)[:-1], axis=1)
        for detail, length in zip(reversed(details), reversed([n_times, *lengths[: self.n_levels - 1]]), strict=True):
            x = pywt.idwt(x, detail, self.wavelet, self.mode)[:, :length]
        return x

"""The discrete wavelet transform along time, as PyWavelets computes it, in strided convolutions."""

import numpy as np
import pywt
import torch
from torch import nn
from torch.nn import functional as F

# PyWavelets' name of a continuation of the signal at its ends: NumPy's name, None for zeros.
MODES = {
    'symmetric': 'symmetric',
    'reflect': 'reflect',
    'periodic': 'wrap',
    'constant': 'edge',
    'zero': None,
    'periodization': 'wrap',
}


class WaveletTransform(nn.Module):
    """Multi-level wavelet transform of the last dimension and its inverse; differentiable, nothing to learn.

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
        filters = pywt.Wavelet(wavelet)
        self.n_levels, self.mode, self.length = n_levels, mode, filters.dec_len
        self._indices = {}  # see _index
        # (2, 1, length) each: low-pass, high-pass. Convolutions of torch do not turn their kernels round, so the
        # decomposition's are turned here; transposed convolutions do.
        decomposition = np.array([filters.dec_lo[::-1], filters.dec_hi[::-1]])
        reconstruction = np.array([filters.rec_lo, filters.rec_hi])
        for name, values in (('decomposition', decomposition), ('reconstruction', reconstruction)):
            self.register_buffer(name, torch.tensor(values[:, None], dtype=torch.float32), persistent=False)

    def band_lengths(self, n_times: int) -> list[int]:
        """Values per channel in each band of a signal of `n_times` samples, in the order of `forward`."""
        lengths = []
        for _ in range(self.n_levels):
            n_times = (n_times + 1) // 2 if self.mode == 'periodization' else (n_times + self.length - 1) // 2
            lengths.append(n_times)
        return [*lengths, n_times]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Bands of x (..., times): details from the finest level on, then the approximation; (..., time_k) each."""
        bands = []
        for _ in range(self.n_levels):
            x, detail = self._split(x)
            bands.append(detail)
        return [*bands, x]

    def inverse(self, bands: list[torch.Tensor], n_times: int) -> torch.Tensor:
        """Signal (..., n_times) of the bands of `forward`."""
        lengths = [n_times, *self.band_lengths(n_times)[: self.n_levels - 1]]
        *details, x = bands
        for detail, length in zip(reversed(details), reversed(lengths), strict=True):
            x = self._join(x, detail)[..., :length]
        return x

    def _split(self, x):
        """One level: x (..., n) to approximation and detail."""
        n = x.shape[-1]
        n_whole = n
        if self.mode == 'periodization':
            n_whole = n + n % 2  # an odd signal repeats its last sample
            before = after = self.length // 2 - 1
        else:
            n_out = (n + self.length - 1) // 2
            before, after = self.length - 2, 2 * n_out - n
        extension = MODES[self.mode]
        if extension is None:
            x = F.pad(x, (before, after))
        elif before or after or n_whole > n:
            x = x.index_select(-1, self._index(n, n_whole, before, after, x.device))
        # (..., padded) to (rows, 1, padded) to (rows, 2, n_out)
        halves = F.conv1d(x.reshape(-1, 1, x.shape[-1]), self.decomposition, stride=2)
        halves = halves.unflatten(0, x.shape[:-1])
        return halves[..., 0, :], halves[..., 1, :]

    def _index(self, n, n_whole, before, after, device):
        """Sample of a signal of n that each sample of its continuation shows; kept on the device for the next pass."""
        key = (n, n_whole, before, after, str(device))
        if key not in self._indices:
            index = np.pad(np.arange(n_whole).clip(max=n - 1), (before, after), mode=MODES[self.mode])
            self._indices[key] = torch.from_numpy(index).to(device)
        return self._indices[key]

    def _join(self, approximation, detail):
        """One level back: two bands (..., n) to the signal they came from, or one sample more."""
        n = detail.shape[-1]
        halves = torch.stack([approximation[..., :n], detail], dim=-2)  # (..., 2, n)
        skip = self.length - 2
        n_out = 2 * n - skip
        if self.mode == 'periodization':
            around = self.length // 2  # values of the other end that reach over
            halves = halves.index_select(-1, self._index(n, n, around, around, detail.device))
            skip, n_out = 2 * around + self.length // 2 - 1, 2 * n
        joined = F.conv_transpose1d(halves.flatten(0, -3), self.reconstruction, stride=2)
        return joined[:, 0, skip : skip + n_out].unflatten(0, detail.shape[:-1])

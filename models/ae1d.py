"""AE1D: convolutions along time only, the same for every channel."""

from models.autoencoder import ConvolutionalAutoencoder


class AE1D(ConvolutionalAutoencoder):
    """Autoencoder of the group's original code with kernels of 5 samples: each channel is coded on its own.

    Parameters
    ----------
    n_channels, n_times : int
        Size of a window. Latent: (1, n_channels, n_times / 4 rounded up), that is 274 x 75 for 274 x 300.
    width : int
        Maps after the first convolution. Original: 32, which makes 435 846 parameters.
    """

    def __init__(self, n_channels: int, n_times: int, width: int = 32):
        super().__init__(n_channels, n_times, kernel=(1, 5), width=width, n_poolings=2)

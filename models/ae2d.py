"""AE2D: AE1D with kernels over neighbouring channels too."""

from models.autoencoder import ConvolutionalAutoencoder


class AE2D(ConvolutionalAutoencoder):
    """Autoencoder of the group's original code with kernels of 5 channels (in CTF order) by 5 samples.

    Parameters
    ----------
    n_channels, n_times : int
        Size of a window. Latent: (1, n_channels, n_times / 4 rounded up), that is 274 x 75 for 274 x 300.
    width : int
        Maps after the first convolution. Original: 32, which makes 2 167 686 parameters.
    """

    def __init__(self, n_channels: int, n_times: int, width: int = 32):
        super().__init__(n_channels, n_times, kernel=(5, 5), width=width, n_poolings=2)

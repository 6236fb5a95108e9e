"""AE1D_smaller: AE1D with a latent space a quarter of its size."""

from models.autoencoder import ConvolutionalAutoencoder


class AE1DSmaller(ConvolutionalAutoencoder):
    """AE1D with four poolings instead of two: the convolutions along time only are the same.

    Parameters
    ----------
    n_channels, n_times : int
        Size of a window. Latent: (1, n_channels, n_times / 16 rounded up), that is 274 x 19 for 274 x 300: each of the
        first four convolutions is followed by a pooling, as many as the layers of the original carry, since its fifth
        makes the latent map.
    width : int
        Maps after the first convolution. With 32, as in AE1D, 435 846 parameters.
    """

    def __init__(self, n_channels: int, n_times: int, width: int = 32):
        super().__init__(n_channels, n_times, kernel=(1, 5), width=width, n_poolings=4)

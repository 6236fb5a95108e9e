"""The autoencoders: `build_model(name, n_channels, n_times, **settings)`. The classifiers stand beside them."""

from models.ae1d import AE1D
from models.ae1d_smaller import AE1DSmaller
from models.ae2d import AE2D
from models.ae2d_smaller import AE2DSmaller
from models.autoencoder import Autoencoder
from models.wavelets import Wavelets

__all__ = ['AUTOENCODERS', 'build_model']

# Name on the command line: the class, and the settings of params.py that it takes.
AUTOENCODERS = {
    'AE1D': (AE1D, ('width',)),
    'AE2D': (AE2D, ('width',)),
    'AE1D_smaller': (AE1DSmaller, ('width',)),
    'AE2D_smaller': (AE2DSmaller, ('width',)),
    'wavelets': (
        Wavelets,
        ('filters', 'pywt_family', 'pywt_mode', 'embedding_size', 'top_k', 'graph_alpha', 'latent_nodes'),
    ),
}


def build_model(name: str, n_channels: int = 274, n_times: int = 300, **settings) -> Autoencoder:
    """Build an autoencoder on the CPU; its weights depend on the torch seed alone.

    Parameters
    ----------
    name : str
        One of `AUTOENCODERS`.
    n_channels, n_times : int
        Size of a window, in sensors and samples.
    **settings
        Settings of params.py that the model takes; the original's values where left out.

    Raises
    ------
    ValueError
        Unknown name.
    TypeError
        A setting that the model does not take.
    """
    if name not in AUTOENCODERS:
        raise ValueError(f'no model {name!r}: one of {", ".join(AUTOENCODERS)}')
    return AUTOENCODERS[name][0](n_channels, n_times, **settings)

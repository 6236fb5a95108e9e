"""What every network shares: the precision that it computes in, and its training compiled for a GPU."""

import contextlib
import copy
import time
import warnings

import torch
from torch import nn


class Network(nn.Module):
    """A network that takes and gives float32 and computes in `precision`: weights and losses stay float32.

    Attributes
    ----------
    precision : str
        'float32', or 'bfloat16' for convolutions and matrix products. To be set on a finished network.
    compiled : tuple or None
        Shape of input, and a compiled forward pass for it, see `compile_training`.
    """

    precision = 'float32'
    compiled = None

    def __getstate__(self) -> dict:
        """What a copy of the network gets: not the compiled pass, which has the weights of this one."""
        return {name: value for name, value in super().__getstate__().items() if name != 'compiled'}

    def autocast(self, x: torch.Tensor) -> contextlib.AbstractContextManager:
        """Context for the layers of a forward pass of `x`; what leaves it goes back to the dtype of `x`."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == 'bfloat16')

    def __call__(self, x: torch.Tensor, *more, **named):
        """Forward pass of x; the compiled one in training, for the shape that it was compiled for."""
        # Others, such as the last and smaller batch of an epoch, are not worth the time to compile for.
        if self.compiled and self.training and torch.is_grad_enabled() and x.shape == self.compiled[0]:
            return self.compiled[1](x, *more, **named)
        return super().__call__(x, *more, **named)

    def compile_training(self, shape: tuple[int, ...]) -> None:
        """Compile the training of inputs of one shape, and try it; where that fails, all stays as it is.

        The network itself is not changed: its weights keep their names.

        Raises
        ------
        OutOfMemoryError
            Of torch: the batch is too large for the device.
        """
        device = next(self.parameters()).device
        state, started = copy.deepcopy(self.state_dict()), time.perf_counter()
        self.train()
        x = torch.zeros(shape, device=device)
        try:
            torch.compiler.reset()  # or else networks compiled before, of other folds, would count against a limit
            # Once without compiling, so that what a forward pass keeps for later ones is there.
            self(x[:1])
            self.compiled = x.shape, torch.compile(self.forward, dynamic=False)
            with warnings.catch_warnings():
                # What is left in float32 is meant to be exact, see `choose_precision`.
                warnings.filterwarnings('ignore', message='TensorFloat32 tensor cores')
                sum(output.mean() for output, _ in self(x, x.clone())).backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as fault:  # a compiler can raise anything at all
            self.compiled = None
            message = f'{type(fault).__name__}: {fault}'.strip().split('\n')[0]
            print(f'warning: torch.compile does not work here ({message}): training runs without it, slower')
        else:
            print(f'  compiled for batches of {shape[0]} in {time.perf_counter() - started:.0f} s')
        finally:
            self.zero_grad(set_to_none=True)
            self.load_state_dict(state)  # batch norm has counted the zeros

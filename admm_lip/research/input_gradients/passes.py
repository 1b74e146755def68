"""Several passes through one and the same function.

A difference of two losses is a derivative only if nothing but the input changed between them.  In
training mode two things change by themselves, and both would be divided by a small step:

* batch normalisation takes new statistics from the moved batch, and moves its running averages
  again.  Here later passes normalise with the statistics of the first, as functions of the
  weights, and the running averages move once;
* dropout draws a new mask.  Here later passes draw the same one.

Because a later pass takes its statistics from the first one and not from its own inputs, the
gradient in its inputs is, sample by sample, that of the sample's own loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Normalise = Callable[[_BatchNorm, Tensor], Tensor]


class Passes:
    """A module that can be evaluated again with the statistics and masks of its first pass.

    Args:
        model: any module; its parameters and buffers are used in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._layers = [
            m for m in model.modules() if isinstance(m, _BatchNorm) and _uses_the_batch(m)
        ]
        self._statistics: dict[_BatchNorm, tuple[Tensor, Tensor]] = {}
        self._random: Tensor | None = None
        self.draws = False

    @property
    def mixes(self) -> bool:
        """Whether a sample's output depends on the other samples of the batch."""
        return bool(self._layers)

    def first(self, inputs: Tensor) -> Tensor:
        """The output as ``model(inputs)`` gives it; moves the running averages.

        Afterwards ``draws`` says whether the pass used random numbers.
        """
        before = _random_state(inputs)
        with self._patched(self._normalise_first):
            outputs: Tensor = self.model(inputs)
        self.draws = not torch.equal(before, _random_state(inputs))
        self._random = before
        return outputs

    def again(self, inputs: Tensor) -> Tensor:
        """The output for other inputs under the same statistics and masks; moves no buffer."""
        buffers = [(b, b.detach().clone()) for b in self.model.buffers()]
        with self._patched(self._normalise_again), self._same_draws(inputs):
            outputs: Tensor = self.model(inputs)
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.detach().copy_(before)
        return outputs

    @contextmanager
    def _same_draws(self, inputs: Tensor) -> Iterator[None]:
        if not self.draws or self._random is None:
            yield
            return
        after = _random_state(inputs)
        _set_random_state(inputs, self._random)
        try:
            yield
        finally:
            _set_random_state(inputs, after)

    @contextmanager
    def _patched(self, normalise: Normalise) -> Iterator[None]:
        for layer in self._layers:
            # An attribute of the instance hides the method of the class; set by name for the types.
            setattr(layer, "forward", _bind(normalise, layer))  # noqa: B010
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    def _normalise_first(self, layer: _BatchNorm, x: Tensor) -> Tensor:
        with torch.no_grad():
            type(layer).forward(layer, x)  # checks the input, moves the running averages
        axes = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
        self._statistics[layer] = (mean, variance)
        return self._normalise_again(layer, x)

    def _normalise_again(self, layer: _BatchNorm, x: Tensor) -> Tensor:
        mean, variance = self._statistics[layer]
        scaled = (x - mean) * torch.rsqrt(variance + layer.eps)
        if not layer.affine:
            return scaled
        shape = [1, -1, *([1] * (x.ndim - 2))]
        return scaled * layer.weight.reshape(shape) + layer.bias.reshape(shape)


def _random_state(like: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(like.device) if like.is_cuda else torch.get_rng_state()


def _set_random_state(like: Tensor, state: Tensor) -> None:
    if like.is_cuda:
        torch.cuda.set_rng_state(state, like.device)
    else:
        torch.set_rng_state(state)


def _uses_the_batch(layer: _BatchNorm) -> bool:
    return layer.training or not layer.track_running_stats


def _bind(normalise: Normalise, layer: _BatchNorm) -> Callable[[Tensor], Tensor]:
    return lambda x: normalise(layer, x)

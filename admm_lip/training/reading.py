"""How the data of a run are read: inputs as the network takes them, targets as its loss does.

========================  =======================================  ==============================
loss                      integers, booleans, words                floats
========================  =======================================  ==============================
``cross_entropy, margin``  class labels                             one-hot rows only
``squared_error``         numbers (words are refused)              numbers
``auto``, a callable      class labels, for two outputs or more    numbers (``auto``: no one-hot)
========================  =======================================  ==============================

What could be two things is refused, with both readings named.  Class labels become numbers of the
outputs (``data/labels.py``), numbers take the network's dtype.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..data.arrays import as_numbers, as_numbers_or_words, check_finite
from ..data.labels import Classes, checked_classes, class_numbers, is_one_hot, numbers_and_classes
from ..networks.interface import Interface, interface_of
from .losses import check_loss, wants_labels

Batch = tuple[Tensor, Tensor]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Reading:
    """One way to read all batches of a run.

    Attributes:
        takes: what the network takes and gives.
        classes: the label of each output; ``None`` where targets are numbers.
        matched: whether numbers must be as many as the outputs (a loss of the user's own decides
            itself).
    """

    takes: Interface
    classes: Classes | None
    matched: bool

    def pair(self, name: str, inputs: Any, targets: Any) -> Batch:
        """Inputs and targets as tensors.

        Args:
            name: of the pair, for errors.
            inputs: ``(n, *)``.
            targets: ``(n,)``, ``(n, 1)`` or ``(n, outputs)``.

        Raises:
            ValueError, TypeError: for what cannot be read so.
        """
        x = self.takes.inputs(f"{name}, inputs", inputs)
        if not len(x):
            raise ValueError(f"{name}: expected at least one sample, got none; leave it out")
        y = self._targets(f"{name}, targets", targets)
        if y.ndim == 0 or len(x) != len(y):
            count = len(y) if y.ndim else "a single number"
            raise ValueError(
                f"{name}: expected as many targets as inputs, got {count} and {len(x)}; check how "
                "the two were put together"
            )
        return x, y

    def _targets(self, name: str, values: Any) -> Tensor:
        outputs = self.takes.outputs
        if self.classes is not None:
            plain = self.classes == tuple(range(outputs))
            return class_numbers(name, values, outputs, None if plain else self.classes)
        numbers = as_numbers(name, values)
        if numbers.ndim:
            check_finite(name, numbers)
        cast = numbers.to(self.takes.dtype)
        if self.matched and cast.ndim and cast.numel() != len(cast) * outputs:
            raise ValueError(
                f"{name}: expected {outputs} numbers a row, one for each output of the model, got "
                f"shape {tuple(cast.shape)}; class labels must be integers (.astype(int))"
            )
        return cast


def reading_of(
    name: str,
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Any,
    classes: Sequence[Any] | None,
    *,
    whole: bool,
) -> Reading:
    """The reading that a first pair decides.

    Args:
        name: of the pair, for errors.
        model: to be trained.
        inputs: of the first batch, or all.
        targets: that belong to them.
        loss: a name, ``"auto"`` or a callable.
        classes: the labels in the order of the outputs, where they are given.
        whole: whether these are all data, so that their classes are all classes.

    Raises:
        ValueError, TypeError: for what cannot be read, or be read in two ways.
    """
    check_loss(loss)
    takes, name = interface_of(model, f"{name}, inputs", inputs), f"{name}, targets"
    if not _are_labels(name, targets, loss, takes.outputs):
        if classes is not None:
            raise ValueError("classes: go with class labels, got targets that are numbers")
        return Reading(takes, None, matched=isinstance(loss, str))
    if classes is not None:
        return Reading(takes, checked_classes(classes, takes.outputs), matched=False)
    found: Classes = tuple(range(takes.outputs))
    if whole:
        found = numbers_and_classes(name, targets, takes.outputs)[1]
        if found != tuple(range(takes.outputs)):
            _log.warning("%s: the outputs stand for the labels %s, in this order", name, found)
    return Reading(takes, found, matched=False)


def _are_labels(name: str, targets: Any, loss: Any, outputs: int) -> bool:
    """The table of the module's docstring."""
    asked = wants_labels(loss)
    if asked is False:
        return False
    values = as_numbers_or_words(name, targets)
    if asked is None and isinstance(values, Tensor) and values.is_floating_point():
        if loss == "auto" and is_one_hot(values, outputs):
            raise ValueError(
                f"{name}: one-hot floats can be classes or numbers; give loss='cross_entropy' "
                "(classes) or loss='squared_error' (numbers)"
            )
        return False
    if outputs > 1:
        return True
    if asked:
        raise ValueError(
            f"loss: {loss!r} needs a model of two outputs or more, got one output; give it one "
            "output for each class, or use loss='squared_error'"
        )
    raise ValueError(
        f"{name}: integers, booleans or words with a model of one output can be classes or "
        "numbers; give floats (a regression, binary cross-entropy), or the model two outputs"
    )

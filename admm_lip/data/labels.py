"""Class labels as people have them, read as class numbers ``0 .. outputs - 1``.

==============================================  ===============================================
what comes                                      what it is read as
==============================================  ===============================================
integers or booleans in ``0 .. outputs - 1``    the numbers of the outputs
``outputs`` different integers, elsewhere       their places in sorted order, as scikit-learn does
words, ``outputs`` different ones               the same
rows of ``outputs`` numbers, a single 1 each    its column (one-hot)
floats                                          no labels, unless they are one-hot
==============================================  ===============================================

A column ``(n, 1)`` is read as ``(n,)``.  Where classes were read from the data before, labels are
looked up among them, so that a few rows are read as all of them were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import Words, as_numbers_or_words

Label = int | str | bool
# Labels in the order of the outputs.
Classes = tuple[Label, ...]


def class_numbers(
    name: str, values: Any, outputs: int, classes: Sequence[Any] | None = None
) -> Tensor:
    """Labels as int64 numbers of the outputs, ``(n,)``, by the table above.

    Args:
        name: of the argument, for errors.
        values: labels in any of the forms above.
        outputs: number of classes, at least 2.
        classes: labels in the order of the outputs, where they are known (``classes`` of a
            :class:`~admm_lip.TrainResult`); ``None`` takes integers as the outputs' numbers.

    Raises:
        TypeError, ValueError: naming the argument and the label that cannot be read.

    Example:
        >>> class_numbers("y", ["cat", "dog", "cat"], 2, classes=("cat", "dog")).tolist()
        [0, 1, 0]
        >>> class_numbers("y", [[0, 1], [1, 0]], 2).tolist()
        [1, 0]
    """
    labels = _flat(name, as_numbers_or_words(name, values), outputs)
    if classes is not None:
        return _places(name, labels, checked_classes(classes, outputs))
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"{name}: expected numbers of the classes, got words ({_some(labels)}); give "
            "classes=, the words in the order of the outputs (result.classes after training)"
        )
    check_labels(name, labels, outputs)
    return labels


def numbers_and_classes(name: str, values: Any, outputs: int) -> tuple[Tensor, Classes]:
    """All labels of a data set as numbers, and the classes that are in them.

    Args:
        name: of the argument, for errors.
        values: labels of the whole training set.
        outputs: number of classes, at least 2.

    Returns:
        int64 numbers ``(n,)``, and the label of each output.

    Example:
        >>> numbers_and_classes("y", [0, 5, 2, 5], 3)
        (tensor([0, 2, 1, 2]), (0, 2, 5))
    """
    labels = _flat(name, as_numbers_or_words(name, values), outputs)
    if isinstance(labels, Tensor) and (not len(labels) or _in_range(labels, outputs)):
        return labels, tuple(range(outputs))
    found = _distinct(labels)
    if len(found) != outputs:
        raise ValueError(
            f"{name}: expected {outputs} classes, one for each output of the model, got "
            f"{len(found)} different labels ({_some(labels)}); give the model {len(found)} "
            f"outputs, or number the labels from 0 to {outputs - 1}"
        )
    return _places(name, labels, found), found


def binary_numbers(name: str, values: Any) -> Tensor:
    """Labels of a classifier of one output, which decides at 0, as 0 and 1.

    Args:
        name: of the argument, for errors.
        values: booleans, 0 and 1, or -1 and 1, ``(n,)`` or ``(n, 1)``.

    Raises:
        TypeError, ValueError: naming the argument, for other labels.

    Example:
        >>> binary_numbers("y", [-1, 1, 1]).tolist()
        [0, 1, 1]
    """
    labels = _flat(name, as_numbers_or_words(name, values), 1)
    signs = isinstance(labels, Tensor) and bool((labels.abs() == 1).all())
    if not isinstance(labels, Tensor) or not (signs or not len(labels) or _in_range(labels, 2)):
        raise ValueError(
            f"{name}: a network of one output is a binary classifier; expected labels 0 and 1, or "
            f"-1 and 1, got {_some(labels)}; or give classes=, the two labels"
        )
    return (labels == 1).to(torch.int64)


def check_labels(name: str, labels: Tensor, outputs: int) -> None:
    """Raise ``ValueError`` unless integer labels lie in ``0 .. outputs - 1``."""
    if len(labels) and not _in_range(labels, outputs):
        row = int(((labels < 0) | (labels >= outputs)).nonzero()[0, 0])
        raise ValueError(
            f"{name}: expected class labels in 0..{outputs - 1} (the model has {outputs} outputs), "
            f"got {int(labels[row])} in row {row} (all from {int(labels.min())} to "
            f"{int(labels.max())}); number the classes from 0, or give the model more outputs"
        )


def checked_classes(classes: Sequence[Any], outputs: int) -> Classes:
    """The classes as plain Python labels, one for each output, all different.

    Raises:
        ValueError: naming ``classes``.
    """
    found = tuple(np.asarray(list(classes), dtype=object).tolist())
    found = tuple(v.item() if isinstance(v, (np.generic, Tensor)) else v for v in found)
    if len(found) != outputs or len(set(found)) != outputs:
        raise ValueError(
            f"classes: expected {outputs} different labels, one for each output of the model, "
            f"got {list(found)!r:.80}"
        )
    return found


def is_one_hot(values: Tensor, outputs: int) -> bool:
    """Whether every row holds a single 1 among zeros, in ``outputs >= 2`` columns."""
    if values.ndim != 2 or values.shape[1] != outputs or outputs < 2 or not len(values):
        return False
    ones = values == 1
    return bool((ones.sum(dim=1) == 1).all()) and bool((ones | (values == 0)).all())


def _flat(name: str, values: Tensor | Words, outputs: int) -> Tensor | Words:
    """Integer labels ``(n,)``, int64, or words ``(n,)``."""
    if isinstance(values, Tensor) and is_one_hot(values, outputs):
        return values.to(torch.int64).argmax(dim=1)
    if isinstance(values, Tensor) and values.is_floating_point():
        raise ValueError(
            f"{name}: expected integer class labels, got {values.dtype} of shape "
            f"{tuple(values.shape)}; if they are labels, convert them by .astype(int) or .long()"
        )
    shape = tuple(values.shape)
    if len(shape) == 2 and shape[1] == 1:
        values = values[:, 0]
    elif len(shape) != 1:
        raise ValueError(
            f"{name}: expected one class label per row, (n,), (n, 1), or one-hot rows "
            f"(n, {outputs}), got shape {shape}"
        )
    return values.to(torch.int64) if isinstance(values, Tensor) else values


def _in_range(labels: Tensor, outputs: int) -> bool:
    return int(labels.min()) >= 0 and int(labels.max()) < outputs


def _distinct(labels: Tensor | Words) -> Classes:
    """Sorted and unique, as ``classes_`` of scikit-learn."""
    if isinstance(labels, Tensor):
        return tuple(torch.unique(labels).tolist())
    return tuple(np.unique(labels).tolist())


def _places(name: str, labels: Tensor | Words, classes: Classes) -> Tensor:
    """The place of each label among the classes."""
    place = {label: k for k, label in enumerate(classes)}
    try:
        numbers = [place[label] for label in labels.tolist()]
    except KeyError as unknown:
        raise ValueError(
            f"{name}: expected labels among the classes {list(classes)!r:.80}, got "
            f"{unknown.args[0]!r}; drop these rows, or give the classes the model was trained on"
        ) from None
    device = labels.device if isinstance(labels, Tensor) else None
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def _some(labels: Tensor | Words) -> str:
    found = _distinct(labels)
    return ", ".join(map(repr, found[:4])) + (", ..." if len(found) > 4 else "")

"""The two sets that need no download: scikit-learn's digits and the paper's three circles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .dataset import DataSet, Pair

_DIGITS = Path(__file__).with_name("digits.npz")
# Part of the definition of a set: another seed would be another test set.
_DIGITS_SPLIT, _DIGITS_TEST = 0, 360
_TOY_TRAIN = 1612111977
_TOY_TEST = 1612111978


def load_digits(name: str, root: Path) -> DataSet:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, scaled to [0, 1]; 1,437 train, 360 test.

    They are the test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin and
    C. Kaynak (UCI repository, 1998, CC BY 4.0), held beside this file as integers from 0 to 16.
    """
    with np.load(_DIGITS, allow_pickle=False) as held:
        pixels, labels = held["pixels"], held["labels"]
    order = np.random.default_rng(_DIGITS_SPLIT).permutation(len(labels))
    x = torch.from_numpy((pixels[order] / 16.0).astype(np.float32))
    y = torch.from_numpy(labels[order].astype(np.int64))
    return DataSet(
        train=(x[_DIGITS_TEST:], y[_DIGITS_TEST:]),
        test=(x[:_DIGITS_TEST], y[:_DIGITS_TEST]),
        name=name,
        task="classification",
        n_classes=10,
        input_range=(0.0, 1.0),
        shape=(1, 8, 8),
    )


def load_toy2d(name: str, root: Path) -> DataSet:
    """Three concentric classes in the unit square, 50 training and 5,000 test points.

    With ``r`` the distance to (0.5, 0.5): class 2 for ``r <= 0.2``, 1 for ``r <= 0.4``, else 0.
    The training points are those of Pauli et al. (arXiv 2005.02929): their seed, first all first
    coordinates, then all second ones.
    """
    return DataSet(
        train=_circles(50, _TOY_TRAIN),
        test=_circles(5000, _TOY_TEST),
        name=name,
        task="classification",
        n_classes=3,
        input_range=(0.0, 1.0),
        shape=(2,),
    )


def _circles(count: int, seed: int) -> Pair:
    # The legacy generator is the one the paper's seed belongs to.
    draw = np.random.RandomState(seed)
    points: NDArray[np.float64] = np.stack([draw.rand(count), draw.rand(count)], axis=1)
    square = ((points - 0.5) ** 2).sum(axis=1)
    labels = (square <= 0.16).astype(np.int64) + (square <= 0.04)
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)

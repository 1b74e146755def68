"""Verdicts sample by sample: an attack that breaks a certified one is an error, never a number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from admm_lip.evaluation.attacks import AttackConfig
from admm_lip.evaluation.falsification import SoundnessError
from admm_lip.evaluation.per_sample import robust_samples


def decider() -> nn.Linear:
    """Class 1 where x > 0: the distance to the boundary is |x|."""
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[-1.0], [1.0]])
    return layer


X = (torch.arange(41)[:, None] - 20) / 20.0
Y = (X[:, 0] > 0).long()
NONE = torch.zeros(41, dtype=torch.bool)


def test_robust_are_those_beyond_the_radius() -> None:
    robust = robust_samples(decider(), X, Y, 0.33, NONE)
    assert torch.equal(robust, X[:, 0].abs() > 0.33)
    assert robust_samples(decider(), X, Y, 0.0, NONE).tolist() == [k != 20 for k in range(41)]


def test_a_true_claim_passes_and_a_false_one_is_named() -> None:
    robust_samples(decider(), X, Y, 0.33, X[:, 0].abs() > 0.33)
    with pytest.raises(SoundnessError, match=r"row 14: certified at radius 0.33, but pgd found"):
        robust_samples(decider(), X, Y, 0.33, X[:, 0].abs() > 0.28)
    with pytest.raises(SoundnessError, match=r"row 3: .* is not classified correctly"):
        claim = NONE.clone()
        claim[3] = True
        robust_samples(decider(), X, 1 - Y, 0.01, claim)


def test_a_tie_and_nan_are_not_right() -> None:
    claim = NONE.clone()
    claim[20] = True
    with pytest.raises(SoundnessError, match=r"row 20: .* is not classified correctly"):
        robust_samples(decider(), X, Y, 0.01, claim)
    broken = decider()
    broken.weight.data[0] = float("nan")
    assert not robust_samples(broken, X, Y, 0.0, NONE).any()


def test_only_the_admissible_part_of_the_ball_counts() -> None:
    config = AttackConfig(clip=(0.2, 1.0))
    inside = X[:, 0] > 0.2
    claim = torch.ones(int(inside.sum()), dtype=torch.bool)
    assert robust_samples(decider(), X[inside], Y[inside], 5.0, claim, config).all()

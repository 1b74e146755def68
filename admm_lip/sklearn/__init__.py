"""Estimators for scikit-learn whose Lipschitz constant is bounded and proven.

from admm_lip.sklearn import LipschitzClassifier
found = LipschitzClassifier(bound=1.0).fit(X, y)
found.lip_, found.certified_radius(X)
"""

from __future__ import annotations

from ..extras import extra

with extra():
    from .classifier import LipschitzClassifier as LipschitzClassifier
    from .regressor import LipschitzRegressor as LipschitzRegressor

__all__ = ["LipschitzClassifier", "LipschitzRegressor"]

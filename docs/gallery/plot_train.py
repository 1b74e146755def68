"""
Train under a bound
===================

The same network with and without ``bound=1``: the bound holds in every round, and what is certified
is much more.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from admm_lip import TrainConfig, certified_radii, certify, train
from admm_lip.data import load_data
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.plots import BLUE, GREY, ORANGE
from admm_lip.training.method import Method

data = load_data("digits")
x, y = data.test
torch.manual_seed(0)
model = build_mlp(64, 10, ModelConfig(hidden=(64,)))
settings = {"loss": "margin", "eps": 0.2, "epochs": 30}
bounded = train(model, data.train, TrainConfig(bound=1.0, **settings), progress=False)
plain = train(model, data.train, TrainConfig(epochs=30), method=Method(), progress=False)

# %%
# Certified accuracy: rows that are right on the whole ball around them.  Pairs of classes each
# with a bound of their own serve the plain network best.

radii = {}
for name, found in (("bound 1", bounded), ("plain", plain)):
    pairs = certify(found.model, kind="pairwise", progress=False)
    radii[name] = certified_radii(found.model, x, y, certificate=pairs).numpy()
    right = (found.model(x).argmax(1) == y).float().mean()
    print(
        f"{name:8} L = {found.certificate.lip:9.6g}   right {right:.1%}   "
        f"certified at 0.2: {(radii[name] >= 0.2).mean():.1%}"
    )

# %%
# What is proven lies between what sampling finds and what the product of norms says.

print(bounded.certificate.summary())

# %%
figure, axes = plt.subplots()
at = np.linspace(0.0, 0.8, 200)
for name, color in (("bound 1", BLUE), ("plain", GREY)):
    axes.plot(at, [(radii[name] > r).mean() for r in at], color=color, label=name)
axes.axvline(0.2, color=ORANGE, lw=1, ls="--", label="trained for")
axes.set_title("Digits: certified accuracy")
axes.set(xlabel="l2 radius, in pixels from 0 to 1", ylabel="share of test rows", ylim=(0, 1))
axes.legend()
plt.show()

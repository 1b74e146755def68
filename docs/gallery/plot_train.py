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
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
steps = [row["step"] for row in bounded.history]
left.plot(steps, [row["lip"] for row in bounded.history], color=BLUE)
left.axhline(1.0, color=ORANGE, lw=1, ls="--")
left.set_title("L after each round")
left.set(xlabel="optimizer steps", ylabel="proven of the consensus weights", ylim=(0, 1.1))
at = np.linspace(0.0, 0.8, 200)
for name, color in (("bound 1", BLUE), ("plain", GREY)):
    right.plot(at, [(radii[name] > r).mean() for r in at], color=color, label=name)
right.set_title("Certified accuracy")
right.set(xlabel="l2 radius", ylabel="share of test rows", ylim=(0, 1))
right.legend()
plt.show()

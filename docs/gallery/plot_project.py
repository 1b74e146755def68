"""
Project a trained network onto a bound
======================================

The nearest weights that meet a bound, with and without a look at the data: what it costs in
accuracy, and how far the weights move.
"""

import matplotlib.pyplot as plt
import torch

from admm_lip import TrainConfig, certify, project, train
from admm_lip.data import load_data
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.plots import BLUE, GREY, ORANGE
from admm_lip.training.method import Method

data = load_data("digits")
x, y = data.test
torch.manual_seed(0)
start = build_mlp(64, 10, ModelConfig(hidden=(32, 32)))
plain = train(start, data.train, TrainConfig(epochs=20), method=Method(), progress=False).model
print(f"trained without a bound: L = {certify(plain).lip:.3g}")


def accuracy(model: torch.nn.Module) -> float:
    """Share of test rows that the model gets right."""
    return float((model(x).argmax(1) == y).float().mean())


# %%
# Classes do not change when all scores are scaled, so that a small bound alone costs nothing.  The
# projection keeps scores near what they were; two epochs of training under the bound win back what
# that loses.

bounds = (8.0, 3.0, 1.0)
moved = [project(plain, bound, progress=False) for bound in bounds]
taught = [project(plain, bound, finetune=data.train, epochs=2, progress=False) for bound in bounds]
print("bound   proven   moved by   accuracy   with two epochs")
for bound, near, tuned in zip(bounds, moved, taught, strict=True):
    print(
        f"{bound:5g}   {near.certificate.lip:6.4f}   {near.distance:8.3f}   "
        f"{accuracy(near.model):8.1%}   {accuracy(tuned.model):8.1%}"
    )

# %%
figure, axes = plt.subplots()
axes.axhline(accuracy(plain), color=GREY, lw=1)
axes.annotate("before", (bounds[0], accuracy(plain)), (-40, 4), textcoords="offset points")
for found, color, label in ((taught, BLUE, "with two epochs"), (moved, ORANGE, "weights alone")):
    shares = [accuracy(each.model) for each in found]
    axes.plot(bounds, shares, color=color, marker="o", label=label)
axes.set_xscale("log")
axes.set_xticks(bounds, [f"{b:g}" for b in bounds], minor=False)
axes.minorticks_off()
axes.set_title("Digits: accuracy after a projection")
axes.set(xlabel="Lipschitz bound", ylabel="share of test rows")
axes.legend()
plt.show()

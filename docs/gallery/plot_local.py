"""
Local certificates
==================

Around one input most neurons cannot change sides, so a bound on the ball around it goes further
than one for all inputs.  Levels go from cheap to dear; what each proves is proven through rounding.
"""

import os
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from admm_lip import (
    LocalConfig,
    TrainConfig,
    certified_radii,
    certify,
    certify_local,
    train,
    verify,
)
from admm_lip.data import load_data
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.plots import BLUE, GREY
from admm_lip.training.method import Method

# %%
# The network is SDP-CROWN's perceptron for MNIST (ICML 2025, Table 1), where its weights and
# pictures are at hand (``$ADMM_LIP_SHARED/sdp_crown``); else one trained here on the package's
# own digits.

folder = Path(os.environ.get("ADMM_LIP_SHARED", "data")) / "sdp_crown"
if folder.exists():
    arrays = np.load(folder / "mnist_mlp.npz")
    layers: list[nn.Module] = [nn.Flatten()]
    for k in range(len(arrays.files) // 2):
        weight, bias = torch.tensor(arrays[f"W{k}"]), torch.tensor(arrays[f"b{k}"])
        layers += [nn.Linear(*weight.T.shape), nn.ReLU()]
        layers[-2].weight.data, layers[-2].bias.data = weight, bias
    model, radius = nn.Sequential(*layers[:-1]).double(), 1.0
    pictures = np.load(folder / "mnist_pictures.npz")
    x = torch.tensor(pictures["x"][:50] / 255.0)
    y = torch.tensor(pictures["y"][:50].astype(np.int64))
else:
    print(f"{folder} is not here; a network trained on the package's own digits stands in for it")
    data = load_data("digits")
    torch.manual_seed(0)
    start = build_mlp(64, 10, ModelConfig(hidden=(64, 64)))
    model = train(start, data.train, TrainConfig(epochs=10), method=Method(), progress=False).model
    model, radius = model.double(), 0.3
    x, y = data.test[0][:50].double(), data.test[1][:50]
right = model(x).argmax(1) == y
print(f"{int(right.sum())} of {len(x)} pictures are right; the radius is {radius:g}")

# %%
# ``robust`` says of which pictures it is proven that the class cannot change on the ball.

shares = {}
everywhere = certify(model, tuple(x.shape[1:]))
held = certified_radii(model, x, y, certificate=everywhere) >= radius
shares["for all inputs"] = int(held.sum())
for level in ("masked", "norms", "quadratic", "tuned"):
    begun = perf_counter()
    found = certify_local(model, x, radius, y, config=LocalConfig(level, box=(0.0, 1.0)))
    seconds = (perf_counter() - begun) / len(x)
    shares[level] = int(found.robust.sum())
    print(f"{level:10} certified {shares[level]:3}    {seconds:.3f} s a picture")

verify(found, model)  # every bound of the last one again

# %%
figure, axes = plt.subplots(figsize=(6.8, 3))
place = range(len(shares))
axes.barh(place, list(shares.values()), color=[GREY, *[BLUE] * (len(shares) - 1)], height=0.6)
for at, count in zip(place, shares.values(), strict=True):
    axes.annotate(str(count), (count, at), (4, 0), textcoords="offset points", va="center")
axes.axvline(int(right.sum()), color=GREY, lw=1, ls=":")
axes.set_yticks(place, list(shares))
axes.invert_yaxis()
axes.grid(visible=False)
axes.set_title(f"Pictures certified at l2 radius {radius:g}")
axes.set(xlabel=f"of {len(x)}; the dotted line: right")
plt.show()

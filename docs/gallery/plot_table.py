"""
A table in raw units
====================

A regression on a table: columns are standardised inside, and what is proven is said in the units of
the file, one slope for each column.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from admm_lip import Lipschitz, Units, certify, train, verify
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.plots import BLUE, GREY, ORANGE

# %%
# Strength of concrete against its mixture, where the file is at hand (the UCI table of 1,030 rows,
# as CSV in ``$ADMM_LIP_SHARED/tabular``); else rows of a made-up beam, so that the page can be
# built.

path = Path(os.environ.get("ADMM_LIP_SHARED", "data")) / "tabular" / "concrete.csv"
if path.exists():
    names = path.read_text().partition("\n")[0].split(",")
    rows = np.loadtxt(path, delimiter=",", skiprows=1)
else:
    print(f"{path} is not here; made-up rows stand in for it")
    names = ["length_mm", "width_mm", "height_mm", "load_n", "sag_mm"]
    made = np.random.default_rng(0).uniform((500, 40, 60, 100), (900, 60, 80, 300), (800, 4))
    rows = np.c_[made, made[:, 3] * made[:, 0] ** 3 / (8e4 * made[:, 1] * made[:, 2] ** 3) * 1e3]
rows = np.random.default_rng(1).permutation(rows)
train_rows, test_rows = rows[:-200], rows[-200:]
units = Units.standardising(
    train_rows[:, :-1], train_rows[:, -1:], input_names=names[:-1], output_names=names[-1:]
)

# %%
# Under a bound on the standardised function: an output deviation per input deviation.


def standardised(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as the network takes them."""
    return units.to_model(part[:, :-1]), units.target_to_model(part[:, -1:])


torch.manual_seed(0)
net = build_mlp(len(names) - 1, 1, ModelConfig(hidden=(32, 32), activation="tanh"))
x, y = standardised(train_rows)
found = {bound: train(net, (x, y), Lipschitz(bound), progress=False) for bound in (0.5, 1.0, 2.0)}
for bound, result in found.items():
    inputs = torch.tensor(units.to_model(test_rows[:, :-1]), dtype=torch.float32)
    predicted = units.from_model(result.model(inputs).detach())
    error = np.sqrt(((predicted - test_rows[:, -1:]) ** 2).mean())
    print(f"bound {bound:g}: proven {result.certificate.lip:.4f}, error {error:.2f} {names[-1]}")

# %%
# In raw units.  One constant for all columns together speaks of the column of the smallest scale;
# what a person wants to know is the slope along each column.

model = found[1.0].model
raw = certify(model, units=units)
verify(raw, model)
print(f"all columns together: {raw.lip:.4g} {units.ratio()}")
at_most = units.slope_limits(certify(model).lip, len(names) - 1, 1)[0]

# %%
# That constant divided by each column's scale is one answer.  A certificate of the column by itself
# is a better one: along it the network is one of a single input, with other biases, and biases do
# not enter a certificate.


def along(column: int) -> float:
    """Proven slope of the raw function along one column."""
    first, *rest = model
    alone = torch.nn.Linear(1, first.out_features)
    alone.weight.data = first.weight.data[:, column : column + 1].clone()
    scales = Units(input_scale=units.input_scale[column], output_scale=units.output_scale)
    return certify(torch.nn.Sequential(alone, *rest), units=scales).lip


proven = np.array([along(column) for column in range(len(names) - 1)])
print(f"{names[-1]} per unit of     by one constant   by itself")
for name, limit, own in zip(names, at_most, proven, strict=False):
    print(f"  {name:22} {limit:15.4g} {own:11.4g}")

# %%
rows_in = torch.tensor(x, dtype=torch.float32, requires_grad=True)
model(rows_in).sum().backward()
steepest = rows_in.grad.abs().amax(0).numpy() * units.output_scale / np.array(units.input_scale)
figure, axes = plt.subplots()
place = np.arange(len(names) - 1)
axes.barh(place, 1.0, color=GREY, alpha=0.25, label="one constant for all")
axes.barh(place, proven / at_most, color=BLUE, height=0.6, label="proven, each by itself")
axes.barh(place, steepest / at_most, color=ORANGE, height=0.3, label="steepest at a training row")
axes.set_yticks(place, names[:-1])
axes.invert_yaxis()
axes.grid(visible=False)
axes.set_title("Slope along each column, as a share of what one constant says")
axes.set(xlim=(0, 1.05))
axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.08), ncols=3)
plt.show()

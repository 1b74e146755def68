r"""
Monotone and Lipschitz together
===============================

A table where the direction of some columns is known: heavier and stronger cars go fewer miles on a
gallon, later models more.  One network is trained to say so everywhere, with a proof; one is not.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes

from admm_lip import All, Lipschitz, Monotone, TrainConfig, Units, train, verify
from admm_lip.networks.models import ModelConfig, build_mlp

# %%
# The table is UCI's auto-mpg where it is at hand, and else scikit-learn's diabetes.
path = Path(os.environ.get("ADMM_LIP_SHARED", "../shared/data")) / "tabular" / "auto_mpg.csv"
if path.is_file():
    names = path.read_text().partition("\n")[0].split(",")
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    x, y, (*names, target) = table[:, :-1], table[:, -1:], names
    monotone = Monotone(increasing=["model_year"], decreasing=["horsepower", "weight"], slope=0.5)
else:
    data = load_diabetes()
    x, y, names, target = data.data, data.target[:, None], data.feature_names, "progression"
    monotone = Monotone(increasing=["bmi", "bp"], slope=0.5)

order = np.random.default_rng(0).permutation(len(x))
test, rows = np.split(order, [len(x) // 4])
units = Units.standardising(x[rows], y[rows], input_names=names, output_names=[target])
z, targets = units.to_model(x), units.target_to_model(y)

# %%
# ``All`` adds a linear term to the network and keeps the rest below what that term outweighs; the
# bound is that of the sum.  ``slope=0.5`` says how steep the term is: half a standard deviation of
# the target for one of a column.  All of it is stated for standardised columns here.
config = TrainConfig(loss="squared_error", epochs=200, batch_size=64)
columns = Units(input_names=names)
asked = {
    "monotone": All(Lipschitz(4.0, units=columns), monotone),
    "bound alone": Lipschitz(4.0),
    "free": Lipschitz(1e3),
}
results = {}
for name, constraint in asked.items():
    torch.manual_seed(0)
    network = build_mlp(len(names), 1, ModelConfig(hidden=(24, 24)))
    fitted = (z[rows], targets[rows])
    result = train(network, fitted, config, constraint=constraint, progress=False)
    verify(result.certificate, result.model)
    results[name] = result
print(results["monotone"].certificate)


# %%
# Violations are counted on pairs: a row of the test set, and the same with one of the columns moved
# up by up to two standard deviations.
def predicted(name: str, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found = results[name].model.double()(torch.tensor(rows))
    return units.from_model(found.numpy())


random = np.random.default_rng(1)
moves = {names.index(c): 1 for c in monotone.increasing}
moves |= {names.index(c): -1 for c in monotone.decreasing}
for name, result in results.items():
    error = np.sqrt(np.mean((predicted(name, z[test]) - y[test]) ** 2))
    wrong = pairs = 0
    for column, sign in moves.items():
        for _ in range(20):
            moved = z[test].copy()
            moved[:, column] += random.uniform(0, 2, len(test))
            gain = sign * (predicted(name, moved) - predicted(name, z[test]))
            wrong, pairs = wrong + int((gain < -1e-9).sum()), pairs + len(gain)
    print(
        f"{name:12} test error {error:.2f} {target}, {wrong} of {pairs} pairs the wrong way, "
        f"L {result.certificate.lip:.2f}"
    )

# %%
# A few cars of the test set, one column at a time.
figure, axes = plt.subplots(1, len(moves), figsize=(10, 3.6), sharey=True, constrained_layout=True)
for axis, (column, _) in zip(axes, moves.items(), strict=True):
    grid = np.linspace(x[:, column].min(), x[:, column].max(), 100)
    for row in test[:5]:
        line = np.repeat(x[row : row + 1], len(grid), axis=0)
        line[:, column] = grid
        for name, colour in (("free", "0.7"), ("monotone", "tab:blue")):
            axis.plot(grid, predicted(name, units.to_model(line)), color=colour, lw=1.3)
    axis.set_xlabel(names[column])
axes[0].set_ylabel(target)
axes[0].plot([], [], color="0.7", label="free")
axes[0].plot([], [], color="tab:blue", label="monotone, proven")
axes[0].legend()
plt.show()

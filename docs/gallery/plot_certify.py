"""
Certify a network that somebody else trained
============================================

A network out of a plain training loop gets a proven Lipschitz constant and, around every test row,
a proven radius.  No weight is touched.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from admm_lip import certified_radii, certify, falsify, verify
from admm_lip.data import load_data
from admm_lip.plots import BLUE, GREY, ORANGE

data = load_data("digits")
(x, y), (x_test, y_test) = data.train, data.test
torch.manual_seed(0)
theirs = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.AdamW(theirs.parameters(), lr=5e-3, weight_decay=1.0)
for _ in range(400):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(theirs(x), y).backward()
    optimizer.step()

# %%
# One bound for all outputs together, and one for each difference of two scores.  ``verify`` proves
# both again, with NumPy and SciPy alone.

both = certify(theirs)
pairs = certify(theirs, kind="pairwise", progress=False)
verify(both, theirs)
verify(pairs, theirs)
print(f"product of layer norms            {both.norm_product:.3f}")
print(f"proven for all outputs            {both.lip:.3f}")
print(f"no diagonal multipliers go below  {both.lower_lip:.3f}")
print(f"proven for pairs of outputs       {pairs.lips.min():.3f} to {pairs.lips.max():.3f}")

# %%
# A radius around every row within which the predicted class cannot change, and an attack that looks
# for a counterexample: ``falsify`` raises if it finds one.

by_all = certified_radii(theirs, x_test, y_test, certificate=both)
by_pairs = certified_radii(theirs, x_test, y_test, certificate=pairs)
tried = falsify(theirs, by_pairs[:200], x_test[:200], y_test[:200], certificate=pairs)
print(f"attacked {tried.samples} balls {tried.attacks} times, none broke")
print(f"the nearest success was at {tried.smallest_ratio:.3f} times the radius")

# %%
figure, axes = plt.subplots()
grid = np.linspace(0.0, 1.0, 200)
curves = {
    "pairs of outputs": (by_pairs, BLUE),
    "all outputs": (by_all, ORANGE),
    "product of norms": (by_all * both.lip / both.norm_product, GREY),
}
for label, (found, color) in curves.items():
    axes.plot(grid, [(found > r).float().mean() for r in grid], color=color, label=label)
axes.set_title("Digits: share of test rows with a certified radius")
axes.set(xlabel="l2 radius, in pixels from 0 to 1", ylabel="share of test rows", ylim=(0, 1))
axes.legend()
plt.show()

"""
Penalty against bound
=====================

``TrainConfig(mu=...)`` pays ``mu L^2`` and lets L come out; ``TrainConfig(bound=...)`` says L.
Both trace the same front of accuracy against L.
"""

import matplotlib.pyplot as plt
import torch

from admm_lip import TrainConfig, train
from admm_lip.data import load_data
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.plots import BLUE, ORANGE

data = load_data("digits")
x, y = data.test
torch.manual_seed(0)
model = build_mlp(64, 10, ModelConfig(hidden=(32,)))


def trained(**asked: float) -> tuple[float, float]:
    """The proven constant and the share of test rows that are right."""
    config = TrainConfig(**asked, loss="cross_entropy", epochs=15, batch_size=64)
    result = train(model, data.train, config, progress=False)
    right = (result.model(x).argmax(1) == y).float().mean()
    return result.certificate.lip, float(right)


# %%
bounds = [(bound, *trained(bound=bound)) for bound in (0.5, 1.0, 2.0, 4.0, 8.0)]
prices = [(mu, *trained(mu=mu)) for mu in (1.0, 0.1, 0.03, 0.01, 0.003)]
print("  bound   proven L   right          mu   proven L   right")
for (bound, lip, right), (mu, its_lip, its_right) in zip(bounds, prices, strict=True):
    print(f"{bound:7g}   {lip:8.4f}   {right:.1%}   {mu:9g}   {its_lip:8.4f}   {its_right:.1%}")

# %%
figure, axes = plt.subplots()
for rows, color, marker, name in (
    (bounds, BLUE, "o", "bound enforced"),
    (prices, ORANGE, "D", "penalty on L²"),
):
    axes.plot(
        *zip(*[row[1:] for row in rows], strict=True), marker, color=color, ls="-", label=name
    )
axes.set_xscale("log")
axes.set_xticks((0.5, 1, 2, 4, 8), ("0.5", "1", "2", "4", "8"))
axes.minorticks_off()
axes.set_title("Digits: accuracy against the proven constant, cross-entropy")
axes.set(xlabel="proven Lipschitz constant L", ylabel="share of test rows")
axes.legend()
plt.show()

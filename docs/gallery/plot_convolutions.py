"""
A convolutional network
=======================

Layers stay plain ``nn.Conv2d``.  Training keeps each of them inside a ball of its norm, frequency
by frequency; the certificate is of the whole network.
"""

import matplotlib.pyplot as plt
import torch

from admm_lip import TrainConfig, certified_radii, certify, train, verify
from admm_lip.data import load_data
from admm_lip.networks.sorting_torch import MaxMin
from admm_lip.plots import BLUE, GREY
from admm_lip.training.method import Method

data = load_data("digits").as_images()  # (rows, 1, 8, 8)
x, y = data.test
torch.manual_seed(0)


def network() -> torch.nn.Module:
    """Two convolutions, a linear layer, and the activation that loses nothing under a bound."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        MaxMin(),
        torch.nn.Conv2d(8, 16, 3, stride=2, padding=1),
        MaxMin(),
        torch.nn.Flatten(),
        torch.nn.Linear(256, 10),
    )


config = TrainConfig(bound=1.0, loss="margin", eps=0.3, epochs=15)
bounded = train(network(), data.train, config, progress=False)
verify(bounded.certificate, bounded.model)
print(bounded.model)
print(f"proven L = {bounded.certificate.lip:.6g}")

# %%
# The same network trained plainly, then certified: per channel in the first layers, by
# ``structure="torus"``.

plain = train(network(), data.train, TrainConfig(epochs=8), method=Method(), progress=False).model
found = certify(plain, (1, 8, 8), structure="torus")
print(f"plain: proven L = {found.lip:.4g}, product of norms {found.norm_product:.4g}")

# %%
radii = {
    "bound 1": certified_radii(bounded.model, x, y, certificate=bounded.certificate),
    "plain": certified_radii(plain, x, y, certificate=found),
}
figure, axes = plt.subplots()
grid = torch.linspace(0.0, 1.0, 200)
for (name, found_radii), color in zip(radii.items(), (BLUE, GREY), strict=True):
    axes.plot(grid, [(found_radii > r).float().mean() for r in grid], color=color, label=name)
    print(
        f"{name}: {(found_radii > 0).float().mean():.1%} right, "
        f"{(found_radii > 0.3).float().mean():.1%} certified at radius 0.3"
    )
axes.set_title("Digits: certified accuracy of a convolutional network")
axes.set(xlabel="l2 radius, in pixels from 0 to 1", ylabel="share of test rows", ylim=(0, 1))
axes.legend()
plt.show()

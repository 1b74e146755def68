"""
Your own training loop
======================

``Constraint`` acts through the hooks of the optimizer: one line in a loop that stays as it is.
"""

import matplotlib.pyplot as plt
import torch

from admm_lip import Constraint, Lipschitz, verify
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.plots import BLUE, GREY, ORANGE

torch.manual_seed(0)
x = torch.linspace(-1.0, 1.0, 200)[:, None]
y = torch.sign(torch.sin(4.0 * x)) + 0.1 * torch.randn_like(x)  # a square wave, and noise


def fitted(bound: float | None) -> tuple[torch.nn.Module, float | None]:
    """A network fitted to the rows, under a bound where one is given."""
    torch.manual_seed(1)
    net = build_mlp(1, 1, ModelConfig(hidden=(24, 24), activation="tanh"))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    if bound is not None:
        constraint = Constraint(net, Lipschitz(bound)).attach(optimizer)  # the line
    for _ in range(800):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()  # rounds of ADMM come by themselves
    if bound is None:
        return net, None
    net, certificate = constraint.finish()  # a plain module and its proof
    verify(certificate, net)
    return net, certificate.lip


# %%
figure, axes = plt.subplots()
axes.scatter(x, y, s=5, color=GREY, alpha=0.5)
for bound, color in ((None, GREY), (10.0, ORANGE), (3.0, BLUE)):
    net, lip = fitted(bound)
    curve = net(x).detach()
    steepest = (curve.diff(dim=0).abs() / x.diff(dim=0)).max()
    label = "no bound" if lip is None else f"slope proven below {lip:.4g}"
    print(f"{label:28} steepest slope seen {steepest:.4g}")
    axes.plot(x, curve, color=color, label=label)
axes.set_title("A square wave under a slope bound")
axes.set(xlabel="x", ylabel="y")
axes.legend(loc="lower left")
plt.show()

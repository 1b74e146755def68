"""
The critic of a Wasserstein GAN
===============================

A critic under ``Lipschitz(1.0)`` gives a lower bound of the Wasserstein distance between two
distributions, with a proof that it is 1-Lipschitz: no clipping of weights, no gradient penalty.
"""

import matplotlib.pyplot as plt
import torch

from admm_lip import Constraint, Lipschitz, verify
from admm_lip.networks.models import ModelConfig, build_mlp
from admm_lip.plots import BLUE, GREY, ORANGE

draws = torch.Generator().manual_seed(0)
torch.manual_seed(0)
STEPS, CRITIC_STEPS = 150, 4


def real(count: int) -> torch.Tensor:
    """Points of a ring of radius 2."""
    angle = 2 * torch.pi * torch.rand(count, generator=draws)
    noise = 0.1 * torch.randn(count, 2, generator=draws)
    return 2.0 * torch.stack((angle.cos(), angle.sin()), 1) + noise


generator = torch.nn.Sequential(
    torch.nn.Linear(2, 32),
    torch.nn.Tanh(),
    torch.nn.Linear(32, 32),
    torch.nn.Tanh(),
    torch.nn.Linear(32, 2),
)
critic = build_mlp(2, 1, ModelConfig(hidden=(32, 32), activation="max_min"))
of_generator = torch.optim.Adam(generator.parameters(), lr=5e-3)
of_critic = torch.optim.Adam(critic.parameters(), lr=1e-2)
constraint = Constraint(critic, Lipschitz(1.0)).attach(of_critic)

# %%
# The loop of every Wasserstein GAN: some steps of the critic, one of the generator.


def fake(count: int) -> torch.Tensor:
    """Points that the generator makes."""
    return generator(torch.randn(count, 2, generator=draws))


before, seen = fake(500).detach(), []
for _ in range(STEPS):
    for _ in range(CRITIC_STEPS):
        of_critic.zero_grad()
        apart = critic(real(128)).mean() - critic(fake(128).detach()).mean()
        (-apart).backward()
        of_critic.step()  # rounds of ADMM come by themselves
    seen.append(float(apart.detach()))
    of_generator.zero_grad()
    (-critic(fake(128)).mean()).backward()
    of_generator.step()

critic, certificate = constraint.finish()
verify(certificate, critic)
points, made = real(500), fake(500).detach()
print(f"critic proven {certificate.lip:.4f}-Lipschitz")
print(f"distance of ring and points, at least: {seen[0]:.3f} at first, {seen[-1]:.3f} at the end")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
for cloud, color, name in (
    (points, GREY, "real"),
    (before, ORANGE, "made, at first"),
    (made, BLUE, "made, at the end"),
):
    left.scatter(*cloud.T, s=5, color=color, alpha=0.6, label=name)
left.set_aspect("equal")
left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, markerscale=2)
left.set_title("Points")
right.plot(seen, color=BLUE)
right.set_title("Mean difference that the critic sees")
right.set(xlabel="generator steps", ylabel="distance", ylim=(0, None))
plt.show()

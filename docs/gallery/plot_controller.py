r"""
A stabilising controller with a proven gain
===========================================

A tanh network learns to balance a pendulum upside down from noisy demonstrations, under a bound on
its gain.  A certificate of its distance to a linear gain then proves the closed loop stable on a
region of states, which is drawn.
"""

import os
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.linalg import LinAlgError, block_diag, solve_discrete_are

from admm_lip import (
    Constraint,
    Lipschitz,
    LocalCertificate,
    LocalConfig,
    Units,
    certify,
    certify_local,
    verify,
)

# %%
# The plant
# ---------
# Sampled every 20 ms (explicit Euler), with x = (angle, angular velocity) and the torque u:
# :math:`x^+ = A(s)\,x + B u`, where :math:`s = \sin(x_1)/x_1` lies in
# :math:`[\sin(r)/r,\ 1]` as long as :math:`|x_1| \le r < \pi`.
DT, GRAVITY, MASS, LENGTH, FRICTION = 0.02, 10.0, 0.15, 0.5, 0.05
B = np.array([[0.0], [DT / (MASS * LENGTH**2)]])
ACROSS = (1.2, 8.0)  # demonstrated: |angle| in rad, |velocity| in rad/s


def plant(s: float) -> np.ndarray:
    return np.array([[1.0, DT], [s * GRAVITY / LENGTH * DT, 1.0 - FRICTION * B[1, 0]]])


def step(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    angle, velocity = x.T
    pull = GRAVITY / LENGTH * np.sin(angle) * DT
    return np.stack([angle + DT * velocity, pull + plant(1.0)[1, 1] * velocity + B[1, 0] * u], 1)


# %%
# Demonstrations
# --------------
# The teacher is a linear-quadratic regulator that saturates at 3 Nm; each of its 100 torques comes
# with .5 Nm of noise.  The networks take one rad, or 8 rad/s, as a unit of state.
cost = solve_discrete_are(plant(1.0), B, np.diag([1.0, 0.1]), [[2.0]])
REGULATOR = -np.linalg.solve(B.T @ cost @ B + 2.0, B.T @ cost @ plant(1.0))
SCALE = np.array([1.0, 8.0])
units = Units(
    input_scale=SCALE,
    input_names=("angle", "velocity"),
    output_names=("torque",),
    input_units=("rad", "rad/s"),
    output_units=("Nm",),
)
random = np.random.default_rng(0)
states = random.uniform(-1, 1, (100, 2)) * ACROSS
shown = np.clip(states @ REGULATOR[0], -3, 3) + 0.5 * random.standard_normal(100)
z = torch.tensor(units.to_model(states), dtype=torch.float32)
u = torch.tensor(shown[:, None], dtype=torch.float32)


# %%
# Two networks of one size learn from these rows in one loop; to the second a constraint is
# attached.  Without biases the upright position is an equilibrium.
def imitate(bound: float | None) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(a, b, bias=False) for a, b in ((2, 24), (24, 24), (24, 1))]
    net = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    constraint = None
    if bound is not None:
        constraint = Constraint(net, Lipschitz(bound)).attach(optimizer)
    for _ in range(600):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(net(z), u).backward()
        optimizer.step()
    return net if constraint is None else constraint.finish().model


nets = {"unconstrained": imitate(None), "gain at most 3.2 Nm per unit": imitate(3.2)}
folder = Path(os.environ.get("ADMM_LIP_SHARED", "../shared/data")) / "controllers"
if folder.is_dir():  # of H. Yin, P. Seiler and M. Arcak (IEEE TAC 2022), rad and rad/s as they are
    sizes = ((2, 32), (32, 32), (32, 1))
    layers = [torch.nn.Linear(a, b, bias=False, dtype=torch.float64) for a, b in sizes]
    for k, layer in enumerate(layers):
        weight = np.loadtxt(folder / f"pendulum_W{k}.csv", delimiter=",", ndmin=2)
        layer.weight.data = torch.tensor(weight).reshape(layer.weight.shape)
    layers[0].weight.data *= torch.tensor(SCALE)
    parts = (layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2])
    nets["published"] = torch.nn.Sequential(*parts)


# %%
# What the gains provably are
# ---------------------------
# Of both columns together, and of each by itself: the network behind a layer that feeds one column.
# Each column's own proof is sharper than what the common constant says of it
# (``units.slope_limits``).
def column(net: torch.nn.Module, j: int) -> float:
    feed = torch.nn.Linear(1, 2, bias=False, dtype=net[0].weight.dtype)
    feed.weight.data = torch.eye(2, dtype=feed.weight.dtype)[:, j : j + 1]
    certificate = certify(torch.nn.Sequential(feed, *net))
    return certificate.lip / SCALE[j]


gains = {}
for name, net in nets.items():
    certificate = certify(net)
    verify(certificate, net)
    gains[name] = (certificate.lip, column(net, 0), column(net, 1))
    common = units.slope_limits(certificate.lip, 2, 1)[0]
    print(f"{name}: at most {gains[name][0]:.2f} Nm per (1 rad, 8 rad/s)")
    for said, own, unit in zip(common, gains[name][1:], units.input_units, strict=True):
        print(f"    {own:.3f} Nm per {unit} (by the common constant {said:.3f})")


# %%
# The closed loop
# ---------------
# Write the controller as a linear gain and a rest, :math:`u = Kx + e(x)`.  The rest is a network
# with a skip connection, so a local certificate gives :math:`\gamma` with
# :math:`|e(x)| \le \gamma |Dx|` wherever :math:`|Dx| \le r`, for a diagonal D.  If a P > 0
# satisfies, at both ends s of the sine's sector,
#
# .. math:: M(s)^\top P M(s) - \begin{pmatrix} P - \gamma^2 D^2 & 0 \\ 0 & 1 \end{pmatrix}
#    \prec 0, \qquad M(s) = \begin{pmatrix} A(s)+BK & B \end{pmatrix},
#
# then :math:`V = x^\top P x` falls from one sample to the next (it is convex in s), no state
# leaves the largest sublevel set within the ball, and all go to the upright position.  At s = 1
# such a P exists if :math:`\gamma\,\lVert G\rVert_\infty < 1`, the small-gain theorem for the
# loop G from e to Dx.  It comes from Riccati equations, over a few state costs, and is not trusted:
# what counts are the eigenvalues of the inequality.
class Region(NamedTuple):
    """The stable region ``x'Px <= level``, and what proves it."""

    area: float
    P: np.ndarray
    level: float
    radius: float
    D: np.ndarray
    gain: np.ndarray
    gamma: float
    peak: float  # of G
    worst: float  # largest eigenvalue of the inequality, over s
    proof: tuple[LocalCertificate, torch.nn.Module]


class Rest(torch.nn.Module):
    """e, as a function of z."""

    def __init__(self, net: torch.nn.Module, gain: np.ndarray) -> None:
        super().__init__()
        self.net, dtype = net, net[0].weight.dtype
        self.linear = torch.nn.Linear(2, 1, bias=False, dtype=dtype)
        self.linear.weight.data = torch.tensor(-gain * SCALE, dtype=dtype)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.net(z) + self.linear(z)

    def gain(self) -> np.ndarray:
        """K as the layer holds it, rounded: that one the certificate is about."""
        return -self.linear.weight.detach().double().numpy() / SCALE


def peak_gain(gain: np.ndarray, D: np.ndarray) -> float:
    turns = np.exp(1j * np.linspace(0, np.pi, 400))[:, None, None]
    responses = D @ np.linalg.solve(turns * np.eye(2) - plant(1.0) - B @ gain, B)
    return float(np.linalg.norm(responses, axis=(1, 2)).max())


def worst_eigenvalue(
    P: np.ndarray, gain: np.ndarray, D: np.ndarray, gamma: float, radius: float
) -> float:
    ends = [np.hstack([plant(s) + B @ gain, B]) for s in (1.0, np.sin(radius) / radius)]
    middle = block_diag(P - gamma**2 * D**2, 1.0)
    return max(float(np.linalg.eigvalsh(M.T @ P @ M - middle)[-1]) for M in ends)


def proven(net: torch.nn.Module, gain: np.ndarray, D: np.ndarray, radius: float) -> Region | None:
    """The largest region found with one linear gain in one ball."""
    rest = Rest(net, gain)
    config = LocalConfig(level="optimised", input_scale=np.diag(D) * SCALE)
    certificate = certify_local(rest, torch.zeros(1, 2), radius, config=config)
    gain, gamma, best = rest.gain(), float(certificate.lip[0, 0]), None
    peak = peak_gain(gain, D)
    for weights in product(np.r_[0.0, np.geomspace(0.01, 1, 4)], repeat=2):
        if gamma * peak >= 1.0:
            break
        try:
            cost = gamma**2 * (1.01 * D**2 + np.diag(weights))
            P = solve_discrete_are(plant(1.0) + B @ gain, B, cost, [[-1.0]])
        except LinAlgError:
            continue
        worst = worst_eigenvalue(P, gain, D, gamma, radius)
        if worst < -1e-6 and np.linalg.eigvalsh(P)[0] > 0:
            level = radius**2 / np.linalg.eigvalsh(D @ np.linalg.inv(P) @ D)[-1]
            area = np.pi * level / np.sqrt(np.linalg.det(P))
            proof = (certificate, rest)
            found = Region(area, P, level, radius, D, gain, gamma, peak, worst, proof)
            best = found if best is None or area > best.area else best
    return best


def largest(net: torch.nn.Module) -> Region | None:
    """Over linear gains, shapes and sizes of the ball."""
    zero, found = torch.zeros(2, dtype=net[0].weight.dtype), []
    slope = torch.autograd.functional.jacobian(net, zero).double().numpy() / SCALE
    for share, velocity in product((1.0, 0.85), (1.0, 3.0, 8.0)):
        for radius in (0.1, 0.3, 0.6, 1.0, 1.5):
            region = proven(net, share * slope, np.diag([1.0, 1.0 / velocity]), radius)
            if region is None:
                break
            found.append(region)
    return max(found, key=lambda region: region.area, default=None)


certified = {name: largest(net) for name, net in nets.items()}
for name, region in certified.items():
    if region is None:
        print(f"{name}: not proven stable, not even for |Dx| <= .1")
        continue
    verify(*region.proof)
    angle, velocity = np.sqrt(region.level * np.diag(np.linalg.inv(region.P)))
    print(
        f"{name}: stable up to {angle:.2f} rad and {velocity:.2f} rad/s, an area of "
        f"{region.area:.2f}\n    |e| <= {region.gamma:.3f} |Dx| on |Dx| <= {region.radius}, loop "
        f"gain {region.gamma * region.peak:.2f}, largest eigenvalue {region.worst:.1e}"
    )


# %%
# Simulated from 400 states at the edge of its region, no state of any of the loops leaves it, and
# after ten seconds all stand upright.
def simulated(net: torch.nn.Module, x: np.ndarray, samples: int) -> np.ndarray:
    """All states, (samples, states, 2)."""
    path = [x]
    for _ in range(samples - 1):
        at = torch.tensor(path[-1] / SCALE, dtype=net[0].weight.dtype)
        with torch.no_grad():
            path.append(step(path[-1], net(at)[:, 0].double().numpy()))
    return np.array(path)


paths = {}
around = np.linspace(0, 2 * np.pi, 400, endpoint=False)
circle = np.stack([np.cos(around), np.sin(around)])
for name, region in certified.items():
    if region is not None:
        edge = np.linalg.solve(np.linalg.cholesky(region.P / region.level).T, circle).T
        path = paths[name] = simulated(nets[name], edge, 500)
        V = np.einsum("tni,ij,tnj->tn", path, region.P / region.level, path)
        print(f"{name}: V at most {V[1:].max():.4f} of 1, at the end {V[-1].max():.0e}")

# %%
# Left, the regions with a few trajectories; right, the proven gain of each network against the
# steepest slope among 2,000 sampled states.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), constrained_layout=True)
colours = dict(zip(nets, ("tab:gray", "tab:blue", "tab:olive"), strict=False))
for name, path in paths.items():
    left.plot(*np.append(path[0], path[0, :1], axis=0).T, color=colours[name], lw=2, label=name)
    left.plot(*path[:, ::40].transpose(2, 0, 1), color=colours[name], lw=0.6, alpha=0.6)
left.set(xlabel="angle [rad]", ylabel="velocity [rad/s]", title="certified stable regions")
left.set_ylim(top=1.5 * left.get_ylim()[1])
left.legend(loc="upper right", fontsize="small")
sampled = torch.tensor(random.uniform(-1, 1, (2000, 2)) * ACROSS / SCALE)
for name, net in nets.items():
    at = sampled.to(net[0].weight.dtype).requires_grad_(True)
    slopes = torch.autograd.grad(net(at).sum(), at)[0].norm(dim=1)
    right.hist(slopes.numpy(), bins=60, orientation="horizontal", alpha=0.5, color=colours[name])
    right.axhline(gains[name][0], color=colours[name], lw=2)
    right.text(0.98, gains[name][0], f"{name}: proven", color=colours[name], va="bottom",
               ha="right", transform=right.get_yaxis_transform(), fontsize="small")  # fmt: skip
right.set(xlabel="sampled states", ylabel="gain [Nm per (1 rad, 8 rad/s)]", title="slopes")
right.set_ylim(0, 1.1 * max(gain[0] for gain in gains.values()))
plt.show()

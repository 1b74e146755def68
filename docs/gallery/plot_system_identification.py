r"""
Lipschitz system identification
===============================

One-step predictions of a swinging pendulum are learnt from few, noisy samples under a range of
bounds.  A small bound cannot follow the system, a large one follows the noise; validation samples
choose.  The proven L then says how fast the errors of many steps can grow.
"""

from copy import deepcopy
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.integrate import solve_ivp

from admm_lip import TrainConfig, train, verify
from admm_lip.networks.models import ModelConfig, build_mlp

# %%
# The data
# --------
# A damped pendulum, :math:`\ddot\theta = -\omega_0^2 \sin\theta - 2\delta\,\dot\theta`, sampled
# every .15 s.  Its state is (angle, velocity over the natural frequency), both in rad, in which
# small swings go round in circles.  Each sample is a state and the next one, measured with noise.
FREQUENCY, DAMPING, DT, NOISE = 5.0, 0.5, 0.15, 0.3


def derivative(_: float, x: np.ndarray) -> np.ndarray:
    angle, velocity = x.reshape(2, -1)
    pull = -FREQUENCY * np.sin(angle) - 2 * DAMPING * velocity
    return np.concatenate([FREQUENCY * velocity, pull])


def follow(x: np.ndarray, steps: int) -> np.ndarray:
    """True states, (steps + 1, rows, 2)."""
    times = DT * np.arange(steps + 1)
    found = solve_ivp(derivative, times[[0, -1]], x.T.ravel(), t_eval=times, rtol=1e-8, atol=1e-10)
    return found.y.reshape(2, len(x), -1).transpose(2, 1, 0)


random = np.random.default_rng(1)


def samples(rows: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    x = random.uniform(-2, 2, (rows, 2))
    return x, follow(x, 1)[1] + noise * random.standard_normal((rows, 2))


fitted, validation, fresh = samples(30, NOISE), samples(60, NOISE), samples(2000, 0.0)


# %%
# One network per bound, on the same rows.  The bound is chosen by the validation rows; the fresh
# ones, without noise, judge.
def error(model: torch.nn.Module, rows: tuple[np.ndarray, np.ndarray]) -> float:
    """Root of the mean squared distance."""
    with torch.no_grad():
        found = model(torch.tensor(rows[0], dtype=torch.float32)).numpy()
    return float(np.sqrt(np.mean(np.sum((found - rows[1]) ** 2, axis=1))))


bounds = (0.4, 0.8, 1.1, 1.4, 4.0)
results, errors = {}, {}
for bound in bounds:
    torch.manual_seed(0)
    network = build_mlp(2, 2, ModelConfig(hidden=(24, 24), activation="relu"))
    config = TrainConfig(bound=bound, loss="squared_error", epochs=600, batch_size=30)
    result = results[bound] = train(network, fitted, config, progress=False)
    verify(result.certificate, result.model)
    errors[bound] = [error(result.model, rows) for rows in (fitted, validation, fresh)]
    print(
        f"L <= {result.certificate.lip:.3f}: error {errors[bound][0]:.3f} fitted, "
        f"{errors[bound][1]:.3f} validation, {errors[bound][2]:.3f} fresh"
    )
chosen = min(bounds, key=lambda bound: errors[bound][1])
print(f"chosen: {chosen}")

# %%
# Many steps
# ----------
# With the error e of k steps and the largest error ε of one step along the true path,
#
# .. math:: e_{k+1} \le \lVert f(\hat x_k) - f(x_k) \rVert + \lVert f(x_k) - x_{k+1} \rVert
#    \le L e_k + \varepsilon, \qquad e_k \le \varepsilon\,\frac{L^k - 1}{L - 1},
#
# so a model of small L cannot run away, whatever it predicts.  And two states of its own move
# apart at most as fast as :math:`L^k`.
STEPS, SHOWN = 16, (0.8, chosen, bounds[-1])
start = random.uniform(-1, 1, (200, 2))
truth = follow(start, STEPS)


def rolled_out(model: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """Predicted states, (steps + 1, rows, 2)."""
    path = [torch.tensor(x)]
    with torch.no_grad():
        for _ in range(STEPS):
            path.append(model(path[-1]))
    return torch.stack(path).numpy()


drift, envelope, apart = {}, {}, {}
for bound in SHOWN:
    model, lip = deepcopy(results[bound].model).double(), results[bound].certificate.lip
    drift[bound] = np.linalg.norm(rolled_out(model, start) - truth, axis=2).max(axis=1)
    one_step = [
        np.linalg.norm(rolled_out(model, a)[1] - b, axis=1).max() for a, b in pairwise(truth)
    ]
    powers = lip ** np.arange(STEPS + 1)
    envelope[bound] = max(one_step) * (powers - 1) / (lip - 1)
    moved = rolled_out(model, start + 0.01 * random.standard_normal(start.shape))
    distance = np.linalg.norm(moved - rolled_out(model, start), axis=2)
    apart[bound] = (distance / distance[0]).max(axis=1)
    print(
        f"L {lip:.2f}, {STEPS} steps: error at most {drift[bound][-1]:.2f} rad (proven "
        f"{envelope[bound][-1]:.3g}), distances grow {apart[bound][-1]:.3g}-fold (proven "
        f"{powers[-1]:.3g})"
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
proven = [results[bound].certificate.lip for bound in bounds]
styles = zip(("fitted", "validation", "fresh"), ("0.6", "tab:blue", "tab:orange"), strict=True)
for column, (label, colour) in enumerate(styles):
    left.plot(proven, [errors[b][column] for b in bounds], "o-", color=colour, label=label)
left.axvline(results[chosen].certificate.lip, color="tab:blue", ls=":", label="chosen")
left.set(xscale="log", yscale="log", xlabel="proven L", ylabel="one-step error [rad]")
left.legend()
for bound, colour in zip(SHOWN, ("tab:gray", "tab:blue", "tab:red"), strict=True):
    lip = results[bound].certificate.lip
    right.plot(apart[bound], "o-", ms=3, color=colour, label=f"L = {lip:.2f}: largest of 200")
    right.plot(lip ** np.arange(STEPS + 1), "--", color=colour, label="its $L^k$")
right.set(yscale="log", xlabel="steps", ylabel="growth of a distance")
right.legend(fontsize="small")
plt.show()

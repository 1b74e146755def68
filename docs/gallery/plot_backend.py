"""
Add a backend
=============

A solver of your own finds the multipliers; the package computes the bound from them anew, proves it
through rounding, and falls back where yours fails.  Here: a derivative-free search of SciPy.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import minimize

from admm_lip import SolverConfig, certify, project, verify
from admm_lip.plots import BLUE, ORANGE
from admm_lip.solvers import Availability, Status, register_backend
from admm_lip.solvers.lmi import implied_bound
from admm_lip.solvers.solution import CertifyClaim, ProjectClaim

# %%
# A backend is a name and three methods.  Problems arrive reduced and scaled, so that multipliers
# are of order 1.  What a method returns is a claim: nothing of it is trusted.


class Powell:
    """Minimises the bound over the logarithms of the multipliers, one direction at a time."""

    name = "powell"

    def __init__(self) -> None:
        self.seen: list[float] = []

    def availability(self):
        return Availability(True, "SciPy is always there")

    def certify(self, problem, config, warm):
        sizes = problem.widths[1:-1]

        def multiplier(logs):
            return torch.tensor(np.exp(logs)).split(sizes)

        def bound(logs):
            found = implied_bound(problem.weights, problem.slopes, multiplier(logs))
            self.seen.append(min(found, 1e3))  # inf where the multipliers prove nothing
            return self.seen[-1]

        start = np.zeros(sum(sizes)) if warm is None else np.log(torch.cat(warm).numpy())
        found = minimize(bound, start, method="Powell", options={"ftol": 1e-6})
        status = Status.OPTIMAL if found.success else Status.INACCURATE
        return CertifyClaim(status, multiplier(found.x), found.fun**2, iterations=found.nit)

    def project(self, problem, config, warm):
        return ProjectClaim(Status.FAILED, None, message="finds multipliers only")


ours = Powell()
register_backend(ours)

# %%
# From here on it is asked by its name, everywhere.

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
found = certify(net, solver=SolverConfig("powell", fallback=()))
verify(found, net)
native = certify(net)
print(
    f"{found.solver}: {found.lip:.6f}    {native.solver}: {native.lip:.6f}, proven gap "
    f"{native.lip / native.lower_lip - 1:.0e}    product of norms: {native.norm_product:.6f}"
)

# %%
# What it cannot do is done by the next in ``fallback``, with a line in the log that says so.

near = project(net, bound=0.5, solver=SolverConfig("powell", fallback=("native",)), progress=False)
print(f"projected: {near.certificate.lip:.6f}")

# %%
figure, axes = plt.subplots()
seen = np.minimum.accumulate(ours.seen)
axes.plot(seen / seen[-1], color=BLUE, label="powell")
axes.axhline(native.lip / found.lip, color=ORANGE, ls="--", lw=1, label="native")
axes.set_title("Bound of the best multipliers so far")
axes.set(xlabel="bounds computed", ylabel="relative to the last", ylim=(0.99, 1.1))
axes.legend()
plt.show()

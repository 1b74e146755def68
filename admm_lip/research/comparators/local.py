"""Training with local Lipschitz bounds: norms without the units that are constant on a ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as functional
from torch import Tensor, nn

from ...local.config import check_box, check_inside
from ...local.layers import Layer, live_layers
from ...local.surrogates import LOSSES
from ...local.training_loss import Measured, Plan, robust_loss
from ...local.warm_starts import WarmStarts
from ...networks.clipped import keep_thresholds
from ...training.losses import PlainLoss
from ...training.method import Method, check_at_least, require_classes

_BOUNDS = ("local", "global")


class LocalModel(nn.Module):
    """The network in training, and what its bound remembers between batches.

    Attributes:
        network: the network itself.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.rows: Tensor | None = None
        self.restored: dict[str, Tensor] | None = None
        self.measured: list[Measured] = []
        self._read: tuple[tuple[int, ...], tuple[Layer, ...], WarmStarts] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The network's outputs."""
        outputs: Tensor = self.network(x)
        return outputs

    def parts(self, shape: tuple[int, ...]) -> tuple[tuple[Layer, ...], WarmStarts]:
        """The layers for inputs of this shape, and their warm starts; read once."""
        if self._read is None or self._read[0] != shape:
            layers = live_layers(self.network, shape)
            self._read = shape, layers, WarmStarts([layer.operator for layer in layers])
        if self.restored is not None:
            self._read[2].restore(self.restored)
            self.restored = None
        return self._read[1:]

    @property
    def warm(self) -> WarmStarts | None:
        """The warm starts, once a batch has been seen."""
        return None if self._read is None else self._read[2]


@dataclass(frozen=True)
class LocalLipschitz(Method):
    """Minimise the loss of logits moved by the worst that a local bound of every input allows.

    The local bound is the product of the layers' norms without the rows and columns of units that
    are constant on the ball, which intervals tell; the norms are estimated sample by sample, by a
    power iteration that continues where it ended in the epoch before.  With ``bound="global"`` the
    same losses use the layers' own norms.  The loss handed to the training loop is not used: the
    surrogates are cross-entropies.

    Args:
        eps: radius to train for, in input units, l2.
        surrogate: ``"bcp"`` (worst case over ball and box), ``"gloro"`` (an extra logit),
            ``"lmt"`` (every other logit raised by sqrt(2) eps L) or ``"quadratic"`` (worst case of
            quadratic bounds of ReLU and ClippedReLU, taken back for every class: so many times as
            dear; its level is ``LocalConfig("quadratic")``).
        bound: ``"local"`` or ``"global"``.
        iterations: power iterations per batch.
        warmup: share of the run before eps grows.
        ramp: share of the run over which eps grows from 0 and kappa falls from 1.
        kappa_end: weight on the plain cross-entropy after the ramp (bcp and lmt).
        running_radius: whether the boxes use the local norms of the layers so far, or their own
            norms as in the paper.
        sparsity: weight on the sparsity loss.
        data_range: least and greatest input value; perturbed inputs outside it do not count.
        box_gradient: whether gradients flow through the boxes, at about half as much time again.
    """

    name: ClassVar[str] = "local"
    source: ClassVar[str] = (
        "Y. Huang, H. Zhang, Y. Shi, J. Z. Kolter, A. Anandkumar, NeurIPS 2021; "
        "S. Lee, J. Lee, S. Park, NeurIPS 2020 (BCP); K. Leino et al., ICML 2021 (GloRo)"
    )

    eps: float = 0.5
    surrogate: str = "bcp"
    bound: str = "local"
    iterations: int = 2
    warmup: float = 0.0
    ramp: float = 0.5
    kappa_end: float = 0.0
    running_radius: bool = True
    sparsity: float = 0.0
    data_range: tuple[float, float] | None = None
    box_gradient: bool = False

    def __post_init__(self) -> None:
        check_at_least(0.0, eps=self.eps, warmup=self.warmup, ramp=self.ramp)
        check_at_least(0.0, kappa_end=self.kappa_end, sparsity=self.sparsity)
        check_at_least(1, iterations=self.iterations)
        if self.kappa_end > 1.0:
            raise ValueError(f"kappa_end: expected at most 1, got {self.kappa_end!r}")
        for name, known in (("surrogate", tuple(LOSSES)), ("bound", _BOUNDS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.data_range is not None:
            # YAML hands over lists.
            object.__setattr__(self, "data_range", check_box("data_range", self.data_range))

    @property
    def plan(self) -> Plan:
        """The settings as the objective takes them."""
        return Plan(
            surrogate=self.surrogate,
            local=self.bound == "local",
            iterations=self.iterations,
            running_radius=self.running_radius,
            sparsity=self.sparsity,
            data_range=self.data_range,
            box_gradient=self.box_gradient,
        )

    def schedule(self, progress: float) -> tuple[float, float]:
        """Radius and kappa when this share of the run is done."""
        done = progress - self.warmup
        share = min(1.0, max(0.0, done / self.ramp)) if self.ramp > 0.0 else float(done >= 0.0)
        return self.eps * share, 1.0 + (self.kappa_end - 1.0) * share

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model with room for its warm starts; unsupported layers are refused by name."""
        return LocalModel(model)

    def begin_batch(self, model: nn.Module, rows: Tensor | None) -> None:
        """Whose warm starts to use."""
        _own(model).rows = rows

    def objective(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: PlainLoss, progress: float
    ) -> Tensor:
        """The surrogate's loss; plain cross-entropy while the radius is 0."""
        require_classes(targets)
        own = _own(model)
        layers, warm = own.parts(tuple(inputs.shape[1:]))
        check_inside(inputs, self.data_range, "data_range")
        eps, kappa = self.schedule(progress)
        if eps == 0.0:
            return functional.cross_entropy(model(inputs), targets)
        value, measured = robust_loss(
            layers, warm, own.rows, (inputs, targets), eps, kappa, self.plan
        )
        own.measured.append(measured)
        return value

    def after_step(self, model: nn.Module) -> None:
        """Thresholds of clipped ReLUs stay at least 0."""
        keep_thresholds(model)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Mean share of varying units and ratio of local to global bound since the last report."""
        own = _own(model)
        seen, own.measured = own.measured, []
        if not seen:
            return {}
        varying, ratio = (sum(column) / len(seen) for column in zip(*seen, strict=True))
        return {"varying": varying, "local_ratio": ratio}

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The warm starts of all samples, in half precision."""
        warm = _own(model).warm
        return {} if warm is None else warm.state()

    def restore(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        """Continue from the warm starts of a checkpoint; they are checked at the next batch."""
        _own(model).restored = dict(state) or None

    def finish(self, model: nn.Module) -> nn.Module:
        """The network itself."""
        return _own(model).network


def _own(model: nn.Module) -> LocalModel:
    assert isinstance(model, LocalModel), type(model)
    return model

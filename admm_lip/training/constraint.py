"""A Lipschitz constraint on the network of anybody's training loop, kept by ADMM.

    constraint = Constraint(model, Lipschitz(bound=1.0)).attach(optimizer)
    ...                                       # any loop that calls optimizer.step()
    model, certificate = constraint.finish()

The optimizer's own step hooks do the rest.  Before each of its steps the pull
``Y + rho (W - Wbar)`` joins the gradients; after every m-th one comes a round (:func:`next_round`).
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from ..certificates.certificate import Certificate
from ..certificates.monotone import certify_monotone
from ..errors import TrainingFailed
from ..lipschitz import All, Lipschitz
from ..networks.layers import Shape
from ..networks.overrides import unwrapped
from ..solvers import SolveFailed
from .admm_state import AdmmState, norm, pull_of, read_weights, write_weights
from .centring import Centring, centre
from .config import AdmmConfig
from .constrained import check_asked, check_master, check_weight, constrained, group_of
from .continued import asked_again, gone_on, started
from .held import Masks, held_of, held_still, joined, unpruned
from .layer_norms import holding
from .metric import PLAIN, Metric
from .monotone import core_of
from .multiplier_step import resolve_multiplier_step
from .optimize import reads_value
from .precision import stored_dtype
from .ranks import ranks_of
from .resuming import check_same, identity, in_step, plain_state, restored_state
from .round import next_round
from .shipping import certified
from .start import CROSS_ENTROPY_SCALE, Start, orthogonal_, scale_biases, scale_of_steps
from .terms import Terms

# Which constraint holds a weight; a weight belongs to one.
_HELD: WeakIdKeyDictionary = WeakIdKeyDictionary()


class Finished(NamedTuple):
    """A plain network in evaluation mode, and the proof of its Lipschitz constant."""

    model: nn.Module
    certificate: Certificate


class Constraint:
    """Keeps a network under a Lipschitz bound (or its L under a price) while something trains it.

    What changes is :attr:`state` alone, an :class:`AdmmState`.  Making a constraint scales the
    network to the bound where it is beyond it.  In between, the free weights may leave the bound a
    little; within :meth:`shipped` and after :meth:`finish` they are those that satisfy it.

    * **Gradient clipping, AMP:** whatever a loop does to gradients before ``optimizer.step()``
      happens to the loss's gradient alone; the pull is added last, unscaled and unclipped.  A step
      that a ``GradScaler`` skips is none.
    * **Closures** (Lightning, L-BFGS): the pull is added after each call of the closure.
    * **Gradient accumulation:** a step is a step of the optimizer, whatever its gradient adds up.
    * **DistributedDataParallel:** give the wrapped module to the constraint of every process.
      Gradients are averaged before the step, so that all processes hold the same weights; rank 0
      projects, certifies and broadcasts (``ranks.py``).  A process that is gone, or silent for the
      group's timeout, ends the others with :class:`~admm_lip.errors.TrainingFailed`; a
      ``state_dict`` of rank 0 is loaded on as many processes as there are then.

    Args:
        model: Linear layers and activations in turn, or a path of convolutions and pools with such
            a head, as for :func:`admm_lip.train`, in float32 or float64; it is changed in place.
        asked: the bound or the price, l2; or :class:`All` of a bound and a direction, for a
            :class:`~admm_lip.PlusLinear`.
        config: how it is kept.
        mean: of the inputs, ``(features,)``: the first layer works on ``x - mean`` until the end,
            which changes no function and makes training easier where inputs are not centred.
        loss_scale: how large the loss is, for the choice of rho: 0.1 for a cross-entropy, 0.4 times
            the targets' variance for a squared error.
        regression: whether outputs are numbers rather than scores of classes, for the choice of the
            multiplier step; ``None``: where there is one.
        dtype: that the finished weights are rounded to; ``None``: their own.
        state: of an earlier constraint with the same ``asked`` and shapes, to go on from.
        input_shape: ``(channels, rows, columns)`` of one input; needed for convolutions only.
        group: of the processes that hold this network (``torch.distributed.group.WORLD``, say),
            where something else than a DistributedDataParallel averages their gradients.
        held: boolean masks by the names of weights: ``True`` entries stay as they are, bit for bit,
            as frozen weights do, and zeros of ``torch.nn.utils.prune``, which becomes permanent.

    Raises:
        UnsupportedModule: by name, for a network that is no such chain.
        ValueError: for what cannot be asked of this network, or held under what is asked.

    Example:
        >>> import torch
        >>> from admm_lip import Constraint, Lipschitz, verify
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        >>> constraint = Constraint(net, Lipschitz(bound=1.0)).attach(optimizer)
        >>> x = torch.rand(64, 4); y = (x[:, 0] > 0.5).long()
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.cross_entropy(net(x), y).backward()
        ...     _ = optimizer.step()
        >>> net, certificate = constraint.finish()
        >>> verify(certificate, net), certificate.lip <= 1.0
        (None, True)
    """

    def __init__(
        self,
        model: nn.Module,
        asked: Lipschitz | All,
        config: AdmmConfig | None = None,
        *,
        mean: Tensor | None = None,
        loss_scale: float = CROSS_ENTROPY_SCALE,
        regression: bool | None = None,
        dtype: torch.dtype | None = None,
        state: AdmmState | None = None,
        input_shape: Shape | None = None,
        group: Any = None,
        held: Masks | None = None,
    ) -> None:
        self._ranks = ranks_of(model, group)
        self.model, config = unwrapped(model), config or AdmmConfig()
        held = joined(held, unpruned(self.model))
        self._ranks.copy("start", itertools.chain(self.model.parameters(), self.model.buffers()))
        self._core, own = core_of(self.model, asked)
        self._whole = asked if isinstance(asked, All) else None
        check_asked(own)
        self.dtype = dtype or stored_dtype(self.model)
        found = constrained(self._core, input_shape, config.balls, config.residual_gain)
        self._layers = found.layers
        self.parameters = tuple(cast(nn.Parameter, layer.weight) for layer in self._layers.values())
        check_master(self.parameters[0])
        stays = held_of(self.model, self.parameters, held)
        scratch = config.start == "scratch" and state is None
        if scratch:
            orthogonal_(list(self._layers.values()), config.seed, stays)
        weights = read_weights(self.parameters)
        metric = PLAIN if own.units is None else Metric.of(own.units, weights)
        slopes = holding(found.slopes, stays, weights)
        self.terms = Terms(own, slopes, config, metric, stays)
        regression = len(weights[-1]) == 1 if regression is None else regression
        self._multiplier_step = resolve_multiplier_step(
            config.multiplier_step, found.kinds, regression, any(stays.rigid)
        )
        self._loss_scale = scale_of_steps(loss_scale, self.round_steps, regression)
        given = (weights, self.terms, self.dtype, self._loss_scale)
        self._ranks.same("constraint", lambda: in_step(*given[1:3], mean, self.parameters))
        self._begin(lambda: started(*given) if state is None else gone_on(state, *given))
        self._centring = None if mean is None else self._centred(mean, fresh=scratch)
        self._hooks: tuple[RemovableHandle, ...] = ()
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def asked(self) -> Lipschitz:
        """The bound or the price; of the core, where there is a linear term beside it."""
        return self.terms.asked

    @property
    def round_steps(self) -> int:
        """Optimizer steps of a round."""
        return self.terms.round_steps

    def attach(self, optimizer: torch.optim.Optimizer) -> Constraint:
        """Act whenever ``optimizer`` steps; returns the constraint.

        Raises:
            ValueError: when it acts already, when another constraint holds the weights, or when
                the optimizer does not move all of them.
        """
        self._check_free()
        self._check_weights()
        group = group_of(optimizer, self._moved())
        lr = float(group.get("initial_lr", group["lr"]))
        self._enter(replace(self.state, lr=self.state.lr or lr))
        self._optimizer = optimizer
        self._hooks = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            *held_still(self.parameters, self.terms.held),
        )
        for parameter in self.parameters:
            _HELD[parameter] = weakref.ref(self)
        return self

    def detach(self) -> None:
        """Act no more; :meth:`attach` goes on from here."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._optimizer = (), None
        for parameter in self.parameters:
            _HELD.pop(parameter, None)  # type: ignore[no-untyped-call]

    def close_round(self) -> None:
        """The Lipschitz, dual and multiplier steps now, after whatever optimizer steps there were.

        Raises:
            TrainingFailed: for weights that are not finite, or that no backend could project.
        """
        self._check_weights()
        name = f"round {self.state.iteration + 1}"
        self._enter(self._ranks.state(name, self._round, self.parameters))
        if self.terms.config.restart:
            write_weights(self.parameters, self.state.consensus)

    def _round(self) -> AdmmState:
        weights, number = read_weights(self.parameters), self.state.iteration + 1
        if not math.isfinite(norm(weights)):
            raise TrainingFailed(
                f"round {number}: expected finite weights, got nan or inf; lower lr, or check the "
                "data's scale"
            )
        try:
            return next_round(
                weights, self.state, self.terms, self._multiplier_step, self._relative_lr()
            )
        except SolveFailed as error:
            raise TrainingFailed(f"round {number}: {error}") from error

    def ask(self, asked: Lipschitz) -> None:
        """Ask for another bound or price from here on.

        Under a smaller bound the network is scaled into it, evenly over its layers.
        """
        check_asked(asked)
        if self._whole is not None:
            raise ValueError("asked: cannot change beside a linear term; make another constraint")
        if asked.units != self.asked.units:
            raise ValueError("units: cannot change while training; make another constraint")
        if self.state.steps:
            self.close_round()
        self.terms = replace(self.terms, asked=asked)
        self._begin(lambda: asked_again(self.state, self.terms, self.dtype, self._loss_scale))

    @contextmanager
    def shipped(self) -> Iterator[nn.Module]:
        """Within it, the model holds the weights that satisfy the bound (to measure it, say)."""
        free = read_weights(self.parameters)
        write_weights(self.parameters, self.state.consensus)
        try:
            yield self.model
        finally:
            write_weights(self.parameters, free)

    def finish(self) -> Finished:
        """End the round, detach, and certify the weights as the model holds them from here on.

        Raises:
            TrainingFailed: where the last round fails, or ``dtype`` cannot hold the bound.
        """
        if self.state.steps:
            self.close_round()
        self.detach()
        self._check_weights()
        write_weights(self.parameters, self.state.consensus)
        if self._centring is not None:
            self._centring.undo()
            self._centring = None
        self.model.eval().to(self.dtype)
        certificate = self._ranks.decided("certificate", self._certified)
        self._ranks.copy("finished weights", self.model.parameters())
        return Finished(self.model, certificate)

    def _certified(self) -> Certificate:
        found = certified(self._core, self.parameters, self.state, self.terms)
        if self._whole is None:
            return found
        asked = self._whole.lipschitz
        return certify_monotone(
            self.model, monotone=self._whole.monotone, units=asked.units, requested=asked.bound
        )

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` takes, beside those of model and optimizer.

        Numbers, strings, tensors and containers only: ``torch.load(weights_only=True)`` reads it.
        """
        return {"constraint": self._identity(), "state": plain_state(self.state)}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken.

        Load the model's and the optimizer's state as well, after making the constraint.

        Raises:
            CheckpointError: naming what another constraint asked, or what is damaged.
        """
        check_same(self._identity(), kept)
        self._enter(restored_state(kept["state"], self.parameters))

    def _identity(self) -> dict[str, str]:
        mean = None if self._centring is None else self._centring.mean
        own = identity(self.terms, self.dtype, mean, self.parameters)
        return own if self._whole is None else {**own, "monotone": str(self._whole.monotone)}

    def _begin(self, make: Callable[[], Start]) -> None:
        """Enter the state that is made, and let the whole network follow the consensus."""
        factors: list[float] = []

        def state() -> AdmmState:
            begun = make()
            factors.extend(begun.bias_factors)
            return begun.state

        self._enter(self._ranks.state("start", state, self.parameters))
        write_weights(self.parameters, self.state.consensus)
        scale_biases(self._layers.values(), self._ranks.decided("start", lambda: factors))

    def _centred(self, mean: Tensor, fresh: bool) -> Centring:
        """The first layer, made to work on inputs less their mean."""
        mean = self._ranks.decided("mean", mean.cpu).to(mean)
        found = centre(next(iter(self._layers.values())), mean)
        if fresh:  # nothing is lost by a bias of 0 at the mean
            nn.init.zeros_(found.layer.bias)
        return found

    def _enter(self, state: AdmmState) -> None:
        self.state = state
        self._pull = pull_of(self.parameters, state, self.terms.held.masks)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Add the pull to the gradients: now, or where a closure will have computed them."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            scale = getattr(optimizer, "grad_scale", None)  # of a fused step under a GradScaler
            self._pull.add_gradient(1.0 if scale is None else float(scale))
            return None
        pulled = self._pulled(closure, reads_value(optimizer))
        if len(args) > 1:
            return (args[0], pulled, *args[2:]), kwargs
        return args, {**kwargs, "closure": pulled}

    def _pulled(self, closure: Callable[[], Any], searches: bool) -> Callable[[], Any]:
        def pulled() -> Any:
            loss = closure()
            self._pull.add_gradient()
            return loss + self._pull.value() if searches else loss

        return pulled

    def _after_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._pull.put_back()
        skipped = getattr(optimizer, "found_inf", None)  # of a fused step under a GradScaler
        if skipped is not None and bool(skipped):
            return
        self.state = self.state.stepped()
        if self.state.steps >= self.round_steps:
            self.close_round()

    def _relative_lr(self) -> float:
        if self._optimizer is None or not self.state.lr:
            return 1.0
        return float(group_of(self._optimizer, self._moved())["lr"]) / self.state.lr

    def _moved(self) -> dict[str, nn.Parameter]:
        """The weights that an optimizer has to move, by the names of their layers."""
        rows = zip(self._layers, self.parameters, strict=True)
        return {name: parameter for name, parameter in rows if parameter.requires_grad}

    def _check_free(self) -> None:
        if self._optimizer is not None:
            raise ValueError(
                f"constraint: is attached already, to {type(self._optimizer).__name__}; detach() "
                "it first"
            )
        for name, parameter in zip(self._layers, self.parameters, strict=True):
            found = _HELD.get(parameter)  # type: ignore[no-untyped-call]
            other = None if found is None else found()
            if other is not None:
                raise ValueError(
                    f"constraint: {name}.weight is held by another one, which asks {other.asked} "
                    f"where this one asks {self.asked}; detach() the other one first"
                )

    def _check_weights(self) -> None:
        rows = zip(self._layers.items(), self.parameters, self.state.consensus, strict=True)
        for k, ((name, layer), parameter, consensus) in enumerate(rows):
            check_weight(name, layer, parameter, consensus, whole=self.terms.held.whole(k))

"""Whether what a certificate says is true, by means that its proof does not use.

* Certificates for all inputs: their matrix inequality in rational arithmetic (``exact.py``), the
  slopes at many inputs, and the product of norms from singular values.
* Local ones: a network of one input with piecewise linear activations is followed along its line in
  rational arithmetic, breakpoint by breakpoint, so that every claim is decided exactly; others are
  attacked on rays through each input, to the rim of the ball and the corners of the box.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from admm_lip import CertificateError
from admm_lip.certificates.certificate import AnyCertificate, Certificate
from admm_lip.certificates.exact import exact_check
from admm_lip.local import LocalCertificate
from admm_lip.networks.network import Network
from admm_lip.networks.sorting_torch import MaxMin

# Of an oracle in double precision.
_SLACK = 1.0 + 1e-9
_NOISE = 1e-12
_RAYS, _STEPS = 48, 24


def untrue(
    model: nn.Sequential, network: Network, found: AnyCertificate | LocalCertificate
) -> str | None:
    """The first claim that is wrong, in words; ``None`` where all are right."""
    if isinstance(found, LocalCertificate):
        line = found.x.shape[1] == 1 and all(map(_knots, list(model)[1::2]))
        return _untrue_on_a_line(model, found) if line else _attacked(model, found)
    try:
        exact_check(network, found)
    except CertificateError as error:
        return f"not exactly: {error}"
    return _steeper(model, network, found) or _beside(network, found)


def _steeper(model: nn.Sequential, network: Network, found: AnyCertificate) -> str | None:
    """A slope at some input that is above its bound."""
    shape = network.input_shape or ()
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** torch.arange(-4, 5).double().repeat_interleave(40)[:, None]
    x = sizes * torch.randn(len(sizes), math.prod(shape), generator=generator, dtype=torch.float64)
    x.requires_grad_()
    outputs = model(x.view(-1, *shape)).flatten(1).sum(dim=0)
    gradients = [torch.autograd.grad(f, x, retain_graph=True)[0] for f in outputs]
    jacobian = torch.stack(gradients, dim=1)
    if found.input_scale is not None:
        jacobian = jacobian / torch.tensor(found.input_scale, dtype=torch.float64)
    rows = (
        [(found.lip, jacobian)]
        if isinstance(found, Certificate)
        else [
            (b.lip, torch.tensor(b.direction, dtype=torch.float64) @ jacobian) for b in found.bounds
        ]
    )
    for lip, own in rows:
        own = own if own.ndim == 3 else own[:, None]
        steepest = _norm(own, found.norm)
        # What cancels in a difference of outputs leaves rounding of the terms.
        if steepest > lip * _SLACK + _NOISE * 1e-3 * float(jacobian.abs().max()):
            return f"the slope {steepest!r} was found, above {lip!r}"
    return None


def _norm(jacobian: Tensor, norm: str) -> float:
    """The largest operator norm, of inputs in l2 or linf."""
    if norm == "l2":
        return float(torch.linalg.matrix_norm(jacobian, 2).max())
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=jacobian.shape[2])))
    return float((jacobian @ corners.double().T).norm(dim=1).max())


def _beside(network: Network, found: AnyCertificate) -> str | None:
    """The figures beside the bounds: the product of norms, and the order of the others."""
    chain = network.chain()
    weights = [w.copy() for w in chain.weights]
    weights[0] = weights[0] / (1.0 if found.input_scale is None else np.array(found.input_scale))
    steepest = [max(np.abs(s.alpha).max(), np.abs(s.beta).max()) for s in chain.slopes]
    most = math.prod(steepest) * (math.sqrt(weights[0].shape[1]) if found.norm == "linf" else 1.0)
    for bound in (found,) if isinstance(found, Certificate) else found.bounds:
        last = (
            weights[-1]
            if isinstance(bound, Certificate)
            else np.array([bound.direction]) @ weights[-1]
        )
        product = most * math.prod(np.linalg.norm(w, 2) for w in (*weights[:-1], last))
        # Of a functional that is constant it is given as 0, and so is the bound.
        product *= bound.norm_product != 0.0 or bound.lip != 0.0
        if found.switch:  # norms on the torus, of which the image is a part
            wrong = bound.norm_product < product * (1.0 - 1e-9)
        else:
            wrong = not math.isclose(bound.norm_product, product, rel_tol=1e-5, abs_tol=1e-14)
        if wrong:
            return f"the product of norms is {product!r}, not {bound.norm_product!r}"
        if not bound.sampled_lower <= bound.lower_lip * 1.00001 <= bound.lip * 1.00002:
            return "the lower bounds are not in order"
    return None


def _rows_of(found: LocalCertificate, outputs: int) -> Tensor:
    """The functionals of each sample, ``(batch, m, outputs)``."""
    eye = torch.eye(outputs, dtype=torch.float64)
    if found.labels is None:
        return eye.expand(len(found.x), -1, -1)
    if outputs == 1:
        return found.labels.double()[:, None, None]
    return eye[found.labels][:, None] - eye


def _attacked(model: nn.Sequential, found: LocalCertificate) -> str | None:
    """A point of a ball where some claim fails."""
    x, scale = found.x, torch.ones(found.x.shape[1], dtype=torch.float64)
    if found.input_scale is not None:
        scale = torch.tensor(found.input_scale, dtype=torch.float64)
    steps = _rays(x.shape[1], found.norm)[None] * found.radius.clamp(max=1e6)[:, None, None, None]
    points = x[:, None, None] + steps / scale
    if found.box is not None:
        points = points.clamp(*found.box)
    moved = (points - x[:, None, None]) * scale
    distance = moved.norm(dim=-1) if found.norm == "l2" else moved.abs().amax(dim=-1)
    with torch.no_grad():
        at_x = model(x)
        values = model(points.flatten(0, 2)).view(*points.shape[:3], -1)
    rows = _rows_of(found, at_x.shape[1])
    g, g_x = torch.einsum("bmo,brso->brsm", rows, values), torch.einsum("bmo,bo->bm", rows, at_x)
    noise = _NOISE * (1.0 + float(values.abs().max()))
    rise = g - g_x[:, None, None]
    if found.labels is None:
        rise, slopes = rise.norm(dim=-1, keepdim=True), _between(g, moved, found.norm, noise)
        if bool((slopes > found.lip[:, 0] * _SLACK).any()):
            return "a slope between two points is above its bound"
    if bool((rise.abs() > found.lip[:, None, None] * distance[..., None] * _SLACK + noise).any()):
        return "a slope from the input is above its bound"
    if found.labels is None:
        return None
    if bool((g_x < found.center - noise).any()) or bool(
        (g < found.margin[:, None, None] - noise).any()
    ):
        return "a margin is below its bound"
    own = torch.zeros_like(found.lip, dtype=torch.bool)
    if at_x.shape[1] > 1:
        own = torch.arange(at_x.shape[1]) == found.labels[:, None]
    kept = ((g > -noise) | own[:, None, None]).all(dim=-1).flatten(1).all(dim=1)
    return "a robust input changes its class" if bool((found.robust & ~kept).any()) else None


def _between(values: Tensor, moved: Tensor, norm: str, noise: float) -> Tensor:
    """The steepest chord between neighbours on each ray, per sample, beyond rounding."""
    step = moved[:, :, 1:] - moved[:, :, :-1]
    length = step.norm(dim=-1) if norm == "l2" else step.abs().amax(dim=-1)
    rise = (values[:, :, 1:] - values[:, :, :-1]).norm(dim=-1)
    slopes = torch.where(length > 0.0, (rise - noise) / length.clamp(min=1e-300), 0.0)
    return slopes.flatten(1).amax(dim=1)


def _rays(inputs: int, norm: str) -> Tensor:
    """Steps from the centre to the rim of the unit ball, ``(rays, steps, inputs)``."""
    generator = torch.Generator().manual_seed(1)
    way = torch.randn(_RAYS, inputs, generator=generator, dtype=torch.float64)
    corners = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=inputs))).double()
    way = torch.cat([way, corners[corners.abs().sum(dim=1) > 0.0]])
    size = way.norm(dim=1) if norm == "l2" else way.abs().amax(dim=1)
    share = torch.linspace(1.0 / _STEPS, 1.0, _STEPS, dtype=torch.float64)
    # The rim itself, from inside.
    return (way / size[:, None])[:, None] * share[:, None] * (1.0 - 1e-13)


Line = list[list[Fraction]]


def _knots(activation: nn.Module) -> bool:
    return isinstance(activation, nn.ReLU | nn.LeakyReLU | MaxMin)


def _untrue_on_a_line(model: nn.Sequential, found: LocalCertificate) -> str | None:
    """Every claim decided in rational arithmetic, for one input."""
    scale = Fraction(1 if found.input_scale is None else found.input_scale[0])
    outputs = int(list(model.parameters())[-1].shape[0])
    rows = [
        [[Fraction(c) for c in row] for row in own] for own in _rows_of(found, outputs).tolist()
    ]
    for k, point in enumerate(found.x[:, 0].tolist()):
        x, r = Fraction(point), Fraction(min(found.radius[k].item(), 1e30)) / scale
        low, high = x - r, x + r
        if found.box is not None:
            low, high = max(low, Fraction(found.box[0])), min(high, Fraction(found.box[1]))
        places, values = _followed(model, sorted({low, x, high}))
        g = [[_dot(row, v) for row in rows[k]] for v in values]
        reason = _untrue_of(found, k, places, g, places.index(x), scale)
        if reason is not None:
            return f"input {k}: {reason}"
    return None


def _untrue_of(
    found: LocalCertificate, k: int, places: list[Fraction], g: Line, at: int, scale: Fraction
) -> str | None:
    """The claims of one input, from the values of its functionals at all breakpoints."""
    claims = [column.tolist() for column in (found.lip[k], found.margin[k], found.center[k])]
    if found.labels is None:
        lip = claims[0][0]
        for (a, u), (b, v) in itertools.pairwise(zip(places, g, strict=True)):
            rise = sum(((q - p) ** 2 for p, q in zip(u, v, strict=True)), Fraction(0))
            if lip < math.inf and rise > (Fraction(lip) * (b - a) * scale) ** 2:
                return "a piece is steeper than its bound"
        return None
    for j, (lip, margin, center) in enumerate(zip(*claims, strict=True)):
        values = [row[j] for row in g]
        if margin > -math.inf and min(values) < Fraction(margin):
            return f"the margin {j} is below {margin!r}"
        if center > -math.inf and values[at] < Fraction(center):
            return f"the value {j} at the input is below {center!r}"
        for t, value in zip(places, values, strict=True):
            if (
                lip < math.inf
                and abs(value - values[at]) > Fraction(lip) * abs(t - places[at]) * scale
            ):
                return f"the slope {j} from the input is above {lip!r}"
    if bool(found.robust[k]):
        own = int(found.labels[k]) if len(g[0]) > 1 else -1
        if any(row[j] <= 0 for row in g for j in range(len(row)) if j != own):
            return "a robust input changes its class"
    return None


def _followed(model: nn.Sequential, places: list[Fraction]) -> tuple[list[Fraction], Line]:
    """All breakpoints between the first and the last place, and the outputs there."""
    values: Line = [[t] for t in places]
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight = [[Fraction(w) for w in row] for row in layer.weight.tolist()]
            bias = [Fraction(b) for b in layer.bias.tolist()]
            values = [[_dot(w, v) + b for w, b in zip(weight, bias, strict=True)] for v in values]
            continue
        places, values = _split(layer, places, values)
        values = [_activated(layer, v) for v in values]
    return places, values


def _split(layer: nn.Module, places: list[Fraction], values: Line) -> tuple[list[Fraction], Line]:
    """The places with those where the activation has a knot on the way from one to the next."""
    found = dict(zip(places, values, strict=True))
    for (a, u), (b, v) in itertools.pairwise(zip(places, values, strict=True)):
        for p, q in zip(_signed(layer, u), _signed(layer, v), strict=True):
            if (p < 0 < q) or (q < 0 < p):
                share = p / (p - q)
                found[a + share * (b - a)] = [
                    i + share * (j - i) for i, j in zip(u, v, strict=True)
                ]
    places = sorted(found)
    return places, [found[t] for t in places]


def _signed(layer: nn.Module, z: list[Fraction]) -> list[Fraction]:
    """What changes its sign at the activation's knots."""
    return [a - b for a, b in zip(z[::2], z[1::2], strict=True)] if isinstance(layer, MaxMin) else z


def _activated(layer: nn.Module, z: list[Fraction]) -> list[Fraction]:
    if isinstance(layer, MaxMin):
        pairs = zip(z[::2], z[1::2], strict=True)
        return [v for a, b in pairs for v in (max(a, b), min(a, b))]
    slope = Fraction(layer.negative_slope) if isinstance(layer, nn.LeakyReLU) else Fraction(0)
    return [v if v > 0 else slope * v for v in z]


def _dot(row: list[Fraction], values: list[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(row, values, strict=True)), Fraction(0))

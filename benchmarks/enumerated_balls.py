"""Margins on balls against the exact ones, of networks so small that all their pieces are listed.

A network of piecewise linear activations is affine wherever every neuron stays on one piece of its
activation.  Its least margin on a ball (cut with a box) is met where some of the planes between
pieces, and of the sides of the box, meet: for k of them in n dimensions at the point of their
common subspace within the ball that is furthest against the gradient,

    d = d_0 - sqrt(r^2 - |d_0|^2) P c / |P c|,    d_0 = -N^+ z,   P = I - N^+ N,

with N the normals and z the values at the centre; on balls of linf where n planes or sides meet.
All such points of all patterns are tried, each evaluated by the module itself, so that the least
value is never below the exact one; random points must not be below it.  What every level claims is
held against it: margins, classes that are kept, and slopes times radii.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from admm_lip.evaluation.falsification import SoundnessError
from admm_lip.foreign.open import network_of
from admm_lip.local import LocalConfig, certify_local
from admm_lip.networks.clipped import ClippedReLU
from admm_lip.networks.layer_spec import runs_of
from admm_lip.networks.network import Chain
from admm_lip.networks.sorting_torch import MaxMin

from .study import Cell, Row, Study, run_from_command_line
from .tables import markdown

_BOX, _CLIP = (0.0, 1.0), 0.7
# What rounding of the points may take from the exact value.
_TOLERANCE = 1e-9
_SAMPLES = 400
# Of every activation: its value at the first place where its slope changes, these places, slopes.
_PIECES: Mapping[str, tuple[float, tuple[float, ...], tuple[float, ...]]] = {
    "relu": (0.0, (0.0,), (0.0, 1.0)),
    "leaky_relu": (0.0, (0.0,), (0.1, 1.0)),
    "half_abs": (0.0, (0.0,), (-1.0, 1.0)),
    "clipped_relu": (0.0, (0.0, _CLIP), (0.0, 1.0, 0.0)),
    "hardtanh": (-1.0, (-1.0, 1.0), (0.0, 1.0, 0.0)),
}
_ACTIVATIONS: Mapping[str, Callable[[tuple[int, ...]], nn.Module]] = {
    "relu": lambda shape: nn.ReLU(),
    "leaky_relu": lambda shape: nn.LeakyReLU(0.1),
    "max_min": lambda shape: MaxMin(),
    "clipped_relu": lambda shape: ClippedReLU(shape, _CLIP),
    "hardtanh": lambda shape: nn.Hardtanh(),
}


class Residual(nn.Module):
    """``x + W_1 phi(W_0 x)``, or the two side by side."""

    def __init__(self, width: int, act: nn.Module, beside: bool) -> None:
        super().__init__()
        self.one, self.act, self.two = nn.Linear(width, width), act, nn.Linear(width, width)
        self.beside = beside

    def forward(self, x: Tensor) -> Tensor:
        """Of ``(batch, width)``."""
        y = self.two(self.act(self.one(x)))
        return torch.cat([x, y], dim=1) if self.beside else x + y


def _dense(kind: str) -> list[nn.Module]:
    act = _ACTIVATIONS[kind]
    return [nn.Linear(2, 4), act((4,)), nn.Linear(4, 4), act((4,)), nn.Linear(4, 3)]


def _wide(kind: str) -> list[nn.Module]:
    return [nn.Linear(3, 6), _ACTIVATIONS[kind]((6,)), nn.Linear(6, 3)]


def _residual(kind: str, beside: bool = False) -> list[nn.Module]:
    act, block = _ACTIVATIONS[kind], Residual(4, _ACTIVATIONS[kind]((4,)), beside)
    return [nn.Linear(2, 4), act((4,)), block, nn.Linear(8 if beside else 4, 3)]


def _convolutional(kind: str) -> list[nn.Module]:
    act = _ACTIVATIONS[kind]
    return [
        *(nn.Conv2d(1, 2, (1, 2)), act((2, 1, 2)), nn.Conv2d(2, 2, (1, 3), padding=(0, 1))),
        *(act((2, 1, 2)), nn.Flatten(), nn.Linear(4, 3)),
    ]


# What the levels by norms, and the semidefinite one, take.
_PATHS, _MONOTONE = ("dense", "wide", "convolutions"), ("relu", "max_min", "clipped_relu")
_TIGHT = ("relu", "leaky_relu", "max_min")


# From the name of a network to how it is built, and the shape of its inputs.
_BUILDS: Mapping[str, tuple[Callable[[str], list[nn.Module]], tuple[int, ...]]] = {
    "dense": (_dense, (2,)),
    "wide": (_wide, (3,)),
    "residual": (_residual, (2,)),
    "concatenated": (lambda kind: _residual(kind, True), (2,)),
    "convolutions": (_convolutional, (1, 1, 3)),
}


def cells(settings: Cell) -> list[Cell]:
    """Every network with every activation and every kind of ball, in parts of other networks."""
    shared = {key: settings[key] for key in ("networks_each", "balls_each", "search", "seed")}
    return [
        {
            **{**shared, **ball, "build": build, "activation": kind, "part": part},
            "levels": [n for n in settings["levels"] if _takes(n, build, kind, ball["norm"])],
        }
        for part in range(settings["parts"])
        for build in settings["builds"]
        for kind in settings["activations"]
        for ball in settings["balls"]
    ]


def _takes(level: str, build: str, kind: str, norm: str) -> bool:
    """Whether a level takes such networks on such balls."""
    if level in ("product", "masked"):
        return norm == "l2" and build in _PATHS and kind in _MONOTONE
    return level != "semidefinite" or kind in _TIGHT


def run_cell(cell: Cell, data_dir: str | None) -> Row:
    """Raises ``SoundnessError`` where a claim is above the exact value."""
    found: dict[str, list[Tensor]] = {level: [] for level in cell["levels"]}
    possible, patterns = [], 0
    for number in range(cell["networks_each"]):
        model, x, radius, y = _drawn(cell, number)
        exact, count = _exact_margins(model, x, radius, y, cell)
        patterns += count
        others = torch.arange(exact.shape[1]) != y[:, None]
        possible.append((exact > 0.0)[others].view(len(x), -1).all(dim=1))
        for level in cell["levels"]:
            found[level].append(_held(model, (x, radius, y), exact, level, cell))
    kept = {level: int(torch.cat(rows).sum()) for level, rows in found.items()}
    balls = cell["networks_each"] * cell["balls_each"]
    return {
        "balls": balls,
        "pieces": patterns,
        "keep": int(torch.cat(possible).sum()),
        "kept": kept,
    }


def _drawn(cell: Cell, number: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network, and balls of radii from a twentieth to about its class' own."""
    build, shape = _BUILDS[cell["build"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell["seed"] + cell["part"] * cell["networks_each"] + number)
        model = nn.Sequential(*build(cell["activation"])).double().eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if not name.endswith("threshold"):
                parameter.mul_(2.0)
        x = torch.rand(cell["balls_each"], *shape).double()
        radius = 10.0 ** (-1.3 * torch.rand(len(x))).double()
    return model, x, radius, model(x).argmax(dim=1)


def _held(
    model: nn.Module, balls: tuple[Tensor, Tensor, Tensor], exact: Tensor, level: str, cell: Cell
) -> Tensor:
    """Which classes a level keeps, of whose claims none is above the exact value."""
    x, radius, y = balls
    box = _BOX if cell.get("box") else None
    config = LocalConfig(level, norm=cell["norm"], box=box, **cell["search"])
    claim = certify_local(model, x, radius, y, config=config)
    others = torch.arange(exact.shape[1]) != y[:, None]
    center = _margins(model, x[None], y)[0]
    least = torch.maximum(claim.margin, center - claim.lip * radius[:, None])
    above = (least > exact + _TOLERANCE) & others
    above |= claim.robust[:, None] & (exact < -_TOLERANCE) & others
    if bool(above.any()):
        row = int(above.any(dim=1).nonzero()[0])
        raise SoundnessError(f"{level}: claims more than the exact value on ball {row} of {cell}")
    return claim.robust


def _margins(model: nn.Module, points: Tensor, y: Tensor) -> Tensor:
    """``f_y - f_j`` at points ``(count, balls, *shape)``."""
    out: Tensor = model(points.flatten(0, 1)).view(*points.shape[:2], -1)
    return out.gather(2, y.expand(len(out), -1)[..., None]) - out


def _exact_margins(
    model: nn.Module, x: Tensor, radius: Tensor, y: Tensor, cell: Cell
) -> tuple[Tensor, int]:
    """The least ``f_y - f_j`` on every ball, ``(balls, outputs)``, and how many pieces were met."""
    chain, found, count = network_of(model, tuple(x.shape[1:])).chain(), [], 0
    for k in range(len(x)):
        center, r = x[k].flatten().numpy(), float(radius[k])
        pieces = _pieces(chain, center, r, cell["norm"])
        ways = [_candidates(piece, center, r, int(y[k]), cell) for piece in pieces]
        points = torch.from_numpy(np.concatenate([center[None], *ways])).view(-1, 1, *x.shape[1:])
        least = _margins(model, points, y[k : k + 1]).amin(dim=0)[0]
        seen = _margins(model, _sampled(x[k], r, cell)[:, None], y[k : k + 1]).amin(dim=0)[0]
        if bool((seen < least - _TOLERANCE).any()):
            raise AssertionError(f"a random point lies below the least vertex, ball {k} of {cell}")
        found.append(least)
        count += len(pieces)
    return torch.stack(found), count


def _sampled(x: Tensor, radius: float, cell: Cell) -> Tensor:
    """Random points of a ball, ``(count, *shape)``."""
    generator = torch.Generator().manual_seed(cell["seed"])
    way = torch.randn(_SAMPLES, x.numel(), generator=generator, dtype=torch.float64)
    size = way.norm(dim=1, keepdim=True) if cell["norm"] == "l2" else way.abs().amax(1, True)
    share = torch.rand(_SAMPLES, 1, generator=generator, dtype=torch.float64)
    points = x + (way / size * share.sqrt() * radius).view(-1, *x.shape)
    return points.clamp(*_BOX) if cell.get("box") else points


# An affine piece: the planes that bound it, and its outputs, as coefficients and values at the
# centre.
Piece = tuple[np.ndarray, np.ndarray, np.ndarray]


def _pieces(chain: Chain, center: np.ndarray, radius: float, norm: str) -> list[Piece]:
    """All affine pieces that may meet a ball, planes that do not meet it left out."""
    n = len(center)
    begun = [(np.zeros((0, n)), np.zeros(0), np.eye(n), center)]
    for k, (weight, bias) in enumerate(zip(chain.weights, chain.biases, strict=True)):
        last, grown = k == len(chain.weights) - 1, []
        for normals, at, a, value in begun:
            a, value = weight @ a, weight @ value + bias
            if last:
                grown.append((normals, at, a, value))
                continue
            choices = _choices(chain.activations[k], a, value, radius, norm)
            for some in itertools.product(*choices):
                slopes, shifts = (
                    np.array([s for s, _, _ in some]),
                    np.array([t for _, t, _ in some]),
                )
                planes = [(a[i], value[i] - b) for i, (_, _, bs) in enumerate(some) for b in bs]
                more = np.array([p for p, _ in planes]).reshape(-1, n)
                offs = np.array([v for _, v in planes])
                new = np.concatenate([normals, more]), np.concatenate([at, offs])
                grown.append((*new, slopes[:, None] * a, slopes * value + shifts))
        begun = grown
    return [(normals, at, np.c_[a, value]) for normals, at, a, value in begun]


def _choices(
    spec: Any, a: np.ndarray, value: np.ndarray, radius: float, norm: str
) -> list[list[tuple[float, float, tuple[float, ...]]]]:
    """Of every neuron, the pieces that its input may reach: slope, shift, and ends that it may."""
    reach = radius * np.linalg.norm(a, ord=2 if norm == "l2" else 1, axis=1) * (1.0 + 1e-9) + 1e-12
    found: list[list[tuple[float, float, tuple[float, ...]]]] = []
    for run, one in runs_of(spec, len(value)):
        size = run.stop - run.start
        for i in range(run.start, run.stop):
            straight = one.kind == "carried" or (
                one.kind == "half_abs" and i - run.start < size // 2
            )
            lines = [(1.0, 0.0, -math.inf, math.inf)] if straight else _lines(one.kind)
            low, high = value[i] - reach[i], value[i] + reach[i]
            met = [line for line in lines if line[2] <= high and line[3] >= low]
            found.append(
                [(s, t, tuple(e for e in ends if low <= e <= high)) for s, t, *ends in met]
            )
    return found


def _lines(kind: str) -> list[tuple[float, float, float, float]]:
    """Slope, shift, and ends of every line."""
    start, places, slopes = _PIECES[kind]
    shifts = [start - slopes[0] * places[0]]
    for place, before, after in zip(places, slopes, slopes[1:], strict=False):
        shifts.append(shifts[-1] + (before - after) * place)
    ends = [-math.inf, *places, math.inf]
    return list(zip(slopes, shifts, ends, ends[1:], strict=False))


def _candidates(
    piece: Piece, center: np.ndarray, radius: float, label: int, cell: Cell
) -> np.ndarray:
    """Where a margin may be least on one piece, ``(count, n)``."""
    normals, at, outputs = piece
    n, l2, box = len(center), cell["norm"] == "l2", bool(cell.get("box"))
    sides = [] if l2 else [(np.eye(n), np.full(n, s * radius)) for s in (-1.0, 1.0)]
    sides += [(np.eye(n), center - end) for end in _BOX] if box else []
    normals = np.concatenate([normals, *(p for p, _ in sides)])
    at = np.concatenate([at, *(v for _, v in sides)])
    rows = outputs[label, :-1] - outputs[:, :-1]
    found = [np.zeros((0, n))]
    for size in range(0 if l2 else n, min(n, len(at)) + 1):
        some = np.array(list(itertools.combinations(range(len(at)), size)), dtype=int)
        some = some.reshape(math.comb(len(at), size), size)
        inverse = np.linalg.pinv(normals[some]) if size else np.zeros((1, n, 0))
        start = -(inverse @ at[some][..., None])[..., 0]
        if size == n or not l2:
            found.append(start)
            continue
        room = np.sqrt(np.maximum(radius**2 - (start**2).sum(axis=1), 0.0))
        project = np.eye(n) - inverse @ normals[some] if size else np.eye(n)[None]
        ways = rows @ project  # symmetric
        length = np.linalg.norm(ways, axis=2, keepdims=True)
        ways = ways / np.where(length > 1e-12, length, np.inf)
        found.append((start[:, None] - room[:, None, None] * ways).reshape(-1, n))
    moved = np.concatenate(found)
    norm = np.linalg.norm(moved, ord=2 if l2 else np.inf, axis=1)
    moved = moved[norm <= radius * (1.0 + 1e-9)] * (1.0 - 1e-15)
    points: np.ndarray = center + moved
    if box:
        points = np.clip(points[((points >= -1e-9) & (points <= 1.0 + 1e-9)).all(axis=1)], *_BOX)
    return points


def tabulate(rows: list[Row]) -> str:
    """One line per network, per kind of ball, and all."""
    levels, lines = list(dict.fromkeys(level for row in rows for level in row["kept"])), []
    keys: tuple[Callable[[Row], str], ...] = (
        lambda r: r["build"],
        lambda r: r["activation"],
        lambda r: r["norm"] + (" box" if r.get("box") else ""),
        lambda r: "together",
    )
    for key in keys:
        for name in dict.fromkeys(map(key, rows)):
            some = [row for row in rows if key(row) == name]
            total = (sum(row[what] for row in some) for what in ("balls", "keep"))
            shares = (_share(some, level) for level in levels)
            lines.append([name, *total, *shares])
    return markdown(["", "balls", "keep their class", *levels], lines)


def _share(rows: list[Row], level: str) -> str:
    """Of the balls on which the class is kept, those on which a level says so."""
    asked = [row for row in rows if level in row["kept"]]
    keep = sum(row["keep"] for row in asked)
    return f"{sum(row['kept'][level] for row in asked) / keep:.1%}" if keep else ""


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Nothing: the table says it."""
    return []


STUDY = Study("enumerated_balls", cells, run_cell, tabulate, draw, jobs=1)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)

"""The edits that make a false local certificate of a true one: of its header and its tensors.

An edit changes its argument in place, or returns the whole file (a key given twice, a cut).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch as st
import torch
from safetensors import safe_open
from torch import Tensor

from .forging_documents import SPECIALS, Random, Tree

TENSOR_SPECIALS = (0.0, -1.0, math.inf, -math.inf, math.nan, 1e308, -1e308, 5e-324, 1e-200)


@dataclass(eq=False)
class LocalFile:
    """A local certificate's file, opened for edits."""

    about: Tree
    tensors: dict[str, Tensor]

    @staticmethod
    def of(path: Path) -> LocalFile:
        """Read it, unchecked."""
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            names = file.keys()  # such a file cannot be iterated itself
            return LocalFile(about, {name: file.get_tensor(name) for name in names})

    def to_bytes(self) -> bytes:
        """The file."""
        solid = {name: t.contiguous() for name, t in self.tensors.items()}
        return bytes(st.save(solid, {"about": json.dumps(self.about)}))


LocalEdit = Callable[[Random, LocalFile], "bytes | None"]


def _moved(random: Random, file: LocalFile, name: str, factor: float) -> None:
    """All of a tensor by a factor, or one entry, or one entry by a special value."""
    tensor = file.tensors[name].clone()
    if not tensor.numel():
        return
    flat = tensor.view(-1)
    at = int(random.rng.integers(len(flat)))
    if random.chance(0.3):
        flat[at] = torch.tensor(random.one_of(TENSOR_SPECIALS)).double().to(flat)
    elif random.chance(0.5):
        flat[at] *= factor
    else:
        tensor *= factor
    file.tensors[name] = tensor


def _local_lips(random: Random, file: LocalFile) -> None:
    _moved(random, file, "lip", random.less())


def _local_lips_all(random: Random, file: LocalFile) -> None:
    value = random.one_of((*TENSOR_SPECIALS, 1e-9, 1e-3))
    file.tensors["lip"] = torch.full_like(file.tensors["lip"], value)


def _local_roots(random: Random, file: LocalFile) -> None:
    _moved(random, file, "roots", random.factor())
    if random.chance(0.3):
        file.tensors["lip"] = file.tensors["lip"] * random.less()


def _local_witness(random: Random, file: LocalFile) -> None:
    """Slopes, curvatures or metric of a quadratic bound, or what they are said to prove."""
    for name in ("slopes", "curvatures", "metric"):
        if name in file.tensors and random.chance(0.5):
            _moved(random, file, name, random.factor())
    if random.chance(0.5):
        _claims_raised("margin")(random, file)


def _local_levels(random: Random, file: LocalFile) -> None:
    level = file.tensors["level"].clone()
    low, high = (-3, 9) if random.chance(0.3) else (0, 6)
    level.view(-1)[int(random.rng.integers(level.numel()))] = int(random.rng.integers(low, high))
    file.tensors["level"] = level
    if random.chance(0.5):
        file.tensors["lip"] = file.tensors["lip"] * random.less()


def _claims_raised(name: str) -> LocalEdit:
    def edit(random: Random, file: LocalFile) -> None:
        tensor = file.tensors[name]
        way = random.one_of(("nearer", "added", "special", "sign"))
        if way == "nearer":
            file.tensors[name] = torch.where(tensor < 0.0, tensor * random.less(), tensor)
        elif way == "added":
            file.tensors[name] = tensor + random.power(-16.0, 3.0)
        elif way == "sign":
            file.tensors[name] = tensor.abs()
        else:
            _moved(random, file, name, random.factor())

    return edit


def _local_radius(random: Random, file: LocalFile) -> None:
    _moved(random, file, "radius", 1.0 + random.power(-16.0, 3.0))


def _local_points(random: Random, file: LocalFile) -> None:
    x = file.tensors["x"]
    if random.chance(0.5):
        size = random.power(-16.0, 2.0)
        file.tensors["x"] = x + size * torch.from_numpy(random.rng.standard_normal(x.shape))
    else:
        _moved(random, file, "x", random.factor())


def _local_labels(random: Random, file: LocalFile) -> None:
    count = len(file.tensors["x"])
    if "labels" in file.tensors and random.chance(0.3):
        file.tensors.pop("labels")
        return
    classes = random.rng.integers(-2, 4, count)
    file.tensors["labels"] = torch.from_numpy(classes)


def _local_rows(random: Random, file: LocalFile) -> None:
    """One tensor's rows in another order, or all of them but x's."""
    order = torch.from_numpy(random.rng.permutation(len(file.tensors["x"])))
    names = list(file.tensors) if random.chance(0.3) else [random.one_of(list(file.tensors))]
    for name in names:
        rows = len(tensor := file.tensors[name])
        if name != "x":
            own = order if rows == len(order) else torch.from_numpy(random.rng.permutation(rows))
            file.tensors[name] = tensor[own]


def _local_form(random: Random, file: LocalFile) -> None:
    """Types, shapes, and what is there at all."""
    name = random.one_of(list(file.tensors))
    tensor = file.tensors[name]
    change = random.one_of(("float32", "int", "cut", "flat", "gone", "more", "last", "twice"))
    changed: Mapping[str, Callable[[], Tensor]] = {
        "float32": tensor.float,
        "int": tensor.long,
        "cut": lambda: tensor[1:],
        "flat": lambda: tensor.flatten(),
        "last": lambda: tensor[..., :-1],
        "twice": lambda: torch.cat([tensor, tensor]),
    }
    if change == "gone":
        file.tensors.pop(name)
    elif change == "more":
        file.tensors["more"] = tensor.clone()
    else:
        file.tensors[name] = changed[change]()


def _local_box(random: Random, file: LocalFile) -> None:
    box = file.about["box"] or [-1.0, 1.0]
    file.about["box"] = random.one_of(
        (
            *(box[::-1], None, [0.0, 0.0], [box[0] / 2, box[1] / 2], [-0.1, 0.1], [1e308, -1e308]),
            *([0.0], [True, False], "box", [None, 1.0], [-(10**400), 10**400], [-9, 9], [0, 1]),
        )
    )


def _local_measure(random: Random, file: LocalFile) -> None:
    features = file.tensors["x"].shape[1]
    if random.chance(0.5):
        file.about["norm"] = random.one_of(("l2", "linf", "l1", *SPECIALS))
    else:
        scale = [random.factor()] * features
        file.about["input_scale"] = random.one_of(
            (scale, None, [2.0] * features, [0.0] * features, [1.0], [-1.0] * features, *SPECIALS)
        )


def _local_about(random: Random, file: LocalFile) -> None:
    name = random.one_of(("digest", "input_shape", "kind", "format", "box"))
    n = file.tensors["x"].shape[1]
    values = ("0" * 64, [1, n], [n, 1], [n + 1], [n, 10**30], [True], 3, *SPECIALS)
    file.about[name] = random.one_of(values)
    if random.chance(0.1):
        file.about.pop(name)


def _local_bytes(random: Random, file: LocalFile) -> bytes:
    """What no tree says: keys twice in the header, cuts, flips."""
    whole = file.to_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + size].decode(), whole[8 + size :]

    def file_of(text: str) -> bytes:
        return len(text.encode()).to_bytes(8, "little") + text.encode() + data

    parsed = json.loads(header)
    at = int(random.rng.integers(len(whole)))
    twice = json.dumps(parsed["x"])
    evil = json.dumps({**file.about, "box": None, "norm": "linf"})
    return bytes(
        random.one_of(
            (
                file_of('{"x": ' + twice + ", " + header[1:]),
                file_of('{"__metadata__": {"about": ' + json.dumps(evil) + "}, " + header[1:]),
                file_of(header.replace('{\\"format', '{\\"norm\\": \\"linf\\", \\"format', 1)),
                file_of("[" * 5000),
                file_of("{}"),
                whole[:at],
                whole[:at]
                + bytes([whole[at] ^ (1 << int(random.rng.integers(8)))])
                + whole[at + 1 :],
                (2**63).to_bytes(8, "little") + whole[8:],
            )
        )
    )


LOCAL_EDITS: Mapping[str, LocalEdit] = {
    "bound lowered": _local_lips,
    "all bounds": _local_lips_all,
    "multiplier": _local_roots,
    "witness": _local_witness,
    "level": _local_levels,
    "margin": _claims_raised("margin"),
    "center": _claims_raised("center"),
    "radius": _local_radius,
    "input moved": _local_points,
    "labels": _local_labels,
    "rows": _local_rows,
    "types and shapes": _local_form,
    "box": _local_box,
    "norm and scale": _local_measure,
    "any field": _local_about,
    "bytes": _local_bytes,
}

"""Bounds on balls and their cost, paired with an older checkout of the package.

    python -m benchmarks balls_paired --old DIR --networks DIR [--repeats 3]

``DIR`` of ``--old`` is a checkout of the package, ``--networks`` holds the networks and pictures of
the SDP-CROWN comparison.  Every case runs in fresh processes, old and new in turn, on one thread;
the least CPU seconds of the repeats count, reading apart.  The bounds are compared entry by entry.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Found = dict[str, Any]
_MEAN, _STD = np.array([125.3, 123.0, 113.9]) / 255.0, 0.225
_CONVOLUTIONS = {
    "mnist_convsmall": ((2, 1), (2, 1)),
    "cifar10_cnn_a": ((2, 1), (2, 1)),
    "cifar10_convsmall": ((2, 0), (2, 0)),
}


def network(folder: Path, name: str) -> Any:
    """One of the comparison's networks as a torch module, float64."""
    import torch
    from torch import nn

    arrays = np.load(folder / f"{name}.npz")
    layers: list[nn.Module] = [] if name in _CONVOLUTIONS else [nn.Flatten()]
    count = sum(key.startswith("W") for key in arrays.files)
    for k in range(count):
        weight, bias = arrays[f"W{k}"], arrays[f"b{k}"]
        if weight.ndim == 4:
            stride, padding = _CONVOLUTIONS[name][k]
            sizes = weight.shape[1], weight.shape[0], weight.shape[2:]
            layer: Any = nn.Conv2d(*sizes, stride=stride, padding=padding)
        else:
            if layers and isinstance(layers[-2 if len(layers) > 1 else -1], nn.Conv2d):
                layers.append(nn.Flatten())
            layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def pictures(folder: Path, name: str, count: int) -> tuple[Any, Any]:
    """Pictures as the network takes them, and their labels."""
    import torch

    data = np.load(folder / f"{name.partition('_')[0]}_pictures.npz")
    x = data["x"][:count] / 255.0
    if name.startswith("cifar10"):
        x = (x - _MEAN[:, None, None]) / _STD
    return torch.from_numpy(x), torch.from_numpy(data["y"][:count].astype(np.int64))


def _by_level(level: str, radius: float, count: int) -> Callable[[Path, str], Found]:
    """Slopes and margins of ``certify_local``."""

    def run(folder: Path, name: str) -> Found:
        from admm_lip.local import LocalConfig, certify_local

        model, (x, y) = network(folder, name), pictures(folder, name, count)
        config = LocalConfig(level)
        found, seconds = timed(lambda: certify_local(model, x, radius, y, config=config))
        bounds = {"lip": found.lip.numpy(), "margin": found.margin.numpy()}
        return {"seconds": seconds, "held": found.robust.numpy(), **bounds}

    return run


def _samples(radius: float, count: int, everything: bool) -> Callable[[Path, str], Found]:
    """Worst margins of samples, by norms of what can move."""

    def run(folder: Path, name: str) -> Found:
        model, (x, y) = network(folder, name), pictures(folder, name, count)
        right = (model(x).argmax(dim=1) == y).numpy()  # of the others there is no margin
        try:
            old = importlib.import_module("admm_lip.local_training.certified")
        except ImportError:
            from admm_lip.local import LocalConfig, certify_local

            config = LocalConfig("masked", decide=not everything)
            found, seconds = timed(lambda: certify_local(model, x, radius, y, config=config))
            return {
                "seconds": seconds,
                "held": found.robust.numpy(),
                "margin": np.where(right, found.least_margin.numpy(), np.nan),
            }
        report, seconds = timed(
            lambda: old.certify_samples(model, x, y, radius, everything=everything, progress=False)
        )
        return {
            "seconds": seconds,
            "held": report.certified.numpy(),
            "margin": np.where(right, report.margin.numpy(), np.nan),
        }

    return run


def _radii(count: int) -> Callable[[Path, str], Found]:
    """Largest radii found by lines and closed forms."""

    def run(folder: Path, name: str) -> Found:
        from admm_lip.local import LocalConfig, local_radii

        model, (x, y) = network(folder, name), pictures(folder, name, count)
        config = LocalConfig(rounds=6)
        found, seconds = timed(lambda: local_radii(model, x, y, config=config))
        return {"seconds": seconds, "margin": found.radius.numpy()}

    return run


def _step(count: int, steps: int) -> Callable[[Path, str], Found]:
    """Losses of local training, with their gradients."""

    def run(folder: Path, name: str) -> Found:
        import torch

        try:
            home = importlib.import_module("admm_lip.research.comparators.local")
        except ImportError:
            home = importlib.import_module("admm_lip.methods.local")
        model, (x, y) = network(folder, name).float(), pictures(folder, name, count)
        method = home.LocalLipschitz(eps=0.1, ramp=0.0)
        module, x = method.prepare(model), x.float()
        rows = torch.arange(count)

        def step() -> float:
            method.begin_batch(module, rows)
            loss = method.objective(module, x, y, torch.nn.functional.cross_entropy, 1.0)
            torch.autograd.grad(loss, list(module.parameters()))
            return float(loss.detach())

        step()
        losses, seconds = timed(lambda: [step() for _ in range(steps)])
        return {"seconds": seconds / steps, "lip": np.array(losses)}

    return run


Case = tuple[str, Callable[[Path, str], Found]]
CASES: Mapping[str, Case] = {
    "MLP, norms": ("mnist_mlp", _by_level("norms", 0.3, 50)),
    "MLP, closed form": ("mnist_mlp", _by_level("closed", 0.3, 50)),
    "MLP, optimised": ("mnist_mlp", _by_level("optimised", 0.3, 10)),
    "MLP, radii": ("mnist_mlp", _radii(20)),
    "MLP, samples": ("mnist_mlp", _samples(0.3, 100, everything=False)),
    "MLP, samples, everything": ("mnist_mlp", _samples(0.3, 100, everything=True)),
    "MLP, training step": ("mnist_mlp", _step(100, 20)),
    "ConvSmall, norms": ("mnist_convsmall", _by_level("norms", 0.1, 3)),
    "ConvSmall, samples": ("mnist_convsmall", _samples(0.1, 30, everything=False)),
    "ConvSmall, samples, everything": ("mnist_convsmall", _samples(0.1, 5, everything=True)),
    "ConvSmall, training step": ("mnist_convsmall", _step(64, 8)),
}


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its CPU seconds."""
    begun = time.process_time()
    found = call()
    return found, time.process_time() - begun


def _in_process(checkout: Path, networks: Path, case: str) -> Found:
    """A case under the package of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.npz"
        here = Path(__file__).resolve()
        code = (
            "import runpy, sys; sys.path.insert(0, sys.argv[1]);"
            "runpy.run_path(sys.argv[2])['work'](*sys.argv[3:])"
        )
        arguments = [str(checkout), str(here), case, str(networks), str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment)
        with np.load(out) as found:
            return {name: found[name] for name in found.files}


def work(case: str, networks: str, out: str) -> None:
    """One case, in a process of its own, written to a file."""
    import admm_lip

    name, run = CASES[case]
    found = run(Path(networks), name)
    np.savez(out, root=str(Path(admm_lip.__file__).resolve().parents[1]), **found)


def compared(old: list[Found], new: list[Found]) -> Found:
    """Seconds, and how the new bounds stand beside the old ones."""
    seconds = [min(float(one["seconds"]) for one in side) for side in (old, new)]
    row: Found = {"old_cpu_seconds": seconds[0], "new_cpu_seconds": seconds[1]}
    before, after = old[0], new[0]
    if "lip" in before:
        both = np.isfinite(before["lip"]) & np.isfinite(after["lip"]) & (before["lip"] > 0.0)
        ratio = after["lip"][both] / before["lip"][both]
        row |= {"lip_ratio_mean": float(ratio.mean()), "lip_ratio_max": float(ratio.max())}
        lost = np.isfinite(before["lip"]) & ~np.isfinite(after["lip"])
        row["bounds_lost"] = int(lost.sum())
    if "margin" in before:
        both = np.isfinite(before["margin"]) & np.isfinite(after["margin"])
        rise = (after["margin"] - before["margin"])[both]
        row |= {"margin_rise_mean": float(rise.mean()), "margin_rise_min": float(rise.min())}
    if "held" in before:
        row["held_old"], row["held_new"] = int(before["held"].sum()), int(after["held"].sum())
        row["held_lost"] = int((before["held"] & ~after["held"]).sum())
    return row


def main(argv: list[str]) -> None:
    """Run, print and record."""
    from . import record  # not in the workers, which have no package
    from .catalogue import parser_of

    parser = parser_of("balls_paired")
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", action="append", choices=[*CASES])
    options = parser.parse_args(argv)
    rows = []
    sides = options.old.resolve(), Path(__file__).resolve().parents[1]
    for case in options.case or CASES:
        found: tuple[list[Found], list[Found]] = ([], [])
        for _ in range(options.repeats):
            for side, checkout in zip(found, sides, strict=True):
                side.append(_in_process(checkout, options.networks, case))
                assert str(side[-1]["root"]) == str(checkout), side[-1]["root"]
        rows.append({"case": case, **compared(*found)})
        print(json.dumps(rows[-1]), flush=True)
    if options.case is None:
        record.save("balls_paired", {"repeats": options.repeats}, rows)

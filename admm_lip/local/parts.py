"""The batches of a task, run here or by workers, each kept on disk as soon as it is done.

What is kept is a local certificate of the batch, and beside it what all of them were made of.  A
process that is killed leaves whole files alone, so that the same call goes on with what is missing,
and another one is refused by what is different.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CertificateError, RunFolderError
from ..files import exclusive, make_writable, meant_for, write_atomic
from ..parallel import finished_tasks
from ..progress import working
from ..records import as_json, read_json
from .ball_proofs import Outcome, empty
from .check import check_part
from .columns import TENSORS
from .input_region import chunks
from .quadratic_proof import Witness
from .result import LocalCertificate
from .semidefinite_witness import Duals
from .tasks import Task
from .verdicts import counted
from .witnesses import Stated

# Rows that are lost at most when a process is killed.
_KEPT = 32
_ENDING = ".safetensors"
SETTINGS, PAIRS = "settings.json", "pairs.json"
# The witnesses of a record, each with the name that its items have there.
_WITNESSES: tuple[tuple[type[Stated], str], ...] = ((Witness, "tuned"), (Duals, "dual"))
Identity = dict[str, str]


def certificate_of(task: Task, radii: Tensor, outcome: Outcome) -> LocalCertificate:
    """What was proven of a batch, as a record."""
    box, prepared, labels = task.config.box, task.prepared, task.labels
    stated = outcome.witness, outcome.duals
    by_norms = not task.config.by_lines
    return LocalCertificate(
        digest=prepared.network.digest(),
        input_shape=prepared.network.input_shape or (),
        box=None if box is None else (float(box[0]), float(box[1])),
        x=task.points,
        radius=radii,
        labels=None if labels is None else labels.to(torch.int64),
        lip=outcome.found.lip,
        level=outcome.found.level,
        roots=outcome.found.roots,
        margin=outcome.margin,
        center=outcome.center,
        varying=outcome.varying if by_norms else None,
        ratio=outcome.ratio if by_norms else None,
        settled=None if labels is None else outcome.settled(radii, task.items),
        seconds=outcome.account.seconds,
        left=outcome.account.left if task.config.semidefinite and labels is not None else None,
        norm=task.config.norm,
        input_scale=prepared.input_scale,
        **{n: t for own in zip(_WITNESSES, stated, strict=True) for n, t in _columns(*own).items()},
    )


def _columns(kind: tuple[type[Stated], str], given: Stated | None) -> dict[str, Tensor | None]:
    """A witness as tensors of the record; of no functional it is none."""
    (cls, marks), some = kind, given is not None and bool(given.items.any())
    names = [field.name for field in dataclasses.fields(cls)]
    return {n if n != "items" else marks: getattr(given, n) if some else None for n in names}


def _given(kind: tuple[type[Stated], str], part: LocalCertificate) -> Stated | None:
    """The inverse."""
    cls, marks = kind
    names = [field.name for field in dataclasses.fields(cls)]
    held = {n: getattr(part, n if n != "items" else marks) for n in names}
    return None if held["items"] is None else cls(**held)


@dataclass(frozen=True, eq=False)
class Parts(Sequence[Any]):
    """The task of each batch, its radii beside it; made when it is asked for."""

    task: Task
    batches: list[Tensor]
    radii: Tensor

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: Any) -> tuple[Task, Tensor]:
        rows = self.batches[k]
        return self.task.part(rows), self.radii[rows]


Make = Callable[[tuple[Task, Tensor]], LocalCertificate]


def run_parts(
    make: Make,
    task: Task,
    radii: Tensor,
    *,
    n_jobs: int | None = None,
    progress: bool = False,
    state: str | Path | None = None,
) -> LocalCertificate:
    """The certificate of all samples, from those that are made of the batches.

    Args:
        make: the certificate of one batch, from its task and radii.
        task: all samples.
        radii: ``(batch,)``.
        n_jobs: as for :func:`admm_lip.parallel.workers_of`.
        progress: whether to say how far it is, and what settled the samples so far.
        state: folder in which the batches are kept, and from which earlier ones are taken.

    Raises:
        RunFolderError: where the folder is of another question, or another process has it.
    """
    if not len(task.points):
        return certificate_of(task, radii, empty(task))
    batches = task.batches(n_jobs)
    if state is None:
        return _run(make, Parts(task, batches, radii), n_jobs, progress, None)
    batches = [some for rows in batches for some in chunks(rows, _KEPT)]
    parts = Parts(task, batches, radii)
    with _opened(Path(state), {"question": make.__name__.strip("_"), **_identity(task, radii)}):
        return _run(make, parts, n_jobs, progress, Path(state))


def _run(
    make: Make, parts: Parts, n_jobs: int | None, progress: bool, state: Path | None
) -> LocalCertificate:
    found = {} if state is None else _kept(state, parts)
    left = [k for k in range(len(parts)) if k not in found]
    names = [_name(parts.batches[k]) for k in left]
    rest = dataclasses.replace(parts, batches=[parts.batches[k] for k in left])
    total, done = len(parts.task.points), sum(len(part) for part in found.values())
    with working("certify", total, "rows", done=done, show=progress) as work:
        counts = Counter[str]()
        for part in found.values():
            counts += Counter(_names(part))
        for k, part in finished_tasks(make, rest, names, n_jobs=n_jobs):
            found[left[k]] = part
            if state is not None:
                part.save(_file(state, rest.batches[k]))
            counts += Counter(_names(part))
            work.note = ", ".join(f"{n} {name}" for name, n in counted(counts.elements()).items())
            work.step(len(part))
    return together([found[k] for k in range(len(parts))])


def _names(part: LocalCertificate) -> list[str]:
    return [] if part.labels is None else part.decided


def together(parts: Sequence[LocalCertificate]) -> LocalCertificate:
    """One certificate of several, of the same network and measure, in their order."""
    if len(parts) == 1:
        return parts[0]
    tensors: dict[str, Any] = {}
    for kind in _WITNESSES:
        tensors |= _columns(kind, kind[0].joined([(_given(kind, p), p.margin) for p in parts]))
    for name in TENSORS.keys() - tensors.keys():
        given = [getattr(part, name) for part in parts]
        tensors[name] = None if any(one is None for one in given) else torch.cat(given)
    return dataclasses.replace(parts[0], **tensors)


def _name(rows: Tensor) -> str:
    return f"rows {int(rows[0])} to {int(rows[-1])}"


def _file(state: Path, rows: Tensor) -> Path:
    return state / f"{_name(rows).replace(' ', '-')}{_ENDING}"


def _kept(state: Path, parts: Parts) -> dict[int, LocalCertificate]:
    """The batches that the folder has, of exactly these samples, proven once more."""
    found = {}
    for k, rows in enumerate(parts.batches):
        path = _file(state, rows)
        if path.is_file():
            found[k] = LocalCertificate.load(path)
            try:
                _check(found[k], parts.task, rows)
            except CertificateError as error:
                raise CertificateError(f"{path}: {error}; remove {state} to begin anew") from error
    return found


def _check(part: LocalCertificate, task: Task, rows: Tensor) -> None:
    """Refuse a batch of other samples, or one that claims what is not so: it is only a file."""
    if part.labels is None or task.labels is None:
        same = part.labels is task.labels
    else:
        same = torch.equal(part.labels, task.labels[rows].to(torch.int64))
    same = same and part.digest == task.prepared.network.digest()
    if not same or not torch.equal(part.x, task.points[rows]):
        raise CertificateError("not of these rows")
    check_part(part, task)


def _identity(task: Task, radii: Tensor) -> Identity:
    """Everything that a certificate depends on, by the name under which it was given."""
    known = task.known
    config = dataclasses.asdict(task.config) | {"input_scale": task.prepared.input_scale}
    return {
        "model": task.prepared.network.digest(),
        "x": _digits(task.points),
        "y": _digits(task.labels),
        "radius": _digits(radii),
        "certificate": _digits(None if known is None else known.lips(task.labels, len(radii))),
        **{name: repr(value) for name, value in config.items()},
    }


def _digits(tensor: Tensor | None) -> str:
    if tensor is None:
        return "none"
    if tensor.ndim == 1 and bool((tensor == tensor[0]).all()):
        return f"{len(tensor)} times {tensor[0].item():g}"
    content = tensor.contiguous().numpy().tobytes()
    return f"{list(tensor.shape)} {hashlib.sha256(content).hexdigest()[:16]}"


@contextmanager
def _opened(state: Path, identity: Identity) -> Iterator[None]:
    """The folder, held alone, with its settings written or found to be the same."""
    make_writable(state)
    with exclusive(state):
        check_state(state, identity)
        write_atomic(state / SETTINGS, as_json(identity, 2).encode())
        yield


def check_state(state: Path, identity: Identity) -> None:
    """Refuse a folder that was left by another question, as far as this is known by now.

    Raises:
        RunFolderError: naming what is different.
    """
    path = state / SETTINGS
    held = read_json(path) if path.is_file() else identity
    for name, now in identity.items():
        then = held.get(name, "nothing") if isinstance(held, dict) else "nothing"
        if then != now:
            raise RunFolderError(
                f"state: {state} holds an unfinished certification with another {name} (it has "
                f"{then}, this one {now}); repeat that one, or remove the folder to begin anew"
            )


def remove_state(state: Path) -> None:
    """Remove what was kept; other files, and then the folder, stay."""
    for path in state.iterdir() if state.is_dir() else ():
        name = meant_for(path.name)
        if name in (SETTINGS, PAIRS) or (name.startswith("rows-") and name.endswith(_ENDING)):
            path.unlink()
    with suppress(OSError):
        state.rmdir()

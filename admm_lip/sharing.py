"""A certified network as a folder to hand on, and from such a folder again.

    weights.safetensors  architecture.json   the network
    certificate.json     its proof
    units.json           what raw rows are to it, where that is known
    README.md            a card: every figure, and how to check it

The folder is whole or not there.  Nothing in it is believed: it is data, never run, and the proof
is checked again when it is loaded.
"""

from __future__ import annotations

import html
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from . import strict_json
from .certificates.certificate import AnyCertificate, load_certificate
from .certificates.verify import certified_network, check
from .errors import RunFolderError, UnitsError, WriteError
from .files import make_writable, write_atomic
from .foreign.open import network_of
from .networks.built import build_module
from .networks.network import Network
from .networks.storage import ARCHITECTURE, WEIGHTS, load_network, save_network
from .records import RunFolder, machine_stamp
from .shown import Fact, Row, Shown, printable, word
from .units import Units

if TYPE_CHECKING:
    from .plots import Sheet

CERTIFICATE, UNITS, CARD = "certificate.json", "units.json", "README.md"
FILES = (WEIGHTS, ARCHITECTURE, CERTIFICATE, UNITS, CARD)


class Shareable(Shown):
    """A result that holds a certified model, and can be handed on.

    A subclass has ``model`` and ``certificate``.
    """

    if TYPE_CHECKING:

        @property
        def model(self) -> nn.Module:
            """In evaluation mode."""

        @property
        def certificate(self) -> AnyCertificate:
            """Of exactly this model."""

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        measured: Sequence[Shown] = (),
        units: Units | None = None,
        name: str = "",
        overwrite: bool = False,
    ) -> Path:
        """Write model, proof, units and a card into a folder that :func:`from_pretrained` reads.

        Args:
            folder: made with its parents; it may exist and be empty.
            measured: other results whose figures the card states, such as an evaluation.
            units: of raw rows, and names of classes; ``None`` takes those that the result knows.
            name: heading of the card; the folder's name where not given.
            overwrite: replace such a folder, and no other.

        Returns:
            The folder.

        Raises:
            RunFolderError: for a folder that holds anything else, or is taken.
            UnitsError: for units that do not fit the network, or are not those of the certificate.
            CertificateError: for a model that was changed since it was certified.
            WriteError: naming what could not be written; nothing is left of it.
        """
        return save(
            Path(folder).expanduser(),
            self.model,
            self.certificate,
            units=units or self.known_units(),
            facts=[*self.facts(), *(fact for other in measured for fact in other.facts())],
            name=name,
            overwrite=overwrite,
        )

    def known_units(self) -> Units | None:
        """Units that the result knows of itself."""
        return self.certificate.units


@dataclass(frozen=True, eq=False, repr=False)
class Pretrained(Shareable):
    """A network read from a folder, with its proof.

    Attributes:
        model: in evaluation mode.
        certificate: of exactly this model.
        units: of raw rows, where the folder states them.
        verified: whether the proof was checked on loading.
    """

    model: nn.Module
    certificate: AnyCertificate
    units: Units | None
    verified: bool

    brief = ("lip", "bounds", "largest", "gap", "verified")

    def title(self) -> str:
        """What it is."""
        return f"pretrained network, {self.certificate.title()}"

    def facts(self) -> tuple[Fact, ...]:
        """The certificate's, and whether it was checked."""
        checked = "when it was loaded" if self.verified else "no, as asked"
        return (*self.certificate.facts(), word("verified", "proof checked", checked))

    def table(self) -> Sequence[Row]:
        """The certificate's."""
        return self.certificate.table()

    def plot(self) -> Sheet:
        """The certificate's."""
        return self.certificate.plot()

    def known_units(self) -> Units | None:
        """Those of the folder."""
        return self.units


def from_pretrained(folder: str | os.PathLike[str], *, verify: bool = True) -> Pretrained:
    """A network that was saved by ``save_pretrained``; its proof is checked on the way.

    Args:
        folder: with weights, architecture and certificate (a run's folder will do).
        verify: prove the certificate again.  Without, it is only seen to that it belongs to these
            weights.

    Raises:
        RunFolderError: where there is no such folder.
        NetworkError: naming the file of the network that is missing or damaged.
        CertificateError: where the certificate is missing, damaged, of another network, or does
            not prove its bound.
        UnitsError: for units that are damaged, or not those of the certificate.

    Example:
        >>> import tempfile, torch
        >>> from admm_lip import TrainConfig, from_pretrained, train
        >>> x = torch.rand(64, 4); y = (x[:, 0] > 0.5).long()
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> result = train(net, (x, y), TrainConfig(bound=2.0, epochs=2), progress=False)
        >>> folder = result.save_pretrained(tempfile.mkdtemp())
        >>> again = from_pretrained(folder)
        >>> bool((again.model(x) == result.model(x)).all()), again.certificate.lip <= 2.0
        (True, True)
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise RunFolderError(f"folder: expected a folder of a saved network, found none at {path}")
    network, certificate = load_network(path), load_certificate(path / CERTIFICATE)
    certified_network(certificate, network)
    units = _units_in(path / UNITS)
    _check_units(units, certificate, network)
    if verify:
        check(certificate, network)
    return Pretrained(build_module(network), certificate, units, verify)


def is_saved(folder: Path) -> bool:
    """Whether a folder holds such a network, and is not that of a run, which has settings."""
    whole = all((folder / name).is_file() for name in (WEIGHTS, ARCHITECTURE, CERTIFICATE))
    return whole and not RunFolder(folder).config.is_file()


def save(
    folder: Path,
    model: nn.Module,
    certificate: AnyCertificate,
    *,
    units: Units | None = None,
    facts: Sequence[Fact] = (),
    name: str = "",
    overwrite: bool = False,
) -> Path:
    """What :meth:`Shareable.save_pretrained` does, for any model and certificate."""
    network = network_of(model, certificate.input_shape)
    certified_network(certificate, network)
    _check_units(units, certificate, network)
    _check_free(folder, overwrite)
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    make_writable(beside)
    try:
        save_network(network, beside)
        certificate.save(beside / CERTIFICATE)
        if units is not None:
            write_atomic(beside / UNITS, (json.dumps(units.to_json(), indent=2) + "\n").encode())
        text = card(name or folder.name, network, facts or certificate.facts())
        write_atomic(beside / CARD, text.encode())
        _move(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def card(name: str, network: Network, facts: Sequence[Fact]) -> str:
    """The text of a model card, names in it made harmless."""
    layers = [
        f"{spec.kind} {'x'.join(map(str, network.shapes()[spec.name]))}" for spec in network.layers
    ]
    versions = machine_stamp()["versions"]
    return _CARD.format(
        name=_cell(name),
        input="x".join(map(str, network.input_shape or ())),
        layers="\n".join(f"| {k} | {_cell(said)} |" for k, said in enumerate(layers)),
        facts="\n".join(
            f"| {_cell(f.label)} | {_cell(f.said)} | {'noted' if f.noted else ''} |" for f in facts
        ),
        versions=", ".join(f"{package} {version}" for package, version in versions.items()),
        digest=network.digest(),
    )


_CARD = """---
library_name: admm-lip
tags: [lipschitz, certified-robustness]
---

# {name}

A network with a proven Lipschitz constant.

| figure | value | |
|---|---|---|
{facts}

What is *noted* is said by the maker and not proven; accuracies were measured, not proven.

## How to check it

With this folder on the disk, without torch and without a solver:

```bash
pip install admm-lip
admm-lip verify FOLDER
```

From Python, where loading it checks the proof:

```python
from admm_lip import from_pretrained

found = from_pretrained("FOLDER")
print(found.summary())
model = found.model          # a plain torch module
```

## Network

Input {input}; digest `{digest}`.

| layer | output |
|---|---|
{layers}

Made with {versions}.
"""


def _cell(text: str) -> str:
    """A text that stays in its cell of a table."""
    harmless = html.escape(printable(text), quote=False)
    return "".join(f"\\{c}" if c in "\\|`*_[]#" else c for c in harmless)


def _units_in(path: Path) -> Units | None:
    if not path.is_file():
        return None
    try:
        return Units.from_json(strict_json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UnitsError(f"{path}: cannot be read as units ({error})") from None


def _check_units(units: Units | None, certificate: AnyCertificate, network: Network) -> None:
    """Raise unless the units fit the network, and are those that the bound is stated in."""
    if certificate.units is not None and units != certificate.units:
        raise UnitsError("units: expected those of the certificate, in which its bound is stated")
    if units is not None:
        (*_, outputs) = network.shapes().values()
        units.check_fits(network.size_in, outputs[0] if len(outputs) == 1 else None)


def _check_free(folder: Path, overwrite: bool) -> None:
    """Raise :class:`RunFolderError` where something else would be lost."""
    if not folder.exists():
        return
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else {folder.name}
    foreign = sorted(names - set(FILES)) if folder.is_dir() else sorted(names)
    if foreign:
        raise RunFolderError(
            f"folder: {folder} holds what is no saved network ({', '.join(foreign[:3])}), so it is "
            "not replaced; name another folder"
        )
    if names and not overwrite:
        raise RunFolderError(
            f"folder: {folder} holds a network already; replace it with overwrite=True, or name "
            "another folder"
        )


def _move(beside: Path, folder: Path) -> None:
    """Put a finished folder in its place; what was there before is moved away first."""
    old = folder.with_name(f"{folder.name}.{os.getpid()}.old")
    try:
        if folder.exists():
            folder.replace(old)
        beside.replace(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.replace(folder)
        raise WriteError(folder, error) from error
    shutil.rmtree(old, ignore_errors=True)

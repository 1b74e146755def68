"""What a comparison of penalty and enforced bound found, to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..records import open_run, read_rows
from ..shown import Fact, Row, Shown, word

if TYPE_CHECKING:
    from ..plots import Sheet

# What the runs of a mode are ranked by, the first that was measured, and the best of it.
_MERITS = (("certified_at_report", max), ("clean_accuracy", max), ("rmse", min))


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Shown):
    """The runs of ``admm-lip compare``.

    Args:
        rows: one per run, with ``mode`` (``"penalty"`` or ``"bound"``), ``value`` (mu or the bound
            asked for), ``seed``, ``lip``, and what was measured.

    Example:
        >>> from admm_lip import Comparison
        >>> run = {"mode": "bound", "value": 2.0, "seed": 0, "lip": 1.99, "rmse": 0.25}
        >>> print(Comparison([run]).summary())
        comparison of 1 runs
          bound                       best at L = 1.99: rmse 0.25 (asked for 2, seed 0; 1 runs)
    """

    rows: Sequence[Row]

    @staticmethod
    def read(folder: str | os.PathLike[str]) -> Comparison:
        """That of a folder, as far as it has come.

        Raises:
            RunFolderError: for a folder that holds none.
        """
        return Comparison(read_rows(open_run(folder).front))

    def title(self) -> str:
        """How many runs there are."""
        return f"comparison of {len(self.rows)} runs"

    def facts(self) -> tuple[Fact, ...]:
        """The best run of either mode."""
        found = {mode: [r for r in self.rows if r["mode"] == mode] for mode in ("penalty", "bound")}
        return tuple(_best(mode, runs) for mode, runs in found.items() if runs)

    def table(self) -> Sequence[Row]:
        """The runs."""
        return self.rows

    def plot(self) -> Sheet:
        """Accuracy against the proven L of each run."""
        from ..plots import plot_front

        if not self.rows:
            raise ValueError("plot: expected runs, the comparison has none yet")
        return plot_front(self.rows)


def _best(mode: str, runs: Sequence[Row]) -> Fact:
    name, choose = next((m for m in _MERITS if all(m[0] in run for run in runs)), ("lip", min))
    run = choose(runs, key=lambda row: row[name])
    said = (
        f"best at L = {run['lip']:.6g}: {name.replace('_', ' ')} {run[name]:.6g} (asked for "
        f"{run['value']:g}, seed {run['seed']}; {len(runs)} runs)"
    )
    return word(mode, mode, run["lip"])._replace(said=said)

"""Witnesses: for some functionals of a batch, rows of numbers that a check starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Stated:
    """Some functionals, each of a sample, and what is stated of them.

    Attributes:
        items: which functionals, ``(batch, m)``, boolean; every other tensor has a row for each of
            them, in the order of ``nonzero``.
    """

    items: Tensor

    def select(self, rows: Tensor) -> Self:
        """That of some of its rows, ``(rows,)``, boolean."""
        items = self.items.clone()
        items[self.items] = rows
        return self._with(items, rows)

    def part(self, samples: Tensor) -> Self:
        """That of some samples of the batch, in ascending order."""
        kept = torch.zeros(len(self.items), dtype=torch.bool)
        kept[samples] = True
        return self._with(self.items[samples], kept[self.items.nonzero()[:, 0]])

    def _with(self, items: Tensor, rows: Tensor) -> Self:
        return replace(self, items=items, **{n: getattr(self, n)[rows] for n in self._stated()})

    def replaced(self, newer: Self) -> Self:
        """With another one's rows in the place of, or beside, its own."""
        items, made = self.items | newer.items, {}
        for name in self._stated():
            old, new = getattr(self, name), getattr(newer, name)
            whole = old.new_zeros((*items.shape, *old.shape[1:]))
            whole[self.items], whole[newer.items] = old, new
            made[name] = whole[items]
        return replace(self, items=items, **made)

    @classmethod
    def _stated(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.name != "items"]

    @classmethod
    def joined(cls, parts: Sequence[tuple[Self | None, Tensor]]) -> Self | None:
        """One witness of all batches, each with a tensor ``(batch, m)``; ``None`` of none."""
        given = [witness for witness, _ in parts if witness is not None and witness.items.any()]
        if not given:
            return None
        items = [
            torch.zeros_like(like, dtype=torch.bool) if own is None else own.items
            for own, like in parts
        ]
        stated = {n: torch.cat([getattr(w, n) for w in given]) for n in cls._stated()}
        return cls(torch.cat(items), **stated)

"""What a result states, named once: as a line, as text, as HTML, as a data frame, as a picture.

A result type names its facts, and where it has them its rows and its picture; the forms are made
here, and commands print the same facts.  Names come from user files: nothing of them is shown that
is not printable, and HTML is escaped.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from .extras import extra

if TYPE_CHECKING:
    import pandas

    from .plots import Sheet

Row = dict[str, Any]
# Characters of a fact that are shown.
_MOST = 500


class Fact(NamedTuple):
    """One thing that a result states.

    Attributes:
        name: in records and JSON, such as ``"lip"``.
        label: in words, such as ``"proven Lipschitz constant"``.
        value: a plain number, word or ``None``.
        said: the value for a person, with its unit.
        noted: whether the maker says it and no check proves it.
    """

    name: str
    label: str
    value: Any
    said: str
    noted: bool = False


def number(name: str, label: str, value: float, more: str = "", *, noted: bool = False) -> Fact:
    """A number to six digits, and what is said after it.

    Example:
        >>> number("lip", "proven Lipschitz constant", 0.9999718, " EUR per m2").said
        '0.999972 EUR per m2'
    """
    return Fact(name, label, value, f"{value:.6g}{more}", noted)


def share(name: str, label: str, value: float, more: str = "") -> Fact:
    """A share in per cent, and what is said after it.

    Example:
        >>> share("clean_accuracy", "clean accuracy", 0.9861, " of 360 test rows").said
        '98.6% of 360 test rows'
    """
    return Fact(name, label, value, f"{value:.1%}{more}")


def word(name: str, label: str, value: Any, *, noted: bool = False) -> Fact:
    """A fact that is said as it is."""
    return Fact(name, label, value, str(value), noted)


def printable(text: str) -> str:
    """Text on one line of bounded length, with every other character written as its escape.

    Example:
        >>> printable("a\\x1b[1m" + chr(10) + "b")
        'a\\\\x1b[1m\\\\nb'
    """
    text = text if len(text) <= _MOST else f"{text[:_MOST]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def lines(facts: Iterable[Fact]) -> list[str]:
    """Facts as they are printed, one a line.

    Example:
        >>> lines([number("lip", "proven Lipschitz constant", 1.0)])
        ['  proven Lipschitz constant   1']
    """
    return [f"  {printable(fact.label):<27} {printable(fact.said)}" for fact in facts]


def record_of(facts: Iterable[Fact]) -> Row:
    """Facts as a record for JSON: value by name."""
    return {fact.name: fact.value for fact in facts}


def as_csv(rows: Sequence[Row]) -> str:
    """Rows of the same names as CSV, the names first; floats read back exactly.

    Example:
        >>> print(as_csv([{"name": "a, b", "lip": 0.1}]), end="")
        name,lip
        "a, b",0.1
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Shown:
    """The forms in which a result is looked at.

    A subclass gives :meth:`title` and :meth:`facts`, and where it has them :meth:`table` and
    :meth:`plot`.  None of them computes what takes long.

    Example:
        >>> class Found(Shown):
        ...     def title(self):
        ...         return "search"
        ...     def facts(self):
        ...         return (number("tries", "tries made", 3), number("best", "best", 0.5))
        >>> Found()
        <search: tries 3, best 0.5>
        >>> print(Found().summary())
        search
          tries made                  3
          best                        0.5
    """

    # Facts of the one-line form, by name; empty: all of them.
    brief: ClassVar[tuple[str, ...]] = ()

    def title(self) -> str:
        """What this is, in a few words."""
        raise NotImplementedError

    def facts(self) -> Sequence[Fact]:
        """What is stated, in the order of importance."""
        raise NotImplementedError

    def table(self) -> Sequence[Row]:
        """What :meth:`to_frame` holds; the facts on one row unless there is more."""
        return [record_of(self.facts())]

    def __repr__(self) -> str:
        kept = [f for f in self.facts() if f.name in self.brief or not self.brief]
        said = [f"{f.name} {' '.join(printable(f.said).split())}" for f in kept]
        proven = [text for fact, text in zip(kept, said, strict=True) if not fact.noted]
        noted = [text for fact, text in zip(kept, said, strict=True) if fact.noted]
        more = f"; not proven: {', '.join(noted)}" if noted else ""
        return f"<{printable(self.title())}: {', '.join(proven)}{more}>"

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        cells = "".join(
            f"<tr><th style='text-align:left'>{_escaped(fact.label)}</th>"
            f"<td style='text-align:left'>{_escaped(fact.said)}</td>"
            f"<td>{'not proven' if fact.noted else ''}</td></tr>"
            for fact in self.facts()
        )
        return f"<table><caption>{_escaped(self.title())}</caption><tbody>{cells}</tbody></table>"

    def summary(self) -> str:
        """All facts, a line each, those apart that no check proves."""
        stated = self.facts()
        noted = lines(f for f in stated if f.noted)
        more = ["not proven, noted by its maker:", *noted] if noted else []
        own = lines(f for f in stated if not f.noted)
        return "\n".join([printable(self.title()), *own, *more])

    def plot(self) -> Sheet:
        """A picture of the result, a matplotlib figure that pyplot does not know.

        Raises:
            MissingExtra: where matplotlib is not installed.
            ValueError: where there is nothing to draw.
        """
        raise ValueError(f"plot: {printable(self.title())} has nothing to draw")

    def to_frame(self) -> pandas.DataFrame:
        """The rows of the result as a data frame.

        Raises:
            MissingExtra: where pandas is not installed.
        """
        with extra():
            import pandas
        return pandas.DataFrame(list(self.table()))


def _escaped(text: str) -> str:
    return html.escape(printable(text))

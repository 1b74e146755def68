"""JSON of a user's file, read in the one way that it can be read.

The standard reader takes the last of several equal keys, and NaN and infinities, which JSON does
not have; a file with either says one thing to one reader and another to the next.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def loads(text: str) -> Any:
    """JSON text as data.

    Raises:
        ValueError: for what is not JSON, a key given twice, NaN or an infinity, or lists nested
            too deep to be read.

    Example:
        >>> from admm_lip import strict_json
        >>> strict_json.loads('{"lip": 1.0, "lip": 2.0}')
        Traceback (most recent call last):
        ...
        ValueError: the key 'lip' is given twice
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (RecursionError, MemoryError):
        raise ValueError("nested too deep, or too large to be read") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0]!r:.200} is given twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"holds {name}, which JSON does not have")

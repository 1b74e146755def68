"""Lipschitz constants of data sets: 1 / the smallest l2 distance between two classes, exactly.

    python -m benchmarks class_distances --data-dir DIR [--sets mnist fashion cifar10]

Over all pairs of the training set, of the test set, and of both together, pixels in [0, 1].  The
published constants (Finlay et al., arXiv 1808.09540: table 3's text calls them reciprocals, its
caption distances) stand beside them for the sets they were given for.
"""

from __future__ import annotations

import time

import torch

from admm_lip.data import load_data
from admm_lip.research.distances import class_distance

from . import record
from .catalogue import parser_of

PUBLISHED = {"mnist": 0.417, "fashion": 0.626, "cifar10": 0.364}


def main(argv: list[str]) -> None:
    """Measure every set and write the record."""
    parser = parser_of("class_distances")
    parser.add_argument("--data-dir", default=None, help="folder of the image sets")
    parser.add_argument("--sets", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    options = parser.parse_args(argv)
    rows = []
    for name in options.sets:
        data = load_data(name, options.data_dir)
        both = tuple(torch.cat(pair) for pair in zip(data.train, data.test, strict=True))
        for part, (x, y) in {"train": data.train, "test": data.test, "both": both}.items():
            begun = time.perf_counter()
            found = class_distance(x, y)
            row = {
                "set": name,
                "part": part,
                "pictures": len(y),
                "distance": found.distance,
                "lipschitz": found.lipschitz,
                "published_lipschitz": PUBLISHED[name],
                "rows": found.rows,
                "classes": found.classes,
                "seconds": time.perf_counter() - begun,
            }
            rows.append(row)
            print(row, flush=True)
    record.save("class_distances", vars(options) | {"data_dir": None}, rows)

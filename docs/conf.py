"""How the site is built: ``python -m sphinx -W --keep-going docs docs/_build``.

No network is asked for anything, and warnings are errors; every script of ``gallery/`` is run.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import matplotlib as mpl
from sphinx_gallery.sorting import ExplicitOrder

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: small matrices, and CI's two cores

from admm_lip.plots import STYLE

ROOT = Path(__file__).resolve().parents[1]

project = "admm-lip"
author = "The admm-lip developers"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery"]
suppress_warnings = ["config.cache"]  # the settings of the gallery hold functions

html_theme = "furo"
html_title = f"admm-lip {release}"
html_show_sphinx = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the text of a docstring says types, shapes and units
napoleon_google_docstring, napoleon_numpy_docstring = True, False


def house_style(gallery: dict[str, Any], name: str) -> None:
    """The package's own look for the figures of every script."""
    mpl.rcParams.update(STYLE | {"figure.constrained_layout.use": True, "figure.figsize": (6.8, 4)})


sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": "/plot_",
    "reset_modules": ("matplotlib", house_style),
    "within_subsection_order": ExplicitOrder(
        [
            f"plot_{name}.py"
            for name in (
                "certify",
                "project",
                "train",
                "own_loop",
                "bound_or_penalty",
                "convolutions",
                "local",
                "table",
                "monotone",
                "critic",
                "controller",
                "system_identification",
                "backend",
                "*",
            )
        ]
    ),
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "plot_gallery": "True",
}

"""MNIST by wider dense networks, 784-256-256-10 and beyond: what width and time add to ``images``.

Everything but the networks is as there; so are the step sizes, which each method has from its
narrow networks (``images_tuning``).  Contenders whose names say a width or a number of epochs are
ADMM's with more of them, at the step size of the settings.
"""

from __future__ import annotations

from functools import partial

from . import images
from .study import Study, run_from_command_line

STUDY = Study(
    "images_wide",
    images.cells,
    images.run_cell,
    images.tabulate,
    partial(images.draw, name="images_wide"),
)


def main(argv: list[str]) -> None:
    """Run the study."""
    run_from_command_line(STUDY, argv)

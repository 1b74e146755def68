"""The packages to install: every one on disk, with ``solvers`` as ``admm_lip.solvers``.

All else is in ``pyproject.toml``, which has no word for packages found under another name.
"""

from setuptools import find_packages, setup

solvers = [f"admm_lip.{name}" for name in find_packages(include=["solvers", "solvers.*"])]
setup(packages=[*find_packages(include=["admm_lip", "admm_lip.*"]), *solvers])

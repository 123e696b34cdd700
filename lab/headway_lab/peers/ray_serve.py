"""The environment of a Ray cluster: Ray Serve beside what Headway itself needs, at the versions of constraints.txt.

Headway is not among the packages: its processes find it by PYTHONPATH, as the commit that is tried.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from headway_lab.peers.environment import Environment, Installer

ROOT = Path(__file__).resolve().parents[3]
VERSION = "2.60.0"  # as in the extra
TORCH = "2.13.0"  # installed first and alone: then packages that depend on torch take the build that pip has found
CONSTRAINTS = ROOT / "constraints.txt"


def _packages() -> tuple[str, ...]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return (*project["dependencies"], *extras["cpu"], *extras["ray"])


def _fill(installer: Installer) -> None:
    installer.pip("install", "-c", CONSTRAINTS, f"torch=={TORCH}")
    installer.pip("install", "-c", CONSTRAINTS, *_packages())


RAY_SERVE = Environment(
    name=f"ray-serve-{VERSION}",
    title="Ray Serve",
    cost="some minutes, 2 GB",
    parts=(TORCH, CONSTRAINTS.read_text(), *_packages()),
    fill=_fill,
)

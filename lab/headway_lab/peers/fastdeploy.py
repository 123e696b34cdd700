"""The environment of FastDeploy's engine on a CPU: its packages, and a folder `source` with FastDeploy and its tests.

FastDeploy's own package is for GPUs. Its engine, its worker queue and its token processor need no kernels: they run
from the source. PaddleFormers is installed without its dependencies, most of which belong to training.

FASTDEPLOY_SOURCE: another git repository that has the commit, as git names it. It saves the way to the public one.
"""

from __future__ import annotations

import os
from pathlib import Path

from headway_lab.peers.environment import Environment, Installer

REPOSITORY = "https://github.com/gongshaotian/FastDeploy.git"  # develop of 20 May 2026
COMMIT = "564c78d78c587299e3885ccdff5b86f0ff38a8fe"
PADDLEFORMERS = "paddleformers==1.1.1"
REQUIREMENTS = Path(__file__).parent / "fastdeploy-requirements.txt"
SOURCE_VARIABLE = "FASTDEPLOY_SOURCE"


def source() -> Path:
    """The folder of FastDeploy's source in its environment."""
    return FASTDEPLOY.folder / "source"


def _fill(installer: Installer) -> None:
    installer.pip("install", "-r", REQUIREMENTS)
    installer.pip("install", "--no-deps", PADDLEFORMERS)
    folder = installer.folder / "source"
    installer.run("git", "init", "-q", folder)
    repository = os.environ.get(SOURCE_VARIABLE, REPOSITORY)
    installer.run("git", "-C", folder, "fetch", "-q", "--depth", "1", repository, COMMIT)
    installer.run("git", "-C", folder, "checkout", "-q", "FETCH_HEAD", "--", "fastdeploy", "tests")
    (installer.site_packages / "fastdeploy-source.pth").write_text(f"{folder}\n")


FASTDEPLOY = Environment(
    name=f"fastdeploy-{COMMIT[:9]}",
    title=f"FastDeploy {COMMIT[:9]}",
    cost="some minutes, 2 GB",
    parts=(COMMIT, PADDLEFORMERS, REQUIREMENTS.read_text()),
    fill=_fill,
)

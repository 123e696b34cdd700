"""The environment of vLLM's scheduler: the Python source of vLLM alone.

Its scheduler runs without the kernels, which take an hour to build. PyPI has the source as an archive. The set-up
script of the archive needs torch and build tools to write its metadata.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from headway_lab.peers.environment import Environment, Installer

VERSION = "0.33.0"
TORCH = "2.13.0"  # installed first and alone: then packages that depend on torch accept the build that pip has found
BUILD_TOOLS = ("setuptools", "setuptools-rust", "setuptools-scm", "packaging", "wheel", "ninja", "cmake", "jinja2")
REQUIREMENTS = Path(__file__).parent / "vllm-source-requirements.txt"


def unpack(installer: Installer, part: str, target: Path) -> None:
    """Put one folder of vLLM's archive into `target`. part: its name, `vllm` or `tests`. The environment must have
    torch and the build tools."""
    with tempfile.TemporaryDirectory() as downloads:
        installer.pip(
            *("download", f"vllm=={VERSION}", "--no-deps", "--no-binary", "vllm", "--no-build-isolation"),
            *("-d", downloads),
            VLLM_VERSION_OVERRIDE=VERSION,
            VLLM_TARGET_DEVICE="empty",
        )
        with tarfile.open(next(Path(downloads).glob("vllm-*.tar.gz"))) as tar:
            for member in tar:
                _, _, path = member.name.partition("/")
                if path.startswith(f"{part}/"):
                    tar.extract(member.replace(name=path, deep=False), target, filter="data")


def _fill(installer: Installer) -> None:
    installer.pip("install", f"torch=={TORCH}")
    installer.pip("install", *BUILD_TOOLS)
    installer.pip("install", "-r", REQUIREMENTS)
    unpack(installer, "vllm", installer.site_packages)


VLLM_SOURCE = Environment(
    name=f"vllm-{VERSION}",
    title=f"vLLM {VERSION}",
    cost="some minutes, 2 GB",
    parts=(VERSION, TORCH, *BUILD_TOOLS, REQUIREMENTS.read_text()),
    fill=_fill,
)

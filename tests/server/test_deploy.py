"""The files of `examples/deploy`: their command lines are ours, their times fit each other, their paths are served."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from headway import cli
from headway.client.link import EXIT_TIMEOUT
from headway.server.entrance.doors import OPEN_PATHS
from headway.server.serve import _SLOW_CLIENT_S
from tests.server.conftest import Api

FOLDER = Path(__file__).parents[2] / "examples" / "deploy"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
MANIFESTS: dict[str, Any] = {
    manifest["kind"]: manifest for manifest in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PROBES = {name: CONTAINER[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")}


def options_of(words: list[str]) -> dict[str, Any]:
    """The options of `headway serve` in a command line without the first word."""
    assert words[0] == "serve"
    command = typer.main.get_command(cli.app).commands["serve"]  # type: ignore[attr-defined]
    options: dict[str, Any] = command.make_context("serve", words[1:]).params
    return options


def test_the_container_serves_at_the_port_that_its_probes_and_services_ask() -> None:
    options = options_of(CONTAINER["args"])
    (port,) = CONTAINER["ports"]
    assert options["host"] == "0.0.0.0" and options["port"] == port["containerPort"]
    assert MANIFESTS["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert {probe["httpGet"]["port"] for probe in PROBES.values()} == {port["name"]}
    assert (
        MANIFESTS["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == MANIFESTS["Service"]["spec"]["ports"][0]["name"]
    )


def test_a_pod_has_the_time_that_a_server_takes_to_stop() -> None:
    """Else the kernel ends it while requests that may go on are answered."""
    _, before = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    grace = options_of(CONTAINER["args"])["shutdown_grace"]
    needed = float(before) + grace + _SLOW_CLIENT_S + EXIT_TIMEOUT
    assert needed < POD["terminationGracePeriodSeconds"] < 2 * needed


async def test_the_paths_of_the_probes_and_of_prometheus_are_served_without_a_key(api: Api) -> None:
    paths = {probe["httpGet"]["path"] for probe in PROBES.values()}
    paths.add(MANIFESTS["ServiceMonitor"]["spec"]["endpoints"][0]["path"])
    assert paths <= OPEN_PATHS
    for path in paths:
        assert (await api.get(path)).status_code == 200


def test_selectors_find_the_pods_and_the_service() -> None:
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["Service"]["spec"]["selector"],
        MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["ServiceMonitor"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert MANIFESTS["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items() <= (
        MANIFESTS["Service"]["metadata"]["labels"].items()
    )


@pytest.mark.parametrize("instruction", ["CMD", "docker run"])
def test_the_command_lines_of_the_image_are_ours(instruction: str) -> None:
    if instruction == "CMD":
        (line,) = (line for line in DOCKERFILE.splitlines() if line.startswith('CMD ["'))
        words = yaml.safe_load(line.removeprefix("CMD "))
    else:
        (line,) = (line for line in DOCKERFILE.splitlines() if "docker run" in line and "serve" in line)
        words = shlex.split(line)
        words = words[words.index("serve") :]
    assert options_of(words)["host"] == "0.0.0.0"


def test_what_the_image_is_made_of_reaches_the_build() -> None:
    copied = [word for line in DOCKERFILE.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    let_in = {line.removeprefix("!") for line in (FOLDER.parents[1] / ".dockerignore").read_text().splitlines()}
    assert set(copied) <= let_in
    for name in copied:
        assert (FOLDER.parents[1] / name).exists(), name


def test_variables_that_kubernetes_makes_of_a_service_are_not_taken_for_options() -> None:
    assert MANIFESTS["Service"]["metadata"]["name"] == "headway"
    assert POD["enableServiceLinks"] is False

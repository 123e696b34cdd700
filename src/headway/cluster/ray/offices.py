"""Where Ray's router, which Ray makes, and the engines of a process, which Headway makes, find each other.

Ray makes one router for each handle, in the process that has the handle, from a pickled class. So they meet here, by
the name of the deployment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Office(Protocol):
    """What an `EngineRouter` asks and tells. Called on the event loop of the router, which is that of the replica."""

    def order(self, ticket: int) -> Sequence[str]:
        """The replicas to ask for this ticket, by their ids, the best first."""

    def routed(self, ticket: int, replica: str) -> None:
        """A replica has taken the call of this ticket."""

    def running(self, replicas: Mapping[str, Mapping[str, Any]]) -> None:
        """The replicas that run, and what each has said of itself when it started."""


_offices: dict[str, Office] = {}
_running: dict[str, Mapping[str, Mapping[str, Any]]] = {}


def open_office(deployment: str, office: Office) -> None:
    """From now on the router of this deployment asks this office."""
    _offices[deployment] = office
    if deployment in _running:
        office.running(_running[deployment])


def of(deployment: str) -> Office | None:
    """The office of a deployment, if there is one in this process."""
    return _offices.get(deployment)


def tell_running(deployment: str, replicas: Mapping[str, Mapping[str, Any]]) -> None:
    """The router says which replicas run, also before there is an office."""
    _running[deployment] = replicas
    if (office := _offices.get(deployment)) is not None:
        office.running(replicas)

"""Ray's request router, which lets the office of this process choose. Its interface is alpha: Ray's version is pinned.

Ray pickles this module by value; so what is shared with the rest of the process lies in another one (`offices.py`).
"""

from __future__ import annotations

from typing import Any

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.experimental.round_robin_router import RoundRobinRouter
from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from headway.cluster.ray import offices


class _TellsTheOffice(RequestRouter):
    """The office learns which replicas run, and which of them took a call. The first argument of a call is its
    ticket."""

    def on_request_routed(
        self,
        pending_request: PendingRequest,
        replica_id: ReplicaID,
        result: ReplicaResult,  # noqa: ARG002
    ) -> None:
        """A replica has taken a call."""
        office = offices.of(self._deployment_id.name)
        if office is not None and pending_request.args:
            office.routed(pending_request.args[0], replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray says which replicas run."""
        super().update_replicas(replicas)
        metadata: dict[str, dict[str, Any]] = {one.replica_id.unique_id: one.replica_metadata for one in replicas}
        offices.tell_running(self._deployment_id.name, metadata)


class EngineRouter(_TellsTheOffice):
    """Chooses the engine with most of the prompt in its cache, if its load allows."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks, each of one replica; a process without an office has one rank of all."""
        office = offices.of(self._deployment_id.name)
        if office is None or pending_request is None or not pending_request.args:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # where all are full, Ray asks again, and not at once
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        order = [name for name in office.order(pending_request.args[0]) if name in replicas]
        return [[replicas[name]] for name in order]


class DefaultRouter(_TellsTheOffice, PowerOfTwoChoicesRequestRouter):
    """Ray's own choice: the less busy one of two."""


class TurnsRouter(_TellsTheOffice, RoundRobinRouter):
    """One replica after the other."""

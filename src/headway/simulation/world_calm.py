"""The end of a world without faults: every request must end, every lease within its bound, and new requests succeed."""

from __future__ import annotations

import math

from headway.request import FinishReason
from headway.simulation.calm import check_empty, serve_partner
from headway.simulation.events import Event
from headway.simulation.history import Violation, require
from headway.simulation.shapes import Shape
from headway.simulation.simulation import Simulation
from headway.simulation.world import World

_ALL = 1 << 20
_SLACK = 0.01  # seconds: time passes in whole milliseconds
_TAIL = 1 << 20  # the first of the prompts that nothing has computed yet


def calm_world(world: World) -> None:
    """Run until no request is left and no block is lent or on its way; then try every P with every D.

    Dead D are started again, dead P stay dead. Connections that have fallen silent stay silent: both sides must notice.
    Raises Violation if a request never ends, if a lease outlives its bound, or if anything is still held at the end.
    """
    world.counts["calm"] += 1
    for member in world.members:
        if member.simulation is None and not world.is_p(member.number):
            _at(world, member.number, "restart")
        if member.simulation is not None and member.simulation.core.paused:
            _at(world, member.number, "resume")
        if member.simulation is not None and member.simulation.core.held:
            _at(world, member.number, "lift_hold")
    turns = _turns_enough(world)
    over_at: float | None = None
    while not _is_over(world):
        if not turns:
            raise Violation("endless", f"{[one.core.snapshot for one in world.alive()]}")
        turns -= 1
        before = _course(world)
        _round(world)
        if not any(one.history.live for one in world.alive()):
            over_at = world.now if over_at is None else over_at
            late = world.now - over_at - _bound(world) - _SLACK
            if late > 0:
                raise Violation("held too long", f"{late:.3f} s after the bound: {_held(world)}")
        if _course(world) == before:
            _pass_time(world)
    for simulation in world.alive():
        check_empty(simulation)
    _try_anew(world)


def _turns_enough(world: World) -> int:
    """Each request waits for a few messages of the network and for a few time-outs, and then goes on by itself."""
    live = sum(len(one.history.live) for one in world.alive())
    longest = max(engine.config.max_model_len for engine in world.setting.engines)
    return 800 + 40 * live * (2 * longest + 4)


def _bound(world: World) -> float:
    """A lease and two heartbeats, in seconds."""
    return max(engine.config.lend_timeout for engine in world.setting.engines) * 5 / 3


def _is_over(world: World) -> bool:
    return not any(one.history.live or one.in_flight for one in world.alive()) and not _held(world)


def _held(world: World) -> list[str]:
    """What is held by, or for, other engines, and what is to be done yet."""
    held: list[str] = []
    for member in world.members:
        if member.simulation is None:
            continue
        endpoint, snapshot = world.endpoint(member.number), member.simulation.core.snapshot
        numbers = {
            "leases": len(endpoint.lent),
            "blocks lent": snapshot.num_blocks_lent,
            "pulls": len(endpoint.pulls),
            "blocks in quarantine": snapshot.num_blocks_quarantined,
            "known to the connector": endpoint.num_wanted,
            "sends": len(member.simulation.partner.leases),
            "effects to carry out": endpoint.num_news,
            "messages to drain": endpoint.num_messages,
        }
        held += [f"engine {member.number}: {number} {what}" for what, number in numbers.items() if number]
    jobs = {pair: link.receiver.num_jobs for pair, link in world.links.items() if world.members[pair[0]].site}
    return held + [f"engine {d} wants {number} of engine {p}" for (d, p), number in jobs.items() if number]


def _at(world: World, number: int, name: str, *args: int) -> None:
    world.happen(Event(name, args, number))


def _course(world: World) -> tuple[int, int, int]:
    batches = sum(one.counts["batches"] for one in world.alive())
    return world.num_messages, world.num_moves, batches


def _round(world: World) -> None:
    """Everything that can be done now is done once. A connection delivers all that it has."""
    for member in world.members:
        if member.simulation is None:
            continue
        number = member.number
        _at(world, number, "drain", _ALL)
        _work(world, number, member.simulation)
        _at(world, number, "carry_out", _ALL)
    for (d, p), link in world.links.items():
        if world.members[d].site is not None:
            for which in range(0 if link.open is None else len(link.open.reads)):
                _at(world, d, "copy", p, which, _ALL)
                _at(world, d, "copy", p, 0, 0)
            _at(world, d, "serve", p, _ALL)
        if world.members[p].site is not None:
            for back in range(len(link.connections)):
                _at(world, p, "listen", d, back, _ALL, 0)


def _work(world: World, number: int, simulation: Simulation) -> None:
    """Launch a step and take its result; jobs and sends succeed; deadlines that have passed are told."""
    simulation.core.now = world.now
    serve_partner(simulation)
    due = simulation.core.snapshot.next_deadline
    if due is not None and due <= world.now:
        _at(world, number, "tick")
    _at(world, number, "launch")
    if simulation.in_flight:
        _at(world, number, "answer", 0)


def _pass_time(world: World) -> None:
    """Nothing is left to do now: wait for the next deadline of an engine, or of a thread of the network."""
    times = [one.core.snapshot.next_deadline for one in world.alive()]
    left = [time - world.now for time in times if time is not None]
    left += [seconds for link in world.links.values() if (seconds := link.seconds_left) is not None]
    if not left:
        raise Violation("stuck", f"nothing goes on, and no deadline is near: {_held(world)}")
    world.happen(Event("wait", (max(1, math.ceil(min(left) * 1000)),)))


def _try_anew(world: World) -> None:
    """A new request through each P and each D that are alive: it must get its whole answer."""
    for d, p in world.links:
        if world.members[p].simulation is None:
            continue
        length = max(1, world.setting.engines[d].config.max_model_len // 2)
        shape = Shape(_next_uid(world.members[p].simulation), 0, 0, length, 1)
        tail, number = _TAIL + world.num_messages, len(world.prompts)
        _at(world, p, "prefill", *shape, tail)
        _finish(world, p, shape.uid)
        shape = shape._replace(uid=_next_uid(world.members[d].simulation), max_tokens=2)
        before = world.endpoint(d).counts["pulls ok, and P's token"]
        _at(world, d, "decode", *shape, tail, number, 0)
        _finish(world, d, shape.uid)
        world.counts["new requests at the end"] += 1
        pulled = world.endpoint(d).counts["pulls ok, and P's token"] - before
        world.counts["new requests at the end that pulled"] += pulled


def _next_uid(simulation: Simulation | None) -> int:
    assert simulation is not None
    return 1 + max((*simulation.history.ended, 0))


def _finish(world: World, number: int, uid: int) -> None:
    simulation = world.members[number].simulation
    assert simulation is not None
    rounds = 0
    while uid in simulation.history.live:
        rounds += 1
        require(rounds < 1000, "endless", f"a new request of engine {number} does not end")
        before = _course(world)
        _round(world)
        if _course(world) == before:
            _pass_time(world)
    reason = simulation.history.ended[uid]
    served = reason in (FinishReason.STOP, FinishReason.LENGTH)
    require(served, "not served", f"a new request of engine {number} ends with {reason}")
    _round(world)  # the reference is handed over

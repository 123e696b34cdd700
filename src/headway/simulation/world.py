"""A world of P and D engines, event by event: each a simulated engine with the real lender and receivers, and a network
between them.

Engines die at any moment, and come back as another incarnation, which numbers its requests from the beginning. The
clock is one for all; an engine hears of it when its events come. The weights are the same everywhere, and stay.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from headway.simulation.decisions import Decisions
from headway.simulation.endpoint import Endpoint
from headway.simulation.events import WORLD_EVENTS, Event
from headway.simulation.history import Violation, require
from headway.simulation.link import Link, Site, layout_of
from headway.simulation.setting import WorldSetting
from headway.simulation.shapes import Shape
from headway.simulation.simulation import Simulation, violation_of
from headway.transfer.handover import Handover
from headway.transfer.reference import Reference, Seal


@dataclass(slots=True)
class Prompt:
    """A prompt that a P has, or had. first, latest: references. engine: the number of P. uid: there."""

    engine: int
    uid: int
    first: str
    latest: str


@dataclass(slots=True)
class Member:
    """An engine of a world. incarnation: how often it was started. simulation, site: None while it is dead.

    by_uid: the numbers of its prompts, of this incarnation.
    """

    number: int
    incarnation: int = 0
    simulation: Simulation | None = None
    site: Site | None = None
    by_uid: dict[int, int] = field(default_factory=dict)


class World:
    """now: seconds. members: P first. links: by D and P. prompts: by number, of all times. counts: how often each kind
    of event happened, and of engines that are gone, what they did."""

    def __init__(self, setting: WorldSetting) -> None:
        self.setting = setting
        self.now = 0.0
        self.decisions = Decisions()
        self.prompts: list[Prompt] = []
        self.links: dict[tuple[int, int], Link] = {}
        self.counts: Counter[str] = Counter()
        self.members = [Member(number) for number in range(len(setting.engines))]
        self._num_messages_before = 0
        for member in self.members:
            self._start(member)

    @property
    def num_messages(self) -> int:
        """Messages to all cores, also of former incarnations."""
        return self._num_messages_before + sum(one.core.num_messages for one in self.alive())

    @property
    def num_moves(self) -> int:
        """Messages and reads that have gone on between engines."""
        return sum(link.num_moves for link in self.links.values()) + self.counts["moves"]

    def all_counts(self) -> Counter[str]:
        """What has happened, in all engines of all times, and between them."""
        counts = sum((counts_of(one) for one in self.alive()), Counter(self.counts))
        counts = sum((link.counts for link in self.links.values()), counts)
        del counts["moves"]
        return counts

    def alive(self) -> list[Simulation]:
        """The engines that are not dead."""
        return [member.simulation for member in self.members if member.simulation is not None]

    def is_p(self, number: int) -> bool:
        """Whether engine `number` is a P."""
        return number < self.setting.num_prefill

    def links_of(self, number: int) -> Iterator[Link]:
        """The links of this engine to the others."""
        return (link for pair, link in self.links.items() if number in pair)

    def endpoint(self, number: int) -> Endpoint:
        """Of an engine that is alive."""
        site = self.members[number].site
        assert site is not None, f"engine {number} is dead"
        return site.endpoint

    # -- engines -------------------------------------------------------------------------------------------------

    def _start(self, member: Member) -> None:
        number, setting = member.number, self.setting.engines[member.number]
        member.incarnation += 1
        member.by_uid = {}
        make = partial(
            Endpoint,
            seal=self.seal_of(member),
            clock=lambda: self.now,
            reference_seconds=self.setting.reference_seconds,
            on_handover=partial(self._handed_over, member),
            on_void=partial(self._begin_anew, member),
        )
        simulation = Simulation(setting, make, self.decisions, changes_weights=False)
        simulation.core.now = simulation.core.told_at = self.now
        config = setting.config
        layout = layout_of(config.block_size, config.num_blocks, self.setting.slice_blocks)
        endpoint = cast("Endpoint", simulation.connector)
        member.simulation = simulation
        member.site = mine = Site(endpoint, simulation.device, layout, config.lend_timeout)
        if self.is_p(number):
            return
        for p in range(self.setting.num_prefill):
            former = self.links.get((number, p))
            link = Link(mine, partial(self._site_of, p), lambda: self.now, self.setting.shares_memory)
            if former is not None:  # P may not have noticed that these are over
                link.connections = former.connections
                self._keep(former)
            self.links[number, p] = link
            endpoint.peers[_host(p)] = link

    def seal_of(self, member: Member) -> Seal:
        """The seal of the present incarnation."""
        key = hashlib.blake2b(f"{member.number} {member.incarnation}".encode(), digest_size=48).digest()
        return Seal(lambda: self.now, key[:16], key[16:])

    def _site_of(self, number: int) -> Site | None:
        return self.members[number].site

    def _keep(self, link: Link) -> None:
        """Keep the counts of a link that is gone."""
        self.counts += link.counts
        self.counts["moves"] += link.num_moves

    def _die(self, member: Member, silent: int, lost: int) -> None:
        simulation = member.simulation
        if simulation is None:
            return
        self.counts["requests lost with their engine"] += len(simulation.history.live)
        self._num_messages_before += simulation.core.num_messages
        self.counts += counts_of(simulation)
        member.simulation = member.site = None
        for (d, p), link in self.links.items():
            if p == member.number:
                link.p_died(bool(silent), lost)
            elif d == member.number:
                link.d_died(bool(silent), lost)

    def _restart(self, member: Member) -> None:
        if member.simulation is None:
            self._start(member)

    def _begin_anew(self, member: Member) -> None:
        self.counts["incarnations without a death"] += 1
        member.incarnation += 1
        self.endpoint(member.number).lender.begin_anew(self.seal_of(member))
        for link in self.links_of(member.number):
            link.cut(1, 0)

    # -- events --------------------------------------------------------------------------------------------------

    def happen(self, event: Event) -> None:
        """Carry out one event. Raises Violation if any engine breaks a rule. An engine that is dead does nothing."""
        if event.at is None:
            self.counts[event.name] += 1
            require(event.name == "wait", "no event of a world", str(event))
            self._wait(*event.args)
            return
        member = self.members[event.at]
        if member.simulation is not None:
            member.simulation.core.now = self.now
        if event.name not in WORLD_EVENTS:
            if member.simulation is not None:
                if event.name == "tick":  # a writer that has slept takes its messages first
                    self.counts["moves"] += self.endpoint(event.at).drain(1 << 30)
                member.simulation.happen(event)
            return
        self.counts[event.name] += 1
        try:
            getattr(self, f"_{event.name}")(member, *event.args)
        except Violation:
            raise
        except Exception as error:
            raise violation_of(error) from error

    def _wait(self, ms: int) -> None:
        self.now += ms / 1000
        for simulation in self.alive():
            simulation.check_deadline()

    def _prefill(self, member: Member, *args: int) -> None:
        *shape, tail = args
        if member.simulation is None:
            return
        uid, number = shape[0], len(self.prompts)
        earlier = member.by_uid.get(uid)
        if earlier is None:
            member.by_uid[uid] = number
            self.prompts.append(Prompt(member.number, uid, "", ""))
        text = self.endpoint(member.number).prefill(Shape(*shape), tail)
        if earlier is None and text is not None:
            self.prompts[number].first = self.prompts[number].latest = text

    def _handed_over(self, member: Member, uid: int, text: str) -> None:
        number = member.by_uid.get(uid)
        if number is not None:
            self.prompts[number].latest = text
            self.counts["handovers"] += 1

    def _decode(self, member: Member, *args: int) -> None:
        *shape, tail, number, how = args
        if member.simulation is not None and not self.is_p(member.number):
            self.endpoint(member.number).decode(Shape(*shape), tail, self._params(number, how))

    def _params(self, number: int, how: int) -> dict[str, Any] | None:
        """What a router passes on. how: one of REFERENCES."""
        if how == 4 or number >= len(self.prompts):
            return None
        prompt = self.prompts[number]
        text = prompt.latest if how != 1 else prompt.first
        if not text:
            return None
        if how in (2, 3):
            meant = Reference.parse(text)
            uid = meant.uid + (how == 3)
            forger = Seal(lambda: self.now, meant.engine, b"forged")
            text = forger.close(
                Reference(
                    meant.engine, uid, meant.generation, meant.num_tokens, meant.prompt, meant.sampling, meant.expires
                )
            )
        return Handover("nowhere" if how == 5 else _host(prompt.engine), 1 + prompt.engine, text).params()

    def _carry_out(self, member: Member, count: int) -> None:
        if member.simulation is not None:
            self.counts["moves"] += self.endpoint(member.number).carry_out(count)

    def _drain(self, member: Member, count: int) -> None:
        if member.simulation is not None:
            self.counts["moves"] += self.endpoint(member.number).drain(count)

    def _serve(self, member: Member, peer: int, count: int) -> None:
        if (link := self._link(member, peer)) is not None:
            link.serve(count)

    def _copy(self, member: Member, peer: int, which: int, count: int) -> None:
        if (link := self._link(member, peer)) is not None:
            link.copy(which, count)

    def _cut(self, member: Member, peer: int, how: int, lost: int) -> None:
        if (link := self._link(member, peer)) is not None:
            link.cut(how, lost)

    def _link(self, d: Member, p: int) -> Link | None:
        return None if d.simulation is None else self.links.get((d.number, p))

    def _listen(self, member: Member, peer: int, back: int, count: int, stuck: int) -> None:
        link = self.links.get((peer, member.number))
        if member.simulation is None or link is None:
            return
        endpoint = self.endpoint(member.number)
        endpoint.is_stuck = bool(stuck)
        link.listen(back, count)
        endpoint.is_stuck = False


def _host(number: int) -> str:
    return f"p{number}"


def counts_of(simulation: Simulation) -> Counter[str]:
    """What has happened in an engine."""
    history, now = simulation.history, simulation.core.snapshot
    return (
        simulation.counts
        + simulation.connector.counts
        + Counter(
            {
                "requests accepted": len(history.ended) + len(history.live),
                "requests completed": history.num_completed,
                "tokens generated": history.num_tokens,
                "tokens found in the prefix cache": now.num_prefix_hit_tokens,
                "preemptions": now.num_preemptions,
                "reservations": len(simulation.partner.reserved_uids),
            }
        )
    )

"""One run: the right answers, faults under traffic, and what must be true afterwards."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

from headway.client.restart_budget import RestartBudget
from headway.cluster.group import Group
from headway.cluster.group_server import GroupServer, Tell
from headway.cluster.held_ports import HeldPorts
from headway_lab.chaos.cases import NUM_CASES, Case, with_answers
from headway_lab.chaos.client import Client, Router
from headway_lab.chaos.counters import Counters
from headway_lab.chaos.disturbances import Disturbances
from headway_lab.chaos.faults import Faults
from headway_lab.chaos.leftovers import metric, wait_until_free
from headway_lab.chaos.plan import Fault
from headway_lab.chaos.topology import DECODE, MANY, PREFILL, SERVERS, Topology, mixed
from headway_lab.chaos.traffic import Traffic
from headway_lab.chaos.verdict import Right, Verdict

WELL_S = 180.0  # seconds until all servers must be well, and until every D reads from every P again
_PULLED, _LOST, _PREEMPTIONS = "external_kv_transfer", "lost_pulls_total", "num_preemptions_total"  # metrics


@dataclass(slots=True)
class Outcome:
    """What came of a run. outcomes: requests, by way and outcome. free_after_s: until the last server was free."""

    faults: Counter[str] = field(default_factory=Counter)
    num_in_vain: int = 0
    num_deaths: int = 0
    counted: dict[str, float] = field(default_factory=dict)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    broken_ends: list[str] = field(default_factory=list)
    unexcused: list[str] = field(default_factory=list)
    not_well: list[str] = field(default_factory=list)
    free_after_s: float = 0.0

    @property
    def problems(self) -> list[str]:
        """Everything that must not be."""
        return [*self.leaks, *self.mismatches, *self.broken_ends, *self.unexcused, *self.not_well]


async def right_answers(tell: Tell, num_cases: int) -> tuple[list[Case], list[dict[int, Right]]]:
    """The cases, and their answers by one engine that computes everything."""
    group = Group([GroupServer(mixed(), tell)], RestartBudget(0))
    try:
        await group.start()
        return await with_answers(group.processes["mixed"].url, num_cases)
    finally:
        await group.stop()


async def run(
    faults: Sequence[Fault],
    seconds: float,
    seed: int,
    *,
    tell: Tell,
    say: Callable[[str], None],
    num_cases: int = NUM_CASES,
) -> Outcome:
    """Inject these faults under traffic that lasts `seconds`. tell: gets the lines of the servers. say: the course of
    the run. Raises GroupError if the servers do not start."""
    say("the right answers: one mixed engine")
    cases, answers = await right_answers(tell, num_cases)
    outcome = Outcome()
    with HeldPorts() as ports:
        topology = Topology(ports)
        for proxy in topology.proxies.values():
            await proxy.start()
        group = Group([GroupServer(member, tell) for member in topology.members], RestartBudget(MANY))
        client = Client(topology.urls)
        try:
            say("two prefill and two decode engines start")
            await group.start()
            await _Run(topology, group, client, cases, answers, seed, say, outcome).run(faults, seconds)
        finally:
            await client.close()
            await group.stop(grace=2.0)
            for proxy in topology.proxies.values():
                await proxy.close()
    return outcome


class _Run:
    def __init__(
        self,
        topology: Topology,
        group: Group[GroupServer],
        client: Client,
        cases: Sequence[Case],
        answers: Sequence[dict[int, Right]],
        seed: int,
        say: Callable[[str], None],
        outcome: Outcome,
    ) -> None:
        self._topology = topology
        self._group = group
        self._client = client
        self._cases = cases
        self._say = say
        self._outcome = outcome
        self._disturbances = Disturbances()
        self._verdict = Verdict(answers, self._disturbances)
        self._traffic = Traffic(client, cases, seed)
        self._faults = Faults(group, topology.proxies, self._disturbances, self._traffic)
        self._http = httpx.AsyncClient(timeout=60.0, trust_env=False)

    async def run(self, faults: Sequence[Fault], seconds: float) -> None:
        try:
            await self._storm(faults, seconds)
            if await self._become_well():
                await self._check_free()
                await self._use_again()
                await self._check_free()
        finally:
            await self._faults.close()
            await self._http.aclose()
            self._judge()

    async def _storm(self, faults: Sequence[Fault], seconds: float) -> None:
        began = time.monotonic()
        self._traffic.start()
        counters = Counters(self._http, [self._topology.urls[name] for name in DECODE], (_PULLED, _LOST, _PREEMPTIONS))
        counters.start()
        async with asyncio.TaskGroup() as injections:
            for fault in faults:
                await asyncio.sleep(began + fault.at - time.monotonic())
                self._say(f"{fault.at:5.1f} s: {fault.kind}, {fault.target}, {fault.seconds:.1f} s {fault.mode}")
                injections.create_task(self._inject(fault))
            await asyncio.sleep(began + seconds - time.monotonic())
        self._say("the faults are over")
        await self._traffic.stop()
        await counters.stop()
        self._outcome.counted = {
            "prompt tokens that came from P": counters.sums[_PULLED],
            "prompts that should have come and were computed": counters.sums[_LOST],
            "preemptions on D": counters.sums[_PREEMPTIONS],
        }
        self._outcome.faults = Counter({str(kind): count for kind, count in self._faults.injected.items()})
        self._outcome.num_in_vain = self._faults.num_in_vain
        self._outcome.num_deaths = self._group.num_deaths

    async def _inject(self, fault: Fault) -> None:
        try:
            async with asyncio.timeout(WELL_S + fault.seconds):
                await self._faults.inject(fault)
        except TimeoutError:
            self._outcome.not_well.append(f"{fault.target} is not well {WELL_S:g} s after a fault ({fault.kind})")

    async def _become_well(self) -> bool:
        for name in SERVERS:
            try:
                async with asyncio.timeout(WELL_S):
                    await self._faults.wait_well(name)
                    await self._faults.resume(name)
            except TimeoutError:
                self._outcome.not_well.append(f"{name} is not well {WELL_S:g} s after the last fault")
        return not self._outcome.not_well

    async def _check_free(self) -> None:
        for name, url in self._topology.urls.items():
            seconds, left = await wait_until_free(self._http, url)
            self._outcome.free_after_s = max(self._outcome.free_after_s, seconds)
            if left is not None:
                self._outcome.leaks.append(f"{name}: {left} after {seconds:.0f} s")

    async def _use_again(self) -> None:
        """Every D answers, alone and with KV of every P."""
        self._say("every engine is used again")
        for decode in DECODE:
            for number, case in enumerate(self._cases):
                await self._client.ask(number, case, decode, stream=number % 2 == 0)
            for prefill in PREFILL:
                try:
                    async with asyncio.timeout(WELL_S):
                        await self._pull(decode, prefill)
                except TimeoutError:
                    self._outcome.not_well.append(f"{decode} reads nothing from {prefill} {WELL_S:g} s after the storm")

    async def _pull(self, decode: str, prefill: str) -> None:
        """Ask for prompts that are in no cache, until D has read KV of P: it may take D a while to try P again."""
        url = self._topology.urls[decode]
        number = max(range(len(self._cases)), key=lambda i: len(str(self._cases[i].body)))
        before = await metric(self._http, url, _PULLED)
        while await metric(self._http, url, _PULLED) <= before:
            await self._http.post(f"{url}/reset_prefix_cache")
            await self._client.ask(number, self._cases[number], decode, router=Router(prefill), stream=False)

    def _judge(self) -> None:
        outcome = self._outcome
        lists = {"mismatch": outcome.mismatches, "end": outcome.broken_ends, "failure": outcome.unexcused}
        for history in self._client.histories:
            way = "P, by a router" if history.is_first_token else f"D, {history.way}"
            outcome.outcomes[way, history.outcome] += 1
            for violation in self._verdict.violations(history):
                lists[violation.rule].append(violation.text)

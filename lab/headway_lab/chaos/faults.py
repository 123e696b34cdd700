"""Injects faults into the processes of a group, and into the wires between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping

import httpx
import psutil  # type: ignore[import-untyped]

from headway.cluster.group import Group
from headway.cluster.group_server import GroupServer
from headway_lab.chaos.disturbances import Disturbances
from headway_lab.chaos.plan import Fault, FaultKind
from headway_lab.chaos.proxy import Proxy
from headway_lab.chaos.traffic import Traffic

_POLL_S = 0.2
_ANSWER_S = 60.0  # seconds for the answer of a server; a stop is much shorter


class Faults:
    """injected: how often each kind was. num_in_vain: faults that found their process dead already."""

    def __init__(
        self, group: Group[GroupServer], proxies: Mapping[str, Proxy], disturbances: Disturbances, traffic: Traffic
    ) -> None:
        self.injected: Counter[FaultKind] = Counter()
        self.num_in_vain = 0
        self._group = group
        self._proxies = proxies
        self._disturbances = disturbances
        self._traffic = traffic
        self._http = httpx.AsyncClient(timeout=_ANSWER_S, trust_env=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def inject(self, fault: Fault) -> None:
        """Returns when the fault is over, and its target is well again. A server that is just being started again has
        its fault when it is well."""
        try:
            if fault.target in self._group.processes:
                await self.wait_well(fault.target)
            match fault.kind:
                case FaultKind.KILL_ENGINE:
                    await self._kill_engine(fault.target)
                case FaultKind.KILL_API:
                    await self._kill_api(fault.target)
                case FaultKind.STOP_ENGINE:
                    await _stop(self._engine(fault.target), fault.seconds)
                case FaultKind.STOP_API:
                    await _stop(self._api(fault.target), fault.seconds)
                case FaultKind.CUT | FaultKind.DELAY:
                    await self._disturb_wire(fault)
                case FaultKind.ABORTS:
                    await self._traffic.storm()
                case FaultKind.PAUSE:
                    await self._pause(fault)
                case FaultKind.IDLE:
                    await self._traffic.idle(fault.seconds)
        except psutil.NoSuchProcess:
            self.num_in_vain += 1
        else:
            self.injected[fault.kind] += 1

    async def wait_well(self, name: str, *, not_pids: frozenset[int] = frozenset()) -> None:
        """Wait until a server takes requests, with other processes than these."""
        while not await self._is_well(name, not_pids):
            await asyncio.sleep(_POLL_S)

    async def resume(self, name: str) -> None:
        """Wait until a server is not paused."""
        while True:
            with contextlib.suppress(httpx.TransportError):  # it is being started again
                if (await self._http.post(f"{self._url(name)}/resume")).status_code == 200:
                    return
            await asyncio.sleep(_POLL_S)

    async def _kill_engine(self, name: str) -> None:
        engine = self._engine(name)
        disturbance = self._disturbances.begin(name, "engine killed", time.monotonic())
        os.kill(engine.pid, signal.SIGKILL)
        await self.wait_well(name, not_pids=frozenset({engine.pid}))
        disturbance.until = time.monotonic()

    async def _kill_api(self, name: str) -> None:
        api = self._api(name)
        disturbance = self._disturbances.begin(name, "API process killed", time.monotonic())
        os.kill(api.pid, signal.SIGKILL)
        await self.wait_well(name, not_pids=frozenset({api.pid}))
        disturbance.until = time.monotonic()

    async def _disturb_wire(self, fault: Fault) -> None:
        proxy = self._proxies[fault.target]
        if fault.kind is FaultKind.CUT:
            proxy.cut()
        else:
            proxy.delay = fault.delay
        await asyncio.sleep(fault.seconds)
        proxy.mend()

    async def _pause(self, fault: Fault) -> None:
        name = fault.target
        self._api(name)
        disturbance = self._disturbances.begin(name, "paused", time.monotonic())
        with contextlib.suppress(httpx.TransportError):  # it has died, and what is started again is not paused
            await self._http.post(f"{self._url(name)}/pause", params={"mode": fault.mode})
        await asyncio.sleep(fault.seconds)
        await self.resume(name)
        disturbance.until = time.monotonic()

    async def _is_well(self, name: str, not_pids: frozenset[int]) -> bool:
        if not self._group.processes[name].ready.is_set():
            return False
        try:
            if {self._api(name).pid, self._engine(name).pid} & not_pids:
                return False
            return (await self._http.get(f"{self._url(name)}/health")).status_code == 200
        except (psutil.NoSuchProcess, httpx.TransportError):
            return False

    def _url(self, name: str) -> str:
        return self._group.processes[name].url

    def _api(self, name: str) -> psutil.Process:
        """Raises NoSuchProcess while the server does not take requests."""
        server = self._group.processes[name]
        if server.pid is None or not server.ready.is_set():
            raise psutil.NoSuchProcess(0, name)
        return psutil.Process(server.pid)

    def _engine(self, name: str) -> psutil.Process:
        """Raises NoSuchProcess while there is none."""
        for child in self._api(name).children():
            if child.status() != psutil.STATUS_ZOMBIE:
                return child
        raise psutil.NoSuchProcess(0, name)


async def _stop(process: psutil.Process, seconds: float) -> None:
    process.suspend()
    try:
        await asyncio.sleep(seconds)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # another fault has killed it
            process.resume()

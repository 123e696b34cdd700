"""Whether nothing of the requests is left in an engine when all have ended."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from headway_lab.chaos.topology import LEASE_S, RECEIVE_S

# A lease ends after its length and two heartbeats, each a third of it; KV that does not come after its time-out.
BOUND_S = LEASE_S * (1 + 2 / 3) + RECEIVE_S
MARGIN_S = 30.0  # for a machine that is busy
_USED = ("num_requests", "num_slots_used", "num_blocks_referenced", "num_leases")
_GAUGES = ("kv_blocks_lent", "kv_blocks_quarantined", "num_requests_running", "num_requests_waiting")


async def wait_until_free(http: httpx.AsyncClient, url: str) -> tuple[float, str | None]:
    """Seconds until all slots and blocks of a server were free, and what was left at the end of the bound; None:
    nothing."""
    began = time.monotonic()
    while True:
        left = await _left(http, url)
        seconds = time.monotonic() - began
        if left is None or seconds > BOUND_S + MARGIN_S:
            return seconds, left
        await asyncio.sleep(0.2)


async def _left(http: httpx.AsyncClient, url: str) -> str | None:
    response = await http.get(f"{url}/debug/ownership")
    report: dict[str, Any] = response.json()
    if response.status_code != 200 or not report["ok"]:
        return f"HTTP {response.status_code}: {report}"
    used = {name: report[name] for name in _USED if report[name]}
    used |= {name: value for name in _GAUGES if (value := await metric(http, url, name))}
    return f"{used}, owners {report['owners']}" if used else None


async def metric(http: httpx.AsyncClient, url: str, name: str) -> float:
    """The sum of all samples of a server's metric in whose line the name stands."""
    lines = (await http.get(f"{url}/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("headway:") and name in line)

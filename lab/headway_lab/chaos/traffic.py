"""Clients that ask all the time, and storms of clients that leave."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from headway_lab.chaos.cases import Case
from headway_lab.chaos.client import Client, Router
from headway_lab.chaos.topology import DECODE, LEASE_S, PREFILL

NUM_CLIENTS = 14
STORM = 20  # clients
LEAVING = 0.9  # share of them
_AFTER_FAILURE_S = 0.3
_WAITS = 0.06  # share of the requests that wait in a router between P and D
_LONGEST_WAIT_S = 1.2 * LEASE_S  # some wait until nothing is lent any more
_DROPS = 0.3  # share of the clients of a router that leave between P and D, where they leave


class Traffic:
    """Both ways to drive the engines, streaming and not, with cases drawn from the seed."""

    def __init__(self, client: Client, cases: Sequence[Case], seed: int) -> None:
        self._client = client
        self._cases = cases
        self._seed = seed
        self._storms = random.Random(f"storms of {seed}")
        self._goes_on = asyncio.Event()
        self._stopping = False
        self._num_asking = 0
        self._clients: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Let clients ask until `stop`."""
        self._goes_on.set()
        self._clients = [asyncio.create_task(self._ask_in_turn(number)) for number in range(NUM_CLIENTS)]

    async def stop(self) -> None:
        """Returns when every request has ended. Raises what a client raised."""
        self._stopping = True
        self._goes_on.set()
        await asyncio.gather(*self._clients)

    async def idle(self, seconds: float) -> None:
        """Nothing is asked for so long."""
        self._goes_on.clear()
        while self._num_asking:
            await asyncio.sleep(0.05)
        await asyncio.sleep(seconds)
        self._goes_on.set()

    async def storm(self) -> None:
        """Many clients at once, of which most leave, some before their first token and some after it."""
        dice = self._storms
        async with asyncio.TaskGroup() as group:
            for number in range(STORM):
                leaves = dice.expovariate(3.0) if number < LEAVING * STORM else None
                group.create_task(self._ask(dice, leaves))

    async def _ask_in_turn(self, number: int) -> None:
        dice = random.Random(f"client {number} of {self._seed}")
        while not self._stopping:
            await self._goes_on.wait()
            if not await self._ask(dice, None):
                await asyncio.sleep(_AFTER_FAILURE_S)

    async def _ask(self, dice: random.Random, leaves: float | None) -> bool:
        """Whether the request was answered."""
        number, decode, router = dice.randrange(len(self._cases)), dice.choice(DECODE), self._router(dice, leaves)
        stream = dice.random() < 0.5
        self._num_asking += 1
        try:
            history = await self._client.ask(
                number, self._cases[number], decode, router=router, stream=stream, leaves=leaves
            )
        finally:
            self._num_asking -= 1
        return history.outcome == "complete"

    def _router(self, dice: random.Random, leaves: float | None) -> Router | None:
        """None: the decode engine asks by itself."""
        prefill = dice.choice((*PREFILL, None))
        wait = dice.uniform(0.0, _LONGEST_WAIT_S) if dice.random() < _WAITS else 0.0
        drops = dice.random() < _DROPS
        return None if prefill is None else Router(prefill, wait, drops and leaves is not None)

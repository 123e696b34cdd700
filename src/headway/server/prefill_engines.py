"""The prefill engines that a decode engine asks by itself: so clients need no router.

prompt ──▶ the best P: one token, and what it lends ──▶ this engine pulls
             │ fails: the next one, a bounded number of times
             └ none: this engine computes the prompt
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import httpx

from headway.server.prefill_choice import PrefillChoice

logger = logging.getLogger(__name__)

MAX_TRIES = 2  # engines that are asked for one prompt
_LENDS = {"do_remote_decode": True, "do_remote_prefill": False}


class Outcome(StrEnum):
    """What came of a request to P."""

    LENT = "lent"
    NOT_LENT = "not_lent"  # P has computed it, and can hand nothing over
    REFUSED = "refused"  # by its contents: this engine judges it
    FAILED = "failed"


class PrefillEngines:
    """Asks P engines to compute prompts. For one event loop.

    urls: of their servers. timeout: seconds that an answer may take. least_tokens: shorter prompts are computed here.
    num_asked: requests to P. outcomes: of the requests to P that were answered or have failed.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: float,
        least_tokens: int,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._choice = PrefillChoice(len(self._urls))
        self._least_tokens = least_tokens
        self._clock = clock
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            transport=transport,
        )
        self.num_asked = 0
        self.outcomes = Counter(dict.fromkeys(Outcome, 0))

    @property
    def num_failed(self) -> int:
        """Requests to P that have failed."""
        return self.outcomes[Outcome.FAILED]

    async def ask(self, token_ids: list[int], sampling: Mapping[str, Any]) -> dict[str, Any] | None:
        """What P lends of a prompt: `kv_transfer_params` for a request that pulls. None: it is computed here.

        sampling: fields of the request that the choice of its first token and its place in P's queue depend on.
        """
        if len(token_ids) < self._least_tokens:
            return None
        body = {**sampling, "prompt": token_ids, "max_tokens": 1, "kv_transfer_params": _LENDS}
        for engine in self._choice.order(token_ids, self._clock())[:MAX_TRIES]:
            self.num_asked += 1
            self._choice.begin(engine, token_ids)
            problem: str | None = None
            try:
                response = await self._http.post(f"{self._urls[engine]}/v1/completions", json=body)
                problem = None if response.status_code < 500 else f"HTTP {response.status_code}"
                if response.status_code == 200:
                    params: dict[str, Any] | None = response.json().get("kv_transfer_params")
                    self.outcomes[Outcome.NOT_LENT if params is None else Outcome.LENT] += 1
                    return params
                if problem is None:  # P refuses the prompt: this engine says why, in its own words
                    self.outcomes[Outcome.REFUSED] += 1
                    return None
            except (httpx.HTTPError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            finally:
                self._choice.end(engine, token_ids, failed=problem is not None, now=self._clock())
            self.outcomes[Outcome.FAILED] += 1
            logger.warning("the prefill engine %s failed: %s", self._urls[engine], problem)
        return None

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

"""The prefill engines that a decode engine asks by itself: so clients need no router.

this engine has blocks ──▶ the best P is asked for one token ──▶ P takes the prompt, and says how to read it
                             │ fails before that: the next one         │
                             └ none: this engine computes it           └──▶ this engine pulls, while P computes
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import httpx

from headway.client.kv_sources import FindSource, Tell
from headway.server.prefill_choice import PrefillChoice

logger = logging.getLogger(__name__)

MAX_TRIES = 2  # engines that are asked for one prompt
_LENDS = {"do_remote_decode": True, "do_remote_prefill": False}


class PrefillEngines:
    """Asks P engines to compute prompts. For one event loop.

    urls: of their servers. timeout: seconds that an answer may take. least_tokens: shorter prompts are computed here.
    num_asked, num_failed: requests to P. A failure that comes after P has taken the prompt counts too: then this engine
        computes the prompt.
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
        self.num_failed = 0

    def source(self, token_ids: list[int], sampling: Mapping[str, Any]) -> FindSource | None:
        """Finds the engine that computes this prompt; None: the prompt is short, and is computed here.

        sampling: fields of the request that the choice of its first token and its place in P's queue depend on.
        """
        return None if len(token_ids) < self._least_tokens else partial(self.ask, token_ids, sampling)

    async def ask(self, token_ids: list[int], sampling: Mapping[str, Any], tell: Tell) -> None:
        """Let an engine compute a prompt. Ends when P has; P takes a closed connection for a prompt that is not wanted.

        tell: gets what P lends, `kv_transfer_params`, as soon as P has taken the prompt; None: no engine lends it.
        """
        body = {**sampling, "prompt": token_ids, "max_tokens": 1, "stream": True, "kv_transfer_params": _LENDS}
        for engine in self._choice.order(token_ids, self._clock())[:MAX_TRIES]:
            self.num_asked += 1
            self._choice.begin(engine, token_ids)
            answer = _Answer(tell)
            problem: str | None = None
            try:
                async with self._http.stream("POST", f"{self._urls[engine]}/v1/completions", json=body) as response:
                    await answer.read(response)
            except (httpx.HTTPError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            finally:
                self._choice.end(engine, token_ids, failed=problem is not None, now=self._clock())
            if problem is None and answer.told:
                return
            problem = problem or "an answer without a word"
            self.num_failed += 1
            logger.warning("the prefill engine %s failed: %s", self._urls[engine], problem)
            if answer.told:  # this engine hears of the failure by itself, as the KV does not come
                return
        tell(None)

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()


class _Answer:
    """The answer of one P. told: whether `tell` was called."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.told = False

    async def read(self, response: httpx.Response) -> None:
        """Read it to its end. Raises httpx.HTTPError or ValueError if P has failed."""
        if response.status_code >= 500:
            raise ValueError(f"HTTP {response.status_code}")
        if response.status_code != 200:  # P refuses the prompt: this engine says why, in its own words
            self._say(None)
        async for line in response.aiter_lines():
            if response.status_code == 200 and line.startswith("data: {"):
                self._take(json.loads(line.removeprefix("data: ")))

    def _take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            raise ValueError(f"an error in its stream: {chunk['error']!r:.200}")
        params = chunk.get("kv_transfer_params")
        if not self.told:
            self._say(params if isinstance(params, dict) else None)

    def _say(self, params: dict[str, Any] | None) -> None:
        self.told = True
        self._tell(params)

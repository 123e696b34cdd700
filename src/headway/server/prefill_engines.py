"""The prefill engines that a decode engine asks by itself: so clients need no router.

this engine has blocks ──▶ the best P is asked for one token ──▶ P takes the prompt, and says how to read it
                             │ fails before that: the next one         │
                             └ none: this engine computes it           └──▶ this engine pulls, while P computes
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

import httpx

from headway.client.kv_sources import FindSource, Tell
from headway.engine_choice import EngineChoice, Prefixes
from headway.kv_transfer_params import copied

logger = logging.getLogger(__name__)

MAX_TRIES = 2  # engines that are asked for one prompt
MAX_ANSWER_BYTES = 2**17  # of P: one token, and `kv_transfer_params` of at most 16 KiB
_CONTENTS = frozenset({400, 413, 422})  # statuses that judge the contents of a request
LENDS = {"do_remote_decode": True, "do_remote_prefill": False}


class Outcome(StrEnum):
    """What came of a request to P."""

    LENT = "lent"
    NOT_LENT = "not_lent"  # P has computed it, and can hand nothing over
    REFUSED = "refused"  # by its contents: this engine judges it
    FAILED = "failed"


class PrefillEngines:
    """Asks P engines to compute prompts. For one event loop.

    urls: of their servers. timeout: seconds that an answer may take. least_tokens: shorter prompts are computed here.
    api_key: that they ask for.
    num_asked: requests to P. outcomes: of the requests to P that were answered or have failed. A failure that comes
        after P has taken the prompt counts too: then this engine computes the prompt.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: float,
        least_tokens: int,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._choice = EngineChoice(range(len(self._urls)), worth=1, home_worth=0)  # each prompt waits for it
        self._least_tokens = least_tokens
        self._clock = clock
        self._timeout = timeout
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            headers={
                "Accept-Encoding": "identity",  # an answer takes no more memory than its bytes
                **({} if api_key is None else {"Authorization": f"Bearer {api_key}"}),
            },
            transport=transport,
        )
        self.num_asked = 0
        self.outcomes = Counter(dict.fromkeys(Outcome, 0))
        self._doubted: set[int] = set()  # engines that once have lent nothing

    @property
    def num_failed(self) -> int:
        """Requests to P that have failed."""
        return self.outcomes[Outcome.FAILED]

    def source(self, token_ids: list[int], sampling: Mapping[str, Any]) -> FindSource | None:
        """Finds the engine that computes this prompt; None: the prompt is short, and is computed here.

        sampling: fields of the request that the choice of its first token and its place in P's queue depend on.
        """
        return None if len(token_ids) < self._least_tokens else partial(self.ask, token_ids, sampling)

    async def ask(self, token_ids: list[int], sampling: Mapping[str, Any], tell: Tell) -> None:
        """Let an engine compute a prompt. Ends when P has; P takes a closed connection for a prompt that is not wanted.

        tell: gets what P lends, `kv_transfer_params`, as soon as P has taken the prompt; None: no engine lends it.
        """
        body = {**sampling, "prompt": token_ids, "max_tokens": 1, "stream": True, "kv_transfer_params": LENDS}
        prompt = Prefixes.of(token_ids)
        for engine in self._choice.order(prompt, self._clock())[:MAX_TRIES]:
            self.num_asked += 1
            self._choice.begin(engine, prompt)
            answer = _Answer(tell)
            problem: str | None = None
            try:
                async with self._http.stream("POST", f"{self._urls[engine]}/v1/completions", json=body) as response:
                    await answer.read(response)
            except httpx.ReadTimeout:  # it has no text of its own
                problem = f"it has said nothing for {self._timeout:g} s (--receive-timeout)"
            except (httpx.HTTPError, ValueError, RecursionError) as error:  # the last: lists in lists in lists
                problem = f"{type(error).__name__}: {error}"
            finally:
                self._choice.end(engine, prompt, failed=problem is not None, now=self._clock())
            if problem is None and answer.outcome is not None:
                self._note(engine, answer.outcome)
                return
            problem = problem or "an answer without a word"
            self.outcomes[Outcome.FAILED] += 1
            logger.warning("the prefill engine %s failed: %s", self._urls[engine], problem)
            if answer.outcome is not None:  # this engine hears of the failure by itself, as the KV does not come
                return
        tell(None)

    def _note(self, engine: int, outcome: Outcome) -> None:
        self.outcomes[outcome] += 1
        if outcome is not Outcome.LENT and engine not in self._doubted:
            self._doubted.add(engine)
            logger.warning(
                "the prefill engine %s has lent nothing (%s); if it never does, look at its --role and --kv-listen. "
                "This is said once, and counted in headway:prefill_requests_total",
                *(self._urls[engine], outcome),
            )

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()


class _Answer:
    """The answer of one P. outcome: None before `tell` was called."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.outcome: Outcome | None = None

    async def read(self, response: httpx.Response) -> None:
        """Read it to its end. Raises httpx.HTTPError, ValueError or RecursionError if P has failed."""
        if response.headers.get("Content-Encoding", "identity") != "identity":  # few bytes could be gigabytes
            raise ValueError(f"its answer is encoded: {response.headers['Content-Encoding']!r:.100}")
        if response.status_code not in {200, *_CONTENTS}:  # 404: not a server of P's; 429: it is full; 302: elsewhere
            hint = " (--prefill-api-key)" if response.status_code == 401 else ""
            raise ValueError(f"HTTP {response.status_code}{hint}")
        num_bytes, rest = 0, b""
        async for piece in response.aiter_bytes():
            num_bytes += len(piece)
            if num_bytes > MAX_ANSWER_BYTES:
                raise ValueError(f"its answer has more than {MAX_ANSWER_BYTES} bytes")
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if response.status_code == 200 and line.startswith(b"data: {"):
                    self._take(json.loads(line.removeprefix(b"data: ")))
        if response.status_code != 200:  # P refuses the prompt: this engine says why, in its own words
            self._say(None, Outcome.REFUSED)

    def _take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            raise ValueError(f"an error in its stream: {chunk['error']!r:.200}")
        if self.outcome is not None:
            return
        params = chunk.get("kv_transfer_params")
        if params is None:
            self._say(None, Outcome.NOT_LENT)
        else:
            self._say(copied(params), Outcome.LENT)

    def _say(self, params: dict[str, Any] | None, outcome: Outcome) -> None:
        self.outcome = outcome
        self._tell(params)

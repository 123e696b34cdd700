"""The prefill engines of a cluster, as an API replica asks them for the prompts of its decode engines.

It is `PrefillEngines` without HTTP: P gets the prompt by the same sockets as every engine, and says at once how its KV
is read.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from headway.client.kv_sources import FindSource, Tell
from headway.client.pending_request import RequestFailedError
from headway.cluster.ray.remote_engines import RemoteEngines
from headway.errors import EngineDeadError, EnginePausedError, QueueFullError, RequestError
from headway.outputs import RequestDelta, RequestOutput
from headway.request import NewRequest
from headway.server.fields.protocol import CompletionRequest
from headway.server.prefill_engines import LENDS, Outcome

logger = logging.getLogger(__name__)


class Lenders:
    """See `PrefillEngines`, whose surface it has. least_tokens: shorter prompts are computed where they are decoded.
    lease_seconds: that P keeps what it lends."""

    def __init__(self, engines: RemoteEngines, *, least_tokens: int, lease_seconds: float) -> None:
        self._engines = engines
        self._least_tokens = least_tokens
        self._lease_seconds = lease_seconds
        self.num_asked = 0
        self.outcomes = Counter(dict.fromkeys(Outcome, 0))

    @property
    def num_failed(self) -> int:
        """Requests to P that have failed."""
        return self.outcomes[Outcome.FAILED]

    def source(self, token_ids: list[int], sampling: Mapping[str, Any]) -> FindSource | None:
        """See `PrefillEngines.source`."""
        return None if len(token_ids) < self._least_tokens else partial(self.ask, token_ids, sampling)

    async def ask(self, token_ids: list[int], sampling: Mapping[str, Any], tell: Tell) -> None:
        """Let a prefill engine compute a prompt. Goes on as long as D may read what is lent, so that Ray does not end
        that engine meanwhile; it is cancelled with the request of D.

        tell: gets what P lends as soon as P has taken the prompt; None: no engine lends it.
        """
        self.num_asked += 1
        outcome = Outcome.FAILED
        told = False
        try:
            with self._engines.submit([self._request(token_ids, sampling)], stream=True) as pending:
                async for updates in pending:
                    params = next((one for update in updates if (one := _lent(update.output)) is not None), None)
                    if params is not None and not told:
                        told, outcome = True, Outcome.LENT
                        tell(params)
                if not told:
                    outcome = Outcome.NOT_LENT
                    return
                await asyncio.sleep(self._lease_seconds)
        except RequestError:  # D refuses it too, in its own words
            outcome = Outcome.REFUSED
        except (EngineDeadError, EnginePausedError, QueueFullError, RequestFailedError) as error:
            outcome = Outcome.FAILED
            logger.warning("a prefill engine failed: %s", error)
        finally:
            self.outcomes[outcome] += 1
            if not told:
                tell(None)

    def _request(self, token_ids: list[int], sampling: Mapping[str, Any]) -> NewRequest:
        body = CompletionRequest.model_validate(
            {**sampling, "prompt": token_ids, "max_tokens": 1, "stream": True, "kv_transfer_params": LENDS}
        )
        engines = self._engines
        params = body.sampling(engines.files.default_sampling)
        packed = [engines.pack(token_ids)]
        return body.new_requests(f"prefill-{uuid.uuid4().hex}", packed, params, time.monotonic())[0]

    async def close(self) -> None:
        """The engines are closed by the replica that has them."""


def _lent(output: RequestDelta | RequestOutput) -> dict[str, Any] | None:
    return output.kv_transfer_params

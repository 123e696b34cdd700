"""The requests that the core has, as vLLM and its workers know them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from vllm.v1.request import RequestStatus

from headway.request import Request as CoreRequest
from headway.sampling import MAX_STOP_TOKEN_IDS
from headway.sampling import SamplingParams as CoreSampling
from headway.token_ids import NUM_INT32, pack

if TYPE_CHECKING:
    from vllm.v1.request import Request

LEAST_INT64, MOST_INT64 = -(2**63), 2**63 - 1
MOST_INT32 = 2**31 - 1
_WAITING_FOR_GRAMMAR = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR  # looked up once: see `scheduler.py`
_SAMPLING = CoreSampling(max_tokens=None)
_NO_TOKENS: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
_NO_STOPS: frozenset[int] = frozenset()


class LiveRequest:
    """A request of vLLM that the core has.

    uid: its number in the core, never used again; names may be.
    slot: the slot that it computes in; -1: none.
    tokens: int32; its known tokens, and table: the ids of its blocks, both while it prefills; then empty.
    num_known: of these tokens.
    is_told: whether the worker has this table.
    is_with_worker: whether the worker keeps anything of it.
    few_stops, many_stops: its stop tokens are in the first, or in the second if there are more than
        MAX_STOP_TOKEN_IDS. The core compares all rows with as many tokens as the longest list has, so a long list would
        slow down all requests.
    is_watched: its end is told here and not by the core: by a grammar, repetition, many stop tokens.
    is_special: each of its outputs carries more than a token.
    """

    __slots__ = (
        "client",
        "few_stops",
        "is_special",
        "is_told",
        "is_watched",
        "is_with_worker",
        "many_stops",
        "name",
        "num_known",
        "request",
        "slot",
        "table",
        "tokens",
        "uid",
        "uses_grammar",
    )

    def __init__(self, request: Request, uid: int) -> None:
        sampling = request.sampling_params
        self.request = request
        self.name: str = request.request_id
        self.client: int = request.client_index
        self.uid = uid
        self.slot = -1
        self.tokens = _NO_TOKENS
        self.table: list[int] = []
        self.num_known = 0
        self.is_told = False
        self.is_with_worker = False
        self.uses_grammar: bool = request.use_structured_output
        stops = _stop_tokens(request)
        self.few_stops, self.many_stops = (stops, _NO_STOPS) if len(stops) <= MAX_STOP_TOKEN_IDS else (_NO_STOPS, stops)
        self.is_watched = self.uses_grammar or sampling.repetition_detection is not None or bool(self.many_stops)
        self.is_special = self.is_watched or sampling.num_logprobs is not None or request.trace_headers is not None

    @property
    def waits_for_grammar(self) -> bool:
        status: RequestStatus = self.request.status
        return status is _WAITING_FOR_GRAMMAR

    @property
    def prefills(self) -> bool:
        """Whether some of its known tokens are in no work order yet."""
        return len(self.tokens) > 0

    def forget_prefill(self) -> None:
        """All known tokens are computed, or given up: the worker has what it needs."""
        self.tokens, self.table = _NO_TOKENS, []


def _stop_tokens(request: Request) -> frozenset[int]:
    """The tokens that end a request, end-of-sequence tokens included. A token that does not exist ends nothing."""
    sampling = request.sampling_params
    if not sampling.stop_token_ids and sampling.eos_token_id is None:
        return _NO_STOPS
    stops = {*(sampling.stop_token_ids or ()), sampling.eos_token_id}
    return frozenset(token for token in stops if token is not None and 0 <= token <= MOST_INT32)


class LiveRequests:
    """The requests that the core has, by name, uid and slot."""

    def __init__(self, num_slots: int) -> None:
        self._by_name: dict[str, LiveRequest] = {}
        self._by_uid: dict[int, LiveRequest] = {}
        self._next_uid = 1
        self.by_slot: list[LiveRequest | None] = [None] * num_slots
        self.num_prompt = np.zeros(num_slots, dtype=np.int32)  # prompt tokens, by slot
        self.clients: set[int] = set()  # that have sent requests
        self.num_special = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(list(self._by_name.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def named(self, name: str) -> LiveRequest | None:
        return self._by_name.get(name)

    def numbered(self, uid: int) -> LiveRequest | None:
        return self._by_uid.get(uid)

    def numbered_all(self, uids: Iterable[int]) -> list[LiveRequest]:
        """The requests of these uids that have not ended."""
        return [live for uid in uids if (live := self._by_uid.get(uid)) is not None]

    def take_uid(self) -> int:
        uid, self._next_uid = self._next_uid, self._next_uid + 1
        return uid

    def add(self, live: LiveRequest) -> None:
        self._by_name[live.name] = self._by_uid[live.uid] = live
        self.clients.add(live.client)
        self.num_special += live.is_special

    def remove(self, live: LiveRequest) -> None:
        del self._by_name[live.name], self._by_uid[live.uid]
        self.num_special -= live.is_special
        self.unseat(live)

    def seat(self, live: LiveRequest, slot: int) -> None:
        """It computes in this slot from now on, with blocks that the worker has yet to be told."""
        live.slot = slot
        live.is_told = False
        self.by_slot[slot] = live
        self.num_prompt[slot] = live.request.num_prompt_tokens

    def unseat(self, live: LiveRequest) -> None:
        """It has no slot any more. The slot may have its next occupant already."""
        if live.slot >= 0 and self.by_slot[live.slot] is live:
            self.by_slot[live.slot] = None
        live.slot = -1
        live.forget_prefill()


def core_request(live: LiveRequest, *, max_model_len: int, has_priorities: bool) -> CoreRequest:
    """The request for the core. Numbers beyond the range of the core's arrays are brought into it where that changes
    nothing. The worker samples by vLLM's own parameters, and samples no stop token before `min_tokens`.

    Raises ValueError for a prompt that is no list of token ids.
    """
    request = live.request
    prompt = _packed(request.prompt_token_ids)
    return CoreRequest(
        uid=live.uid,
        request_id=live.name,
        prompt=prompt,
        sampling=_SAMPLING,
        max_tokens=max(1, min(request.max_tokens, max_model_len - len(prompt))),
        stop_token_ids=tuple(sorted(live.few_stops)),
        priority=max(LEAST_INT64, min(request.priority, MOST_INT64)) if has_priorities else 0,
        cache_salt=request.cache_salt,
        reads_prefix_cache=not request.skip_reading_prefix_cache,
        preprocess=b"grammar" if live.waits_for_grammar else None,
    )


def _packed(tokens: list[int]) -> NDArray[np.int32]:
    """Token ids as int32, read-only. `struct` reads a list in two thirds of the time that numpy takes."""
    try:
        return np.frombuffer(struct.pack(f"{len(tokens)}i", *tokens), dtype=np.int32)
    except struct.error:
        return pack(tokens, NUM_INT32)  # which says what is wrong

"""What a message must keep to, beyond the types of its fields, so that its receiver can rely on it.

A message of Headway's own always does. Other programs of the same user can reach the sockets too.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from headway.block_digests import DIGEST_SIZE
from headway.errors import RequestError
from headway.kv_transfer_params import copied
from headway.request import NewRequest
from headway.scheduler.batch import IntArray, Logprobs
from headway.scheduler.effects import PromptOutputs, TokenOutputs
from headway.wire import to_client, to_engine
from headway.wire.uids import MOST_CLIENTS, client_of
from headway.wire.wire_errors import WireError

_TRANSPORTS = ("ipc://", "tcp://")
_LONGEST_ADDRESS = 512  # characters

_LOGPROBS = [np.dtype(kind).str for kind in (np.int32, np.int32, np.int32, np.float32, np.float32)]
_PROMPT_LOGPROBS = [np.dtype(kind).str for kind in (*[np.int32] * 5, np.float32, np.float32)]


def check_to_engine(message: to_engine.ToEngine, clients: Collection[int]) -> None:
    """Raises WireError for a message of a client that is not attached, whose answer could reach no API process, and for
    parameters that are no small JSON object. The door checks the rest of a request.

    clients: the numbers of the API processes that are attached.
    """
    match message:
        case to_engine.AddGroup(requests):
            _check_group(requests, clients)
        case to_engine.Abort(uids) | to_engine.Finish(uids):
            for uid in uids:
                _check_client("the uid of a request", uid, clients)
        case to_engine.PullFrom(uid, params):
            _check_client("the uid of a request", uid, clients)
            if params is not None:
                _check_params(params)
        case to_engine.Call(number):
            _check_client("the number of a call", number, clients)
        case to_engine.Attach(client, address):
            _check_attach(client, address)
        case to_engine.Detach(client):
            _check_comes_and_goes(client)
        case to_engine.TellCache(client) if client not in clients:
            raise WireError(f"client {client}, which is not attached, wants to know the cache")


def check_to_client(message: to_client.ToClient, num_token_ids: int) -> None:
    """Raises WireError for a step whose arrays do not fit each other, or with a token that the model does not have, and
    for parts of digests.

    num_token_ids: token ids go from 0 to one less.
    """
    if isinstance(message, to_client.Step):
        for outputs in message.tokens:
            _check_tokens(outputs, num_token_ids)
        for prompts in message.prompt_logprobs:
            _check_prompts(prompts, num_token_ids)
    elif isinstance(message, to_client.CacheNews):
        for joined in (message.stored, message.removed):
            if len(joined) % DIGEST_SIZE:
                raise WireError(f"digests have {DIGEST_SIZE} bytes each, got {len(joined)} bytes together")


def _check_group(requests: list[NewRequest], clients: Collection[int]) -> None:
    if not requests:
        raise WireError("a group without a request")
    for request in requests:
        if request.uid is None:
            raise WireError("a request without a uid")
        _check_client("the uid of a request", request.uid, clients)
    if len({client_of(request.uid) for request in requests if request.uid is not None}) > 1:
        raise WireError("a group with requests of several API processes")


def _check_params(params: dict[str, Any]) -> None:
    try:
        copied(params)
    except RequestError as error:
        raise WireError(str(error)) from None


def _check_client(what: str, number: int, clients: Collection[int]) -> None:
    if client_of(number) not in clients:
        raise WireError(f"{what} is {number}, which names client {client_of(number)}, which is not attached")


def _check_comes_and_goes(client: int) -> None:
    if not 1 <= client < MOST_CLIENTS:
        raise WireError(f"a client that comes or goes has a number in [1, {MOST_CLIENTS - 1}], got {client}")


def _check_attach(client: int, address: str) -> None:
    _check_comes_and_goes(client)
    if not address.startswith(_TRANSPORTS) or len(address) > _LONGEST_ADDRESS:
        raise WireError(f"an address begins with {' or '.join(_TRANSPORTS)}, got {address[:80]!r}")


def _check_tokens(outputs: TokenOutputs, num_token_ids: int) -> None:
    uids, tokens = outputs.uids, outputs.tokens
    if uids.dtype != np.int64 or tokens.dtype != np.int32 or uids.ndim != 1 or uids.shape != tokens.shape:
        raise WireError(
            f"the uids of a step must be int64 and the tokens int32, equally many, got {uids.dtype} {uids.shape} and "
            f"{tokens.dtype} {tokens.shape}"
        )
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < num_token_ids:
        raise WireError(f"a token of a step is not in [0, {num_token_ids})")
    if outputs.logprobs is not None:
        _check_logprobs(outputs.logprobs, len(tokens), num_token_ids)


def _check_logprobs(logprobs: Logprobs, num_tokens: int, num_token_ids: int) -> None:
    rows = logprobs.rows
    flat, wide = (rows.size,), (rows.size, *logprobs.top.shape[1:])
    arrays = (rows, logprobs.ranks, logprobs.top_ids, logprobs.sampled, logprobs.top)
    if (
        len(wide) != 2
        or [array.dtype.str for array in arrays] != _LOGPROBS
        or not rows.shape == logprobs.sampled.shape == logprobs.ranks.shape == flat
        or not logprobs.top_ids.shape == logprobs.top.shape == wide
    ):
        raise WireError("the arrays of logprobs do not fit each other")
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < num_tokens:
        raise WireError(f"a row of logprobs is not in [0, {num_tokens})")
    _check_ids(logprobs.top_ids, num_token_ids)


def _check_prompts(prompts: PromptOutputs, num_token_ids: int) -> None:
    found, uids = prompts.logprobs, prompts.uids
    runs, positions = (uids.size,), (found.ranks.size,)
    of_runs, of_positions = (found.rows, found.starts, found.counts), (found.ranks, found.logprobs)
    kinds = [array.dtype.str for array in (*of_runs, found.ranks, found.top_ids, found.logprobs, found.top)]
    if (
        kinds != _PROMPT_LOGPROBS
        or uids.dtype != np.int64
        or any(array.shape != runs for array in (uids, *of_runs))
        or any(array.shape != positions for array in of_positions)
        or found.top.ndim != 2
        or not found.top_ids.shape == found.top.shape == (*positions, found.top.shape[1])
        or (uids.size and int(found.counts.min()) < 1)
        or int(found.counts.sum(dtype=np.int64)) != found.ranks.size
    ):
        raise WireError("the arrays of prompt logprobs do not fit each other")
    _check_ids(found.top_ids, num_token_ids)


def _check_ids(ids: IntArray, num_token_ids: int) -> None:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < num_token_ids:
        raise WireError(f"a token of logprobs is not in [0, {num_token_ids})")

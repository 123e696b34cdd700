"""Which API process a uid belongs to: the upper bits of a uid name the process that gave it."""

from __future__ import annotations

import numpy as np

from headway.scheduler.effects import Effects, PromptOutputs, TokenOutputs

UID_BITS = 40  # the lower bits of a uid: the counter of the process that gave it
MOST_CLIENTS = 1 << 63 - UID_BITS  # numbers of API processes go from 0 to one less; a uid is an int64


def client_of(uid: int) -> int:
    """The number of the API process that gave this uid, or this number of a call."""
    return uid >> UID_BITS


def effects_of_client(effects: Effects, client: int) -> Effects:
    """The part of `effects` that concerns the requests of one API process."""
    tokens = []
    for out in effects.tokens:
        mine = out.uids >> UID_BITS == client
        if mine.any():
            logprobs = None if out.logprobs is None else out.logprobs.keep(mine)
            tokens.append(TokenOutputs(out.uids[mine], out.tokens[mine], logprobs))
    prompts = []
    for prompt in effects.prompt_logprobs:
        mine = prompt.uids >> UID_BITS == client
        if mine.any():
            uids = prompt.uids[mine]
            prompts.append(PromptOutputs(uids, prompt.logprobs.keep(mine, np.arange(len(uids), dtype=np.int32))))
    return Effects(
        started=[item for item in effects.started if client_of(item[0]) == client],
        prompt_logprobs=prompts,
        tokens=tokens,
        handovers=[item for item in effects.handovers if client_of(item[0]) == client],
        sourceless=[uid for uid in effects.sourceless if client_of(uid) == client],
        ended=[end for end in effects.ended if client_of(end.uid) == client],
    )

"""A client request in progress: what waits for a client that does not read is bounded."""

from __future__ import annotations

import asyncio

import pytest

from headway.client.pending_request import (
    MAX_UNREAD,
    PER_TURN,
    PER_UPDATE,
    PendingRequest,
    SlowReaderError,
    Update,
)
from headway.outputs import RequestDelta, RequestMetrics, TokenLogprob
from headway.request import FinishReason


def delta(text: str, *, prompt: int = 0, index: int = 0, last: bool = False, logprob: bool = True) -> Update:
    reason = FinishReason.LENGTH if last else None
    logprobs = [{1: TokenLogprob(-1.0, 1, text, text.encode())}] if logprob else None
    return Update(
        prompt, RequestDelta("a", index, text, [1], logprobs, reason, None, None, 1, 0, last, RequestMetrics())
    )


def waiting() -> PendingRequest:
    pending = PendingRequest(lambda _: None, ["a"])
    pending.accept()
    return pending


async def test_a_stream_that_is_not_read_ends_with_an_error_and_is_not_kept() -> None:
    released: list[PendingRequest] = []
    pending = PendingRequest(released.append, ["a"])
    pending.accept()
    pending.take(delta("a" * (MAX_UNREAD // 2)))
    await anext(pending)
    for _ in range(2):
        assert not released
        pending.take(delta("a" * (MAX_UNREAD // 2)))
    assert released == [pending] and not pending._updates
    with pytest.raises(SlowReaderError, match=str(MAX_UNREAD)):
        await anext(pending)


async def test_deltas_that_wait_become_one_for_each_answer() -> None:
    pending = waiting()
    for text in "abc":
        pending.take(delta(text, index=0))
        pending.take(delta(text, index=1))
    pending.take(delta("d", index=1, last=True))
    first, second = (update.output for update in await anext(pending))
    assert isinstance(first, RequestDelta) and isinstance(second, RequestDelta)
    assert (first.index, first.text, first.token_ids, first.finish_reason) == (0, "abc", [1] * 3, None)
    assert (second.index, second.text, second.finish_reason) == (1, "abcd", FinishReason.LENGTH)
    assert [next(iter(entry.values())).decoded_token for entry in second.logprobs or ()] == list("abcd")
    pending.take(delta("e", index=0))
    ((update,), text) = await anext(pending), first.text
    assert update.output.text == "e" and text == "abc", "what was read is not changed any more"


async def test_a_reader_of_many_answers_is_not_slow_because_the_server_is() -> None:
    pending, count = waiting(), 2_000
    for _ in range(100):  # tokens
        for prompt in range(count):
            pending.take(delta("a", prompt=prompt, logprob=False))
    texts = [""] * count
    while pending._updates:
        for update in await anext(pending):
            texts[update.prompt_index] += update.output.text
    assert texts == ["a" * 100] * count


async def test_updates_that_have_piled_up_are_read_in_turns_of_bounded_size() -> None:
    pending = waiting()
    for number in range(3_000):
        pending.take(delta(str(number % 10), prompt=number % 200))
    turn, sizes = 0, []

    async def tick() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    turns = []
    while pending._updates:
        updates = await anext(pending)
        turns.append(turn)
        sizes.append(sum(200 * len(update.output.token_ids) for update in updates))
    ticking.cancel()
    assert len(turns) == len(set(turns)) > 5
    assert max(sizes) <= PER_TURN + PER_UPDATE
    assert pending._unread == 0

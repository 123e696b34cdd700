"""Large client requests: their answers go to the engine in slices, and wait here while there is no place for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from headway.client.engine_client import EngineClient
from headway.client.feed import SLICE, Feed, window
from headway.client.open_requests import OpenRequests
from headway.client.pending_request import PendingRequest
from headway.errors import QueueFullError, RequestError
from headway.request import FinishReason, NewRequest
from headway.sampling import MAX_N, SamplingParams
from headway.scheduler.effects import Effects, RequestEnd
from headway.wire import to_client, to_engine
from tests.server.fakes import FakeLink, fake_client, settled

NUM_PROMPTS = 1_000
SHORT = SamplingParams(max_tokens=1)


@pytest.fixture
async def engine() -> AsyncIterator[tuple[EngineClient, FakeLink]]:
    client, link = fake_client(silent=True, accept=False)
    yield client, link
    await client.shutdown()


def submit(
    client: EngineClient, num_prompts: int, n: int = 1, *, name: str = "r", stream: bool = False
) -> PendingRequest:
    sampling = SamplingParams(max_tokens=1, n=n)
    prompts = [client.pack([1, 2, 3])] * num_prompts
    return client.submit(
        [NewRequest(request_id=f"{name}-{i}", prompt=prompt, sampling=sampling) for i, prompt in enumerate(prompts)],
        stream=stream,
    )


def slices(link: FakeLink) -> list[list[int]]:
    return [[request.uid for request in group.requests] for group in link.sent_of(to_engine.AddGroup)]


def end(link: FakeLink, uids: list[int]) -> None:
    """These answers get their only token."""
    ends = [RequestEnd(uid, "", FinishReason.LENGTH) for uid in uids]
    link.step(uids, link.tokens[:1] * len(uids), ends)


async def test_a_large_request_goes_in_a_slice_a_turn_and_at_most_a_window_is_inside(
    engine: tuple[EngineClient, FakeLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, link = engine
    turn, registered = 0, []
    register = OpenRequests._register

    def counted(self: OpenRequests, request: NewRequest, **options: object) -> list[NewRequest]:
        registered.append(turn)
        return register(self, request, **options)

    monkeypatch.setattr(OpenRequests, "_register", counted)

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    pending = submit(client, NUM_PROMPTS)
    answered: list[int] = []
    most_inside = taken = 0
    while len(answered) < NUM_PROMPTS:
        groups = slices(link)
        if taken < len(groups):
            link.say(to_client.Accepted(groups[taken][0]))
            taken += 1
            await settled()
            continue
        inside = [uid for group in groups for uid in group if uid not in answered]
        most_inside = max(most_inside, len(inside))
        end(link, inside[: SLICE + 6])
        answered += inside[: SLICE + 6]
        await settled()
    updates = [update async for some in pending for update in some]
    counting.cancel()
    assert sorted(update.prompt_index for update in updates) == list(range(NUM_PROMPTS))
    assert max(registered.count(one) for one in set(registered)) <= SLICE
    assert max(map(len, slices(link))) == SLICE and most_inside <= window(client.config.max_num_seqs)
    assert client.num_open == 0


async def test_an_engine_that_becomes_full_is_asked_again_and_no_answer_is_thrown_away(
    engine: tuple[EngineClient, FakeLink],
) -> None:
    client, link = engine
    pending = submit(client, 10, stream=True)
    (uids,) = slices(link)
    link.say(to_client.Refused(uids[0], 4, "queue_full", "full"))
    end(link, uids[:2])
    await settled()
    assert slices(link)[1] == uids[4:]
    assert sorted(update.prompt_index for update in await anext(pending)) == [0, 1]
    link.say(to_client.Refused(uids[4], 0, "queue_full", "full"))  # the others have taken the place
    await settled()
    while len(slices(link)) < 3:  # asked again after a while, although no request of this process ends
        await asyncio.sleep(0.01)
    link.say(to_client.Accepted(uids[4]))
    end(link, uids[2:])
    rest = [update async for updates in pending for update in updates]
    assert len(rest) == 8 and not link.sent_of(to_engine.Abort) and client.num_open == 0


async def test_a_request_that_finds_the_engine_full_at_once_is_refused(engine: tuple[EngineClient, FakeLink]) -> None:
    client, link = engine
    pending = submit(client, 10)
    link.say(to_client.Refused(slices(link)[0][0], 0, "queue_full", "full"))
    with pytest.raises(QueueFullError, match="full"):
        await anext(pending)
    assert client.num_open == 0 and not link.sent_of(to_engine.Abort)


async def test_the_longest_prompt_is_tried_first(engine: tuple[EngineClient, FakeLink]) -> None:
    client, link = engine
    prompts = [client.pack([1] * (80 if i == 700 else 3)) for i in range(NUM_PROMPTS)]
    pending = client.submit(
        [NewRequest(request_id=f"r-{i}", prompt=prompt, sampling=SHORT) for i, prompt in enumerate(prompts)],
        stream=True,
    )
    (group,) = link.sent_of(to_engine.AddGroup)
    assert len(group.requests[0].prompt) == 80
    link.say(to_client.Refused(group.requests[0].uid, 0, "invalid", "80 is too long"))
    with pytest.raises(RequestError, match="80 is too long"):
        await anext(pending)
    assert len(link.sent) == 1


async def test_a_client_that_leaves_takes_its_waiting_answers_along(engine: tuple[EngineClient, FakeLink]) -> None:
    client, link = engine
    with submit(client, NUM_PROMPTS) as pending:
        assert client.requests.num_waiting == NUM_PROMPTS - SLICE
        (uids,) = slices(link)
    assert link.sent[-1] == to_engine.Abort(uids)
    assert client.num_open == 0 and client.requests.num_waiting == 0
    link.say(to_client.Accepted(uids[0]))
    await settled()
    assert len(slices(link)) == 1 and pending.request_ids


async def test_so_many_answers_wait_and_no_more(engine: tuple[EngineClient, FakeLink]) -> None:
    client, _ = engine
    submit(client, client.capacity)
    with pytest.raises(QueueFullError, match=f"more than {client.capacity}"):
        submit(client, SLICE + 1, name="more")
    submit(client, SLICE, name="as many as fit")
    submit(client, 1, name="one")
    assert client.num_open == 3


async def test_requests_that_compute_do_not_count_as_waiting(engine: tuple[EngineClient, FakeLink]) -> None:
    client, _ = engine
    for number in range(100):
        submit(client, 1, name=f"single-{number}")
    assert client.requests.num_waiting == 0
    submit(client, client.capacity)
    assert client.num_open == 101


async def test_a_prompt_with_the_most_answers_always_gets_in_whole(engine: tuple[EngineClient, FakeLink]) -> None:
    client, link = engine
    pending = submit(client, 3, n=MAX_N)
    taken: list[int] = []
    while len(taken) < 3 * MAX_N:
        group = slices(link)[-1]
        link.say(to_client.Accepted(group[0]))
        await settled()
        taken += group
        if slices(link)[-1] == group:  # the window is full: the prompts that are inside whole come to their end
            whole = len(taken) // MAX_N * MAX_N
            end(link, [uid for uid in taken[:whole] if uid in client.requests._processor._sequences])
            await settled()
    end(link, [uid for uid in taken if uid in client.requests._processor._sequences])
    updates = [update async for some in pending for update in some]
    assert [len(update.output.outputs) for update in updates] == [MAX_N] * 3


def test_a_feed_puts_what_was_not_taken_back_in_its_order() -> None:
    sent: list[list[int]] = []
    count = SLICE + 8  # of prompts with three answers each: the slice ends within a prompt

    def three(request: NewRequest) -> list[NewRequest]:
        assert request.uid is not None
        return [replace(request, uid=3 * request.uid + i) for i in range(3)]

    sampling = SamplingParams(max_tokens=1, n=3)
    requests = [NewRequest(request_id=str(i), prompt=[1], sampling=sampling, uid=i) for i in range(count // 3)]
    feed = Feed(requests, three, lambda some: sent.append([one.uid for one in some]), 1_000)
    feed.advance()
    feed.advance()  # nothing, while there is no word on the slice
    feed.take(2)
    feed.advance()
    feed.take()
    feed.advance()
    feed.take()
    feed.advance()
    assert sent == [list(range(SLICE)), list(range(2, SLICE + 2)), list(range(SLICE + 2, count))]
    assert feed.num_waiting == 0


async def test_messages_that_wait_are_taken_one_a_turn(engine: tuple[EngineClient, FakeLink]) -> None:
    client, link = engine
    heard: list[int] = []
    turn = 0
    client.requests.step = lambda step, now: heard.append(turn)  # type: ignore[method-assign]
    for _ in range(5):
        link.say(to_client.Step.of(Effects()))
    for _ in range(20):
        turn += 1
        await asyncio.sleep(0)
    assert len(heard) == len(set(heard)) == 5


@pytest.mark.parametrize("n", [1, 2])
async def test_an_id_whose_request_was_given_up_can_be_used_at_once(
    engine: tuple[EngineClient, FakeLink], n: int
) -> None:
    client, link = engine
    submit(client, 1, n).close()  # the engine may hear of the next request before it has aborted this one
    pending = submit(client, 1, n)
    first, second = (group.requests for group in link.sent_of(to_engine.AddGroup))
    ids = [request.request_id for request in (*first, *second)]
    assert len(set(ids)) == len(ids) == 2 * n
    link.say(to_client.Accepted(second[0].uid))
    end(link, [request.uid for request in second])
    await settled()
    assert pending.complete, "and its answers find their way"


async def test_only_so_many_ids_are_remembered(
    engine: tuple[EngineClient, FakeLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = engine
    monkeypatch.setattr("headway.client.open_requests._MOST_GIVEN_UP", 3)
    for i in range(5):
        submit(client, 1, name=str(i)).close()
    assert list(client.requests._given_up) == ["2-0", "3-0", "4-0"]

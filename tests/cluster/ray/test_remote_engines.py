"""The engines of an API replica, with real engine processes on a simulated device; a test stands in for Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from headway.cluster.ray.engine_replica import EngineReplica
from headway.cluster.ray.identity import digest_of
from headway.cluster.ray.options import ClusterOptions
from headway.cluster.ray.remote_engines import RemoteEngines
from headway.config import EngineConfig, Role
from headway.errors import DuplicateRequestError, EngineDeadError
from headway.model_files import ModelFiles
from headway.outputs import RequestDelta
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.server.settings import ServerSettings

PATIENCE = 100.0  # seconds
HERE = "127.0.0.1"
LONG = 1500  # tokens; more than any test waits for


def options(step_seconds: float = 0.002) -> ClusterOptions:
    return ClusterOptions(
        config=EngineConfig(max_num_seqs=4, max_waiting=8, num_blocks=600),
        settings=ServerSettings(engine_args=("--executor", "simulated", "--base-s", str(step_seconds))),
    )


class Ray:
    """Routes calls as Ray does: by the order that the office says, to replicas that run.

    when_routed: called when a replica has taken a call. outlive: a call does not end on the replica when the caller
        cancels it: the network does not promise more.
    """

    def __init__(self) -> None:
        self.replicas: dict[str, EngineReplica] = {}
        self.engines: RemoteEngines | None = None
        self.routed: list[str] = []
        self.when_routed: Callable[[], object] = lambda: None
        self.outlive = False
        self.held: list[asyncio.Task[None]] = []

    async def call(self, ticket: int, client: int) -> None:
        assert self.engines is not None
        order = self.engines.order(ticket)
        while not order:  # as Ray does: until there is one
            await asyncio.sleep(0.05)
            order = self.engines.order(ticket)
        self.routed.append(order[0])
        self.engines.routed(ticket, order[0])
        self.when_routed()
        held = asyncio.ensure_future(self.replicas[order[0]].hold(ticket, client))
        self.held.append(held)
        await (asyncio.shield(held) if self.outlive else held)

    def tell(self, *, without: tuple[str, ...] = ()) -> None:
        assert self.engines is not None
        running = {name: one.identity.metadata() for name, one in self.replicas.items() if name not in without}
        self.engines.running(running)

    async def start(self, *names: str) -> None:
        started = await asyncio.gather(*(EngineReplica.start(options(), Role.MIXED, HERE) for _ in names))
        self.replicas.update(zip(names, started, strict=True))
        self.tell()
        await until(lambda: self.engines is not None and set(names) <= set(self.engines.engines))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.02)


@pytest.fixture
async def ray() -> AsyncIterator[Ray]:
    """Each request has a call of its own."""
    async with started(shares_calls=False) as one:
        yield one


@pytest.fixture
async def sharing() -> AsyncIterator[Ray]:
    """Requests share a call."""
    async with started(shares_calls=True) as one:
        yield one


@asynccontextmanager
async def started(shares_calls: bool) -> AsyncIterator[Ray]:
    one = Ray()
    files = ModelFiles.resolve(options().config)
    engines = one.engines = RemoteEngines(
        call=one.call,
        host=HERE,
        model=digest_of(files),
        files=files,
        tokenizer=files.load_tokenizer(),
        config=options().config.for_scheduler(max_model_len=files.limits.max_model_len, num_blocks=600),
        max_waiting=8,
        shares_calls=shares_calls,
    )
    try:
        yield one
    finally:
        await asyncio.wait_for(engines.shutdown(), PATIENCE)
        await asyncio.gather(*(replica.close() for replica in one.replicas.values()))
        for held in one.held:
            held.cancel()


def request(ray: Ray, name: str, max_tokens: int = 4, first: int = 5) -> NewRequest:
    assert ray.engines is not None
    prompt = ray.engines.pack([first] * 200)
    return NewRequest(request_id=name, prompt=prompt, sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True))


async def answered(pending: object) -> int:
    """The tokens of the answer."""
    count = 0
    with pending as open_one:  # type: ignore[attr-defined]
        async for updates in open_one:
            for update in updates:
                output = update.output
                parts = [output] if isinstance(output, RequestDelta) else output.outputs
                count += sum(len(part.token_ids) for part in parts)
    return count


async def bounded(work: Awaitable[int]) -> int:
    return await asyncio.wait_for(work, PATIENCE)


async def test_requests_are_answered_and_their_calls_end_with_them(ray: Ray) -> None:
    await ray.start("a", "b")
    engines = ray.engines
    assert engines is not None and engines.why_unhealthy() is None
    counts = await asyncio.gather(
        *(bounded(answered(engines.submit([request(ray, f"r{i}", 5)], stream=True))) for i in range(6))
    )
    assert counts == [5] * 6
    desks = [replica._desk for replica in ray.replicas.values()]
    await until(lambda: not any(desk.num_open for desk in desks))


async def test_prompts_that_begin_alike_go_to_one_engine(ray: Ray) -> None:
    await ray.start("a", "b")
    assert ray.engines is not None
    for i in range(3):
        for first in (5, 6, 7):
            await bounded(answered(ray.engines.submit([request(ray, f"r{first}-{i}", 2, first)], stream=True)))
    homes = [set(ray.routed[number::3]) for number in range(3)]
    assert all(len(home) == 1 for home in homes)


async def test_an_api_replica_knows_what_others_have_sent_to_the_engines(ray: Ray) -> None:
    """The engines say what is in their caches. So a prompt goes where it is, also if its home is another engine."""
    await ray.start("a", "b")
    engines = ray.engines
    assert engines is not None
    for first in range(5, 11):  # of these prompts some have the other engine as their home
        for name, client in list(engines.engines.items()):
            if first % 2 == (name == "a"):  # as another API replica would: past the choice of this one
                await bounded(answered(client.submit([request(ray, f"other-{first}", 2, first)], stream=True)))
    exact = engines._choice._states
    await until(lambda: sum(len(state.seen) for state in exact.values()) == 6 * (200 // 16))
    for first in range(5, 11):
        await bounded(answered(engines.submit([request(ray, f"r{first}", 2, first)], stream=True)))
    assert ray.routed == ["a" if first % 2 else "b" for first in range(5, 11)]
    assert all(state.exact for state in exact.values())


async def test_a_client_that_leaves_ends_the_call_and_the_request(ray: Ray) -> None:
    await ray.start("a")
    assert ray.engines is not None
    pending = ray.engines.submit([request(ray, "r", LONG)], stream=True)
    await asyncio.wait_for(anext(pending), PATIENCE)
    pending.close()
    await until(lambda: not ray.replicas["a"]._desk.num_open)
    await until(lambda: ray.engines is not None and ray.engines.snapshot.num_running == 0)


async def test_a_client_that_leaves_just_as_a_replica_has_taken_its_call_ends_the_call(ray: Ray) -> None:
    await ray.start("a")
    ray.outlive = True
    assert ray.engines is not None
    reading = asyncio.ensure_future(answered(ray.engines.submit([request(ray, "r", LONG)], stream=True)))
    ray.when_routed = reading.cancel
    await asyncio.wait([reading], timeout=PATIENCE)
    assert reading.cancelled() and len(ray.held) == 1
    ray.when_routed = lambda: None
    assert await bounded(answered(ray.engines.submit([request(ray, "r", 2)], stream=True))) == 2
    await until(ray.held[1].done)
    assert ray.held[0].done(), "it was told before"


async def test_a_replica_whose_engine_is_killed_fails_what_has_begun_and_the_rest_goes_to_another(ray: Ray) -> None:
    await ray.start("a", "b")
    engines = ray.engines
    assert engines is not None
    begun = engines.submit([request(ray, "begun", LONG)], stream=True)
    await asyncio.wait_for(anext(begun), PATIENCE)
    home = ray.routed[0]
    others = [
        asyncio.ensure_future(answered(engines.submit([request(ray, f"r{i}", 300)], stream=False))) for i in range(3)
    ]
    await until(lambda: len(ray.routed) >= 4)
    ray.replicas[home]._client._life.link.process.kill()
    with pytest.raises(EngineDeadError):
        await bounded(answered(begun))
    assert await asyncio.gather(*(bounded(one) for one in others)) == [300] * 3
    assert len(ray.routed) > 4
    with pytest.raises(RuntimeError, match="SIGKILL"):
        ray.replicas[home].check_health()
    assert await bounded(answered(engines.submit([request(ray, "after", 3)], stream=True))) == 3
    assert engines.why_unhealthy() is None


async def test_a_replica_that_is_to_go_gets_nothing_new_and_finishes_what_it_has(ray: Ray) -> None:
    await ray.start("a", "b")
    engines = ray.engines
    assert engines is not None
    running = engines.submit([request(ray, "running", 300)], stream=True)
    await asyncio.wait_for(anext(running), PATIENCE)
    home = ray.routed[0]
    ray.tell(without=(home,))
    assert await bounded(answered(engines.submit([request(ray, "new", 3)], stream=True))) == 3
    assert ray.routed[-1] != home
    assert await bounded(answered(running)) >= 290
    await until(lambda: home not in engines.engines)
    await until(lambda: ray.replicas[home]._desk.num_clients == 0)


async def test_an_engine_with_another_model_is_left_out_with_the_reason(ray: Ray, caplog) -> None:
    await ray.start("a")
    engines = ray.engines
    assert engines is not None
    metadata = ray.replicas["a"].identity.metadata()
    engines.running({"a": metadata, "b": {**metadata, "model": "other"}, "c": {**metadata, "version": "0.0"}, "d": {}})
    assert set(engines.engines) == {"a"}
    assert "another model" in caplog.text and "Headway 0.0" in caplog.text and "engine d is left out" in caplog.text


async def test_an_id_that_is_in_use_is_refused_at_once(ray: Ray) -> None:
    await ray.start("a")
    assert ray.engines is not None
    with ray.engines.submit([request(ray, "r")], stream=True), pytest.raises(DuplicateRequestError):
        ray.engines.submit([request(ray, "r")], stream=True)
    assert await bounded(answered(ray.engines.submit([request(ray, "r")], stream=True))) == 4


async def test_the_requests_of_an_api_replica_that_dies_are_aborted_in_the_engine(ray: Ray) -> None:
    await ray.start("a")
    engines = ray.engines
    assert engines is not None
    pending = engines.submit([request(ray, "r", LONG)], stream=True)
    await asyncio.wait_for(anext(pending), PATIENCE)
    desk = ray.replicas["a"]._desk
    owner = ray.replicas["a"]._client
    await until(lambda: owner.snapshot.num_running == 1)
    desk._clock = lambda: 1e12  # as if it had been silent for long
    desk.look()
    await until(lambda: owner.snapshot.num_running == 0)
    assert desk.num_open == 0
    pending.close()


async def test_prompts_of_one_request_are_placed_in_as_many_parts_as_there_are_engines(ray: Ray) -> None:
    await ray.start("a", "b")
    engines = ray.engines
    assert engines is not None
    requests = [request(ray, f"r{number}", 3, 5 + number) for number in range(4)]
    assert await bounded(answered(engines.submit(requests, stream=False))) == 4 * 3
    assert len(ray.routed) == 2 and engines.num_open == 0, "a part for each engine; where it goes, load decides"
    desks = [replica._desk for replica in ray.replicas.values()]
    await until(lambda: not any(desk.num_open for desk in desks))


class TestSharedCalls:
    async def test_requests_share_the_open_call_of_their_engine_which_ends_when_none_is_left(
        self, sharing: Ray
    ) -> None:
        await sharing.start("a")
        engines, held = sharing.engines, sharing.replicas["a"]._desk
        assert engines is not None
        long = engines.submit([request(sharing, "long", LONG)], stream=True)
        await asyncio.wait_for(anext(long), PATIENCE)
        for number in range(5):
            assert await bounded(answered(engines.submit([request(sharing, f"r{number}", 2)], stream=True))) == 2
        assert sharing.routed == ["a"] and held.num_open == 1
        long.close()
        assert await bounded(answered(engines.submit([request(sharing, "soon", 2)], stream=True))) == 2
        assert sharing.routed == ["a"] and held.num_open == 1, "the call waits a little for the next request"
        await until(lambda: held.num_open == 0)
        assert await bounded(answered(engines.submit([request(sharing, "later", 2)], stream=True))) == 2
        assert sharing.routed == ["a", "a"]

    async def test_a_replica_that_is_killed_is_not_held_by_the_call_that_is_lost(self, sharing: Ray) -> None:
        await sharing.start("a", "b")
        engines = sharing.engines
        assert engines is not None
        begun = engines.submit([request(sharing, "begun", LONG)], stream=True)
        await asyncio.wait_for(anext(begun), PATIENCE)
        (home,) = sharing.routed
        waiting = [asyncio.ensure_future(answered(engines.submit([request(sharing, "w", 300)], stream=False)))]
        await until(lambda: sum(client.num_open for client in engines.engines.values()) == 2)
        sharing.replicas[home]._client._life.link.process.kill()
        with pytest.raises(EngineDeadError):
            await bounded(answered(begun))
        assert await asyncio.gather(*(bounded(one) for one in waiting)) == [300]
        assert await bounded(answered(engines.submit([request(sharing, "after", 3)], stream=True))) == 3
        assert {*sharing.routed} == {"a", "b"}

    async def test_a_replica_that_is_to_go_is_held_until_its_requests_have_ended(self, sharing: Ray) -> None:
        await sharing.start("a", "b")
        engines = sharing.engines
        assert engines is not None
        running = engines.submit([request(sharing, "running", 300)], stream=True)
        await asyncio.wait_for(anext(running), PATIENCE)
        (home,) = sharing.routed
        sharing.tell(without=(home,))
        assert await bounded(answered(engines.submit([request(sharing, "new", 3)], stream=True))) == 3
        assert sharing.routed[1:] and home not in sharing.routed[1:] and not sharing.held[0].done()
        assert await bounded(answered(running)) >= 290
        await until(sharing.held[0].done)
        await until(lambda: home not in engines.engines)

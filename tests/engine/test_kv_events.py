"""KVEventPublisher: what a router receives, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from headway.config import EngineConfig
from headway.engine.engine import Engine
from headway.engine.kv_events import END, KVEventPublisher
from headway.executor.simulated import SimulatedExecutor, StepTimeModel
from headway.kv_events_config import KVEventsConfig
from headway.kvcache import BlockPool, KVEvent, PrefixCache
from headway.model_limits import ModelLimits
from headway.request import NewRequest
from headway.sampling import SamplingParams
from tests.engine.running import eventually
from tests.managers.driving import PATIENCE

SIZE = 4
ROOT = PrefixCache.root(None)
PATIENCE_MS = int(1000 * PATIENCE)


class Turns:
    """A cache, whose events make the turns that are published."""

    def __init__(self, num_blocks: int = 1000) -> None:
        self.pool = BlockPool(num_blocks, SIZE)
        self.prefix = PrefixCache(self.pool, keeps_events=True)

    def store(self, *tokens: int, salt: str | None = None) -> list[KVEvent]:
        """A turn that stores one block for each of these tokens."""
        contents = np.repeat(np.array(tokens, dtype=np.int32), SIZE).tobytes()
        blocks = self.pool.take(len(tokens))
        self.prefix.publish(PrefixCache.root(salt), contents, blocks.tolist())
        self.pool.release(blocks)
        return self.prefix.take_events()

    def clear(self) -> list[KVEvent]:
        self.prefix.clear()
        return self.prefix.take_events()

    def evict(self) -> list[KVEvent]:
        """A turn that takes all blocks away."""
        self.pool.release(self.pool.take(self.pool.num_available))
        return self.prefix.take_events()


class Subscriber:
    """A router: a SUB socket, and requests to repeat."""

    def __init__(self, config: KVEventsConfig, topic: str = "") -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sub = self.context.socket(zmq.SUB)
        self.sub.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        self.sub.subscribe(topic.encode())
        self.sub.connect(config.endpoint)
        self.endpoint = config.replay_endpoint

    def next(self) -> tuple[int, list[Any]]:
        """Number and events of the next batch."""
        _topic, number, payload = self.sub.recv_multipart()
        return int.from_bytes(number, "big"), self.events(payload)

    @staticmethod
    def events(payload: bytes) -> list[Any]:
        ts, events, rank = msgspec.msgpack.decode(payload)
        assert isinstance(ts, float) and rank == 0
        return list(events)

    def replay(self, first: int) -> list[tuple[bytes, int, list[Any]]]:
        """The batches from a number on, as they are repeated: topic, number, events."""
        assert self.endpoint is not None
        dealer = self.context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        dealer.connect(self.endpoint)
        dealer.send_multipart((b"", first.to_bytes(8, "big")))
        batches = []
        while True:
            empty, topic, number, payload = dealer.recv_multipart()
            assert empty == b""
            if number == END:
                assert (topic, payload) == (b"", b"")
                dealer.close(linger=0)
                return batches
            batches.append((topic, int.from_bytes(number, "big"), self.events(payload)))


@contextmanager
def publishing(tmp_path: Path, **options: Any) -> Iterator[tuple[KVEventPublisher, Subscriber]]:
    """A publisher that has started, and a subscriber that has joined."""
    config = KVEventsConfig(
        enable_kv_cache_events=True,
        endpoint=f"ipc://{tmp_path}/pub",
        replay_endpoint=f"ipc://{tmp_path}/replay",
        **options,
    )
    publisher, subscriber = KVEventPublisher(config, SIZE), Subscriber(config, config.topic)
    publisher.start()
    try:
        yield publisher, subscriber
    finally:
        publisher.close()
        subscriber.context.destroy(linger=0)


def join(publisher: KVEventPublisher, subscriber: Subscriber, turns: Turns) -> int:
    """Publish until the subscriber hears something. Returns the last number, which it has heard."""
    subscriber.sub.setsockopt(zmq.RCVTIMEO, 50)
    try:
        for i in range(PATIENCE_MS // 50):
            publisher.publish(turns.store(10_000 + i))
            with suppress(zmq.Again):
                while (number := subscriber.next()[0]) <= i:  # the first batch, 0, is not of a turn
                    pass
                return number
    finally:
        subscriber.sub.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
    raise AssertionError("the subscriber hears nothing")


def test_events_are_maps_with_the_fields_of_vllm(tmp_path: Path) -> None:
    turns = Turns()
    with publishing(tmp_path, topic="kv@host@model") as (publisher, subscriber):
        number = join(publisher, subscriber, turns)
        publisher.publish(turns.clear())
        publisher.publish(turns.store(1, 2))
        publisher.publish(turns.store(1, 2, 3))
        publisher.publish(turns.evict())
        assert subscriber.next() == (number + 1, [{"type": "AllBlocksCleared"}])
        second, (stored,) = subscriber.next()
        hashes = stored.pop("block_hashes")
        assert second == number + 2
        assert stored == {
            "type": "BlockStored",
            "parent_block_hash": None,
            "token_ids": [1] * SIZE + [2] * SIZE,
            "block_size": SIZE,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
        }
        assert len(set(hashes)) == 2 and all(0 <= one < 2**64 for one in hashes)
        _, (child,) = subscriber.next()
        assert (child["parent_block_hash"], child["token_ids"]) == (hashes[1], [3] * SIZE)
        _, (removed,) = subscriber.next()
        assert set(removed.pop("block_hashes")) == {*hashes, *child["block_hashes"]}
        assert removed == {"type": "BlockRemoved", "medium": "GPU"}


def test_events_may_be_arrays_and_hashes_whole_digests_as_older_subscribers_know_them(tmp_path: Path) -> None:
    turns = Turns()
    with publishing(tmp_path, event_format="array", hash_format="bytes") as (publisher, subscriber):
        join(publisher, subscriber, turns)
        publisher.publish(turns.clear())
        publisher.publish(turns.store(1, 2, salt="tenant"))
        publisher.publish(turns.evict())
        assert subscriber.next()[1] == [["AllBlocksCleared"]]
        (stored,) = subscriber.next()[1]
        hashes = stored[1]
        assert [len(one) for one in hashes] == [32, 32]
        tokens = [1] * SIZE + [2] * SIZE
        assert stored == ["BlockStored", hashes, None, tokens, SIZE, None, "GPU", None, [["tenant"], None]]
        (removed,) = subscriber.next()[1]
        assert removed[0] == "BlockRemoved" and set(removed[1]) == set(hashes) and removed[2] == "GPU"


def test_a_hash_is_the_end_of_the_digest_as_routers_cut_it_off(tmp_path: Path) -> None:
    stored: dict[str, dict[str, Any]] = {}
    for form in ("int", "bytes"):
        (folder := tmp_path / form).mkdir()
        with publishing(folder, hash_format=form) as (publisher, subscriber):
            publisher.publish(Turns().store(1, 2, 3))
            assert eventually(lambda: publisher.num_published == 2)
            (stored[form],) = subscriber.replay(1)[0][2]
    assert stored["int"]["block_hashes"] == [int.from_bytes(one[-8:], "big") for one in stored["bytes"]["block_hashes"]]


def test_a_subscriber_that_joins_late_gets_what_it_missed_by_asking(tmp_path: Path) -> None:
    turns = Turns()
    with publishing(tmp_path, topic="kv") as (publisher, subscriber):
        for i in range(5):
            publisher.publish(turns.store(i))
        assert eventually(lambda: publisher.num_published == 6)
        batches = subscriber.replay(0)
        assert [(topic, number) for topic, number, _ in batches] == [(b"kv", i) for i in range(6)]
        assert batches[0][2] == [{"type": "AllBlocksCleared"}]
        assert [batch[2][0]["token_ids"][0] for batch in batches[1:]] == list(range(5))
        assert [number for _, number, _ in subscriber.replay(4)] == [4, 5]
        assert subscriber.replay(6) == []


def test_batches_beyond_buffer_steps_cannot_be_repeated(tmp_path: Path) -> None:
    turns = Turns()
    with publishing(tmp_path, buffer_steps=3) as (publisher, subscriber):
        for i in range(9):
            publisher.publish(turns.store(i))
        assert eventually(lambda: publisher.num_published == 10)
        assert [number for _, number, _ in subscriber.replay(0)] == [7, 8, 9]


def test_a_request_that_cannot_be_read_is_not_answered_and_the_next_one_is(tmp_path: Path) -> None:
    with publishing(tmp_path) as (publisher, subscriber):
        assert subscriber.endpoint is not None
        dealer = subscriber.context.socket(zmq.DEALER)
        dealer.connect(subscriber.endpoint)
        for frames in ((b"x",), (b"", b"1"), (b"", b"", b""), (b"x", bytes(8))):
            dealer.send_multipart(frames)
        assert eventually(lambda: publisher.num_published == 1)
        assert [number for _, number, _ in subscriber.replay(0)] == [0]
        assert not dealer.poll(0)


def test_a_slow_subscriber_holds_up_neither_the_writer_nor_another_subscriber(tmp_path: Path) -> None:
    """It reads nothing: what is beyond the limit is lost for it, and for it alone."""
    turns = Turns(num_blocks=5000)
    with publishing(tmp_path, hwm=10) as (publisher, slow):
        join(publisher, slow, turns)
        slow_asks = slow.context.socket(zmq.DEALER)  # asks for everything, again and again, and reads nothing
        slow_asks.set_hwm(1)
        assert slow.endpoint is not None
        slow_asks.connect(slow.endpoint)
        for i in range(4000):
            publisher.publish(turns.store(i))
            if i % 1000 == 0:
                slow_asks.send_multipart((b"", bytes(8)))
        assert eventually(lambda: publisher.num_published > 4000)
        assert publisher.num_lost == 0
        assert len(slow.replay(0)) == publisher.num_published


def test_turns_beyond_the_queue_are_counted_and_show_as_a_gap_and_an_empty_cache(tmp_path: Path) -> None:
    turns = Turns()
    config = KVEventsConfig(endpoint=f"ipc://{tmp_path}/pub", replay_endpoint=f"ipc://{tmp_path}/r", max_queue_size=2)
    publisher, subscriber = KVEventPublisher(config, SIZE), Subscriber(config)
    for i in range(5):  # nothing reads the queue yet
        publisher.publish(turns.store(i))
    assert publisher.num_lost == 3
    publisher.start()
    assert eventually(lambda: publisher.num_published == 3)
    publisher.publish(turns.store(5))
    assert eventually(lambda: publisher.num_published == 4)
    batches = {number: events for _, number, events in subscriber.replay(0)}
    publisher.close()
    subscriber.context.destroy(linger=0)
    assert sorted(batches) == [0, 1, 2, 6]
    assert [event["type"] for event in batches[6]] == ["AllBlocksCleared", "BlockStored"]
    assert batches[6][1]["token_ids"][0] == 5


def test_an_endpoint_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with publishing(tmp_path, topic="taken"), pytest.raises(ValueError, match="KV events cannot be published at 'ipc"):
        KVEventPublisher(KVEventsConfig(endpoint=f"ipc://{tmp_path}/nowhere/pub"), SIZE)


def test_a_publisher_that_never_started_closes() -> None:
    publisher = KVEventPublisher(KVEventsConfig(endpoint="inproc://pub"), SIZE)
    publisher.close()
    publisher.close()


def test_an_engine_tells_of_prompts_answers_and_a_reset(tmp_path: Path) -> None:
    options = {
        "enable_kv_cache_events": True,
        "endpoint": f"ipc://{tmp_path}/p",
        "replay_endpoint": f"ipc://{tmp_path}/r",
    }
    config = EngineConfig(max_num_seqs=2, block_size=SIZE, kv_events_config=json.dumps(options))
    assert config.kv_events is not None
    executor = SimulatedExecutor(StepTimeModel(), max_num_seqs=2, vocab_size=100)
    ended: list[int] = []
    engine = Engine.assemble(
        config,
        executor,
        50,
        ModelLimits(max_model_len=64, vocab_size=100),
        lambda effects: ended.extend(end.uid for end in effects.ended),
    )
    engine.start()
    subscriber = Subscriber(config.kv_events)
    try:
        engine.add(NewRequest(request_id="r", prompt=list(range(9)), sampling=SamplingParams(max_tokens=8)))
        assert eventually(lambda: ended)
        engine.manager.reset_prefix_cache()

        def told() -> list[Any]:
            return [event for _, _, events in subscriber.replay(0) for event in events]

        assert eventually(lambda: [one["type"] for one in told()].count("AllBlocksCleared") == 2)
        cleared, *stored, last = told()
        assert cleared == last == {"type": "AllBlocksCleared"}
        tokens = [token for event in stored for token in event["token_ids"]]
        assert tokens[:9] == list(range(9)) and len(tokens) == 16
    finally:
        engine.shutdown()
        subscriber.context.destroy(linger=0)

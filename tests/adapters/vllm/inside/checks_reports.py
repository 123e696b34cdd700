"""What vLLM is told: statistics, KV events, ends by client; and what it is spared: block hashes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
from engine_core import EngineCore
from engines import BLOCK_SIZE, Shape, make_request, make_scheduler, vllm_config
from vllm.config import KVEventsConfig
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from vllm.v1.request import RequestStatus

PROMPT = [3 + i % 60 for i in range(40)]


def check_no_block_is_hashed_though_prefixes_are_cached() -> None:
    config = vllm_config(Shape())
    scheduler = make_scheduler(Shape(), config=config)
    assert config.cache_config.enable_prefix_caching is False, "the engine would hash the blocks of each request"
    core = EngineCore(scheduler, Shape())
    for name in ("first", "second"):
        core.add(make_request(name, PROMPT, max_tokens=2))
        core.run()
    assert core.answers["second"].prefill.num_cached_tokens == 32, core.answers["second"].prefill


def check_statistics_are_those_of_vllms_own_scheduler() -> None:
    seen: dict[str, Any] = {}
    for kind in ("stock", "headway"):
        core = EngineCore(make_scheduler(Shape(), kind), Shape())
        for name, more in (
            ("a", {}),
            ("b", {}),
            ("c", {"cache_salt": "x"}),
            ("d", {"skip_reading_prefix_cache": True}),
        ):
            core.add(make_request(name, PROMPT, max_tokens=3, hashed=kind == "stock", **more))
            core.run()
        prefills = {name: vars(answer.prefill) for name, answer in core.answers.items()}
        seen[kind] = core.num_queried, core.num_hits, prefills, [answer.events for answer in core.answers.values()]
    assert seen["stock"] == seen["headway"], seen


def check_running_waiting_and_preparing_requests_are_counted_as_vllm_does() -> None:
    seen: dict[str, Any] = {}
    shape = Shape(max_num_seqs=2)
    for kind in ("stock", "headway"):
        core = EngineCore(make_scheduler(shape, kind), shape)
        for i, name in enumerate("abcd"):
            request = make_request(
                name, [7 + i, *PROMPT], max_tokens=9, grammar=name == "d", ignore_eos=True, hashed=kind == "stock"
            )
            core.add(request)
        core.step()
        stats = core.scheduler.make_stats()
        seen[kind] = (
            (stats.num_running_reqs, stats.num_waiting_reqs, stats.num_skipped_waiting_reqs),
            core.scheduler.get_request_counts(),
            core.scheduler.get_num_unfinished_requests(),
            [core.scheduler.has_request(name) for name in "ax"] if hasattr(core.scheduler, "has_request") else None,
        )
    running, waiting, skipped = seen["stock"][0]
    assert seen["headway"][0] == (2, 1, 1), seen
    assert (running, waiting + skipped) == (2, 2), seen
    assert seen["stock"][1:3] == seen["headway"][1:3], seen


def check_front_ends_are_told_which_of_their_requests_have_ended() -> None:
    scheduler = make_scheduler(Shape(), include_finished_set=True)
    for client in (0, 1):
        scheduler.add_request(make_request(f"r{client}", [7 + client], max_tokens=1, client=client, ignore_eos=True))
    scheduler.add_request(make_request("bad", [], max_tokens=1, client=2))
    core = EngineCore(scheduler, Shape())
    order = scheduler.schedule()
    result = scheduler.update_from_output(order, core.worker.sample(core.worker.execute(order), None))
    ended = {client: outputs.finished_requests for client, outputs in result.items()}
    assert ended == {0: {"r0"}, 1: {"r1"}, 2: {"bad"}}, ended
    scheduler.add_request(make_request("gone", PROMPT, max_tokens=9, client=3))
    scheduler.finish_requests("gone", RequestStatus.FINISHED_ABORTED)
    order = scheduler.schedule()
    result = scheduler.update_from_output(order, SimpleNamespace(cudagraph_stats=None))
    assert result[3].finished_requests == {"gone"}, result


class _Publisher:
    """Keeps what is published, after a way through the encoder of vLLM's publisher."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def publish(self, batch: Any) -> None:
        msgspec.msgpack.Encoder().encode(batch)
        self.events += batch.events

    def shutdown(self) -> None:
        pass


def _core_with_events(kind: str = "headway", **shape: Any) -> tuple[EngineCore, _Publisher]:
    wanted = KVEventsConfig(enable_kv_cache_events=True, publisher="null")
    scheduler = make_scheduler(Shape(**shape), kind, config=vllm_config(Shape(**shape), wanted))
    publisher = _Publisher()
    if kind == "stock":
        scheduler.kv_event_publisher = publisher
    else:
        scheduler._kv_events._publisher = publisher
    return EngineCore(scheduler, Shape(**shape)), publisher


def check_kv_events_tell_which_blocks_the_cache_has() -> None:
    core, publisher = _core_with_events()
    core.add(make_request("plain", PROMPT, max_tokens=1, ignore_eos=True))
    core.run()
    (stored,) = publisher.events
    assert isinstance(stored, BlockStored), stored
    assert stored.token_ids == PROMPT[:32] and len(set(stored.block_hashes)) == 2, stored
    assert (stored.parent_block_hash, stored.block_size, stored.medium) == (None, BLOCK_SIZE, "GPU"), stored
    core.add(make_request("longer", PROMPT[:32] + [9] * 20, max_tokens=1, ignore_eos=True))
    core.run()
    more = publisher.events[1]
    assert more.parent_block_hash == stored.block_hashes[1] and more.token_ids == [9] * 16, more
    core.add(make_request("salted", PROMPT, max_tokens=1, ignore_eos=True, cache_salt="salt"))
    core.run()
    salted = publisher.events[2]
    assert salted.extra_keys == [("salt",), None], salted
    assert not set(salted.block_hashes) & set(stored.block_hashes), "another salt has the same hashes"
    core.scheduler.reset_prefix_cache()
    core.add(make_request("after", PROMPT, max_tokens=1, ignore_eos=True))
    core.run()
    cleared, again = publisher.events[3:]
    assert isinstance(cleared, AllBlocksCleared) and again.block_hashes == stored.block_hashes, publisher.events[3:]


def check_kv_events_have_the_fields_of_vllms_own_but_for_the_hashes() -> None:
    fields: list[dict[str, Any]] = []
    for kind in ("stock", "headway"):
        core, publisher = _core_with_events(kind)
        for name, salt in (("plain", {}), ("salted", {"cache_salt": "salt"})):
            core.add(make_request(name, PROMPT, max_tokens=1, ignore_eos=True, hashed=kind == "stock", **salt))
            core.run()
        core.scheduler.reset_prefix_cache()
        core.add(make_request("after", PROMPT[:20], max_tokens=1, ignore_eos=True, hashed=kind == "stock"))
        core.run()
        events = [msgspec.structs.asdict(event) | {"kind": type(event).__name__} for event in publisher.events]
        fields.append([{**event, "block_hashes": len(event.get("block_hashes", ()))} for event in events])
    assert fields[0] == fields[1], fields


def check_kv_events_tell_which_blocks_had_to_go() -> None:
    core, publisher = _core_with_events(num_blocks=22, max_model_len=320)
    for i in range(12):
        core.add(make_request(f"r{i}", [3 + (i + j) % 60 for j in range(100)], max_tokens=1, ignore_eos=True))
        core.run()
    held: set[Any] = set()
    for event in publisher.events:
        if isinstance(event, BlockStored):
            held.update(event.block_hashes)
        elif isinstance(event, BlockRemoved):
            assert held.issuperset(event.block_hashes), "a block goes that was never told"
            held.difference_update(event.block_hashes)
    assert any(isinstance(event, BlockRemoved) for event in publisher.events)
    assert len(held) <= 21, f"{len(held)} blocks of 21 are held"

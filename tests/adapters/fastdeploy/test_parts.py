"""The parts of the adapter that need no FastDeploy: steps over a free-running worker, sets, sizes, refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from headway.adapters.fastdeploy.engine.acknowledgements import Acknowledgements, IdSet, Owed
from headway.adapters.fastdeploy.engine.flight import Flight, Portion, Row
from headway.adapters.fastdeploy.engine.record import Record
from headway.adapters.fastdeploy.engine.refusals import (
    NotServedError,
    check_config,
    not_served,
    reason_against_request,
    reasons_against,
)
from headway.adapters.fastdeploy.engine.sizes import scheduler_config
from headway.adapters.fastdeploy.engine.slots_view import SlotsView
from headway.config import Role
from headway.request import FinishReason
from headway.scheduler import QuarantinedSlot


def a_record(num_prompt: int = 4, outputs: tuple[int, ...] = (), told: int = 0, slot: int = 0) -> Record:
    request = SimpleNamespace(output_token_ids=list(outputs))
    core = SimpleNamespace(prompt=[0] * num_prompt, request_id="a", uid=1)
    return Record(request, core, slot=slot, num_told=told)  # type: ignore[arg-type]


def a_flight(*rows: tuple[Record, bool], most: int = 3) -> Flight:
    """A flight of these rows: (record, whether it decodes)."""
    rows_of = [Row(record, record.slot or 0, decodes) for record, decodes in rows]
    return Flight(7, most, rows_of, num_chunks=sum(not decodes for _, decodes in rows))


class TestAStepOverAFreeWorker:
    @pytest.mark.parametrize(("come", "given"), [(0, []), (1, [11]), (3, [11, 12, 13]), (5, [11, 12, 13])])
    def test_takes_from_a_decode_what_has_come_up_to_what_it_may_run_ahead(self, come: int, given: list[int]) -> None:
        record = a_record(outputs=(10, *range(11, 11 + come)), told=1)
        result = a_flight((record, True)).result()
        assert (result.tokens.tolist(), record.num_told) == (given, 1 + len(given))
        assert result.counts is not None and result.counts.tolist() == [len(given)]

    def test_leaves_the_rest_for_the_next_step(self) -> None:
        record = a_record(outputs=(10, 11, 12, 13, 14), told=1)
        flight = a_flight((record, True))
        assert flight.result().tokens.tolist() == [11, 12, 13]
        assert flight.result().tokens.tolist() == [14]

    @pytest.mark.parametrize(("num_places", "due"), [(13, False), (12, True)])
    def test_of_decodes_is_answered_when_places_become_few(self, num_places: int, due: bool) -> None:
        record = a_record(num_prompt=4, outputs=(10, 11), told=1)
        record.free, record.num_places = True, num_places
        assert a_flight((record, True)).is_due(7, others_wait=False) is due

    def test_of_decodes_is_answered_at_once_for_requests_that_wait_or_catch_up(self) -> None:
        record = a_record(num_prompt=4, outputs=(10, 11), told=1)
        record.free, record.num_places = True, 100
        flight = a_flight((record, True))
        assert flight.is_due(7, others_wait=True) and not flight.is_due(7, others_wait=False)
        record.free = False
        assert flight.is_due(7, others_wait=False)

    def test_without_news_is_not_answered_where_places_are_few(self) -> None:
        record = a_record(num_prompt=4, outputs=(10,), told=1)
        record.free, record.num_places = True, 6
        assert not a_flight((record, True)).is_due(7, others_wait=False)

    def test_waits_for_the_first_token_after_a_chunk_and_for_nothing_else(self) -> None:
        new, decoding = a_record(), a_record(outputs=(10,), told=1, slot=1)
        flight = a_flight((decoding, True), (new, False))
        assert not flight.is_done()
        new.request.output_token_ids.append(5)
        assert flight.is_done() and flight.result().tokens.tolist() == [5]

    def test_gives_one_token_for_a_chunk_even_if_more_have_come(self) -> None:
        record = a_record(outputs=(5, 6, 7))
        result = a_flight((record, False)).result()
        assert result.tokens.tolist() == [5] and record.num_told == 1

    def test_is_not_done_before_all_its_chunks_were_sent(self) -> None:
        record = a_record(outputs=(5,))
        flight = a_flight((record, False))
        flight.portions.append(Portion(record, 0, 4))
        assert not flight.is_done() and list(flight.portions_of(record)) == flight.portions

    @pytest.mark.parametrize("void", ["ended", "muted", "in another slot"])
    def test_expects_nothing_of_a_request_that_has_left_or_leaves(self, void: str) -> None:
        chunk, decode = a_record(), a_record(outputs=(10, 11), told=1, slot=1)
        flight = a_flight((decode, True), (chunk, False))
        for record in (chunk, decode):
            if void == "ended":
                record.end = FinishReason.ABORT
            elif void == "muted":
                record.muted = True
            else:
                record.slot = None
        assert flight.is_done() and flight.is_due(8, others_wait=False)
        result = flight.result()
        assert result.counts is not None and result.counts.tolist() == [0, 1]
        assert (chunk.num_told, decode.num_told) == (0, 1), "what is said of it tells the core nothing"


def test_a_record_knows_the_tokens_that_have_come_and_forgets_the_worker_with_its_slot() -> None:
    record = a_record(num_prompt=4, outputs=(10, 11), slot=2)
    record.heard = record.free = True
    assert (record.request_id, record.num_outputs, record.num_known, record.is_void) == ("a", 2, 6, False)
    record.leave_slot()
    assert (record.slot, record.heard, record.free) == (None, False, False)


class TestSlotsThatTheWorkerOwes:
    def owed(self, *, aborts: bool) -> Acknowledgements:
        waits = Acknowledgements()
        waits.expect("a", Owed(QuarantinedSlot(3, 5, 1, 0.0), object(), aborts))
        return waits

    def test_are_answered_to_the_client_if_they_were_aborted(self) -> None:
        waits = self.owed(aborts=True)
        assert waits.is_aborting("a") and not waits.is_leaving("a")

    def test_are_given_back_without_a_word_if_they_were_preempted(self) -> None:
        waits = self.owed(aborts=False)
        assert waits.is_leaving("a") and not waits.is_aborting("a")

    def test_are_not_answered_a_second_time_when_the_last_token_came_before(self) -> None:
        waits = self.owed(aborts=True)
        waits.answer("a")
        assert waits.is_leaving("a") and not waits.is_aborting("a")

    def test_leave_no_trace_when_they_were_given_back(self) -> None:
        waits = self.owed(aborts=True)
        waits.answer("a")
        waits.forget_answer("a")
        assert waits.is_leaving("a"), "the answer is kept as long as the slot is owed"
        assert waits.take("a") is not None and waits.take("a") is None
        waits.forget_answer("a")
        waits.expect("a", Owed(QuarantinedSlot(3, 6, 2, 0.0), object(), aborts=True))
        assert waits.is_aborting("a"), "a later request of the same id has not been answered"

    def test_are_all_forgotten_when_the_worker_has_lost_its_tasks(self) -> None:
        waits = self.owed(aborts=True)
        assert len(waits.drop_all()) == 1
        assert len(waits) == 0 and "a" not in waits and waits.ids() == []


def test_a_set_of_ids_is_read_like_a_set_and_tells_of_what_is_discarded() -> None:
    inside, told = {"a", "b"}, []
    ids = IdSet(lambda: sorted(inside), inside.__contains__, told.append)
    assert "a" in ids and "c" not in ids and 1 not in ids
    assert list(ids) == ["a", "b"] and len(ids) == 2
    assert {"a", "c"} - ids == {"c"} and ids | {"c"} == {"a", "b", "c"}
    ids.discard("a")
    assert told == ["a"] and "a" in ids, "the owner of the set takes it out"
    IdSet(list, inside.__contains__).discard("a")


class TestTheArraysOfSlots:
    def test_show_who_sits_where(self) -> None:
        slots, request = SlotsView(3), SimpleNamespace(idx=None, block_tables=[1])
        slots.seat(1, request)
        assert (slots.tasks_list[1], slots.stop_flags, request.idx) == (request, [True, False, True], 1)
        assert slots.num_spanned == 2 and slots.shows(request)
        slots.free(1, request)
        assert slots.stop_flags == [True] * 3 and slots.num_spanned == 0 and request.block_tables == []

    def test_keep_the_last_request_for_a_thread_that_has_just_read_the_flag(self) -> None:
        slots, request = SlotsView(1), SimpleNamespace(idx=None, block_tables=[])
        slots.seat(0, request)
        slots.free(0, request)
        assert slots.tasks_list[0] is request and not slots.shows(request)
        assert not slots.shows(SimpleNamespace(idx=None))

    def test_are_not_freed_from_under_the_next_request(self) -> None:
        slots, first, second = (
            SlotsView(1),
            SimpleNamespace(idx=None, block_tables=[]),
            SimpleNamespace(idx=None, block_tables=[]),
        )
        slots.seat(0, first)
        slots.seat(0, second)
        slots.free(0, first)
        assert slots.stop_flags == [False] and slots.tasks_list[0] is second


def a_config(**changes: Any) -> SimpleNamespace:
    """An FDConfig, as far as it is read."""
    cache = {
        "block_size": 16,
        "total_block_num": 64,
        "enable_prefix_caching": True,
        "enable_output_caching": False,
        "num_cpu_blocks": 0,
        "kvcache_storage_backend": None,
    }
    config = SimpleNamespace(
        cache_config=SimpleNamespace(**cache),
        model_config=SimpleNamespace(max_model_len=256, runner_type="generate"),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=512),
        speculative_config=SimpleNamespace(method=None),
        enable_mm_runtime=False,
    )
    for name, value in changes.items():
        part = next((each for each in vars(config).values() if hasattr(each, name)), config)
        setattr(part, name, value)
    return config


class TestSizes:
    def test_have_one_block_more_as_block_0_is_padding_here(self) -> None:
        assert scheduler_config(a_config(), 8, "mixed", is_measured=True).num_blocks == 65

    def test_let_the_worker_run_ahead_by_a_block_without_counting_that_as_work(self) -> None:
        config = scheduler_config(a_config(), 8, "mixed", is_measured=True)
        assert config.num_speculative_tokens == 16 and config.quarantine_slots
        assert config.smallest_chunk_budget >= 512

    def test_of_p_have_no_tokens_ahead(self) -> None:
        config = scheduler_config(a_config(), 8, "prefill", is_measured=True)
        assert (config.role, config.num_speculative_tokens) == (Role.PREFILL, 0)

    def test_leave_the_end_of_an_answer_to_fastdeploy(self) -> None:
        assert scheduler_config(a_config(), 8, "decode", is_measured=True).max_model_len == 257

    def test_are_taken_before_the_memory_was_measured(self) -> None:
        assert scheduler_config(a_config(total_block_num=2), 8, "mixed", is_measured=False).num_blocks == 18

    def test_have_no_block_that_the_device_lacks(self) -> None:
        with pytest.raises(ValueError, match="cannot hold one request"):
            scheduler_config(a_config(total_block_num=16), 8, "mixed", is_measured=True)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "speculative_config": ({"speculative_config": SimpleNamespace(method="mtp")}, {}),
    "enable_mm_runtime": ({"enable_mm_runtime": True}, {}),
    "runner_type": ({"runner_type": "pooling"}, {}),
    "num_cpu_blocks": ({"num_cpu_blocks": 4}, {}),
    "kvcache_storage_backend": ({"kvcache_storage_backend": "mooncake"}, {}),
    "block_size": ({"block_size": 48}, {}),
    "ENABLE_V1_KVCACHE_SCHEDULER": ({}, {"ENABLE_V1_KVCACHE_SCHEDULER": "0"}),
    "ENABLE_V1_KVCACHE_MANAGER": ({}, {"ENABLE_V1_KVCACHE_MANAGER": "1"}),
    "FD_DISABLE_CHUNKED_PREFILL": ({}, {"FD_DISABLE_CHUNKED_PREFILL": "1"}),
    "FD_DETERMINISTIC_MODE": ({}, {"FD_DETERMINISTIC_MODE": "1"}),
}


class TestRefusals:
    def test_an_ordinary_configuration_is_served(self) -> None:
        check_config(a_config(), {"ENABLE_V2_KVCACHE_SCHEDULER": "1", "ENABLE_V1_KVCACHE_SCHEDULER": "1"})

    @pytest.mark.parametrize("name", REFUSED)
    def test_a_setting_is_refused_by_its_name(self, name: str) -> None:
        changes, environment = REFUSED[name]
        (reason,) = reasons_against(a_config(**changes), environment)
        assert name in reason

    @pytest.mark.parametrize(
        ("name", "value", "refused"),
        [
            ("FD_DETERMINISTIC_MODE", "2", True),
            ("FD_DETERMINISTIC_MODE", "00", False),
            ("ENABLE_V1_KVCACHE_SCHEDULER", "00", True),
            ("ENABLE_V1_KVCACHE_SCHEDULER", "2", False),
        ],
    )
    def test_a_switch_is_read_as_fastdeploy_reads_it(self, name: str, value: str, refused: bool) -> None:
        assert bool(reasons_against(a_config(), {name: value})) is refused

    def test_all_reasons_stand_in_one_message_with_the_way_back(self) -> None:
        changes = {name: value for given, _ in REFUSED.values() for name, value in given.items()}
        environment = {name: value for _, given in REFUSED.values() for name, value in given.items()}
        with pytest.raises(NotServedError) as error:
            check_config(a_config(**changes), environment)
        assert all(name in str(error.value) for name in REFUSED)
        assert "unset ENABLE_V2_KVCACHE_SCHEDULER" in str(error.value)

    def test_a_call_is_refused_with_the_reason(self) -> None:
        assert "it is old" in str(not_served("a_call", "it is old"))

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"pooling_params": object()}, "pooling"),
            ({"use_extend_tables": True}, "extended"),
            ({"multimodal_inputs": {"images": [1]}}, "images"),
        ],
    )
    def test_a_request_is_refused_with_the_reason(self, changes: dict[str, Any], word: str) -> None:
        plain = {"pooling_params": None, "use_extend_tables": False, "multimodal_inputs": None}
        assert reason_against_request(SimpleNamespace(**plain)) is None
        reason = reason_against_request(SimpleNamespace(**{**plain, **changes}))
        assert reason is not None and word in reason

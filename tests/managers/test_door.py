"""The door: what is refused and why, what is packed, which requests may come in, and that each leaves once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from headway.config import Role
from headway.errors import DuplicateRequestError, EngineDeadError, QueueFullError, RequestError
from headway.managers import Door
from headway.model_limits import ModelLimits
from headway.request import Request, Span, Transfer
from headway.sampling import SamplingParams
from tests.managers.driving import PATIENCE, config, hand_made, new_request

EOS = 5


def a_door(*, max_waiting: int = 2, vocab_size: int | None = 100, **changes: Any) -> Door:
    """Room for 4 + 2 requests of at most 64 tokens."""
    return Door(
        config(**changes), ModelLimits(vocab_size, (EOS,)) if vocab_size is not None else ModelLimits(), max_waiting
    )


def packed(
    prompt: Any = (1, 2, 3), door: Door | None = None, *, request: Mapping[str, Any] | None = None, **sampling: Any
) -> Request:
    return (door or a_door()).make_request(new_request("a", prompt, SamplingParams(**sampling), **(request or {})))


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], r"the prompt is empty; at least 1 token"),
        (np.zeros(0, np.int32), r"the prompt is empty"),
        (
            [1] * 64,
            r"maximum context length is 64 tokens. However, the prompt is too long: it has 64 tokens, and at least 1",
        ),
        ([1] * 1000, r"length is 64 tokens. However, the prompt is too long: it has 1000 tokens"),
        ([1.0, 2.0], r"flat list of integers, got 1-d float64"),
        ([1, 2.5], r"flat list of integers, got 1-d float64"),
        ([True, False], r"flat list of integers, got 1-d bool"),
        ([[1, 2], [3, 4]], r"flat list of integers, got 2-d int64"),
        ([[1, 2], [3]], r"not a list of token ids"),
        (["1", "2"], r"flat list of integers, got 1-d <U1"),
        ("some text", r"flat list of integers, got 0-d"),
        (7, r"flat list of integers, got 0-d int64"),
        (None, r"flat list of integers, got 0-d object"),
        ([1, None], r"flat list of integers, got 1-d object"),
        ([1, -1], r"the prompt contains token id -1; ids are integers from 0 to 99"),
        ([1, 100], r"the prompt contains token id 100; ids are integers from 0 to 99"),
        ([1, 2**31], r"token id 2147483648; ids are integers from 0 to 99"),
        ([2**63], r"token id 9223372036854775808; ids"),
        ([2**64], r"flat list of integers, got 1-d object"),
    ],
)
def test_a_prompt_that_is_none_is_refused_with_value_and_limit(prompt: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        packed(prompt)


def test_the_longest_prompt_leaves_one_token_for_the_output() -> None:
    assert packed([1] * 63, max_tokens=16).max_tokens == 1


def test_a_prompt_whose_logprobs_are_asked_for_is_not_taken_from_the_cache() -> None:
    assert packed(prompt_logprobs=0).reads_prefix_cache is False
    assert packed(logprobs=0).reads_prefix_cache is True


def test_an_answer_of_no_tokens_takes_one_from_the_engine() -> None:
    assert packed(max_tokens=0).max_tokens == 1


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        ({"max_tokens": None, "min_tokens": 62}, r"min_tokens is 62, but at most 61 tokens"),
        ({"max_tokens": 100, "min_tokens": 90}, r"min_tokens is 90, but at most 61 tokens"),
        ({"stop_token_ids": (3, 100)}, r"stop_token_ids contains token id 100; ids are integers from 0 to 99"),
        ({"stop_token_ids": (-1,)}, r"stop_token_ids contains token id -1"),
        ({"stop_token_ids": (1.5,)}, r"stop_token_ids contains token id 1\.5"),
        ({"stop_token_ids": ("x",)}, r"stop_token_ids contains token id 'x'"),
        ({"logit_bias": {7: 1.0, 100: 1.0}}, r"logit_bias contains token id 100; ids are integers from 0 to 99"),
        ({"logit_bias": {"7": 1.0}}, r"logit_bias contains token id '7'"),
    ],
)
def test_parameters_that_the_model_cannot_meet_are_refused(sampling: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        packed(**sampling)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"priority": 2**31 + 1}, r"priority must be an integer in \[-2147483648, 2147483648\], got 2147483649"),
        ({"priority": -(2**31) - 1}, r"priority must be an integer"),
        ({"priority": 0.5}, r"priority must be an integer in .* got 0\.5"),
        ({"priority": "high"}, r"priority must be an integer in .* got 'high'"),
        ({"uid": -1}, r"uid must be an integer in \[0, 9223372036854775807\], got -1"),
        ({"uid": 2**63}, r"uid must be an integer"),
        ({"reads_prefix_cache": None}, r"reads_prefix_cache must be True or False, got None"),
        ({"cache_salt": 7}, r"cache_salt must be a string, got 7"),
        ({"cache_salt": "\ud800"}, r"cache_salt '\\ud800' cannot be written as UTF-8"),
    ],
)
def test_what_the_core_could_not_keep_is_refused(request_: dict[str, Any], says: str) -> None:
    """Past the door these would break the writer, and with it all requests."""
    with pytest.raises(RequestError, match=says):
        packed(request=request_)


def test_a_request_id_is_a_string() -> None:
    """An integer would be taken for a uid where requests are named."""
    with pytest.raises(RequestError, match="request_id must be a string, got 7"):
        a_door().make_request(new_request(7, [1], SamplingParams()))  # type: ignore[arg-type]


def test_without_a_vocabulary_any_int32_is_a_token_id() -> None:
    door = a_door(vocab_size=None)
    assert packed([0, 2**31 - 1], door).prompt.tolist() == [0, 2**31 - 1]
    for wrong in (-1, 2**31):
        with pytest.raises(RequestError, match=f"token id {wrong}; ids are integers from 0 to 2147483647"):
            packed([wrong], door)


def test_what_computes_text_alone_takes_no_images() -> None:
    """Past the door their placeholders would be computed as if they were text."""
    door = Door(config(), ModelLimits(100, encodes_media=False), 8)
    with pytest.raises(RequestError, match="computes text alone, the prompt has 1 spans"):
        door.make_request(new_request("a", [1, 2, 3], SamplingParams(), spans=[Span(0, 2, b"digest")]))


def test_making_a_request_claims_nothing() -> None:
    door = a_door()
    for _ in range(100):
        packed(door=door)
    assert door.num_inside == 0
    assert door.uids_of(["a"]) == ()


# -- what is packed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked, given", [(None, 61), (1, 1), (61, 61), (62, 61), (10**9, 61)])
def test_max_tokens_is_clamped_to_what_the_model_leaves(asked: int | None, given: int) -> None:
    assert packed([1, 2, 3], max_tokens=asked).max_tokens == given


def test_a_prefill_instance_generates_one_token_and_refuses_what_a_decode_instance_would() -> None:
    door = a_door(role=Role.PREFILL)
    for asked in (None, 1, 30):
        assert packed(door=door, max_tokens=asked).max_tokens == 1
    assert packed(door=door, max_tokens=30, min_tokens=20).max_tokens == 1
    with pytest.raises(RequestError, match="min_tokens is 90, but at most 61"):
        packed(door=door, max_tokens=None, min_tokens=90)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda tokens: np.array(tokens, np.uint8), range])
def test_a_prompt_may_be_any_sequence_of_integers(kind: Callable[[Any], Any]) -> None:
    prompt = range(1, 4) if kind is range else kind([1, 2, 3])
    request = packed(prompt)
    assert request.prompt.dtype == np.int32
    assert request.prompt.tolist() == [1, 2, 3]


def test_the_payload_is_the_requests_own() -> None:
    a_list, an_array, wide, bias = [1, 2, 3], np.array([1, 2, 3], np.int32), np.array([1, 2, 3]), {7: 1.0}
    requests = [packed(a_list, logit_bias=bias), packed(an_array), packed(wide)]
    a_list[0] = an_array[0] = wide[0] = 99
    bias[10**9] = 100.0
    assert [request.prompt.tolist() for request in requests] == [[1, 2, 3]] * 3
    assert requests[0].sampling.logit_bias == {7: 1.0}


def test_the_prompt_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        packed().prompt[0] = 9


def test_end_of_sequence_stops_unless_it_is_ignored() -> None:
    assert packed(stop_token_ids=(9, EOS, 9, 7)).stop_token_ids == (EOS, 9, 7)
    assert packed(stop_token_ids=(9, 7), ignore_eos=True).stop_token_ids == (9, 7)
    assert packed(ignore_eos=True).stop_token_ids == ()


def test_uids_are_minted_unless_the_caller_brings_one() -> None:
    door = a_door()
    assert [packed(door=door).uid for _ in range(3)] == [1, 2, 3]
    assert packed(door=door, request={"uid": 1 << 40}).uid == 1 << 40
    assert packed(door=door).uid == 4


def test_the_rest_is_passed_on() -> None:
    request = packed(request={"priority": -3, "cache_salt": "tenant", "arrival_time": 1.5})
    assert (request.request_id, request.priority, request.cache_salt, request.arrival_time) == ("a", -3, "tenant", 1.5)


# -- who comes in ------------------------------------------------------------------------------------------------


def fill(door: Door) -> None:
    for uid in range(1, 7):
        door.enter(hand_made(uid, f"r{uid}"))


def test_a_request_id_is_taken_until_its_request_has_left() -> None:
    door = a_door()
    door.enter(hand_made(1, "a"))
    with pytest.raises(DuplicateRequestError, match="request id 'a' is in use"):
        door.enter(hand_made(2, "a"))
    assert door.num_inside == 1
    assert not door.leave(2)
    assert door.leave(1)
    door.enter(hand_made(2, "a"))
    assert door.uids_of(["a"]) == (2,)


def test_a_uid_is_taken_until_its_request_has_left() -> None:
    door = a_door()
    door.enter(hand_made(1, "a"))
    with pytest.raises(DuplicateRequestError, match="uid 1 is in use"):
        door.enter(hand_made(1, "b"))
    assert door.num_inside == 1
    assert door.uids_of(["b"]) == ()
    door.enter(hand_made(2, "b"))
    assert door.num_inside == 2


def test_the_same_request_cannot_be_inside_twice() -> None:
    door = a_door()
    request = hand_made(1, "a")
    door.enter(request)
    with pytest.raises(DuplicateRequestError):
        door.enter(request)
    assert door.num_inside == 1
    assert door.leave(1)
    assert door.num_inside == 0


def test_the_queue_bound_is_exact_and_a_place_given_back_is_used_again() -> None:
    door = a_door()  # 4 may run, 2 may wait
    fill(door)
    for _ in range(3):
        with pytest.raises(QueueFullError, match=r"6 requests inside \(max_num_seqs 4 running \+ max_waiting 2\)"):
            door.enter(hand_made(7, "r7"))
    assert door.num_inside == 6
    assert door.leave(3)
    door.enter(hand_made(7, "r7"))
    with pytest.raises(QueueFullError):
        door.enter(hand_made(8, "r8"))
    for uid in (1, 2, 4, 5, 6, 7):
        assert door.leave(uid)
    assert door.num_inside == 0
    fill(door)


def test_a_refusal_claims_nothing() -> None:
    door = a_door()
    fill(door)
    with pytest.raises(QueueFullError):
        door.enter(hand_made(7, "r7"))
    assert door.uids_of(["r7"]) == ()
    assert sorted(claim.uid for claim in door.inside()) == [1, 2, 3, 4, 5, 6]
    door.leave(6)
    for _ in range(10):
        with pytest.raises(DuplicateRequestError):
            door.enter(hand_made(9, "r1"))
        with pytest.raises(DuplicateRequestError):
            door.enter(hand_made(1, "r9"))
    assert door.num_inside == 5
    door.enter(hand_made(6, "r6"))


def test_without_a_queue_only_as_many_come_in_as_can_run() -> None:
    door = a_door(max_waiting=0)
    for uid in range(4):
        door.enter(hand_made(uid, f"r{uid}"))
    with pytest.raises(QueueFullError, match="4 requests inside"):
        door.enter(hand_made(9, "r9"))


def test_requests_are_named_by_request_id_or_uid() -> None:
    door = a_door()
    door.enter(hand_made(1, "a"))
    door.enter(hand_made(2, "b"))
    assert door.uids_of(["b", "unknown", "a", 1, 77]) == (2, 1, 1)
    assert [(claim.request_id, claim.uid) for claim in door.inside()] == [("a", 1), ("b", 2)]


def test_a_closed_door_refuses_with_the_first_reason_and_lets_out() -> None:
    door = a_door()
    door.enter(hand_made(1, "a"))
    door.close("the engine is shutting down")
    door.close("something else")
    with pytest.raises(EngineDeadError, match="the engine is shutting down"):
        door.enter(hand_made(2, "b"))
    assert door.num_inside == 1
    assert door.leave(1)
    assert door.num_inside == 0


# -- under threads -----------------------------------------------------------------------------------------------


def all_at_once(work: Callable[[int], None], count: int) -> None:
    """`work(i)` on `count` threads that start together; raises what any of them raised."""
    barrier, failures = threading.Barrier(count), []

    def run(who: int) -> None:
        barrier.wait(PATIENCE)
        try:
            work(who)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(who,)) for who in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if failures:
        raise failures[0]


@pytest.mark.usefixtures("eager_switching")
def test_of_all_who_count_a_request_out_one_is_told_so() -> None:
    door = a_door()
    for uid in range(50):
        door.enter(hand_made(uid, f"r{uid}"))
        told: list[bool] = []
        all_at_once(lambda _, uid=uid, told=told: told.append(door.leave(uid)), 8)
        assert sorted(told) == [False] * 7 + [True]
        assert door.num_inside == 0


class ClaimsThat(dict[int, Any]):
    """The requests inside; `act` runs right after they were looked at or changed."""

    act: Callable[[], None] = staticmethod(lambda: None)

    def get(self, *args: Any) -> Any:
        found = super().get(*args)
        self.act()
        return found

    def pop(self, *args: Any) -> Any:
        found = super().pop(*args)
        self.act()
        return found

    def __contains__(self, uid: object) -> bool:
        found = super().__contains__(uid)
        self.act()
        return found


def test_counting_out_is_one_operation() -> None:
    """Another one who comes in between any two steps of it is told what is true."""
    door = a_door()
    door.enter(hand_made(1, "a"))
    told: list[bool] = []
    door._uids_inside = claims = ClaimsThat(door._uids_inside)

    def another() -> None:
        claims.act = lambda: None
        told.append(door.leave(1))

    claims.act = another
    told.append(door.leave(1))
    assert told == [False, True]
    assert door.num_inside == 0


@pytest.mark.usefixtures("eager_switching")
def test_of_all_who_claim_an_id_one_gets_it() -> None:
    door = a_door()
    for turn in range(50):
        entered: list[int] = []

        def enter(who: int, turn: int = turn, entered: list[int] = entered) -> None:
            try:
                door.enter(hand_made(100 * turn + who, "the same"))
            except (DuplicateRequestError, QueueFullError):  # a loser holds a place until it has noticed
                return
            entered.append(100 * turn + who)

        all_at_once(enter, 6)
        assert len(entered) == 1
        assert door.uids_of(["the same"]) == tuple(entered)
        assert door.leave(entered[0])
        assert door.num_inside == 0


@pytest.mark.usefixtures("eager_switching")
def test_the_bound_holds_when_many_come_at_once() -> None:
    for _ in range(30):
        door = a_door()
        entered: list[int] = []

        def enter(who: int, door: Door = door, entered: list[int] = entered) -> None:
            for uid in (2 * who, 2 * who + 1):
                try:
                    door.enter(hand_made(uid, f"r{uid}"))
                except QueueFullError:
                    continue
                entered.append(uid)

        all_at_once(enter, 8)
        assert len(entered) == door.num_inside == 6
        assert sorted(entered) == sorted(claim.uid for claim in door.inside())


class PlacesThat(deque[None]):
    """The free places; `act` runs when one is asked for."""

    act: Callable[[], None] = staticmethod(lambda: None)

    def pop(self) -> None:  # type: ignore[override]
        self.act()
        super().pop()


def test_a_request_that_is_about_to_be_refused_was_never_inside() -> None:
    """Else a stop that comes at that moment would report its end, although its caller is told that it was refused."""
    door, seen = a_door(), []
    fill(door)
    door._credits = PlacesThat(door._credits)
    door._credits.act = lambda: seen.extend(claim.uid for claim in door.inside())
    with pytest.raises(QueueFullError):
        door.enter(hand_made(7, "r7"))
    assert door.leave(6)
    with pytest.raises(DuplicateRequestError):
        door.enter(hand_made(8, "r1"))
    assert seen == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5]


# -- KV that moves between engines -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "transfer", "says"),
    [
        (
            Role.PREFILL,
            Transfer.PULL,
            "do_remote_prefill. decodes here, but the role of this engine is prefill: send it to",
        ),
        (Role.DECODE, Transfer.LEND, "for another engine, but the role of this engine is decode: send it to"),
        (Role.MIXED, "push", "transfer must be one of pull, lend or None, got 'push'"),
    ],
)
def test_a_transfer_that_an_engine_of_this_role_has_no_part_in_is_refused(role: Role, transfer: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        packed(door=a_door(role=role), request={"transfer": transfer})


@pytest.mark.parametrize(
    ("role", "transfer", "max_tokens"),
    [
        (Role.PREFILL, Transfer.LEND, 1),
        (Role.MIXED, Transfer.LEND, 1),
        (Role.MIXED, Transfer.PULL, 7),
        (Role.DECODE, Transfer.PULL, 7),
    ],
)
def test_a_request_that_lends_asks_for_one_token_and_a_request_that_pulls_for_its_answer(
    role: Role, transfer: Transfer, max_tokens: int
) -> None:
    request = packed(door=a_door(role=role), request={"transfer": transfer}, max_tokens=7)
    assert (request.transfer, request.max_tokens) == (transfer, max_tokens)

"""A reference is what P sealed, whole and in time, or it is nothing."""

import base64
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.request import Span
from headway.sampling import SamplingParams
from headway.transfer.handover import Handover
from headway.transfer.reference import MAX_CHARACTERS, Reference, Seal, prompt_digest, sampling_digest
from tests.transfer.rig import Clock, request

CLOCK = Clock()
SEAL = Seal(CLOCK)
REFERENCE = Reference(SEAL.engine, 5, 2, 11, b"p" * 16, b"s" * 16, CLOCK() + 60)
TEXT = SEAL.close(REFERENCE)


def test_the_engine_that_made_it_opens_it_and_others_can_read_it() -> None:
    assert SEAL.open(TEXT) == Reference.parse(TEXT) == REFERENCE


def test_another_engine_and_another_incarnation_are_named() -> None:
    other = Seal(CLOCK)
    with pytest.raises(ValueError, match=f"is of the engine {SEAL.engine.hex()}, and this is {other.engine.hex()}"):
        other.open(TEXT)


def test_the_same_engine_with_another_key_is_no_match() -> None:
    with pytest.raises(ValueError, match="has been changed"):
        Seal(CLOCK, engine=SEAL.engine).open(TEXT)


def test_it_expires() -> None:
    clock = Clock()
    seal = Seal(clock)
    text = seal.close(msgspec.structs.replace(REFERENCE, engine=seal.engine, expires=clock() + 60))
    clock.now += 59.9
    seal.open(text)
    clock.now += 0.1
    with pytest.raises(ValueError, match="has expired"):
        seal.open(text)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_no_byte_of_it_can_be_changed(position: int, change: int) -> None:
    data = bytearray(base64.urlsafe_b64decode(TEXT))
    data[position % len(data)] ^= change
    with pytest.raises(ValueError, match="reference"):
        SEAL.open(base64.urlsafe_b64encode(data).decode())


@given(st.text(max_size=600) | st.binary(max_size=400).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_any_other_text_is_a_value_error_of_one_line(text: str) -> None:
    for read in (Reference.parse, SEAL.open):
        with pytest.raises(ValueError, match="reference") as caught:
            read(text)
        assert type(caught.value) is ValueError and len(str(caught.value).splitlines()) == 1


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_parameters_of_any_kind_are_a_handover_or_a_value_error(value: object) -> None:
    good = Handover("p", 1, TEXT).params()
    for name in good:
        try:
            handover = Handover.of(good | {name: value})
        except ValueError as error:
            assert name.removeprefix("remote_") in str(error) or "reference" in str(error)
        else:
            assert handover.reference == TEXT


def test_routers_may_add_and_reorder_fields_and_write_the_port_as_text() -> None:
    params = Handover("p", 8000, TEXT).params()
    assert Handover.of({"tp_size": 1, **dict(reversed(params.items())), "remote_port": "8000"}).port == 8000


@pytest.mark.parametrize("text", ["", "A", "A" * (MAX_CHARACTERS + 1), "====", TEXT[:-4], TEXT + "AAAA", TEXT[4:], " "])
def test_texts_of_wrong_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="reference"):
        SEAL.open(text)


def test_the_digest_of_a_prompt_tells_all_that_its_kv_depends_on() -> None:
    one = request(1)
    others = [request(1, 11), request(1)]
    others[1].prompt = one.prompt.copy()
    others[1].prompt[3] += 1
    for field, value in (("cache_salt", "a"), ("spans", (Span(1, 2, b"d"),)), ("preprocess", b"image")):
        others.append(request(1))
        setattr(others[-1], field, value)
    digests = [prompt_digest(other) for other in (one, *others)]
    assert len(set(digests)) == len(digests)
    assert prompt_digest(request(99, max_tokens=3)) == digests[0]


DEFAULT = SamplingParams()


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.5}, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 5}, {"min_p": 0.5}, {"seed": 3},
        {"presence_penalty": 1.0}, {"frequency_penalty": 1.0}, {"repetition_penalty": 1.5}, {"logit_bias": {1: 2.0}},
        {"min_tokens": 1},
    ],
    ids=str,
)  # fmt: skip
def test_the_digest_of_sampling_tells_all_that_a_first_token_depends_on(changed: dict[str, object]) -> None:
    assert sampling_digest(SamplingParams(**changed)) != sampling_digest(DEFAULT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed", [{"max_tokens": 1}, {"stop": ("a",)}, {"stop_token_ids": (1,)}, {"ignore_eos": True}, {"n": 2}], ids=str
)
def test_the_digest_of_sampling_tells_nothing_of_later_tokens(changed: dict[str, object]) -> None:
    assert sampling_digest(SamplingParams(**changed)) == sampling_digest(DEFAULT)  # type: ignore[arg-type]


def test_numbers_of_numpy_count_by_their_value() -> None:
    def digest(bias: Any) -> bytes:
        temperature: Any = np.float32(0.5)
        seed: Any = np.int64(3)
        return sampling_digest(SamplingParams(logit_bias={1: bias}, temperature=temperature, seed=seed))

    assert digest(np.float64(0.5)) == digest(0.5) != digest(np.float64(0.25))

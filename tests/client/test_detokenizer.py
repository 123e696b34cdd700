"""The text of an answer: that of one decode of prompt and answer, less the prompt's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headway.client.detokenizer import BytesDetokenizer, Detokenizer, WindowDetokenizer
from headway.client.token_pieces import TokenPieces
from tests.client.tokenizers import ALL, EXACT, FALLBACK, SLOW_PIECES, answer_of

BYTE_STRINGS = st.one_of(
    st.text(max_size=4).map(str.encode),
    st.binary(max_size=4),
    st.sampled_from(["🙂".encode()[:3], "€".encode()[:2], b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b" "]),
)
PIECES = {(name, skip): TokenPieces(ALL[name], skip_special_tokens=skip) for name in ALL for skip in (True, False)}


def ids_of(name: str, strings: list[bytes], words: list[int]) -> list[int]:
    """Ids of a tokenizer: bytes where it has them, and words."""
    size = len(ALL[name])
    if name in ("byte fallback", "odd byte fallback"):
        spelled = [[byte + 1 for byte in string] for string in strings]
    elif name in ("byte-level", "slow bytes", "slow pieces", "slow stripped"):
        spelled = [list(string) for string in strings]
        if name == "byte-level":
            alphabet = {PIECES[name, True].of(token): token for token in range(256)}
            spelled = [[alphabet[bytes([byte])] for byte in string] for string in strings]
    else:
        spelled = [[] for _ in strings]
    ids = []
    for at in range(max(len(spelled), len(words))):
        ids += spelled[at] if at < len(spelled) else []
        ids += [size - 1 - words[at] % min(size, 16)] if at < len(words) else []
    return ids


def streamed(detokenizer: Detokenizer, ids: list[int]) -> str:
    return "".join([*map(detokenizer.step, ids), detokenizer.finish()])


ids_strategy: dict[str, Any] = {
    "strings": st.lists(BYTE_STRINGS, max_size=4),
    "words": st.lists(st.integers(0, 15), max_size=5),
}
draws = st.tuples(ids_strategy["strings"], ids_strategy["words"])


@pytest.mark.parametrize("skip", [True, False], ids=["skip special", "show special"])
@pytest.mark.parametrize("name", [*EXACT, "byte fallback"])
@given(prompt=draws, answer=draws)
@example(prompt=([b"\xc2"], []), answer=([b"\x80"], []))  # the answer completes a character of the prompt
@example(prompt=([b"\x80\xc2"], []), answer=([b"\x80"], []))
@example(prompt=([b"\xed\xa0"], []), answer=([b"\x80"], []))  # no character begins like this: it would be a surrogate
def test_the_text_is_that_of_one_decode_less_the_prompt_at_every_cut(
    name: str, skip: bool, prompt: tuple[list[bytes], list[int]], answer: tuple[list[bytes], list[int]]
) -> None:
    prompt_ids, ids = ids_of(name, *prompt), ids_of(name, *answer)
    for cut in range(len(ids) + 1):
        text = streamed(Detokenizer.of(PIECES[name, skip], prompt_ids), ids[:cut])
        assert text == answer_of(ALL[name], prompt_ids, ids[:cut], skip), (prompt_ids, ids[:cut])


@pytest.mark.parametrize("name", ALL)
@given(prompt=draws, answer=draws)
def test_what_was_shown_is_never_taken_back(
    name: str, prompt: tuple[list[bytes], list[int]], answer: tuple[list[bytes], list[int]]
) -> None:
    prompt_ids, ids = ids_of(name, *prompt), ids_of(name, *answer)
    detokenizer = Detokenizer.of(PIECES[name, True], prompt_ids)
    shown = ""
    for at, token in enumerate(ids):
        promised, _ = detokenizer.peek(token)
        new = detokenizer.step(token)
        assert new == promised
        shown += new
        whole = streamed(Detokenizer.of(PIECES[name, True], prompt_ids), ids[: at + 1])
        assert whole.startswith(shown) and len(whole) - len(shown) <= 3


@given(text=st.text(max_size=8), garbage=st.binary(min_size=1, max_size=3))
def test_a_finished_character_stays_whatever_bytes_follow(text: str, garbage: bytes) -> None:
    for name in ("byte fallback", "byte-level", "slow bytes", "slow pieces"):
        ids = ids_of(name, [b"x" + text.encode() + garbage], [])
        assert streamed(Detokenizer.of(PIECES[name, True]), ids).startswith("x" + text), name


@given(text=st.text(max_size=12))
def test_bytes_that_are_characters_read_as_the_byte_fallback_decoder_reads_them(text: str) -> None:
    ids = ids_of("byte fallback", [text.encode()], [])
    assert streamed(Detokenizer.of(PIECES["byte fallback", True]), ids) == FALLBACK.backend_tokenizer.decode(ids)


def test_an_answer_that_ends_inside_a_character_keeps_the_finished_part() -> None:
    ids = [byte + 1 for byte in b"\xf0\x9f\x99\x82\xe2"]
    assert streamed(Detokenizer.of(PIECES["byte fallback", True]), ids) == "🙂\ufffd"
    assert streamed(Detokenizer.of(PIECES["odd byte fallback", True]), ids) == "🙂\ufffd"
    assert streamed(Detokenizer.of(PIECES["slow pieces", True]), list(b"\xf0\x9f\x99\x82\xe2")) == "🙂\ufffd"


@pytest.mark.parametrize("name", ["byte-level", "byte fallback"])
def test_bytes_with_which_no_character_begins_are_shown_at_once(name: str) -> None:
    detokenizer = Detokenizer.of(PIECES[name, False])
    first, second = ids_of(name, [b"\xed\xa1"], [])  # the start of a surrogate, which UTF-8 does not have
    assert [detokenizer.step(first), detokenizer.step(second), detokenizer.finish()] == ["", "\ufffd\ufffd", ""]


@pytest.mark.parametrize("name", ALL)
def test_common_kinds_of_fast_tokenizers_need_no_window(name: str) -> None:
    slow = not ALL[name].is_fast or name in ("BPEDecoder", "odd byte fallback")
    kind = WindowDetokenizer if slow else BytesDetokenizer
    assert type(Detokenizer.of(PIECES[name, True])) is kind


class Counting(TokenPieces):
    """Counts the decodes."""

    def __init__(self, name: str) -> None:
        super().__init__(ALL[name], skip_special_tokens=True)
        self.lengths: list[int] = []

    def decode(self, ids: list[int]) -> str:
        self.lengths.append(len(ids))
        return super().decode(ids)


@pytest.mark.parametrize("garbage", [b"\x80", b"\xf0", b"\xe2\x82", b"\xf0\x9f\x99", b"\xf0\x80"])
@pytest.mark.parametrize("name", ["byte fallback", "byte-level", "slow bytes", "slow pieces"])
def test_the_work_per_token_has_a_bound_whatever_the_tokens_are(name: str, garbage: bytes) -> None:
    pieces = Counting(name)
    detokenizer = Detokenizer.of(pieces, ids_of(name, [b"x"], []))
    ids = ids_of(name, [garbage * 500], [])
    text = "".join(detokenizer.step(token) for token in ids)
    assert len(text) > 400, "garbage is shown while it comes"
    if pieces.independent:
        assert len(pieces.lengths) <= 2 * len({*ids}), "a token is decoded once, and never again"
    else:
        assert len(pieces.lengths) <= 3 * len(ids)
        assert max(pieces.lengths) <= 33
    smile = ids_of(name, ["🙂".encode()], [])
    assert ("".join(detokenizer.step(token) for token in smile) + detokenizer.finish()).endswith("🙂")


@pytest.mark.parametrize("name", ["slow bytes", "byte-level", "byte fallback"])
def test_hidden_tokens_cost_no_decode(name: str) -> None:
    pieces = Counting(name)
    detokenizer = Detokenizer.of(pieces, ids_of(name, [b"x"], []))
    pieces.lengths.clear()
    end = ALL[name].eos_token_id
    assert [detokenizer.step(end) for _ in range(100)] == [""] * 100
    assert pieces.lengths == []


def test_slow_pieces_keep_the_space_after_hidden_tokens_of_the_prompt() -> None:
    end = SLOW_PIECES.eos_token_id
    after_text = Detokenizer.of(PIECES["slow pieces", True], [*b"x", *[end] * 40])
    assert streamed(after_text, list(b" y")) == " y"
    assert streamed(Detokenizer.of(PIECES["slow pieces", True], [end] * 40), list(b" y")) == "y"


@pytest.mark.parametrize("name", ["slow bytes", "slow pieces", "odd byte fallback"])
def test_a_text_is_decoded_a_few_tokens_at_a_time(name: str) -> None:
    pieces = Counting(name)
    ids = ids_of(name, [b"the quick brown fox, ten times over; " * 10], [])
    assert streamed(Detokenizer.of(pieces), ids).strip() == ("the quick brown fox, ten times over; " * 10).strip()
    assert max(pieces.lengths) <= 4


def test_many_tokens_without_text_lose_neither_their_last_nor_the_context() -> None:
    spaces = Detokenizer.of(PIECES["slow stripped", True])
    assert streamed(spaces, list(b"x y")) == "x y"
    many = Detokenizer.of(PIECES["slow stripped", True])
    text = streamed(many, list(b"x" + b" " * 100 + b"y"))
    assert text[0] == "x" and text[1:].strip() == "y" and len(text) > 2


def test_the_first_space_of_a_text_is_left_out_and_the_first_of_an_answer_is_not() -> None:
    pieces = PIECES["byte fallback", True]
    spaced = ids_of("byte fallback", [b"  a"], [])
    assert streamed(Detokenizer.of(pieces), spaced) == " a"
    assert streamed(Detokenizer.of(pieces, spaced), spaced) == "  a"


@pytest.mark.parametrize("name", ["byte-level", "byte fallback"])
def test_what_follows_a_character_that_the_prompt_has_begun(name: str) -> None:
    begun = ids_of(name, ["x🙂".encode()[:-1]], [])
    for rest, text in (("🙂".encode()[-1:], "🙂"), (b"a", "a"), (b"\xe2\x82\xac", "€"), (b"", "")):
        detokenizer, shown, promised = Detokenizer.of(PIECES[name, True], begun), "", ""
        for token in ids_of(name, [rest], []):
            promised += detokenizer.peek(token)[0]
            shown += detokenizer.step(token)
        assert shown + detokenizer.finish() == promised == text

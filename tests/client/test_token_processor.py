"""The token processor: from what the engine reports to what a caller reads."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizer

from headway.client.detokenizer import Detokenizer
from headway.client.stop_scanner import StopScanner
from headway.client.token_pieces import TokenPieces
from headway.client.token_processor import Processed, TokenProcessor, expand
from headway.errors import DuplicateRequestError
from headway.outputs import TokenLogprob
from headway.request import FinishReason, NewRequest
from headway.sampling import SamplingParams
from headway.scheduler.batch import Logprobs
from headway.scheduler.effects import Effects, RequestEnd, TokenOutputs
from tests.tiny_tokenizer import byte_ids, byte_tokenizer, fallback_tokenizer

BYTES = byte_tokenizer()
EOS = BYTES.eos_token_id
STOP = FinishReason.STOP
LENGTH = FinishReason.LENGTH


def add(processor, request_id, uids, sampling, *, prompt_token_ids, prompt=None, now, stream=False):
    new = NewRequest(request_id=request_id, prompt=np.array(prompt_token_ids, np.int32), sampling=sampling)
    processor.add(new, uids, text=prompt, now=now, stream=stream)


def ids(text: str) -> list[int]:
    return byte_ids(BYTES, text)


def tokens(*rows: tuple[int, int], logprobs: Logprobs | None = None) -> TokenOutputs:
    """One step's outputs: (uid, token) rows."""
    return TokenOutputs(
        np.array([uid for uid, _ in rows], np.int64),
        np.array([token for _, token in rows], np.int32),
        logprobs,
    )


def end(uid: int, reason: FinishReason, stop_token: int | None = None, message: str | None = None) -> RequestEnd:
    return RequestEnd(uid, f"request-{uid}", reason, stop_token, message)


@dataclass
class Reader:
    """Gathers what a client of a streaming request sees."""

    text: str = ""
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def read(self, processed: Processed) -> None:
        for delta in processed.deltas:
            assert self.finish_reason is None, "nothing may follow the last delta"
            self.text += delta.text
            self.pieces.append(delta.text)
            self.token_ids += delta.token_ids
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
            assert delta.num_tokens == len(self.token_ids)
            assert delta.finished == (delta.finish_reason is not None)


class Run:
    """A processor with one request, fed one token a step."""

    def __init__(self, *, stream: bool, prompt: str = "x", tokenizer=BYTES, **sampling) -> None:
        self.processor = TokenProcessor(tokenizer, eos_token_ids=[EOS])
        add(
            self.processor,
            "r",
            [1],
            SamplingParams(**sampling),
            prompt=prompt,
            prompt_token_ids=ids(prompt),
            now=0.0,
            stream=stream,
        )
        self.stream = stream
        self.reader = Reader()
        self.stop_uids: list[int] = []
        self.logprobs: list[TokenLogprob] = []  # of the sampled tokens
        self.output = None

    def feed(
        self,
        *token_ids: int,
        last: RequestEnd | None = None,
        one_by_one: bool = True,
        in_one_step: bool = False,
        logprobs: bool = False,
    ) -> None:
        one_row = Logprobs(*(array[:1] for array in _one_row())) if logprobs else None
        steps = [tokens((1, token), logprobs=one_row) for token in token_ids]
        if in_one_step:
            steps = [tokens(*((1, token) for token in token_ids))]
        groups = [[step] for step in steps] if one_by_one else [steps]
        for i, group in enumerate(groups or [[]]):
            is_last = i == max(len(groups) - 1, 0)
            effects = Effects(tokens=group, ended=[last] if last and is_last else [])
            processed = self.processor.process(effects, now=1.0)
            self.reader.read(processed)
            answers = [*processed.deltas, *(answer for output in processed.outputs for answer in output.outputs)]
            self.logprobs += [next(iter(position.values())) for answer in answers for position in answer.logprobs or ()]
            self.stop_uids += processed.stop_uids
            for output in processed.outputs:
                assert self.output is None, "a request is complete once"
                self.output = output

    def result(self) -> tuple[str, list[int], FinishReason, int | str | None]:
        if self.stream:
            assert self.output is None
            r = self.reader
            return r.text, r.token_ids, r.finish_reason, r.stop_reason
        assert self.reader.pieces == []
        (answer,) = self.output.outputs
        return answer.text, answer.token_ids, answer.finish_reason, answer.stop_reason


both_ways = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


# Text -------------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("one_by_one", [True, False], ids=["step by step", "all at once"])
def test_text_is_that_of_the_tokens_however_they_arrive(stream, one_by_one):
    text = "héllo wörld, 日本語 and 🎉!"
    run = Run(stream=stream)
    run.feed(*ids(text), last=end(1, LENGTH), one_by_one=one_by_one)
    assert run.result() == (text, ids(text), LENGTH, None)


def test_a_character_is_shown_with_its_last_byte_and_not_before():
    run = Run(stream=True)
    run.feed(*ids("a🎉b"))
    assert run.reader.pieces == ["a", "", "", "", "🎉", "b"]


@both_ways
def test_a_character_that_never_completes_reads_as_the_replacement_character(stream):
    run = Run(stream=stream)
    run.feed(*ids("a🎉")[:-1], last=end(1, LENGTH))
    assert run.result()[0] == "a\ufffd"


def test_bytes_that_are_no_characters_are_not_held_for_ever():
    run = Run(stream=True)
    garbage = ids("é")[1]  # a continuation byte, alone
    run.feed(*[garbage] * 100)
    assert "\ufffd" in run.reader.text


def test_first_word_keeps_the_space_between_it_and_the_prompt():
    tokenizer = fallback_tokenizer()
    hello, world, bos = (tokenizer.convert_tokens_to_ids(t) for t in ("\u2581hello", "\u2581world", "<s>"))
    pieces = TokenPieces(tokenizer, skip_special_tokens=True)
    after_text, at_start = Detokenizer.of(pieces, [bos, hello]), Detokenizer.of(pieces, [bos])
    assert [after_text.step(world), after_text.step(hello)] == [" world", " hello"]
    assert [at_start.step(world), at_start.step(hello)] == ["world", " hello"]


@pytest.mark.parametrize(("rest", "text"), [("a", "a"), ("🎉", "🎉")])
def test_a_prompt_that_ends_inside_a_character_does_not_harm_the_next(rest, text):
    detokenizer = Detokenizer.of(TokenPieces(BYTES, skip_special_tokens=True), ids("xyz🎉")[:-1])
    assert "".join(detokenizer.step(token) for token in ids(rest)) == text


@both_ways
@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_show_only_on_request(stream, skip):
    run = Run(stream=stream, skip_special_tokens=skip, ignore_eos=True)
    run.feed(*ids("a"), EOS, *ids("b"), last=end(1, LENGTH))
    assert run.result()[0] == ("ab" if skip else "a<eos>b")


class SlowTokenizer(PreTrainedTokenizer):
    """A tokenizer written in Python: letters."""

    def __init__(self):
        super().__init__()

    @property
    def vocab_size(self):
        return 26

    def get_vocab(self):
        return {chr(97 + i): i for i in range(26)}

    def _convert_id_to_token(self, index):
        return chr(97 + index)

    def _convert_token_to_id(self, token):
        return ord(token) - 97

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


@both_ways
def test_slow_tokenizers_do_the_same_and_ids_beyond_the_vocabulary_have_no_text(stream):
    run = Run(stream=stream, tokenizer=SlowTokenizer(), stop=["de"])
    run.feed(0, 1, 500, 2, 3, 4)
    assert run.result() == ("abc", [0, 1, 500, 2, 3, 4], STOP, "de")


@both_ways
def test_without_a_tokenizer_there_are_ids_and_no_text(stream):
    run = Run(stream=stream, tokenizer=None)
    run.feed(5, 6, 7, last=end(1, LENGTH))
    assert run.result() == ("", [5, 6, 7], LENGTH, None)


# How answers end --------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("stop", [(), ("never",)], ids=["no stop strings", "stop strings"])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(
    ("sampling", "token", "shown", "stop_reason"),
    [
        ({}, EOS, "<eos>", None),
        ({"stop_token_ids": [ids("z")[0]]}, ids("z")[0], "z", ids("z")[0]),
        ({"stop_token_ids": [EOS]}, EOS, "<eos>", None),
        ({"stop_token_ids": [EOS], "ignore_eos": True}, EOS, "<eos>", EOS),
    ],
    ids=["eos", "stop token", "eos named as stop token", "eos only as stop token"],
)
def test_a_stop_token_counts_as_a_token_but_is_no_text(stream, stop, include, sampling, token, shown, stop_reason):
    run = Run(stream=stream, stop=stop, include_stop_str_in_output=include, skip_special_tokens=False, **sampling)
    run.feed(*ids("ab"), token, last=end(1, STOP, stop_token=token))
    assert run.result() == ("ab" + (shown if include else ""), [*ids("ab"), token], STOP, stop_reason)
    assert run.stop_uids == []


@both_ways
@pytest.mark.parametrize(("reason", "message"), [(FinishReason.ABORT, None), (FinishReason.ERROR, "out of luck")])
def test_abort_and_error_keep_what_was_generated(stream, reason, message):
    run = Run(stream=stream, stop=["bcd"])
    run.feed(*ids("ab"))
    run.feed(last=end(1, reason, message=message))
    assert run.result() == ("ab", ids("ab"), reason, None)
    if not stream:
        assert run.output.outputs[0].error == message


@both_ways
@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_stop_token_that_came_before_the_end_is_text_however_they_arrive(stream, in_one_step):
    stop = ids("a")[0]
    run = Run(stream=stream, min_tokens=4, stop_token_ids=[stop])
    run.feed(*ids("baba"), last=end(1, STOP, stop), one_by_one=False, in_one_step=in_one_step)
    assert run.result() == ("bab", ids("baba"), STOP, stop)


@both_ways
def test_a_stop_string_between_the_tokens_of_one_step_drops_the_tokens_after_it(stream):
    run = Run(stream=stream, stop=["ab"])
    run.feed(*ids("xabyz"), in_one_step=True)
    assert run.stop_uids == [1]
    assert run.result() == ("x", ids("xab"), STOP, "ab")


@both_ways
def test_a_request_may_end_without_a_token(stream):
    run = Run(stream=stream)
    run.feed(last=end(1, FinishReason.ERROR, message="refused"))
    assert run.result() == ("", [], FinishReason.ERROR, None)


@both_ways
def test_what_comes_after_the_end_is_dropped(stream):
    run = Run(stream=stream)
    run.feed(*ids("ab"), last=end(1, LENGTH))
    run.feed(*ids("cd"), last=end(1, FinishReason.ABORT))
    assert run.result() == ("ab", ids("ab"), LENGTH, None)
    assert len(run.processor) == 0


# Stop strings -----------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("one_by_one", [True, False], ids=["step by step", "all at once"])
def test_a_stop_string_across_tokens_ends_the_answer(stream, include, one_by_one):
    run = Run(stream=stream, stop=["STOP"], include_stop_str_in_output=include)
    run.feed(*ids("go on STOP and on"), one_by_one=one_by_one)
    shown = "go on STOP" if include else "go on "
    assert run.result() == (shown, ids("go on STOP"), STOP, "STOP"), "tokens past the stop do not count"
    assert run.stop_uids == [1], "the engine is told once"
    run.feed(last=end(1, STOP))
    assert len(run.processor) == 0


@both_ways
def test_text_after_the_stop_inside_the_same_token_is_cut(stream):
    run = Run(stream=stream, stop=["TO"])
    (token,) = BYTES.encode("STOP")
    run.feed(*ids("a"), token)
    assert run.result() == ("aS", [*ids("a"), token], STOP, "TO")


@both_ways
def test_a_stop_string_in_the_last_token_wins_over_the_length(stream):
    run = Run(stream=stream, stop=["c"])
    run.feed(*ids("abc"), last=end(1, LENGTH))
    assert run.result() == ("ab", ids("abc"), STOP, "c")
    assert run.stop_uids == [], "the engine has ended it itself"


@both_ways
def test_a_stop_string_in_text_held_for_an_incomplete_character_is_found_at_the_end(stream):
    run = Run(stream=stream, stop=["\ufffd"])
    run.feed(*ids("ab🎉")[:-1], last=end(1, LENGTH))
    assert run.result()[0] == "ab"
    assert run.result()[2:] == (STOP, "\ufffd")


def test_what_may_start_a_stop_string_is_held_back_until_it_does_not():
    run = Run(stream=True, stop=["\n\nQ:", "END"])
    run.feed(*ids("E\n\nENQ\n\nE"))
    assert run.reader.pieces == ["", "E", "", "\n\n", "", "ENQ", "", "", "\n\n"]
    run.feed(last=end(1, LENGTH))
    assert run.reader.text == "E\n\nENQ\n\nE"


@both_ways
def test_stop_strings_count_only_past_min_tokens(stream):
    run = Run(stream=stream, stop=["ab"], min_tokens=4)
    run.feed(*ids("abababab"))
    assert run.result() == ("abab", ids("ababab"), STOP, "ab")


@pytest.mark.parametrize(
    ("stops", "text", "shown", "found"),
    [
        (["b", "abc"], "xabcd", "xa", "b"),  # complete first, though it starts later
        (["bc", "abc"], "xabcd", "x", "abc"),  # complete together: the longest
        (["abc", "bc"], "xabcd", "x", "abc"),
        (["aab"], "aaab", "a", "aab"),  # a start that fails may hold the real one
        (["abab"], "abacabab", "abac", "abab"),
        (["zz"], "abz", "abz", None),
    ],
)
def test_the_scan_does_not_depend_on_how_text_is_cut(stops, text, shown, found):
    rng = random.Random(0)
    for _ in range(50):
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 4)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        scanner, seen = StopScanner(stops), ""
        hit = None
        for piece in pieces:
            out, hit = scanner.feed(piece)
            seen += out
            if hit:
                break
        assert (seen + scanner.rest(), hit) == (shown, found), pieces


SPECIAL = byte_tokenizer()
SPECIAL.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
IM_END = SPECIAL.convert_tokens_to_ids("<|im_end|>")


@both_ways
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("include", [True, False])
def test_a_stop_string_that_is_a_special_token_stops(stream, skip, include):
    sampling = {"stop": ["<|im_end|>"], "skip_special_tokens": skip, "include_stop_str_in_output": include}
    run = Run(stream=stream, tokenizer=SPECIAL, logprobs=0, **sampling)
    run.feed(*ids("a<|im"), IM_END, *ids("b"), logprobs=True)
    shown = "a<|im<|im_end|>" if include else "a<|im"
    assert run.result() == (shown, [*ids("a<|im"), IM_END], STOP, "<|im_end|>")
    assert run.stop_uids == [1]
    if include or skip:
        assert b"".join(entry.bytes for entry in run.logprobs).decode() == shown


@both_ways
def test_a_special_token_that_is_a_stop_string_ends_a_begun_character_too(stream):
    run = Run(stream=stream, tokenizer=SPECIAL, stop=["<|im_end|>", "z"])
    run.feed(*ids("a🎉")[:-1], IM_END)
    assert run.result()[0] == "a\ufffd"
    earlier = Run(stream=stream, tokenizer=SPECIAL, stop=["<|im_end|>", "\ufffd"])
    earlier.feed(*ids("a🎉")[:-1], IM_END)
    assert earlier.result()[::3] == ("a", "\ufffd"), "the text before the token is searched first"


@both_ways
def test_a_special_token_counts_as_a_stop_string_only_past_min_tokens(stream):
    run = Run(stream=stream, tokenizer=SPECIAL, stop=["<|im_end|>"], min_tokens=2)
    run.feed(IM_END, *ids("ab"), IM_END)
    assert run.result() == ("ab", [IM_END, *ids("ab"), IM_END], STOP, "<|im_end|>")


# Logprobs ---------------------------------------------------------------------------------------------------


def step_logprobs() -> Logprobs:
    """Rows 0 and 2 asked; K = 3. Row 0's token ties for second best, row 2's is not among them."""
    a, b, c, d = ids("abcd")
    return Logprobs(
        rows=np.array([0, 2], np.int32),
        sampled=np.array([-3.0, -9.0], np.float32),
        ranks=np.array([2, 7], np.int32),
        top_ids=np.array([[a, b, c], [d, c, b]], np.int32),
        top=np.array([[-1.0, -3.0, -3.0], [-0.25, -0.5, -4.0]], np.float32),
    )


@both_ways
def test_logprobs_hold_the_sampled_token_and_each_requests_own_k(stream):
    processor = TokenProcessor(BYTES)
    a, b, c, d = ids("abcd")
    wants = {1: 3, 2: None, 3: 1, 4: 0}
    for uid, k in wants.items():
        params = SamplingParams(logprobs=k)
        add(processor, str(uid), [uid], params, prompt_token_ids=[a], now=0.0, stream=stream)
    rows = tokens((1, c), (2, b), (3, a), logprobs=step_logprobs())
    last = tokens((4, a), logprobs=Logprobs(*(x[:1] for x in _one_row())))
    processed = processor.process(Effects(tokens=[rows, last], ended=[end(u, LENGTH) for u in wants]), now=1.0)
    if stream:
        found = {d.request_id: d.logprobs for d in processed.deltas}
    else:
        found = {o.request_id: o.outputs[0].logprobs for o in processed.outputs}
        assert [o.outputs[0].cumulative_logprob for o in processed.outputs] == [-3.0, None, -9.0, -0.5]
    assert found["2"] is None
    (first,) = found["1"]
    assert list(first) == [c, a, b], "the sampled token comes first"
    assert {t: (p.logprob, p.rank, p.decoded_token) for t, p in first.items()} == {
        c: (-3.0, 2, "c"),
        a: (-1.0, 1, "a"),
        b: (-3.0, 2, "b"),
    }
    (third,) = found["3"]
    assert {t: (p.logprob, p.rank, p.decoded_token) for t, p in third.items()} == {
        a: (-9.0, 7, "a"),
        d: (-0.25, 1, "d"),
    }
    (fourth,) = found["4"]
    assert list(fourth) == [a]


def _one_row():
    return (
        np.array([0], np.int32),
        np.array([-0.5], np.float32),
        np.array([1], np.int32),
        np.zeros((1, 0), np.int32),
        np.zeros((1, 0), np.float32),
    )


# Requests ---------------------------------------------------------------------------------------------------


def test_answers_of_one_request_are_grouped_and_complete_together():
    processor = TokenProcessor(BYTES)
    add(processor, "r", [7, 8], SamplingParams(n=2), prompt="p", prompt_token_ids=ids("p"), now=0.0)
    a, b, c = ids("abc")
    first = processor.process(
        Effects(started=[(7, 0), (8, 16)], tokens=[tokens((8, b), (7, a))], ended=[end(8, LENGTH)]), now=1.0
    )
    assert first.outputs == []
    second = processor.process(Effects(tokens=[tokens((7, c))], ended=[end(7, LENGTH)]), now=3.0)
    (output,) = second.outputs
    assert (output.request_id, output.prompt, output.prompt_token_ids) == ("r", "p", ids("p"))
    assert [(o.index, o.text) for o in output.outputs] == [(0, "ac"), (1, "b")]
    assert output.finished
    assert output.num_cached_tokens == 0, "blocks that the first answer computed were not cached before"


def test_streamed_answers_are_told_apart_and_the_last_delta_says_so():
    processor = TokenProcessor(BYTES)
    add(processor, "r", [7, 8], SamplingParams(n=2), prompt_token_ids=ids("p"), now=0.0, stream=True)
    a, b = ids("ab")
    processed = processor.process(Effects(tokens=[tokens((8, b), (7, a))], ended=[end(8, LENGTH)]), now=1.0)
    assert [(d.index, d.text, d.finish_reason, d.finished) for d in processed.deltas] == [
        (1, "b", LENGTH, False),
        (0, "a", None, False),
    ]
    processed = processor.process(Effects(ended=[end(7, LENGTH)]), now=1.0)
    assert [(d.index, d.text, d.finished) for d in processed.deltas] == [(0, "", True)]


def test_a_request_id_is_free_again_when_its_request_has_ended():
    processor = TokenProcessor(BYTES)
    params = SamplingParams()
    add(processor, "r", [1], params, prompt_token_ids=[1], now=0.0)
    with pytest.raises(DuplicateRequestError, match="'r'"):
        add(processor, "r", [2], params, prompt_token_ids=[1], now=0.0)
    processor.process(Effects(ended=[end(1, LENGTH)]), now=0.0)
    assert "r" not in processor
    add(processor, "r", [3], params, prompt_token_ids=[1], now=0.0)
    assert "r" in processor


def test_discarding_names_what_is_still_in_the_engine_and_silences_it():
    processor = TokenProcessor(BYTES)
    add(processor, "r", [1, 2, 3], SamplingParams(n=3), prompt_token_ids=[1], now=0.0, stream=True)
    processor.process(Effects(ended=[end(2, LENGTH)]), now=0.0)
    assert processor.discard("r") == [1, 3]
    assert processor.discard("r") == []
    late = processor.process(Effects(started=[(1, 4)], tokens=[tokens((1, 5))], ended=[end(1, LENGTH)]), now=0.0)
    assert (late.deltas, late.outputs, late.num_tokens) == ([], [], 0)


def test_times_are_the_callers_and_latencies_are_counted_per_answer():
    processor = TokenProcessor(BYTES)
    add(processor, "r", [1, 2], SamplingParams(n=2), prompt_token_ids=[1], now=10.0)
    steps = [
        (11.0, Effects(started=[(1, 32)], tokens=[tokens((1, 1))])),
        (13.0, Effects(tokens=[tokens((1, 1), (2, 1))])),
        (14.0, Effects(tokens=[tokens((1, 1), (2, 1))], ended=[end(1, LENGTH)])),
        (20.0, Effects(ended=[end(2, FinishReason.ABORT)])),
    ]
    results = [processor.process(effects, now) for now, effects in steps]
    assert [r.num_tokens for r in results] == [1, 2, 2, 0]
    assert [r.first_token_latencies for r in results] == [[1.0], [3.0], [], []]
    assert [r.inter_token_latencies for r in results] == [[], [2.0], [1.0, 1.0], []]
    (output,) = results[-1].outputs
    metrics = output.metrics
    assert (metrics.arrival_time, metrics.first_token_time) == (10.0, 11.0)
    assert (metrics.last_token_time, metrics.finished_time) == (14.0, 20.0)
    assert output.num_cached_tokens == 32


def test_n_answers_are_n_requests_with_seeds_of_their_own():
    def seeds(**sampling):
        return [(one.uid, one.request_id, one.sampling.seed) for one in expanded(**sampling)]

    def expanded(**sampling):
        prompt = np.array([1], np.int32)
        new = NewRequest(request_id="r", prompt=prompt, sampling=SamplingParams(**sampling), cache_salt="s", priority=3)
        answers = expand(new, range(7, 7 + new.sampling.n))
        assert all((one.prompt is prompt, one.cache_salt, one.priority) == (True, "s", 3) for one in answers)
        assert all(one.sampling == replace(new.sampling, n=1, seed=one.sampling.seed) for one in answers)
        return answers

    assert seeds(seed=5) == [(7, "r", 5)]
    assert seeds(n=3, seed=5, temperature=0.5) == [(7, "r-0", 5), (8, "r-1", 6), (9, "r-2", 7)]
    assert [seed for *_, seed in seeds(n=2)] == [None, None]
    assert [seed for *_, seed in seeds(n=2, seed=2**63 - 1)] == [2**63 - 1, -(2**63)]


@pytest.mark.parametrize("seed", range(5))
def test_any_stream_adds_up_to_the_whole_answer(seed):
    """Random tokens, cut into random groups: the deltas of a stream join to what the whole request says."""
    rng = random.Random(seed)
    alphabet = [*ids("abST🎉é \n"), *BYTES.encode("STOP"), EOS]
    for _ in range(60):
        stop = rng.choice([[], ["ab"], ["STOP", "T a"], ["é"], ["\n", "b\n"]])
        options = {"stop": stop, "include_stop_str_in_output": rng.random() < 0.5}
        token_ids = [rng.choice(alphabet) for _ in range(rng.randint(1, 20))]
        last = end(1, STOP, token_ids[-1]) if token_ids[-1] == EOS else end(1, LENGTH)
        whole, stream = Run(stream=False, **options), Run(stream=True, **options)
        whole.feed(*token_ids, last=last, one_by_one=False)
        stream.feed(*token_ids, last=last)
        assert whole.result() == stream.result(), (stop, token_ids)
        if not stop:
            assert whole.result()[0] == BYTES.decode(token_ids, skip_special_tokens=True)


BOTH_KINDS = {"byte-level": BYTES, "byte fallback": fallback_tokenizer()}


@pytest.mark.parametrize("name", BOTH_KINDS)
@given(data=st.data())
def test_streamed_and_whole_with_and_without_stop_strings_are_one_text_and_the_bytes_of_its_tokens(name, data):
    tokenizer = BOTH_KINDS[name]
    token_ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=12))
    emoji = [byte + 1 for byte in "🙂".encode()] if name == "byte fallback" else ids("🙂")
    at = data.draw(st.integers(0, len(token_ids)))
    token_ids[at:at] = emoji[: data.draw(st.integers(0, 4))]
    groups = data.draw(st.lists(st.integers(1, 4), min_size=len(token_ids), max_size=len(token_ids)))
    skip = data.draw(st.booleans())
    texts = set()
    for stream in (True, False):
        for stop in ([], ["🙂\ufffd\ufffd\ufffd never"], ["\ufffd never", "never", "</s> never"]):
            run = Run(
                stream=stream, tokenizer=tokenizer, stop=stop, logprobs=0, skip_special_tokens=skip, ignore_eos=True
            )
            left = list(token_ids)
            for size in groups:
                run.feed(*left[:size], one_by_one=False, logprobs=True)
                del left[:size]
            run.feed(last=end(1, LENGTH))
            text = run.result()[0]
            texts.add(text)
            assert len(run.logprobs) == len(token_ids)
            shown = b"".join(entry.bytes for entry in run.logprobs)
            assert shown.decode(errors="replace") == text
            decoded = "".join(entry.decoded_token for entry in run.logprobs if entry.bytes)
            assert text in (decoded, decoded + "\ufffd")
    assert len(texts) == 1, texts


@both_ways
def test_a_stop_token_that_the_text_hides_has_a_name_and_no_bytes(stream):
    for skip in (True, False):
        run = Run(stream=stream, logprobs=0, skip_special_tokens=skip)
        run.feed(*ids("a"), EOS, last=end(1, STOP, stop_token=EOS), logprobs=True)
        assert [(entry.decoded_token, entry.bytes) for entry in run.logprobs] == [("a", b"a"), ("<eos>", b"")]
        run = Run(stream=stream, logprobs=0, skip_special_tokens=skip, include_stop_str_in_output=True)
        run.feed(*ids("a"), EOS, last=end(1, STOP, stop_token=EOS), logprobs=True)
        assert b"".join(entry.bytes for entry in run.logprobs).decode() == run.result()[0]

"""The log-probabilities of a prompt: arrays until they are read, then texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headway.client.prompt_scores import PromptScores
from headway.client.token_pieces import TokenPieces
from headway.client.token_processor import TokenProcessor, expand
from headway.outputs import TokenLogprob
from headway.request import FinishReason, NewRequest
from headway.sampling import SamplingParams
from headway.scheduler.batch import PromptLogprobs
from headway.scheduler.effects import Effects, PromptOutputs, RequestEnd, TokenOutputs
from tests.tiny_tokenizer import byte_ids, byte_tokenizer, fallback_tokenizer

BYTES = byte_tokenizer()


def found(*runs: tuple[int, int], most: int = 0, ids: Any = None) -> PromptLogprobs:
    """Runs (start, count); position p has the logprob -p and the rank p. ids: the alternatives, int [T, most]."""
    positions = np.concatenate([np.arange(start, start + count) for start, count in runs]).astype(np.int32)
    starts, counts = (np.array(column, np.int32) for column in zip(*runs, strict=True))
    return PromptLogprobs(
        rows=np.arange(len(runs), dtype=np.int32),
        starts=starts,
        counts=counts,
        logprobs=-positions.astype(np.float32),
        ranks=positions,
        top_ids=np.array(ids if ids is not None else np.zeros((len(positions), most)), np.int32),
        top=np.tile(-np.arange(1, most + 1, dtype=np.float32), (len(positions), 1)),
    )


def effects(uid: int, *found_: PromptLogprobs, tokens: tuple[int, ...] = (), end: FinishReason | None = None):
    return Effects(
        prompt_logprobs=[PromptOutputs(np.array([uid], np.int64), one) for one in found_],
        tokens=[TokenOutputs(np.array([uid], np.int64), np.array([token], np.int32)) for token in tokens],
        ended=[] if end is None else [RequestEnd(uid, str(uid), end)],
    )


def processor_with(sampling: SamplingParams, prompt: str = "abc", *, stream: bool = False) -> TokenProcessor:
    """uids from 1 on."""
    processor = TokenProcessor(BYTES, [BYTES.eos_token_id])
    new = NewRequest(request_id="r", prompt=np.array(byte_ids(BYTES, prompt), np.int32), sampling=sampling)
    processor.add(new, range(1, sampling.n + 1), now=0.0, stream=stream)
    return processor


def test_each_position_has_its_own_token_first_then_the_likely_ones() -> None:
    a, b, c = byte_ids(BYTES, "abc")
    scores = PromptScores(TokenPieces(BYTES, skip_special_tokens=True), [a, b, c], 2)
    scores.add(found((1, 2), most=2, ids=[[a, b], [c, a]]), 0)
    assert list(scores) == [
        None,
        {b: TokenLogprob(-1.0, 1, "b", b"b"), a: TokenLogprob(-1.0, 1, "a", b"a")},
        {c: TokenLogprob(-2.0, 2, "c", b"c"), a: TokenLogprob(-2.0, 2, "a", b"a")},
    ]
    assert scores[0] is None and scores[-1] == list(scores)[-1] and scores[1:] == list(scores)[1:]
    assert len(scores) == 3 and scores.complete and scores.num_values == 9


def test_a_request_takes_as_many_alternatives_as_it_asked_for_and_its_own_run() -> None:
    ids = byte_ids(BYTES, "abc")
    scores = PromptScores(TokenPieces(BYTES, skip_special_tokens=True), ids, 1)
    both = found((1, 4), (1, 1), most=3, ids=np.full((5, 3), ids[0]))
    scores.add(both, 1)
    assert not scores.complete
    scores.add(found((2, 1), most=3, ids=[[ids[0]] * 3]), 0)
    assert scores.complete
    assert [[entry.logprob for entry in position.values()] for position in list(scores)[1:]] == [[-1, -1], [-2, -1]]


@pytest.mark.parametrize("tokenizer", [BYTES, fallback_tokenizer()], ids=["byte-level", "byte fallback"])
def test_the_bytes_of_the_tokens_are_the_prompt(tokenizer: Any) -> None:
    text = " hé🙂"
    ids = tokenizer.encode(text, add_special_tokens=False)
    scores = PromptScores(TokenPieces(tokenizer, skip_special_tokens=True), ids, 0)
    scores.add(found((1, len(ids) - 1)), 0)
    own = [next(iter(position.values())) for position in scores if position is not None]
    assert text.encode().endswith(b"".join(entry.bytes for entry in own))
    assert text.endswith("".join(entry.decoded_token for entry in own if entry.bytes))


def test_texts_are_made_when_they_are_read_and_kept_when_they_are_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    pieces = TokenPieces(BYTES, skip_special_tokens=True)
    scores = PromptScores(pieces, byte_ids(BYTES, "abcdefgh"), 0)
    scores.add(found((1, 7)), 0)
    of = pieces.of
    monkeypatch.setattr(pieces, "of", lambda token: made.append(token) or of(token))
    entries = iter(scores)
    next(entries), next(entries)
    assert 0 < len(made) <= 4  # two tokens, each looked at and stepped over
    assert len(scores[:]) == 8
    made.clear()
    assert scores[3] is not None and list(scores) and not made


@pytest.mark.parametrize("stream", [False, True])
def test_come_with_the_first_token_of_answer_0_and_once(stream: bool) -> None:
    processor = processor_with(SamplingParams(prompt_logprobs=0, n=2, max_tokens=4), stream=stream)
    seen = []
    for some in (
        effects(2, tokens=(104,)),
        effects(1, found((1, 1))),
        effects(1, found((2, 1)), tokens=(104,)),
        effects(1, tokens=(105,), end=FinishReason.LENGTH),
        effects(2, tokens=(105,), end=FinishReason.LENGTH),
    ):
        processed = processor.process(some, now=1.0)
        outputs = [*processed.deltas, *processed.outputs]
        seen.append(
            [output.prompt_logprobs and [position is None for position in output.prompt_logprobs] for output in outputs]
        )
    come = [True, False, False]
    assert seen == ([[None], [], [come], [None], [None]] if stream else [[], [], [], [], [come]])


def test_only_the_first_of_several_answers_asks_the_engine() -> None:
    new = NewRequest(request_id="r", prompt=np.array([5], np.int32), sampling=SamplingParams(n=3, prompt_logprobs=2))
    assert [one.sampling.prompt_logprobs for one in expand(new, [1, 2, 3])] == [2, None, None]
    assert [one.sampling.prompt_logprobs for one in expand(replace(new, sampling=SamplingParams()), [1])] == [None]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
def test_what_has_not_all_come_is_not_given(stream: bool, reason: FinishReason) -> None:
    processor = processor_with(SamplingParams(prompt_logprobs=0), stream=stream)
    processor.process(effects(1, found((1, 1))), now=1.0)
    processed = processor.process(effects(1, end=reason), now=1.0)
    assert [output.prompt_logprobs for output in [*processed.deltas, *processed.outputs]] == [None]


def test_what_comes_after_a_request_was_discarded_is_dropped() -> None:
    processor = processor_with(SamplingParams(prompt_logprobs=0))
    processor.discard("r")
    assert not processor.process(effects(1, found((1, 2)), tokens=(104,)), now=1.0).outputs


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH])
def test_max_tokens_0_drops_the_token_that_the_engine_gives(stream: bool, reason: FinishReason) -> None:
    processor = processor_with(SamplingParams(max_tokens=0, logprobs=None, prompt_logprobs=0), stream=stream)
    processed = processor.process(effects(1, found((1, 2)), tokens=(104,), end=reason), now=1.0)
    (output,) = [*processed.deltas, *processed.outputs]
    answer = output if stream else output.outputs[0]
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", [], FinishReason.LENGTH)
    assert len(output.prompt_logprobs) == 3 and output.finished
    assert processed.num_tokens == 0 and processed.step_tokens == [3]  # its prompt was computed all the same
    assert processed.ended[0].ends == [(FinishReason.LENGTH, 0)]

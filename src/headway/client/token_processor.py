"""From token ids to answers: text, stop strings, logprobs, finish reasons.

`LLM` uses it in the engine's process, the server in an API process. The user of the object registers a request before
its sequences go to the engine, passes on every `Effects`, and finishes in the engine the uids that a stop string ended.
It is plain Python: no threads, no clock, and it never touches scheduling state. One thread (or one event loop) uses it
at a time.

    add(...) ;  process(effects, now) -> Processed ;  discard(request_id)

A request of n answers is n sequences, each with a uid and a scheduler request of its own (see `expand`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from headway.client.detokenizer import Detokenizer
from headway.client.prompt_scores import PromptScores
from headway.client.repetition_scanner import RepetitionScanner
from headway.client.sequence import ONGOING, Ending, OpenRequest, OpenSequence
from headway.client.stop_scanner import StopScanner
from headway.client.token_pieces import TokenPieces
from headway.errors import DuplicateRequestError
from headway.outputs import CompletionOutput, RequestDelta, RequestMetrics, RequestOutput, TokenLogprob
from headway.request import FinishReason, NewRequest
from headway.scheduler.batch import Logprobs
from headway.scheduler.effects import Effects, RequestEnd, TokenOutputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Processed", "RequestDelta", "TokenProcessor", "expand"]


def expand(request: NewRequest, uids: Sequence[int]) -> list[NewRequest]:
    """One request for the engine per answer, `sampling.n` in all. uids: one per answer.

    Answer i is drawn with seed + i: the answers of a request with a seed differ, and the same request repeats them.
    """
    sampling = request.sampling
    if sampling.n == 1:
        return [replace(request, uid=uids[0])]
    return [
        replace(
            request,
            uid=uid,
            request_id=f"{request.request_id}-{i}",
            transfer=request.transfer if i == 0 else None,  # the others find the prompt in the prefix cache
            sampling=replace(
                sampling,
                n=1,
                seed=_shift_seed(sampling.seed, i),
                prompt_logprobs=sampling.prompt_logprobs if i == 0 else None,  # once for all of them
            ),
        )
        for i, uid in enumerate(uids)
    ]


def _shift_seed(seed: int | None, offset: int) -> int | None:
    if seed is None:
        return None
    return (seed + offset + 2**63) % 2**64 - 2**63  # seeds are int64


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that is over, in numbers. ends: of each answer, the reason and the number of output tokens."""

    ends: list[tuple[FinishReason, int]]
    num_prompt_tokens: int
    num_cached_tokens: int
    max_tokens: int | None
    metrics: RequestMetrics

    @classmethod
    def of(cls, request: OpenRequest) -> Ended:
        """The numbers of `request`."""
        return cls(
            request.ends,
            len(request.output.prompt_token_ids),
            request.num_cached_tokens,
            request.sampling.max_tokens,
            request.output.metrics,
        )


@dataclass(slots=True)
class Processed:
    """What `TokenProcessor.process` made of one `Effects`.

    deltas: of streaming requests, at most one per answer.
    outputs: of requests that do not stream and are complete now.
    stop_uids: sequences that a stop string or a repetition ended, for `Manager.finish`: the engine does not know this
        yet.
    shut_down: ids of requests with an answer that was cut off because the engine was shut down.
    refused: request id -> what is wrong with the request, found out after it was accepted.
    ended: the numbers of requests that are over.
    num_tokens: output tokens of live sequences.
    step_tokens: of each step, its output tokens, and the prompts of the answers that it gave their first token.
    first_token_latencies: seconds from arrival; one per answer that got its first tokens.
    inter_token_latencies: seconds since the tokens before; one per answer that got more tokens.
    """

    deltas: list[RequestDelta] = field(default_factory=list)
    outputs: list[RequestOutput] = field(default_factory=list)
    stop_uids: list[int] = field(default_factory=list)
    shut_down: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    num_tokens: int = 0
    step_tokens: list[int] = field(default_factory=list)
    first_token_latencies: list[float] = field(default_factory=list)
    inter_token_latencies: list[float] = field(default_factory=list)


class TokenProcessor:
    """Follows every request from `add` to its end.

    tokenizer: None leaves all text empty (then stop strings cannot be found).
    eos_token_ids: the end-of-sequence tokens; an answer that ends with one has the stop_reason None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, eos_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[tuple[bool, frozenset[str]], TokenPieces] = {}  # by what is left out
        self._eos_token_ids = frozenset(eos_token_ids)
        self._requests: dict[str, OpenRequest] = {}
        self._sequences: dict[int, OpenSequence] = {}  # live sequences by uid; late tokens of others are dropped

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def add(
        self,
        new: NewRequest,
        uids: Sequence[int],
        *,
        text: str | None = None,
        now: float,
        stream: bool = False,
        shown: Collection[str] = (),
    ) -> None:
        """Register a request before its sequences go to the engine.

        uids: one for each of the `sampling.n` answers, never used again.
        text: the text of the prompt, if the prompt was a text.
        stream: True: report deltas (`Processed.deltas`). False: report complete outputs (`Processed.outputs`).
        shown: texts of special tokens that are in the text of the answers, although special tokens are left out.
        now: seconds; the arrival, on the clock of all calls.

        Raises DuplicateRequestError if a request of this id has not ended.
        """
        request_id, sampling, prompt_token_ids = new.request_id, new.sampling, new.prompt.tolist()
        if request_id in self._requests:
            raise DuplicateRequestError(f"request id {request_id!r} is in use")
        assert len(uids) == sampling.n, "one uid per answer"
        assert self._sequences.keys().isdisjoint(uids), "uids are never used twice"
        output = RequestOutput(
            request_id=request_id,
            prompt=text,
            prompt_token_ids=prompt_token_ids,
            outputs=[CompletionOutput(index) for index in range(sampling.n)],
            metrics=RequestMetrics(arrival_time=now),
        )
        pieces = self._pieces_for(sampling.skip_special_tokens, frozenset(shown))
        request = OpenRequest(
            request_id,
            tuple(uids),
            sampling,
            output,
            stream,
            live=len(uids),
            stop_tokens={token: text for text, token in pieces.special.items() if text in sampling.stop}
            if sampling.stop and pieces.hidden
            else {},
            scores=None
            if sampling.prompt_logprobs is None
            else PromptScores(pieces, prompt_token_ids, sampling.prompt_logprobs),
        )
        self._requests[request_id] = request
        for index, uid in enumerate(uids):
            self._sequences[uid] = OpenSequence(
                request,
                index,
                Detokenizer.of(pieces, prompt_token_ids),
                StopScanner(sampling.stop, sampling.include_stop_str_in_output) if sampling.stop else None,
                repetition=None
                if sampling.repetition_detection is None
                else RepetitionScanner(sampling.repetition_detection),
                logprobs=None if sampling.logprobs is None else [],
            )

    def _pieces_for(self, skip: bool, shown: frozenset[str]) -> TokenPieces:
        pieces = self._pieces.get((skip, shown))
        if pieces is None:
            made = TokenPieces(self._tokenizer, skip_special_tokens=skip, shown=shown)
            pieces = self._pieces[skip, shown] = made
        return pieces

    def discard(self, request_id: str) -> list[int]:
        """Forget a request: nothing more is reported of it. Returns the uids that had not ended, for
        `Manager.abort`; an id that is not known is a no-op."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return []
        return [uid for uid in request.uids if self._sequences.pop(uid, None) is not None]

    def give_up(self, request_id: str, reason: FinishReason, now: float) -> Ended | None:
        """The numbers of a request whose open answers end now for `reason`: `discard` follows. None: it is not known.

        now: seconds, on the clock of all calls.
        """
        request = self._requests.get(request_id)
        if request is None:
            return None
        open_answers = (sequence for uid in request.uids if (sequence := self._sequences.get(uid)) is not None)
        request.ends += [(reason, sequence.num_tokens) for sequence in open_answers]
        request.output.metrics.finished_time = now
        return Ended.of(request)

    def lends(self, uid: int, params: dict[str, Any]) -> RequestDelta | None:
        """The engine has taken a request that lends the KV of its prompt: a delta that says so, for a stream. None: the
        request does not stream, or is not known."""
        sequence = self._sequences.get(uid)
        if sequence is None or not sequence.request.stream:
            return None
        return replace(sequence.take_delta(ONGOING), kv_transfer_params=params)

    def process(self, effects: Effects, now: float) -> Processed:
        """Apply effects of the engine. Effects of sequences that have ended or were discarded are ignored.

        now: seconds, on the clock of all calls.
        """
        processed = Processed()
        self._note_news(effects, now)
        ends = {end.uid: end for end in effects.ended}
        changed: dict[int, OpenSequence] = {}
        stopped: dict[int, Ending] = {}  # uid -> how its answer ended here
        for step in range(len(effects.tokens)):
            count, num_prompt_tokens = self._take_tokens(effects.tokens[step:], ends, changed, stopped)
            processed.num_tokens += count
            processed.step_tokens.append(count + num_prompt_tokens)
        for sequence in changed.values():
            _record_times(sequence, now, processed)
        for uid, end in ends.items():
            ended = self._sequences.pop(uid, None)
            if ended is not None:
                changed[uid] = ended
                if end.engine_stopped and end.reason is FinishReason.ABORT:
                    processed.shut_down.add(ended.request.request_id)
                if end.refused:
                    processed.refused[ended.request.request_id] = end.error or "the request cannot be served"

        for uid, sequence in changed.items():
            if uid in stopped:
                if uid not in ends:
                    processed.stop_uids.append(uid)
                self._finish(sequence, stopped[uid], now, processed)
            elif uid in ends:
                self._finish(sequence, self._complete_text(sequence, ends[uid]), now, processed)
            elif sequence.request.stream:
                processed.deltas.append(sequence.take_delta(ONGOING))
        return processed

    def _note_news(self, effects: Effects, now: float) -> None:
        for uid, num_cached_tokens in effects.started:
            sequence = self._sequences.get(uid)
            # Only the first of n answers counts: the others may find cached blocks that the first has just computed.
            if sequence is not None and sequence.index == 0:
                sequence.request.num_cached_tokens = num_cached_tokens
                sequence.request.output.metrics.started_time = now
        for prompts in effects.prompt_logprobs:
            for run, uid in enumerate(prompts.uids.tolist()):
                sequence = self._sequences.get(uid)
                if sequence is not None and sequence.request.scores is not None:
                    sequence.request.scores.add(prompts.logprobs, run)
        for uid, params in effects.handovers:
            if (sequence := self._sequences.get(uid)) is not None:
                sequence.request.output.kv_transfer_params = params

    def _take_tokens(
        self,
        steps: Sequence[TokenOutputs],
        ends: dict[int, RequestEnd],
        changed: dict[int, OpenSequence],
        stopped: dict[int, Ending],
    ) -> tuple[int, int]:
        """Append the tokens of the first of these steps to their sequences; returns how many belong to live sequences,
        and the prompt tokens of the answers that have their first token in it."""
        outputs = steps[0]
        logprobs = _LogprobRows(outputs.logprobs) if outputs.logprobs is not None else None
        sequences = self._sequences
        count = num_prompt_tokens = 0
        for row, (uid, token) in enumerate(zip(outputs.uids.tolist(), outputs.tokens.tolist(), strict=True)):
            sequence = sequences.get(uid)
            if sequence is None:
                continue
            if not sequence.token_ids and not sequence.num_given:
                num_prompt_tokens += len(sequence.request.output.prompt_token_ids)
            if not sequence.request.wants_tokens:
                continue
            count += 1
            sequence.token_ids.append(token)
            changed[uid] = sequence
            repeats = sequence.repeats(token)
            hidden = uid in ends and sequence.hides_last(ends[uid]) and _is_last(uid, row, steps)
            if logprobs is not None and sequence.logprobs is not None:
                self._add_logprobs(sequence, token, logprobs, row, hidden=hidden)
            if hidden:
                continue
            stop = self._add_text(sequence, token)
            if stop is not None:
                stopped[uid] = Ending(FinishReason.STOP, stop)
            elif repeats and not (uid in ends and _is_last(uid, row, steps)):  # else the engine's reason counts
                stopped[uid] = self._end_by_repetition(sequence)
            if uid in stopped:
                del sequences[uid]  # tokens after the end are no part of the answer
        return count, num_prompt_tokens

    def _end_by_repetition(self, sequence: OpenSequence) -> Ending:
        stop = sequence.finish_text()
        if stop is not None:
            return Ending(FinishReason.STOP, stop)
        return Ending(FinishReason.REPETITION, "repetition_detected")

    def _add_text(self, sequence: OpenSequence, token: int) -> str | None:
        """Add the text of a token; returns the stop string that ends the answer, or None."""
        stop = sequence.stop_of(token)
        if stop is None:
            return sequence.add_text(sequence.detokenizer.step(token))
        earlier = sequence.finish_text()
        if earlier is None and sequence.request.sampling.include_stop_str_in_output:
            sequence.pieces.append(stop)
        return earlier or stop

    def _add_logprobs(self, sequence: OpenSequence, token: int, rows: _LogprobRows, row: int, *, hidden: bool) -> None:
        """hidden: this is the stop token, and the text does not show it."""
        assert sequence.logprobs is not None
        at = rows.index[row]
        sampling = sequence.request.sampling
        logprob = rows.sampled[at]
        stop = sequence.stop_of(token)
        if hidden:
            text, own = "", b""
        elif stop is not None and sampling.include_stop_str_in_output:
            text, own = stop, stop.encode()
        else:
            text, own = sequence.detokenizer.peek(token)
        name = sequence.detokenizer.pieces.name
        position = {token: TokenLogprob(logprob, rows.ranks[at], text if own else name(token), own)}
        k = sampling.logprobs or 0
        top = zip(rows.top_ids[at][:k], rows.top[at][:k], strict=True)
        for rank, (other, value) in enumerate(top, start=1):
            if other != token:
                position[other] = sequence.detokenizer.logprob(other, value, rank)
        sequence.logprobs.append(position)
        sequence.cumulative_logprob += logprob

    def _complete_text(self, sequence: OpenSequence, end: RequestEnd) -> Ending:
        """The engine ended the sequence: make the rest of its text, in which a stop string may still be."""
        if end.reason is FinishReason.STOP and not sequence.request.wants_tokens:
            return Ending(FinishReason.LENGTH)
        stop = sequence.finish_text()
        if stop is not None:
            return Ending(FinishReason.STOP, stop)
        return Ending(end.reason, self._stop_reason(sequence, end), end.error)

    def _stop_reason(self, sequence: OpenSequence, end: RequestEnd) -> int | None:
        sampling = sequence.request.sampling
        if end.stop_token is None or end.stop_token not in sampling.stop_token_ids:
            return None
        is_eos = end.stop_token in self._eos_token_ids and not sampling.ignore_eos
        return None if is_eos else end.stop_token

    def _finish(self, sequence: OpenSequence, ending: Ending, now: float, processed: Processed) -> None:
        request = sequence.request
        request.live -= 1
        assert ending.reason is not None
        request.ends.append((ending.reason, sequence.num_tokens))
        if not request.live:
            del self._requests[request.request_id]
            request.output.metrics.finished_time = now
            processed.ended.append(Ended.of(request))
        if request.stream:
            processed.deltas.append(sequence.take_delta(ending))
            return
        answer = request.output.outputs[sequence.index]
        answer.text = "".join(sequence.pieces)
        answer.token_ids = sequence.token_ids
        answer.logprobs = sequence.logprobs
        answer.cumulative_logprob = None if sequence.logprobs is None else sequence.cumulative_logprob
        answer.finish_reason, answer.stop_reason, answer.error = ending
        if not request.live:
            request.output.num_cached_tokens = request.num_cached_tokens
            request.output.finished = True
            request.output.prompt_logprobs = request.take_scores()
            processed.outputs.append(request.output)


class _LogprobRows:
    """The logprobs of a step as lists. Reading single elements of a list is faster than of an array."""

    __slots__ = ("index", "ranks", "sampled", "top", "top_ids")

    def __init__(self, logprobs: Logprobs) -> None:
        self.index = {row: at for at, row in enumerate(logprobs.rows.tolist())}
        self.sampled: list[float] = logprobs.sampled.tolist()
        self.ranks: list[int] = logprobs.ranks.tolist()
        self.top_ids: list[list[int]] = logprobs.top_ids.tolist()
        self.top: list[list[float]] = logprobs.top.tolist()


def _is_last(uid: int, row: int, steps: Sequence[TokenOutputs]) -> bool:
    """Whether no token follows for this request after this row of the first step."""
    more = [steps[0].uids[row + 1 :], *(outputs.uids for outputs in steps[1:])]
    return not any((uids == uid).any() for uids in more)


def _record_times(sequence: OpenSequence, now: float, processed: Processed) -> None:
    metrics = sequence.request.output.metrics
    if sequence.last_time is None:
        processed.first_token_latencies.append(now - metrics.arrival_time)
        if metrics.first_token_time is None:
            metrics.first_token_time = now
    else:
        processed.inter_token_latencies.append(now - sequence.last_time)
    sequence.last_time = metrics.last_token_time = now

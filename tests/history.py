"""What the callers of a core or a manager were told, held against what callers may be told in any order of events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from headway.request import FinishReason
from headway.scheduler import Effects, RequestEnd, Sending


class History:
    """By uid. Refuses a second start, a second end, and anything about a request that has ended.

    started: the number of cached tokens. tokens: in order. judged: positions of the prompt whose log-probabilities were
    told, in order. sent: KV that was handed to the sender. stopped: pulls and
    reservations that are over, whose connector must say that it has stopped.
    """

    def __init__(self) -> None:
        self.started: dict[int, int] = {}
        self.tokens: defaultdict[int, list[int]] = defaultdict(list)
        self.judged: defaultdict[int, list[int]] = defaultdict(list)
        self.sent: dict[int, Sending] = {}
        self.ends: dict[int, RequestEnd] = {}
        self.stopped: list[int] = []
        self.sourceless: list[int] = []

    def take(self, effects: Effects) -> None:
        """Write down what came about. Also serves as an engine's `on_effects`."""
        for uid, num_cached_tokens in effects.started:
            assert uid not in self.started, f"uid {uid} started twice"
            assert uid not in self.ends, f"uid {uid} started after its end"
            self.started[uid] = num_cached_tokens
        for prompts in effects.prompt_logprobs:
            found = prompts.logprobs
            for uid, start, count in zip(prompts.uids.tolist(), found.starts, found.counts, strict=True):
                assert uid not in self.ends, f"uid {uid}: its prompt is judged after its end"
                assert not self.tokens[uid], f"uid {uid}: its prompt is judged after its first token"
                self.judged[uid] += range(start, start + count)
        for outputs in effects.tokens:
            for uid, token in zip(outputs.uids.tolist(), outputs.tokens.tolist(), strict=True):
                assert uid not in self.ends, f"uid {uid} got a token after its end"
                self.tokens[uid].append(token)
        for sending in effects.sending:
            assert sending.uid not in self.sent and sending.uid not in self.ends, f"uid {sending.uid} is sent again"
            assert self.tokens[sending.uid] == [sending.token], f"uid {sending.uid} is sent with a foreign token"
            self.sent[sending.uid] = sending
        for end in effects.ended:
            assert end.uid not in self.ends, f"uid {end.uid} ended twice"
            self.ends[end.uid] = end
        self.stopped += effects.stopped_pulls
        self.sourceless += effects.sourceless

    def reasons(self, uids: Iterable[int]) -> list[FinishReason]:
        """Why these requests ended."""
        return [self.ends[uid].reason for uid in uids]

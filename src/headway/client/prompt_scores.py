"""The log-probabilities of one prompt, on their way to the caller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from headway.client.detokenizer import Detokenizer
from headway.client.token_pieces import TokenPieces
from headway.outputs import PromptPosition
from headway.scheduler.batch import PromptLogprobs


class PromptScores(Sequence[PromptPosition]):
    """One entry per token of the prompt; the first is None, as the first token follows nothing.

    It holds arrays, as they came. Entries are made from these, with their texts, when they are read: one by one if it
    is iterated, so a long prompt never has all of them at once; all of them, once, if it is indexed.

    most: alternatives per token.
    """

    def __init__(self, pieces: TokenPieces, prompt_token_ids: Sequence[int], most: int) -> None:
        self.most = most
        self._pieces = pieces
        self._token_ids = prompt_token_ids
        self._parts: list[tuple[PromptLogprobs, slice]] = []  # in order; the slice is of the arrays of all runs
        self._num_known = 1
        self._entries: list[PromptPosition] | None = None

    def add(self, found: PromptLogprobs, run: int) -> None:
        """Take in the next positions: one run of what a step has found."""
        assert found.starts[run] == self._num_known, "positions come in order"
        begin = int(found.counts[:run].sum())
        count = int(found.counts[run])
        self._parts.append((found, slice(begin, begin + count)))
        self._num_known += count

    @property
    def complete(self) -> bool:
        """Whether all positions have come."""
        return self._num_known >= len(self._token_ids)

    @property
    def num_values(self) -> int:
        """The numbers in all entries: what it costs to read these goes by it."""
        return len(self._token_ids) * (1 + self.most)

    def __len__(self) -> int:
        return len(self._token_ids)

    def __iter__(self) -> Iterator[PromptPosition]:
        if self._entries is not None:
            yield from self._entries
            return
        detokenizer = Detokenizer.of(self._pieces)
        detokenizer.step(self._token_ids[0])
        yield None
        tokens = iter(self._token_ids[1:])
        for found, mine in self._parts:
            rows = zip(
                *(found.logprobs[mine].tolist(), found.ranks[mine].tolist()),
                *(found.top_ids[mine, : self.most].tolist(), found.top[mine, : self.most].tolist()),
                strict=True,
            )
            for logprob, rank, top_ids, top in rows:
                token = next(tokens)
                entry = {token: detokenizer.logprob(token, logprob, rank)}
                for place, (other, value) in enumerate(zip(top_ids, top, strict=True), start=1):
                    if other != token:
                        entry[other] = detokenizer.logprob(other, value, place)
                detokenizer.step(token)
                yield entry

    def __getitem__(self, index: Any) -> Any:
        if self._entries is None:
            self._entries = list(self)
        return self._entries[index]

"""What depends on the decode rows of a step alone. It is made anew only when `Batch.decode_set` changes."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from headway.adapters.vllm.requests import LiveRequests
from headway.scheduler import Batch


class DecodeRows:
    """The decode rows of a step, in row order.

    slots: int32 [N]. lives, names: [N]. ones: name -> 1. one_minus_prompt: int32 [N], 1 - prompt tokens.
    specials: the requests among them whose outputs each carry more than a token. grammar_names: of `specials`, the
        requests with a grammar.
    """

    def __init__(self, decode_set: int, slots: NDArray[np.int32], requests: LiveRequests) -> None:
        by_slot = requests.by_slot
        lives = [live for slot in slots.tolist() if (live := by_slot[slot]) is not None]
        assert len(lives) == len(slots), "a slot decodes and has no request"
        self.decode_set = decode_set
        self.slots = slots
        self.lives = lives
        self.names = [live.name for live in lives]
        self.ones = dict.fromkeys(self.names, 1)
        self.one_minus_prompt: NDArray[np.int32] = 1 - requests.num_prompt[slots]
        self.specials = [live for live in lives if live.is_special] if requests.num_special else []
        self.grammar_names = [live.name for live in self.specials if live.uses_grammar]

    @classmethod
    def of(cls, batch: Batch, requests: LiveRequests, previous: DecodeRows) -> DecodeRows:
        """The decode rows of a batch: the previous ones, if they are the same."""
        if batch.decode_set == previous.decode_set and batch.num_decodes == len(previous):
            return previous
        return cls(batch.decode_set, batch.slots[: batch.num_decodes], requests)

    @classmethod
    def none(cls, requests: LiveRequests) -> DecodeRows:
        return cls(-1, np.zeros(0, dtype=np.int32), requests)

    @cached_property
    def clients(self) -> dict[str, int]:
        """The front end of each request."""
        return {live.name: live.client for live in self.lives}

    def __len__(self) -> int:
        return len(self.lives)

"""Structured output: requests that wait for their grammar, and the masks of a step.

vLLM compiles a grammar on threads of its own. For the core the request is PREPARING meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm.v1.core.sched.output import GrammarOutput

from headway.adapters.vllm.requests import LiveRequest, LiveRequests
from headway.adapters.vllm.step_output import LaunchedStep

if TYPE_CHECKING:
    from vllm.v1.structured_output import StructuredOutputManager


class Grammars:
    """Grammars that are compiled, and grammars that say what the next token may be."""

    def __init__(self, manager: StructuredOutputManager, requests: LiveRequests) -> None:
        self._manager = manager
        self._requests = requests
        self._waiting: dict[int, LiveRequest] = {}  # by uid

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def wait(self, live: LiveRequest) -> None:
        """The request waits for its grammar."""
        self._waiting[live.uid] = live

    def ended(self, live: LiveRequest) -> None:
        """The request waits no more."""
        self._waiting.pop(live.uid, None)

    def take_compiled(self) -> list[tuple[LiveRequest, Exception | None]]:
        """The requests whose grammar is there, or why it cannot be, since the last call."""
        compiled: list[tuple[LiveRequest, Exception | None]] = []
        for live in list(self._waiting.values()):
            grammar = live.request.structured_output_request.grammar
            if grammar is not None:
                del self._waiting[live.uid]
                compiled.append((live, grammar if isinstance(grammar, Exception) else None))
        return compiled

    def mark(self, step: LaunchedStep, in_flight: Sequence[LaunchedStep]) -> None:
        """Say in a work order whether it needs masks, and whether they need tokens that are not there yet."""
        if not step.grammar_names:
            return
        names = set(step.grammar_names)
        step.output.has_structured_output_requests = True
        step.output.pending_structured_output_tokens = any(
            not names.isdisjoint(earlier.grammar_names) for earlier in in_flight
        )

    def masks(self, step: LaunchedStep) -> GrammarOutput | None:
        """The masks for a step whose tokens are about to be sampled; None if it needs none."""
        lives = [live for name in step.grammar_names if (live := self._requests.named(name)) is not None]
        if not lives:
            return None
        names = [live.name for live in lives]
        masks = self._manager.grammar_bitmask({live.name: live.request for live in lives}, names, {})
        return GrammarOutput(names, masks, [0] * len(names))

    def accepts(self, live: LiveRequest, tokens: list[int]) -> bool:
        """Whether the grammar of a request, if it has one, allows these tokens; they count as sampled then."""
        accepted: bool = self._manager.accept_tokens(live.request, tokens)
        return accepted

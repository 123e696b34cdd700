"""Which of several engines gets a prompt: the engine with most of it in its cache, unless others have much less to do.

Plain rules, without I/O and without a clock. Three use them: a decode engine that asks prefill engines, an API process
with several engines, a router in a cluster.

The cost of a prompt on an engine, in tokens: the work before it, less the **credit** of the engine. The credit is what
the engine knows of the prompt, several times over. One engine counts as if it knew the whole prompt, its **home**: a
hash of the first piece that belongs to the prompt alone says which. So prompts with a common beginning are spread over
all caches, and several processes that choose send the turns of a conversation to the same engine without talking.

Where engines say what they have, the home is the engine among them that has stored the least lately, so that all caches
turn over at one pace; and there is none where an engine has more of the prompt than its common beginning. The credit is
at most `max_imbalance`: no prompt waits for more than so many tokens beyond the least that it could.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

PIECE = 64  # tokens; prefixes are told apart by whole pieces
MAX_PIECES = 65_536  # that are remembered of each engine
OUT_SECONDS = 5.0  # that an engine is left out after a failure, if another can be asked
MAX_IMBALANCE = 8_192  # tokens
PER_RUNNING = 64  # tokens that a request which decodes counts as: it takes part in every step
WORTH = 4  # tokens of waiting for a token that is known: computing it again delays all, and evicts another
MANY = 3  # ways to go on after which a beginning counts as common to different prompts

Engine = TypeVar("Engine", bound=Hashable)


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """A prompt, as far as the choice depends on it. Two are equal only if they are the same object.

    digests: of each leading part of whole pieces. piece: tokens of a piece.
    """

    num_tokens: int
    digests: Sequence[bytes]
    piece: int = PIECE

    @classmethod
    def of(cls, token_ids: Sequence[int] | NDArray[np.int32], salt: str | None = None) -> Prefixes:
        """Of this prompt. salt: prompts with different salts share nothing."""
        data = np.asarray(token_ids, "<i4")
        digest = hashlib.blake2b(b"" if salt is None else salt.encode(), digest_size=16)
        digests = []
        for end in range(PIECE, len(data) + 1, PIECE):
            digest.update(data[end - PIECE : end].tobytes())
            digests.append(digest.digest())
        return cls(len(data), digests)


class Load(NamedTuple):
    """What an engine says of its load. num_waiting_tokens: of prompts, to compute before a new one. kv_usage: 0 to 1.
    num_running: requests that decode."""

    num_waiting_tokens: int = 0
    kv_usage: float = 0.0
    num_running: int = 0


class _State:
    """What is known of one engine. A prompt's tokens are here the tokens that the engine did not know.

    seen: digests of what is in its cache: of the prompts that it was given (`most` at most), or `exact`, as it says.
    open: its prompts now: tokens, and the number of reports before. opened: how often an `exact` engine has each digest
        in these. num_open: tokens of these. unreported: tokens of these that came before and after its last report; the
        report may not have counted the first either.
    num_given: prompts so far; of an engine that comes later, as many as the others had at least.
    size: tokens that its cache can hold. num_stored: digests that it has said to store; those of long ago count less.
    """

    def __init__(self, size: int, num_given: int) -> None:
        self.size = size
        self.most = min(MAX_PIECES, size // PIECE)
        self.seen: OrderedDict[bytes, None] = OrderedDict()
        self.exact = False
        self.num_stored = 0.0
        self.open: dict[Prefixes, tuple[int, int]] = {}
        self.opened: Counter[bytes] = Counter()
        self.num_open = 0
        self.num_given = num_given
        self.unreported = [0, 0]
        self.num_reports = 0
        self.load = Load()
        self.out_until = float("-inf")
        self.heard = float("inf")

    def num_known(self, prompt: Prefixes) -> int:
        """Tokens at the beginning of the prompt that are in the engine's cache, or are being computed."""
        if self.exact:  # what an engine says to hold, it holds from the beginning: half of the rest at each look
            lacks = bisect_left(prompt.digests, True, key=lambda one: one not in self.seen and one not in self.opened)
            return lacks * prompt.piece
        num = 0
        for digest in prompt.digests:
            if digest not in self.seen:
                break
            num += 1
        return num * prompt.piece

    def begin(self, prompt: Prefixes) -> None:
        num_tokens = prompt.num_tokens - self.num_known(prompt)
        self.open[prompt] = num_tokens, self.num_reports
        self.num_open += num_tokens
        self.num_given += 1
        self.unreported[1] += num_tokens
        if self.exact:
            self.opened.update(prompt.digests)
        else:
            for digest in prompt.digests:
                self.seen[digest] = None
                self.seen.move_to_end(digest)
            while len(self.seen) > self.most:
                self.seen.popitem(last=False)

    def end(self, prompt: Prefixes) -> bool:
        """Returns whether the prompt was here."""
        num_tokens, num_reports = self.open.pop(prompt, (0, -1))
        if num_reports < 0:
            return False
        self.num_open -= num_tokens
        age = self.num_reports - num_reports
        if age < 2:
            self.unreported[1 - age] -= num_tokens
        if self.exact:
            for digest in prompt.digests:
                self.opened[digest] -= 1
                if not self.opened[digest]:
                    del self.opened[digest]
        return True

    def be_exact(self) -> None:
        """From now on the engine says itself what it has."""
        if not self.exact:
            self.exact = True
            self.seen.clear()
            for prompt in self.open:
                self.opened.update(prompt.digests)

    def report(self, load: Load, now: float) -> None:
        self.load = load
        self.heard = now
        self.num_reports += 1
        self.unreported = [self.unreported[1], 0]

    def work(self, full_cache: int) -> int:
        """Tokens that the engine computes before a new prompt; what it decodes counts as tokens too."""
        if not self.num_reports:
            return self.num_open
        # The square: requests wait, or are computed again, only as a KV cache fills up; far from that it is no reason
        # to give up what the engine knows.
        decoding = PER_RUNNING * self.load.num_running + round(self.load.kv_usage**2 * full_cache)
        return self.load.num_waiting_tokens + sum(self.unreported) + decoding

    def turnover(self, piece: int) -> float:
        """What it has stored lately, and will have stored when its prompts are computed, as a share of its size."""
        return (self.num_stored * piece + self.num_open) / max(self.size, 1)


class EngineChoice(Generic[Engine]):
    """Knows of each engine: what it was given, what it computes now, and what it says of its load and its cache.

    For one event loop. Engines are named by any hashable id; its `repr` must be the same in all processes that are to
    agree. Times are seconds on any clock. What concerns an engine that has gone is ignored.

    max_imbalance: tokens of work that an engine may have beyond the engine with the least, and still be the first
        because of what it knows. A full KV cache counts as so many tokens of work, too.
    worth: tokens of work for a token that an engine knows. home_worth: for a token that it does not, at the home of the
        prompt; 0: a home is only the first among equals, for where nothing counts but the time to the first token.
    """

    def __init__(
        self,
        engines: Iterable[Engine] = (),
        *,
        max_imbalance: int = MAX_IMBALANCE,
        worth: int = WORTH,
        home_worth: int = WORTH,
    ) -> None:
        self._max_imbalance = max_imbalance
        self._worth = worth
        self._home_worth = home_worth
        self._after: OrderedDict[bytes, set[bytes]] = OrderedDict()  # the pieces that came after a piece, up to MANY
        self._states: dict[Engine, _State] = {}
        for engine in engines:
            self.add(engine)

    @property
    def engines(self) -> list[Engine]:
        """In the order in which they were added."""
        return list(self._states)

    def add(self, engine: Engine, *, num_cache_tokens: int | None = None) -> None:
        """An engine has come, or begins anew, with an empty cache. num_cache_tokens: its size, if known."""
        size = MAX_PIECES * PIECE if num_cache_tokens is None else num_cache_tokens
        self._states.pop(engine, None)
        num_given = min((state.num_given for state in self._states.values()), default=0)
        self._states[engine] = _State(size, num_given)

    def remove(self, engine: Engine) -> None:
        """An engine has gone, and all its prompts with it."""
        self._states.pop(engine, None)

    def order(self, prompt: Prefixes, now: float) -> list[Engine]:
        """The engines to ask, the best first; engines that have just failed, or do not report any more, come last."""
        known = {engine: state.num_known(prompt) for engine, state in self._states.items()}
        num_common, own = self._own_piece(prompt)
        ranks = {engine: _rank(engine, own) for engine in self._states}
        home: Engine | None = None
        saying = [engine for engine, state in self._states.items() if state.exact]
        if own and not saying:
            home = min(ranks, key=lambda engine: ranks[engine], default=None)
        elif own and max(known.values()) <= num_common * prompt.piece:
            home = min(saying, key=lambda engine: (self._states[engine].turnover(prompt.piece), ranks[engine]))

        def cost(engine: Engine) -> tuple[bool, int, int, bytes]:
            state = self._states[engine]
            out = state.out_until > now or now - state.heard > OUT_SECONDS
            credit = self._worth * known[engine]
            if engine == home:
                credit += self._home_worth * (prompt.num_tokens - known[engine])
            tokens = state.work(self._max_imbalance) - min(credit, self._max_imbalance)
            return out, tokens, 0 if own else state.num_given, ranks[engine]  # short prompts go to all in turn

        return sorted(self._states, key=cost)

    def begin(self, engine: Engine, prompt: Prefixes) -> None:
        """The engine is asked for this prompt."""
        state = self._states.get(engine)
        if state is not None:
            self._note(prompt)
            state.begin(prompt)
            if state.exact:
                self._age()

    def end(self, engine: Engine, prompt: Prefixes, *, failed: bool, now: float) -> None:
        """The engine has computed the prompt, or failed, or the prompt is not wanted any more. After a failure nothing
        is known of its cache but what it says itself."""
        state = self._states.get(engine)
        if state is not None and state.end(prompt) and failed:
            state.out_until = now + OUT_SECONDS
            if not state.exact:
                state.seen.clear()

    def report(self, engine: Engine, load: Load, now: float) -> None:
        """The engine has said its load, which counts the prompts of all its clients.

        A report is a little old when it comes: prompts that began since the report before are counted beside it.
        """
        state = self._states.get(engine)
        if state is not None:
            state.report(load, now)

    def learn(self, engine: Engine, digests: Iterable[bytes]) -> None:
        """The engine has these pieces in its cache, and all pieces before them. From the first time on only what it
        says counts, and the prompts that it computes; `Prefixes` must have the engine's own digests then, see
        `block_digests.of_prompt`."""
        state = self._states.get(engine)
        if state is not None:
            state.be_exact()
            before = len(state.seen)
            state.seen.update(dict.fromkeys(digests))
            state.num_stored += len(state.seen) - before

    def forget(self, engine: Engine, digests: Iterable[bytes] | None = None) -> None:
        """The engine does not have these pieces any more. None: it has nothing."""
        state = self._states.get(engine)
        if state is not None and digests is None:
            state.seen.clear()
            state.num_stored = 0.0
        elif state is not None:
            for digest in digests or ():
                state.seen.pop(digest, None)

    def _age(self) -> None:
        """What was stored counts half once the engines have stored twice what they hold."""
        states = self._states.values()
        if sum(state.num_stored for state in states) > 2 * sum(len(state.seen) for state in states):
            for state in states:
                state.num_stored /= 2

    def _own_piece(self, prompt: Prefixes) -> tuple[int, bytes]:
        """How many pieces the prompt has in common with others, and the first piece behind them: the same in all turns
        of a conversation. Empty for a prompt without a whole piece."""
        common, own = 0, b""
        before = b""
        for at, digest in enumerate(prompt.digests):
            if not own or len(self._after.get(before, ())) >= MANY:
                common, own = at, digest
            before = digest
        return common, own

    def _note(self, prompt: Prefixes) -> None:
        before = b""
        for digest in prompt.digests:
            after = self._after.setdefault(before, set())
            if len(after) < MANY:
                after.add(digest)
            self._after.move_to_end(before)
            before = digest
        while len(self._after) > MAX_PIECES:
            self._after.popitem(last=False)


def _rank(engine: Hashable, piece: bytes) -> bytes:
    """The place of an engine among equals: for each piece another engine is the first."""
    return hashlib.blake2b(piece + repr(engine).encode(), digest_size=8).digest()

"""The choice among engines: rules, bounds under any history, and the worth of it on conversations by counted tokens."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headway.engine_choice import MANY, MAX_PIECES, OUT_SECONDS, PIECE, WORTH, EngineChoice, Load, Prefixes
from tests.examples import examples


def computed(choice: EngineChoice[int], engine: int, prompt: Sequence[int], *, failed: bool = False) -> None:
    """The engine was given this prompt, and has answered or failed."""
    prefixes = Prefixes.of(prompt)
    choice.begin(engine, prefixes)
    choice.end(engine, prefixes, failed=failed, now=0.0)


def pieces(*numbers: int) -> list[int]:
    """A prompt of whole pieces, of which the numbers say what is in them."""
    return [number for number in numbers for _ in range(PIECE)]


class TestWork:
    def test_the_engine_with_the_least_work_is_the_first(self) -> None:
        choice = EngineChoice(range(3))
        long, short = Prefixes.of(pieces(1, 2) * 10), Prefixes.of(pieces(3) * 10)
        choice.begin(0, long)
        choice.begin(1, short)
        assert choice.order(Prefixes.of([9]), 0.0) == [2, 1, 0]
        choice.end(0, long, failed=False, now=0.0)
        assert choice.order(Prefixes.of([9]), 0.0)[-1] == 1

    def test_short_prompts_go_to_all_engines_in_turn_where_none_has_work(self) -> None:
        choice = EngineChoice(range(3))
        given = []
        for number in range(6):
            given.append(choice.order(Prefixes.of([number]), 0.0)[0])
            computed(choice, given[-1], [number])
        assert sorted(given[:3]) == sorted(given[3:]) == [0, 1, 2]

    def test_a_prompt_counts_by_the_tokens_that_its_engine_does_not_know(self) -> None:
        choice = EngineChoice(range(2))
        computed(choice, 0, pieces(1, 2, 3, 4))
        choice.begin(0, Prefixes.of(pieces(1, 2, 3, 4, 5)))
        choice.begin(1, Prefixes.of(pieces(6, 7)))
        assert choice.order(Prefixes.of([9]), 0.0) == [0, 1]

    def test_what_an_engine_reports_counts_the_prompts_of_all_its_clients(self) -> None:
        choice = EngineChoice(range(2))
        choice.report(0, Load(num_waiting_tokens=1_000), 0.0)
        choice.report(1, Load(), 0.0)
        assert choice.order(Prefixes.of([9]), 0.0) == [1, 0]
        choice.report(0, Load(), 0.0)
        choice.report(1, Load(num_running=3), 0.0)
        assert choice.order(Prefixes.of([9]), 0.0) == [0, 1]
        choice.report(0, Load(kv_usage=0.9), 0.0)
        assert choice.order(Prefixes.of([9]), 0.0) == [1, 0]

    def test_prompts_that_a_report_cannot_have_counted_are_counted_beside_it(self) -> None:
        choice = EngineChoice(range(2))
        choice.report(0, Load(), 0.0)
        choice.report(1, Load(num_waiting_tokens=100), 0.0)
        prompt = Prefixes.of(pieces(1, 2, 3))
        choice.begin(0, prompt)
        assert choice.order(Prefixes.of([9]), 0.0) == [1, 0]
        choice.report(0, Load(), 0.0)  # it may be older than the prompt
        assert choice.order(Prefixes.of([9]), 0.0) == [1, 0]
        choice.report(0, Load(), 0.0)
        assert choice.order(Prefixes.of([9]), 0.0) == [0, 1]
        choice.end(0, prompt, failed=False, now=0.0)
        assert choice.order(Prefixes.of([9]), 0.0) == [0, 1]

    def test_engines_that_fail_or_fall_silent_come_last(self) -> None:
        choice = EngineChoice(range(3))
        choice.report(0, Load(), 0.0)
        choice.report(2, Load(num_waiting_tokens=9_999), 10.0)
        computed(choice, 1, pieces(1), failed=True)
        assert choice.order(Prefixes.of([9]), 1.0)[-1] == 1
        assert choice.order(Prefixes.of([9]), OUT_SECONDS + 1) == [1, 2, 0]


class TestCaches:
    def test_an_engine_that_has_the_beginning_is_the_first_unless_it_has_too_much_to_do(self) -> None:
        choice = EngineChoice(range(2), home_worth=0)
        prompt = pieces(1, 2, 3, 4)
        computed(choice, 1, prompt)
        assert choice.order(Prefixes.of([*prompt, 1, 2]), 0.0) == [1, 0]
        choice.begin(1, Prefixes.of(pieces(*range(5, 6 + 4 * WORTH))))
        assert choice.order(Prefixes.of([*prompt, 1, 2]), 0.0) == [0, 1]

    @pytest.mark.parametrize(("kv_usage", "first"), [(0.4, 1), (0.9, 0)])
    def test_a_conversation_leaves_its_engine_only_when_the_kv_cache_is_nearly_full(
        self, kv_usage: float, first: int
    ) -> None:
        choice = EngineChoice(range(2), home_worth=0)
        prompt = pieces(*range(8))
        computed(choice, 1, prompt)
        choice.report(0, Load(), 0.0)
        choice.report(1, Load(kv_usage=kv_usage), 0.0)
        assert choice.order(Prefixes.of(prompt), 0.0)[0] == first

    def test_prompts_of_another_tenant_are_not_known(self) -> None:
        prompt = pieces(1, 2)
        assert Prefixes.of(prompt).digests == Prefixes.of(prompt, None).digests != Prefixes.of(prompt, "a").digests
        assert not set(Prefixes.of(prompt, "a").digests) & set(Prefixes.of(prompt, "b").digests)

    def test_after_a_failure_nothing_is_known_of_a_cache(self) -> None:
        choice = EngineChoice(range(2), home_worth=0)
        computed(choice, 1, prompt := pieces(1, 2))
        assert choice.order(Prefixes.of(prompt), 0.0) == [1, 0]
        computed(choice, 1, prompt, failed=True)
        computed(choice, 0, pieces(1))
        assert choice.order(Prefixes.of(prompt), 0.0) == [0, 1] == choice.order(Prefixes.of(prompt), OUT_SECONDS + 1)

    @pytest.mark.parametrize("home_worth", [0, WORTH])
    def test_knowing_never_costs_more_than_the_bound(self, home_worth: int) -> None:
        choice = EngineChoice(range(2), max_imbalance=PIECE * 3, home_worth=home_worth)
        known = next(
            known for number in range(99) if choice.order(Prefixes.of(known := pieces(number, *range(99))), 0.0)[0] == 0
        )
        computed(choice, 0, known)
        choice.begin(0, Prefixes.of(pieces(101, 102)))
        assert choice.order(Prefixes.of(known), 0.0) == [0, 1]
        choice.begin(0, Prefixes.of(pieces(103, 104)))
        assert choice.order(Prefixes.of(known), 0.0) == [1, 0]

    def test_prompts_that_share_only_their_beginning_are_spread(self) -> None:
        choice = EngineChoice(range(2))
        given = Counter()
        for number in range(30):
            prompt = pieces(0, 0, *range(10 * number + 1, 10 * number + 9))
            given[engine := choice.order(Prefixes.of(prompt), 0.0)[0]] += 1
            computed(choice, engine, prompt)
        assert min(given.values()) >= 10

    def test_one_long_conversation_stays_where_it_is(self) -> None:
        choice, conversation = EngineChoice(range(2)), pieces(1)
        home = choice.order(Prefixes.of(conversation), 0.0)[0]
        for number in range(200):
            assert choice.order(Prefixes.of(conversation), 0.0)[0] == home
            computed(choice, home, conversation)
            conversation += pieces(number)

    def test_prompts_that_no_engine_knows_are_spread_and_all_processes_agree(self) -> None:
        one, two = EngineChoice(range(4)), EngineChoice(reversed(range(4)))
        prompts = [Prefixes.of(pieces(number, number)) for number in range(100)]
        firsts = [one.order(prompt, 0.0)[0] for prompt in prompts]
        assert firsts == [two.order(prompt, 0.0)[0] for prompt in prompts]
        assert min(Counter(firsts).values()) > 10 and len(set(firsts)) == 4

    def test_a_process_that_has_seen_nothing_of_a_conversation_finds_its_engine(self) -> None:
        """Once it has seen that other conversations begin likewise."""
        one, two = EngineChoice(range(4)), EngineChoice(range(4))
        for choice in (one, two):
            for number in range(MANY):
                computed(choice, number, pieces(0, 0, 0, 100 + number))
        homes = set()
        for number in range(20):
            said = pieces(0, 0, 0, number)
            homes.add(home := one.order(Prefixes.of(said), 0.0)[0])
            computed(one, home, said)
            for turn in range(3):
                said += pieces(turn)
                assert two.order(Prefixes.of(said), 0.0)[0] == home == one.order(Prefixes.of(said), 0.0)[0]
        assert homes == {0, 1, 2, 3}

    def test_a_cache_is_remembered_only_as_far_as_it_goes(self) -> None:
        choice = EngineChoice[int]()
        choice.add(0, num_cache_tokens=3 * PIECE)
        choice.add(1)
        computed(choice, 0, pieces(1))
        computed(choice, 0, pieces(2, 3, 4))
        computed(choice, 1, pieces(1))
        assert choice.order(Prefixes.of(pieces(1)), 0.0) == [1, 0]
        assert 64 * MAX_PIECES > 10**6, "a large cache is known whole"


class TestExact:
    def test_what_an_engine_says_of_its_cache_counts_and_nothing_else(self) -> None:
        choice = EngineChoice(range(2))
        computed(choice, 0, prompt := pieces(1, 2, 3))
        prefixes = Prefixes.of(prompt)
        choice.learn(0, prefixes.digests[:1])
        choice.learn(1, prefixes.digests[:2])
        assert choice.order(prefixes, 0.0) == [1, 0]
        choice.forget(1, prefixes.digests[1:2])
        choice.learn(0, prefixes.digests[1:2])
        assert choice.order(prefixes, 0.0) == [0, 1]
        choice.learn(1, prefixes.digests)
        assert choice.order(prefixes, 0.0) == [1, 0]
        choice.forget(1)
        assert choice.order(prefixes, 0.0) == [0, 1]

    def test_a_prompt_that_is_being_computed_is_known_until_it_ends(self) -> None:
        choice = EngineChoice(range(2))
        prompt = pieces(*range(20))
        first = Prefixes.of(prompt)
        choice.begin(0, first)
        choice.learn(0, [])
        choice.learn(1, first.digests[:5])
        choice.report(0, Load(), 0.0)
        choice.report(0, Load(), 0.0)
        assert choice.order(Prefixes.of(prompt), 0.0) == [0, 1]
        choice.end(0, first, failed=False, now=0.0)
        assert choice.order(Prefixes.of(prompt), 0.0) == [1, 0]

    def test_a_prompt_that_no_engine_knows_goes_where_the_least_was_stored_lately(self) -> None:
        choice = EngineChoice(range(3))
        for engine, number in ((0, 3), (1, 1), (2, 2)):
            choice.learn(engine, Prefixes.of(pieces(*range(10 * engine, 10 * engine + number))).digests)
        unknown = [Prefixes.of(pieces(100 + number)) for number in range(5)]
        assert choice.order(unknown[0], 0.0)[0] == 1
        choice.begin(1, Prefixes.of(pieces(50, 51)))  # is not stored yet
        assert choice.order(unknown[1], 0.0)[0] == 2

    def test_an_engine_that_has_said_nothing_yet_is_no_home(self) -> None:
        """Such as an engine that is down: among the other engines the home is still the one with the least stored."""
        choice = EngineChoice(range(3))
        choice.learn(0, Prefixes.of(pieces(1, 2)).digests)
        choice.learn(2, Prefixes.of(pieces(3)).digests)
        assert {choice.order(Prefixes.of(pieces(number)), 0.0)[0] for number in range(10, 20)} == {2}

    def test_what_was_stored_long_ago_counts_less_and_less(self) -> None:
        """An engine whose cache is full and idle gets new prompts, though it has stored the most of all."""
        choice = EngineChoice(range(2))
        busy = [Prefixes.of(pieces(number)) for number in range(50)]
        for number in range(60):
            choice.learn(0, Prefixes.of(pieces(100 + number)).digests)
            if number >= 20:
                choice.forget(0, Prefixes.of(pieces(80 + number)).digests)
        for before, prompt in zip(busy, busy[10:]):
            choice.begin(1, prompt)
            choice.learn(1, prompt.digests)
            choice.end(1, prompt, failed=False, now=0.0)
            choice.forget(1, before.digests)
        assert choice.order(Prefixes.of(pieces(200)), 0.0) == [0, 1]

    def test_an_engine_that_begins_anew_has_stored_nothing(self) -> None:
        choice = EngineChoice(range(2))
        choice.learn(0, Prefixes.of(pieces(1, 2)).digests)
        choice.learn(1, Prefixes.of(pieces(3)).digests)
        choice.forget(0)
        choice.learn(0, [])
        assert choice.order(Prefixes.of(pieces(4)), 0.0) == [0, 1]


class TestComing:
    def test_engines_come_and_go(self) -> None:
        choice = EngineChoice(["a"])
        prompt = Prefixes.of(pieces(1, 2))
        choice.begin("a", prompt)
        choice.add("b")
        choice.remove("a")
        choice.remove("a")
        assert choice.engines == ["b"] == choice.order(prompt, 0.0)
        for late in (lambda: choice.end("a", prompt, failed=True, now=0.0), lambda: choice.begin("a", prompt)):
            late()
        choice.report("a", Load(), 0.0)
        choice.learn("a", [b"x"])
        choice.forget("a")
        choice.remove("b")
        assert choice.order(prompt, 0.0) == []

    def test_an_engine_that_begins_anew_knows_nothing_and_old_prompts_do_not_count(self) -> None:
        choice = EngineChoice(range(2))
        old = Prefixes.of(pieces(1, 2, 3))
        choice.begin(0, old)
        choice.add(0)
        computed(choice, 1, pieces(1))
        assert choice.order(Prefixes.of(pieces(1)), 0.0) == [1, 0]
        choice.end(0, old, failed=True, now=0.0)
        choice.begin(1, Prefixes.of(pieces(4, 5)))
        assert choice.order(Prefixes.of(pieces(9)), 0.0)[0] in (0, 1)
        assert choice.order(Prefixes.of([9]), 0.0) == [0, 1]


class ChoiceMachine(RuleBasedStateMachine):
    """Under any history: every engine is in the order once, knowing is never worth more than the bound, and the books
    of an engine are empty once its prompts have ended."""

    BOUND = 4 * PIECE
    PROMPTS = st.lists(st.integers(0, 2), max_size=6).map(lambda numbers: [*pieces(*numbers), 7, 7])
    ENGINES = st.integers(0, 3)

    def __init__(self) -> None:
        super().__init__()
        self.choice: EngineChoice[int] = EngineChoice(max_imbalance=self.BOUND)
        self.open: list[tuple[int, Prefixes]] = []
        self.engines: set[int] = set()
        self.reports: dict[int, int] = {}  # waiting tokens of engines that report
        self.now = 0.0

    @rule(engine=ENGINES)
    def add(self, engine: int) -> None:
        self.remove(engine)
        self.choice.add(engine, num_cache_tokens=10 * PIECE)
        self.engines.add(engine)

    @rule(engine=ENGINES)
    def remove(self, engine: int) -> None:
        self.choice.remove(engine)
        self.engines.discard(engine)
        self.reports.pop(engine, None)
        self.gone = [(other, prompt) for other, prompt in self.open if other == engine]
        self.open = [one for one in self.open if one not in self.gone]
        for other, prompt in self.gone:  # too late
            self.choice.end(other, prompt, failed=True, now=self.now)

    @precondition(lambda self: self.engines)
    @rule(numbers=PROMPTS)
    def ask(self, numbers: list[int]) -> None:
        prompt = Prefixes.of(numbers)
        order = self.choice.order(prompt, self.now)
        assert sorted(order) == sorted(self.engines)
        work = {engine: self.choice._states[engine].work(self.BOUND) for engine in order}
        in_service = [engine for engine in order if self.choice._states[engine].out_until <= self.now] or order
        assert work[order[0]] <= min(work[engine] for engine in in_service) + self.BOUND
        assert in_service[0] == order[0]
        self.choice.begin(order[0], prompt)
        self.open.append((order[0], prompt))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), failed=st.booleans())
    def end(self, data: st.DataObject, failed: bool) -> None:
        engine, prompt = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.choice.end(engine, prompt, failed=failed, now=self.now)

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), tokens=st.integers(0, 20 * PIECE))
    def report(self, data: st.DataObject, tokens: int) -> None:
        engine = data.draw(st.sampled_from(sorted(self.engines)))
        self.choice.report(engine, Load(num_waiting_tokens=tokens), self.now)
        self.reports[engine] = tokens

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), numbers=PROMPTS, forget=st.booleans())
    def learn(self, data: st.DataObject, numbers: list[int], forget: bool) -> None:
        engine = data.draw(st.sampled_from(sorted(self.engines)))
        (self.choice.forget if forget else self.choice.learn)(engine, Prefixes.of(numbers).digests)

    @rule(seconds=st.sampled_from([0.1, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for engine, tokens in self.reports.items():  # engines say something several times a second
            self.choice.report(engine, Load(num_waiting_tokens=tokens), self.now)

    @invariant()
    def the_books_hold_what_is_open(self) -> None:
        for engine in self.engines:
            state = self.choice._states[engine]
            mine = [prompt for other, prompt in self.open if other == engine]
            assert list(state.open) == mine
            assert state.num_open == sum(tokens for tokens, _ in state.open.values())
            assert sum(state.unreported) == sum(
                tokens for tokens, reports in state.open.values() if state.num_reports - reports < 2
            )
            digests = Counter(digest for prompt in mine for digest in prompt.digests)
            assert state.opened == (digests if state.exact else Counter())
            assert state.exact or len(state.seen) <= 10


TestChoiceMachine = ChoiceMachine.TestCase
TestChoiceMachine.settings = settings(examples(2), stateful_step_count=40)


class Cache:
    """The prefix cache of an engine: whole pieces, the least recently used goes first. stored, removed: by the last
    prompt."""

    def __init__(self, num_pieces: int) -> None:
        self._num_pieces = num_pieces
        self._held: OrderedDict[bytes, None] = OrderedDict()
        self.num_tokens = self.num_hits = 0
        self.stored: list[bytes] = []
        self.removed: list[bytes] = []

    def compute(self, prompt: Prefixes) -> None:
        self.num_tokens += prompt.num_tokens
        hits = 0
        for digest in prompt.digests:
            if digest not in self._held:
                break
            hits += 1
        self.num_hits += hits * PIECE
        self.stored = [digest for digest in prompt.digests if digest not in self._held]
        for digest in reversed(prompt.digests):  # so that the end of a prompt goes before its beginning
            self._held[digest] = None
            self._held.move_to_end(digest)
        self.removed = []
        while len(self._held) > self._num_pieces:
            self.removed.append(self._held.popitem(last=False)[0])


@cache
def conversations(seed: int, num_prompts: int, num_users: int = 24, num_systems: int = 3) -> list[Prefixes]:
    """Users in turn, by chance. Each has a conversation of 2 to 10 turns after one of a few system prompts, then
    another. A prompt is all that was said before, and 64 to 512 tokens more."""
    chance = random.Random(seed)
    said: list[list[int]] = [[] for _ in range(num_users)]
    turns = [0] * num_users
    prompts = []
    for _ in range(num_prompts):
        user = chance.randrange(num_users)
        if not turns[user]:
            turns[user] = chance.randint(2, 10)
            said[user] = pieces(*[chance.randrange(num_systems)] * 6)
        turns[user] -= 1
        said[user] += [chance.randrange(10**6) for _ in range(chance.randint(64, 512))]
        prompts.append(Prefixes.of(said[user]))
    return prompts


def hit_rate(seed: int, num_pieces: list[int], choose: Callable[[int, Prefixes], int]) -> float:
    """Share of the prompt tokens that engines with caches of these sizes found."""
    caches = [Cache(size) for size in num_pieces]
    for number, prompt in enumerate(conversations(seed, 1_500)):
        caches[choose(number, prompt)].compute(prompt)
    return sum(cache.num_hits for cache in caches) / sum(cache.num_tokens for cache in caches)


def by_choice(num_engines: int, num_processes: int, depth: int, num_pieces: int) -> Callable[[int, Prefixes], int]:
    """Chooses by `EngineChoice`, in one of several processes by chance, with this many prompts in progress at a time.
    All processes hear of the work of each engine."""
    processes = [EngineChoice[int]() for _ in range(num_processes)]
    for choice in processes:
        for engine in range(num_engines):
            choice.add(engine, num_cache_tokens=num_pieces * PIECE)
    running: list[tuple[EngineChoice[int], int, Prefixes, int]] = []
    chance = random.Random(num_processes)

    def choose(number: int, prompt: Prefixes) -> int:
        while len(running) > depth:
            choice, engine, ended, _ = running.pop(0)
            choice.end(engine, ended, failed=False, now=0.0)
        for engine in range(num_engines):
            tokens = sum(tokens for _, other, _, tokens in running if other == engine)
            for choice in processes:
                choice.report(engine, Load(tokens), 0.0)
                choice.report(engine, Load(tokens), 0.0)
        choice = chance.choice(processes)
        engine = choice.order(prompt, 0.0)[0]
        choice.begin(engine, prompt)
        tokens, _ = choice._states[engine].open[prompt]
        running.append((choice, engine, prompt, tokens))
        return engine

    return choose


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("depth", [0, 4])
@pytest.mark.parametrize("num_pieces", [240, 400])
@pytest.mark.parametrize("num_processes", [1, 4])
def test_two_caches_are_nearly_worth_one_twice_as_large(
    seed: int, depth: int, num_pieces: int, num_processes: int
) -> None:
    one = hit_rate(seed, [2 * num_pieces], lambda *_: 0)
    in_turn = hit_rate(seed, [num_pieces] * 2, lambda number, _: number % 2)
    chosen = hit_rate(seed, [num_pieces] * 2, by_choice(2, num_processes, depth, num_pieces))
    assert chosen >= 0.95 * one
    assert chosen > 1.2 * in_turn


def exactly(num_engines: int, num_processes: int, num_pieces: int, seed: int, lag: int) -> float:
    """The hit rate of engines that say what they hold, to several processes that choose, after this many more prompts;
    prompts are computed for as long. Engines tell how much of their KV cache is in use, too."""
    chance = random.Random(seed)
    processes = [EngineChoice[int]() for _ in range(num_processes)]
    caches = [Cache(num_pieces) for _ in range(num_engines)]
    for choice in processes:
        for engine in range(num_engines):
            choice.add(engine, num_cache_tokens=num_pieces * PIECE)
            choice.learn(engine, [])
    running: list[tuple[EngineChoice[int], int, Prefixes, list[bytes], list[bytes]]] = []
    for prompt in conversations(seed, 1_500):
        while len(running) > lag:
            choice, engine, ended, stored, removed = running.pop(0)
            choice.end(engine, ended, failed=False, now=0.0)
            for each in processes:
                each.learn(engine, stored)
                each.forget(engine, removed)
        for engine in range(num_engines):
            in_use = sum(len(one.digests) for _, other, one, _, _ in running if other == engine)
            for choice in processes:
                choice.report(engine, Load(kv_usage=min(1.0, in_use / num_pieces)), 0.0)
        choice = chance.choice(processes)
        engine = choice.order(prompt, 0.0)[0]
        choice.begin(engine, prompt)
        caches[engine].compute(prompt)
        running.append((choice, engine, prompt, caches[engine].stored, caches[engine].removed))
    return sum(cache_.num_hits for cache_ in caches) / sum(cache_.num_tokens for cache_ in caches)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("lag", [0, 4])
@pytest.mark.parametrize("num_engines", [2, 4])
@pytest.mark.parametrize("num_processes", [1, 4])
def test_caches_that_are_told_of_are_nearly_worth_one_as_large_as_all(
    seed: int, lag: int, num_engines: int, num_processes: int
) -> None:
    one = hit_rate(seed, [800], lambda *_: 0)
    assert exactly(num_engines, num_processes, 800 // num_engines, seed, lag) >= 0.95 * one

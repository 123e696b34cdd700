"""A model under test: the engine's answers under one setting, compared with the reference token for token."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from headway import LLM, SamplingParams, default_model
from headway.accuracy import tiny_models
from headway.accuracy.pair import ask_pair, is_same, questions_of
from headway.accuracy.reference import Draw, Reference, generate_greedily
from headway.config import SchedulerName
from headway.outputs import RequestOutput

EMBEDDED = "embedded"
MODELS = (EMBEDDED, "llama", "qwen3", "gemma2", "gpt2", "mixtral")
MORE_MODELS = tuple(name for name in tiny_models.SUPPORTED if name not in MODELS)  # compared when they are asked for
PAIR_MODELS = (EMBEDDED, "llama", "qwen3", "gemma2", *MORE_MODELS)  # the KV of the others is kept as llama's
SCHEDULERS = ("v0", "v1", "v2")
BUDGETS = (17, 64, 2048)
POOLS = ("large", "small")

NUM_OUTPUT = 40
MAX_NUM_SEQS = 8
BLOCK_SIZE = 8
_STEM_LENGTHS = (0, 24, 40)  # tokens that several prompts begin with
_TAIL_LENGTHS = (1, 5, 8, 17, 30)
_GREEDY = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Setting:
    """One cell of the matrix. transport: the way of the KV of every prompt, of `TRANSPORTS`, from a prefill engine to
    the decode engine that answers; None: one engine does both."""

    model: str
    scheduler: str
    max_num_batched_tokens: int
    pool: str
    prefix_caching: bool
    async_scheduling: bool = True
    transport: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a cell. exact: prompts whose every token was right.

    preemptions, cached_tokens: of the engine that answers. Of two engines also: cached_on_p, tokens of prompts that the
    prefill engine had; pulled_tokens, of prompts whose KV came; lost_pulls, prompts whose KV should have come.
    """

    prompts: int
    exact: int
    preemptions: int
    cached_tokens: int
    seconds: float
    cached_on_p: int = 0
    pulled_tokens: int = 0
    lost_pulls: int = 0

    @property
    def is_exact(self) -> bool:
        return self.exact == self.prompts


class Subject:
    """A model under test: its folder, and what it has to say."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.reference: Reference = generate_greedily(folder, self._draws(), NUM_OUTPUT)
        longest = max(len(prompt) for prompt in self.reference.prompts) + NUM_OUTPUT
        self.max_model_len = longest + -longest % BLOCK_SIZE

    def run(self, setting: Setting) -> Outcome:
        """Let the engine answer the prompts under one setting. They come twice, so that whole prompts are found."""
        if setting.transport is not None:
            return self._run_pair(setting, setting.transport)
        started = time.perf_counter()
        with self._engine(setting) as llm:
            answers = llm.generate(self.reference.prompts * 2, _GREEDY, use_tqdm=False)
            snapshot = llm.snapshot()
        return Outcome(
            prompts=len(answers),
            exact=self._num_greedy(answers),
            preemptions=snapshot.num_preemptions,
            cached_tokens=snapshot.num_prefix_hit_tokens,
            seconds=round(time.perf_counter() - started, 2),
        )

    def _run_pair(self, setting: Setting, transport: str) -> Outcome:
        """The same prompts through two engines; then questions whose answers must be those of one engine."""
        prompts = self.reference.prompts
        asked = [*((prompt, _GREEDY) for prompt in prompts * 2), *questions_of(self.reference)]
        blocks = len(asked) * self.max_model_len // BLOCK_SIZE  # P lends all at once
        one_engine = self._answers_of_one_engine
        started = time.perf_counter()
        outputs, p, d = ask_pair(partial(self._engine, setting), transport, asked, blocks + 1)
        return Outcome(
            prompts=len(asked),
            exact=self._num_greedy(outputs) + sum(map(is_same, outputs[2 * len(prompts) :], one_engine)),
            preemptions=d.num_preemptions,
            cached_tokens=d.num_prefix_hit_tokens,
            seconds=round(time.perf_counter() - started, 2),
            cached_on_p=p.num_prefix_hit_tokens,
            pulled_tokens=d.num_received_tokens,
            lost_pulls=d.num_lost_pulls,
        )

    def _num_greedy(self, outputs: list[RequestOutput]) -> int:
        """How many of the first outputs, two for each prompt, are those of the reference."""
        return sum(output.outputs[0].token_ids == right for output, right in zip(outputs, self.reference.outputs * 2))

    @cached_property
    def _answers_of_one_engine(self) -> list[RequestOutput]:
        asked = questions_of(self.reference)
        with self._engine(Setting(self.name, "v2", 2048, "large", prefix_caching=True)) as llm:
            return llm.generate([prompt for prompt, _ in asked], [how for _, how in asked], use_tqdm=False)

    def _engine(self, setting: Setting, **more: Any) -> LLM:
        """An engine under a setting."""
        one_request = self.max_model_len // BLOCK_SIZE
        num_blocks = one_request * (MAX_NUM_SEQS + 2) if setting.pool == "large" else one_request * 2
        return LLM(
            str(self.folder),
            scheduler=cast(SchedulerName, setting.scheduler),  # which refuses another name
            device="cpu",
            dtype="float32",
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=setting.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            block_size=BLOCK_SIZE,
            enable_prefix_caching=setting.prefix_caching,
            async_scheduling=setting.async_scheduling,
            reserve="none",  # a reserve would keep requests out of the small pool before they must be preempted
            **{"num_blocks": num_blocks + 1, **more},
        )

    def _draws(self) -> list[Draw]:
        if self.name == EMBEDDED:
            return self._problems()
        stems = random.Random(0)
        return [
            _random_prompt([stems.randrange(2, tiny_models.VOCAB_SIZE) for _ in range(stem)], tail)
            for stem in _STEM_LENGTHS
            for tail in _TAIL_LENGTHS
        ]

    def _problems(self) -> list[Draw]:
        """Problems of its held-out set, the long ones among them."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        problems = sorted((tokenizer(problem.prompt).input_ids for problem in default_model.held_out()), key=len)
        groups = [problems[i :: len(_STEM_LENGTHS) * len(_TAIL_LENGTHS)] for i in range(15)]
        return [lambda rng, group=group: rng.choice(group) for group in groups]  # type: ignore[misc]


def settings(
    model: str,
    schedulers: Sequence[str],
    budgets: Sequence[int],
    transports: Sequence[str],
    async_scheduling: bool = True,
) -> Iterator[Setting]:
    """The cells of a model: all that one engine can be told, and two corners for two engines."""
    for scheduler, budget, pool, caching in itertools.product(schedulers, budgets, POOLS, (True, False)):
        yield Setting(model, scheduler, budget, pool, caching, async_scheduling)
    if model in PAIR_MODELS:
        corners = ((min(budgets), "small", True), (max(budgets), "large", False))
        for transport, (budget, pool, caching) in itertools.product(transports, corners):
            yield Setting(model, schedulers[-1], budget, pool, caching, async_scheduling, transport)


def subjects(names: Iterable[str], folder: Path) -> Iterator[Subject]:
    """The models of these names; the tiny ones are made, with random weights, in `folder`."""
    for name in names:
        yield Subject(name, default_model.PATH if name == EMBEDDED else tiny_models.build(name, folder / name))


def _random_prompt(stem: list[int], tail: int) -> Draw:
    return lambda rng: stem + [rng.randrange(2, tiny_models.VOCAB_SIZE) for _ in range(tail)]

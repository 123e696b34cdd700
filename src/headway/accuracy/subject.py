"""A model under test: the engine's answers under one setting, compared with the reference token for token."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from headway import default_model
from headway.accuracy import tiny_models
from headway.accuracy.reference import Draw, Reference, generate_greedily

EMBEDDED = "embedded"
MODELS = (EMBEDDED, "llama", "qwen3", "gemma2", "gpt2", "mixtral")
MORE_MODELS = tuple(name for name in tiny_models.SUPPORTED if name not in MODELS)  # compared when they are asked for
SCHEDULERS = ("v0", "v1", "v2")
BUDGETS = (17, 64, 2048)
POOLS = ("large", "small")

NUM_OUTPUT = 40
MAX_NUM_SEQS = 8
BLOCK_SIZE = 8
_STEM_LENGTHS = (0, 24, 40)  # tokens that several prompts begin with
_TAIL_LENGTHS = (1, 5, 8, 17, 30)


@dataclass(frozen=True, slots=True)
class Setting:
    """One cell of the matrix."""

    model: str
    scheduler: str
    max_num_batched_tokens: int
    pool: str
    prefix_caching: bool
    async_scheduling: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a cell. exact: prompts whose every token was right."""

    prompts: int
    exact: int
    preemptions: int
    cached_tokens: int
    seconds: float

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
        from headway import LLM, SamplingParams

        one_request = self.max_model_len // BLOCK_SIZE
        num_blocks = one_request * (MAX_NUM_SEQS + 2) if setting.pool == "large" else one_request * 2
        prompts, outputs = self.reference.prompts * 2, self.reference.outputs * 2
        sampling = SamplingParams(temperature=0, max_tokens=NUM_OUTPUT, ignore_eos=True)
        started = time.perf_counter()
        with LLM(
            str(self.folder),
            scheduler=setting.scheduler,
            device="cpu",
            dtype="float32",
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=setting.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            block_size=BLOCK_SIZE,
            num_blocks=num_blocks + 1,
            enable_prefix_caching=setting.prefix_caching,
            async_scheduling=setting.async_scheduling,
            reserve="none",  # a reserve would keep requests out of the small pool before they must be preempted
        ) as llm:
            answers = llm.generate(prompts, sampling, use_tqdm=False)
            snapshot = llm.snapshot()
        right = [answer.outputs[0].token_ids == output for answer, output in zip(answers, outputs, strict=True)]
        return Outcome(
            prompts=len(prompts),
            exact=sum(right),
            preemptions=snapshot.num_preemptions,
            cached_tokens=snapshot.num_prefix_hit_tokens,
            seconds=round(time.perf_counter() - started, 2),
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


def subjects(names: Iterable[str], folder: Path) -> Iterator[Subject]:
    """The models of these names; the tiny ones are made, with random weights, in `folder`."""
    for name in names:
        yield Subject(name, default_model.PATH if name == EMBEDDED else tiny_models.build(name, folder / name))


def _random_prompt(stem: list[int], tail: int) -> Draw:
    return lambda rng: stem + [rng.randrange(2, tiny_models.VOCAB_SIZE) for _ in range(tail)]

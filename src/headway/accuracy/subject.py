"""`headway accuracy`: token for token what transformers' `generate` says, whatever the scheduler does."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from headway import default_model
from headway.bench import tiny_models
from headway.bench.reference import Draw, Reference, generate_greedily

EMBEDDED = "embedded"
MODELS = (EMBEDDED, "llama", "qwen3", "gemma2", "gpt2", "mixtral")
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


def command(
    models: Annotated[str, typer.Option(metavar="NAME,...", help=f"Of {', '.join(MODELS)}.")] = ",".join(MODELS),
    schedulers: Annotated[str, typer.Option(metavar="NAME,...", help="Of v0, v1, v2.")] = ",".join(SCHEDULERS),
    budgets: Annotated[str, typer.Option(metavar="N,...", help="Values of max_num_batched_tokens.")] = "17,64,2048",
    async_scheduling: Annotated[
        bool, typer.Option(help="Schedule a step while the one before it computes, or do not.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per cell and line.")] = False,
) -> None:
    """Compare every token with transformers' generate: greedy, float32, on this machine's CPU.

    Runs models × schedulers × token budgets × a large KV pool and one that is too small for all requests at once
    (v1 and v2 preempt, v0 queues) × prefix caching on and off. Exits with 1 if a single token differs.
    """
    chosen = _choose("--models", models, MODELS), _choose("--schedulers", schedulers, SCHEDULERS)
    token_budgets = [int(budget) for budget in _choose("--budgets", budgets, tuple(str(b) for b in range(8, 65537)))]
    table = Table(title="Token for token as model.generate (greedy, float32)")
    for heading in ("model", "scheduler", "budget", "pool", "prefix caching", "exact", "preempted", "cached", "s"):
        table.add_column(
            heading, justify="right" if heading in ("budget", "exact", "preempted", "cached", "s") else "left"
        )
    wrong = cells = 0
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        for subject in subjects(chosen[0], Path(folder)):
            for scheduler, budget, pool, caching in itertools.product(chosen[1], token_budgets, POOLS, (True, False)):
                setting = Setting(subject.name, scheduler, budget, pool, caching, async_scheduling)
                status.update(f"{subject.name} {scheduler} budget {budget} {pool} pool, {wrong} of {cells} cells wrong")
                outcome = subject.run(setting)
                cells += 1
                wrong += not outcome.is_exact
                if as_json:
                    print(json.dumps(asdict(setting) | asdict(outcome)), flush=True)
                table.add_row(*_cells(setting, outcome), style=None if outcome.is_exact else "red")
    if not as_json:
        Console().print(table)
        print(f"{cells - wrong} of {cells} settings exact")
    if wrong:
        raise typer.Exit(1)


def _choose(option: str, given: str, known: tuple[str, ...]) -> list[str]:
    names = given.split(",")
    for name in names:
        if name not in known:
            expected = ", ".join(known) if len(known) < 10 else f"numbers from {known[0]} to {known[-1]}"
            raise typer.BadParameter(f"{name!r} is none of {expected}", param_hint=option)
    return names


def _cells(setting: Setting, outcome: Outcome) -> list[str]:
    return [
        setting.model,
        setting.scheduler,
        str(setting.max_num_batched_tokens),
        setting.pool,
        "on" if setting.prefix_caching else "off",
        f"{outcome.exact}/{outcome.prompts}",
        str(outcome.preemptions),
        str(outcome.cached_tokens),
        f"{outcome.seconds:.2f}",
    ]

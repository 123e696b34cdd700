"""`headway bench grammar`: what it costs that every answer of a batch follows a grammar of its own."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from headway.bench.benchmark import Table, run_benchmark
from headway.bench.report import Row
from headway.bench.tables import Column, JsonOption
from headway.config import SchedulerConfig
from headway.engine.engine import Engine
from headway.executor.grammar import Grammar
from headway.managers import MANAGERS
from headway.model_limits import ModelLimits
from headway.sampling import SamplingParams
from headway.scheduler import Effects
from headway.structured_outputs import StructuredOutputs
from headway_lab.rigs.grammar_device import EOS, Compiled, GrammarDevice, Tokens, instance, request, schema, vocabulary

_PATIENCE = 600.0
_WARM = 10  # steps that are not counted

COLUMNS = (
    Column("batch", "batch", ",d"),
    Column("vocabulary", "vocabulary", ",d"),
    Column("answers", "answers", ""),
    Column("step, ms", "step_ms", ".2f"),
    Column("masks on the host, ms", "host_ms", ".2f"),
    Column("p99, ms", "host_p99_ms", ".2f"),
    Column("× free", "times_free", ".3f"),
    Column("CPU a step, ms", "cpu_ms", ".2f"),
)


class Forms:
    """The schemas, their grammars, and the answers."""

    def __init__(self, batch: int, vocab_size: int) -> None:
        from xgrammar import GrammarCompiler, TokenizerInfo, VocabType

        tokens = vocabulary(vocab_size)
        info = TokenizerInfo(list(tokens), VocabType.RAW, vocab_size=vocab_size, stop_token_ids=[EOS])
        compiler = GrammarCompiler(info, max_threads=2, cache_enabled=False)
        encoder = Tokens(tokens)
        self.vocab_size = vocab_size
        self.forms = [StructuredOutputs(json=schema(number)) for number in range(batch)]
        self.grammars = {form.text: Grammar(compiler.compile_json_schema(form.text)) for form in self.forms}
        self.answers = [[*encoder.encode(instance(number)), EOS] for number in range(batch)]


class Run:
    """`batch` requests at a time decode, each anew as soon as it has ended, until there are `steps` steps."""

    def __init__(self, forms: Forms, step_s: float, *, with_grammars: bool) -> None:
        batch = len(forms.forms)
        self._forms = forms
        self._with_grammars = with_grammars
        config = SchedulerConfig(
            max_num_seqs=batch,
            max_num_batched_tokens=8192,
            max_model_len=1024,
            block_size=16,
            num_blocks=batch * 64 + 1,
        )
        limits = ModelLimits(forms.vocab_size, (EOS,), 1024)
        manager = MANAGERS["v2"](config, limits=limits, max_waiting=4096)
        self.device = GrammarDevice(step_s, forms.vocab_size, batch, forms.answers)
        self._ended: list[int] = []
        self._news = threading.Event()
        compiled = Compiled(forms.grammars)
        self._engine = Engine(manager, self.device, self._take, grammars=compiled)  # type: ignore[arg-type]
        self._numbers: dict[int, int] = {}
        self._ids = itertools.count()
        self._cpu = 0.0

    def _take(self, effects: Effects) -> None:
        self._ended += [end.uid for end in effects.ended]
        if effects.ended:
            self._news.set()

    def _add(self, number: int) -> None:
        form = self._forms.forms[number] if self._with_grammars else None
        sampling = SamplingParams(max_tokens=900, structured_outputs=form)
        self._numbers[self._engine.add(request(number, str(next(self._ids)), sampling=sampling))] = number

    def run(self, steps: int) -> None:
        """Raises RuntimeError if the engine makes no progress."""
        for number in range(len(self._forms.forms)):
            self._add(number)
        self._engine.start()
        try:
            self._cpu = time.process_time()
            while len(self.device.ends) < steps + _WARM:
                if not self._news.wait(_PATIENCE) or self._engine.failure() is not None:
                    raise RuntimeError(f"the engine makes no progress: {self._engine.failure()}")
                self._news.clear()
                while self._ended:
                    self._add(self._numbers.pop(self._ended.pop()))
            self._cpu = time.process_time() - self._cpu
        finally:
            self._engine.shutdown()

    def step_ms(self) -> float:
        """Of a step, on average, from its end to the end of the next."""
        ends = self.device.ends[_WARM:]
        return (ends[-1] - ends[0]) / (len(ends) - 1) * 1e3

    def cpu_ms(self) -> float:
        """That all threads together took for a step, the waits of the simulated device included."""
        return self._cpu / len(self.device.ends) * 1e3


def measure(batch: int, vocab_size: int, step_s: float, steps: int, rounds: int) -> Iterator[Row]:
    """Both kinds of answers in turn, `rounds` times."""
    forms = Forms(batch, vocab_size)
    runs: dict[str, list[Run]] = {"free": [], "each by a grammar": []}
    for _ in range(rounds):
        for kind, done in runs.items():
            one = Run(forms, step_s, with_grammars=kind != "free")
            one.run(steps)
            done.append(one)
    free = statistics.median(run.step_ms() for run in runs["free"])
    for kind, done in runs.items():
        host = sorted(seconds * 1e3 for run in done for seconds in run.device.host_s[_WARM:])
        yield {
            "batch": batch,
            "vocabulary": vocab_size,
            "answers": kind,
            "steps": steps * rounds,
            "step_ms": round(statistics.median(run.step_ms() for run in done), 3),
            "host_ms": round(statistics.median(host), 3) if host else None,
            "host_p99_ms": round(_p99(host), 3) if host else None,
            "cpu_ms": round(statistics.median(run.cpu_ms() for run in done), 2),
            "times_free": round(statistics.median(run.step_ms() for run in done) / free, 3),
        }


def _p99(values: Sequence[float]) -> float:
    return values[min(len(values) - 1, len(values) * 99 // 100)]


def command(
    batch: Annotated[
        int, typer.Option(min=1, help="Requests that decode at a time, each with a schema of its own.")
    ] = 64,
    vocab_size: Annotated[int, typer.Option("--vocabulary", min=1000, help="Tokens of the vocabulary.")] = 128_000,
    step_ms: Annotated[float, typer.Option(min=0.0, help="Time of a step on the simulated device.")] = 10.0,
    steps: Annotated[int, typer.Option(min=10, help="Steps of each run.")] = 300,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Compare steps in which every answer follows a JSON schema of its own with steps in which none does."""
    rows = measure(batch, vocab_size, step_ms / 1e3, steps, rounds)
    run_benchmark(Table("Answers by grammars", COLUMNS, rows), as_json=as_json)

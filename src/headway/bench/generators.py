"""Generators of tokens from a model folder: Headway, and transformers in three ways. One per process.

All get the same task: all prompts at once, a number of new tokens for each, greedy, without an end-of-sequence token.
"""

from __future__ import annotations

import logging
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from headway.config import EngineConfig
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.scheduler.effects import Effects
from headway.token_ids import NUM_INT32, pack

BLOCK_SIZE = 16
STEP_TOKENS = 2_048  # the most tokens of a step, for generators that have steps
_PAGE_SIZE = 256  # tokens in a page of transformers' continuous batching: its default
_PATIENCE = 600.0  # the most seconds of one round


@dataclass(frozen=True, slots=True)
class Setting:
    """folder: of the model. device, dtype: torch's names. requests: the most at a time. longest: the most tokens of a
    request, prompt and answer. threads: of torch and of other libraries that compute."""

    folder: Path
    device: str
    dtype: str
    requests: int
    longest: int
    threads: int


@dataclass(slots=True)
class Answers:
    """The result of one round. Times are in seconds since all prompts were added.

    tokens: of each request. times: when each token came. forwards: begin and end of each forward of the model; empty
    where the host does not wait for forwards.
    """

    tokens: list[list[int]]
    times: list[list[float]]
    forwards: list[tuple[float, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """When the last token came."""
        return max(each[-1] for each in self.times)


class Forwards:
    """The times of a function's calls. On CUDA none are noted, because a call returns before it is computed."""

    def __init__(self, device: str) -> None:
        self.are_noted = device == "cpu"
        self.calls: list[tuple[float, float]] = []

    def noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self.are_noted:
            return function

        @wraps(function)  # transformers reads its signature
        def noted(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            self.calls.append((begin, time.perf_counter()))
            return result

        return noted

    def since(self, started: float) -> list[tuple[float, float]]:
        return [(begin - started, end - started) for begin, end in self.calls if begin >= started]


class Generator(ABC):
    """A system that generates tokens. version: of the system."""

    version: str

    @abstractmethod
    def generate(self, prompts: Sequence[list[int]], new_tokens: int) -> Answers:
        """Answer all prompts, with an empty prefix cache at the start."""


class Headway(Generator):
    """An engine in this process: the door, the writer, the device thread; no tokenizer.

    backend: `EngineConfig.attention_backend`.
    """

    def __init__(self, setting: Setting, backend: str = "auto") -> None:
        from headway import __version__
        from headway.engine.engine import Engine
        from headway.executor.loader import LoadedModel

        self.version = __version__
        self._forwards = Forwards(setting.device)
        LoadedModel.forward = self._forwards.noting(LoadedModel.forward)  # type: ignore[method-assign]
        blocks = -(-setting.longest // BLOCK_SIZE)
        config = EngineConfig(
            model=str(setting.folder),
            device=setting.device,
            dtype=setting.dtype,
            attention_backend=backend,
            max_num_seqs=setting.requests,
            max_num_batched_tokens=max(STEP_TOKENS, setting.requests),
            max_model_len=setting.longest,
            block_size=BLOCK_SIZE,
            num_blocks=1 + setting.requests * blocks,
            reserve="none",  # there are blocks for all requests
        )
        self._effects: queue.SimpleQueue[tuple[float, Effects]] = queue.SimpleQueue()
        self._engine = Engine.from_config(config, lambda effects: self._effects.put((time.perf_counter(), effects)))
        self._engine.start()

    def generate(self, prompts: Sequence[list[int]], new_tokens: int) -> Answers:
        self._engine.manager.reset_prefix_cache()
        sampling = SamplingParams(max_tokens=new_tokens, temperature=0, ignore_eos=True)
        started = time.perf_counter()
        uids = [
            self._engine.add(NewRequest(request_id=str(index), prompt=pack(prompt, NUM_INT32), sampling=sampling))
            for index, prompt in enumerate(prompts)
        ]
        rows = {uid: index for index, uid in enumerate(uids)}
        answers = Answers([[] for _ in uids], [[] for _ in uids])
        ended = 0
        while ended < len(uids):
            at, effects = self._effects.get(timeout=_PATIENCE)
            for step in effects.tokens:
                for uid, token in zip(step.uids.tolist(), step.tokens.tolist(), strict=True):
                    answers.tokens[rows[uid]].append(token)
                    answers.times[rows[uid]].append(at - started)
            for end in effects.ended:
                if end.error is not None:
                    raise RuntimeError(end.error)
            ended += len(effects.ended)
        answers.forwards = self._forwards.since(started)
        return answers


class Generate(Generator):
    """transformers' `generate` on one batch, padded on the left to the longest prompt. cache: "static" or "dynamic"."""

    def __init__(self, setting: Setting, cache: str) -> None:
        self._setting, self._cache = setting, cache
        self._forwards = Forwards(setting.device)
        self._model, self.version = _load(setting, self._forwards)

    def generate(self, prompts: Sequence[list[int]], new_tokens: int) -> Answers:
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=self._setting.device)
        mask = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self._setting.device
        )
        times: list[float] = []

        def note(so_far: Any, _scores: Any, **_options: Any) -> Any:
            times.append(time.perf_counter() - started)
            return torch.zeros(len(so_far), dtype=torch.bool, device=so_far.device)

        config = GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static" if self._cache == "static" else None,
        )
        started = time.perf_counter()
        found = self._model.generate(
            ids, attention_mask=mask, generation_config=config, stopping_criteria=StoppingCriteriaList([note])
        )
        tokens: list[list[int]] = found[:, width:].tolist()  # waits for the device
        times[-1] = time.perf_counter() - started
        return Answers(tokens, [times] * len(tokens), self._forwards.since(started))


class Batching(Generator):
    """transformers' continuous batching. Each round gets a new manager, made before the clock starts."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._forwards = Forwards(setting.device)
        self._model, self.version = _load(setting, self._forwards)

    def generate(self, prompts: Sequence[list[int]], new_tokens: int) -> Answers:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # failures are raised below
        generation = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, eos_token_id=-1)
        batching = ContinuousBatchingConfig(
            page_size=_PAGE_SIZE,
            num_blocks=self._setting.requests * -(-self._setting.longest // _PAGE_SIZE) + 1,
            max_batch_tokens=max(STEP_TOKENS, self._setting.requests),
            max_requests_per_batch=self._setting.requests,
        )
        with self._model.continuous_batching_context_manager(
            generation_config=generation, continuous_batching_config=batching, timeout=5
        ) as manager:
            started = time.perf_counter()
            names = manager.add_requests(inputs=list(prompts), max_new_tokens=new_tokens, record_timestamps=True)
            results: dict[str, Any] = {}
            while len(results) < len(names):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    if result.error is not None:
                        raise RuntimeError(result.error)
                    results[result.request_id] = result
                elif result is None and (not manager.is_running() or time.perf_counter() - started > _PATIENCE):
                    raise RuntimeError("transformers' continuous batching has stopped")
        found = [results[name] for name in names]
        times = [[at - started for at in one.timestamps] for one in found]
        return Answers([list(one.generated_tokens) for one in found], times, self._forwards.since(started))


def _load(setting: Setting, forwards: Forwards) -> tuple[Any, str]:
    import torch
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    from_pretrained: Any = transformers.AutoModelForCausalLM.from_pretrained
    model = from_pretrained(setting.folder, dtype=getattr(torch, setting.dtype)).to(setting.device).eval()
    model.generation_config.eos_token_id = None
    if forwards.are_noted:
        kind = type(model)
        kind.forward = forwards.noting(kind.forward)
    return model, transformers.__version__


GENERATORS: dict[str, tuple[str, Callable[[Setting], Generator]]] = {
    "headway": ("headway", Headway),
    "headway-torch": ("headway, attention by torch", lambda setting: Headway(setting, "torch")),
    "static": ("generate, static cache", lambda setting: Generate(setting, "static")),
    "dynamic": ("generate, dynamic cache", lambda setting: Generate(setting, "dynamic")),
    "batching": ("transformers' continuous batching", Batching),
}
"""Name on the command line -> (title in tables, function that makes it)."""

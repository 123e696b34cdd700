"""A generator in its own process: its threads, its memory and its patches affect no other generator.

    python -m headway.bench.generator_process NAME FOLDER DEVICE DTYPE REQUESTS LONGEST THREADS

Questions are `[what, ...]`, see `GeneratorProcess`; the greeting is the version.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from headway.bench.answering import answer_questions
from headway.bench.child_process import AnsweringProcess
from headway.bench.generators import GENERATORS, Answers, Setting

_COPY_BYTES = 1 << 28
_COPIES = 10


class GeneratorProcess(AnsweringProcess):
    """A generator that runs for the time of a `with` block. name: a key of `GENERATORS`. Raises ChildError."""

    def __init__(self, name: str, setting: Setting) -> None:
        of_setting = (setting.folder, setting.device, setting.dtype, setting.requests, setting.longest, setting.threads)
        super().__init__([sys.executable, "-m", "headway.bench.generator_process", name, *map(str, of_setting)])
        self.title = GENERATORS[name][0]

    @property
    def version(self) -> str:
        """The version of the system."""
        version: str = self.hello
        return version

    def generate(self, prompts: Sequence[list[int]], new_tokens: int) -> Answers:
        """See `Generator.generate`."""
        return msgspec.convert(self.ask(["generate", prompts, new_tokens]), Answers)

    def device_seconds(self, prompts: Sequence[list[int]], new_tokens: int) -> float:
        """Generate once more, on CUDA; returns the seconds that the device computed."""
        seconds: float = self.ask(["device_seconds", prompts, new_tokens])
        return seconds

    def copy_bandwidth(self) -> float:
        """The bandwidth of a copy on the device, in bytes per second, read and written."""
        bandwidth: float = self.ask(["copy_bandwidth"])
        return bandwidth


def begin(name: str, setting: Setting) -> tuple[str, Callable[[Any], Any]]:
    """Load the generator; returns its version, and the function that answers a question."""
    import torch

    torch.set_num_threads(setting.threads)
    generator = GENERATORS[name][1](setting)

    def answer(question: Any) -> Any:
        match question:
            case ["generate", prompts, new_tokens]:
                return generator.generate(prompts, new_tokens)
            case ["device_seconds", prompts, new_tokens]:
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                    generator.generate(prompts, new_tokens)
                return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
            case ["copy_bandwidth"]:
                return _copy_bandwidth(setting.device)
        raise ValueError(f"unknown question {question!r}")

    return generator.version, answer


def _copy_bandwidth(device: str) -> float:
    import torch

    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(_COPIES):
        begin = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * _COPY_BYTES / min(seconds)


if __name__ == "__main__":
    _name, _folder, _device, _dtype, *_numbers = sys.argv[1:]
    _setting = Setting(Path(_folder), _device, _dtype, *map(int, _numbers))
    answer_questions(lambda: begin(_name, _setting))

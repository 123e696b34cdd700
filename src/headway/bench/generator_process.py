"""A generator in a process of its own: its threads, its memory and its patches are nobody else's.

    python -m headway.bench.generator_process NAME FOLDER DEVICE DTYPE REQUESTS LONGEST THREADS

Standard input and output, a line of JSON each: a question `[what, ...]`, an answer `[whether it is good, answer]`; the
first answer is the version.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from headway.bench.generators import GENERATORS, Answers, Setting

_COPY_BYTES = 1 << 28
_COPIES = 10


class GeneratorError(RuntimeError):
    """The process has failed; the message holds its last words."""


class GeneratorProcess:
    """Starts at once. name: as in `GENERATORS`. Raises GeneratorError."""

    def __init__(self, name: str, setting: Setting) -> None:
        of_setting = (setting.folder, setting.device, setting.dtype, setting.requests, setting.longest, setting.threads)
        command = [sys.executable, "-m", "headway.bench.generator_process", name, *map(str, of_setting)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.title = GENERATORS[name][0]
        self.version: str = self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def generate(self, prompts: Sequence[list[int]], new_tokens: int) -> Answers:
        """See `Generator.generate`."""
        return msgspec.convert(self._ask("generate", prompts, new_tokens), Answers)

    def device_seconds(self, prompts: Sequence[list[int]], new_tokens: int) -> float:
        """The same once more, on CUDA: the time of all that the device computed for it, in seconds."""
        seconds: float = self._ask("device_seconds", prompts, new_tokens)
        return seconds

    def copy_bandwidth(self) -> float:
        """Bytes per second, read and written, of a copy on the device."""
        bandwidth: float = self._ask("copy_bandwidth")
        return bandwidth

    def _ask(self, *question: Any) -> Any:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; so the answer says
            self._process.stdin.write(msgspec.json.encode(question) + b"\n")
            self._process.stdin.flush()
        return self._receive()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise GeneratorError(f"its process ended with exit code {self._process.wait()}")
        good, answer = msgspec.json.decode(line)
        if not good:
            raise GeneratorError(answer)
        return answer


def main(name: str, setting: Setting) -> None:
    """Answer questions until there are no more."""
    import torch

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a model or a peer prints is no answer

    def tell(good: bool, answer: Any) -> None:
        answers.write(msgspec.json.encode((good, answer)) + b"\n")
        answers.flush()

    torch.set_num_threads(setting.threads)
    try:
        generator = GENERATORS[name][1](setting)
        tell(True, generator.version)
        for line in sys.stdin.buffer:
            match msgspec.json.decode(line):
                case ["generate", prompts, new_tokens]:
                    tell(True, generator.generate(prompts, new_tokens))
                case ["device_seconds", prompts, new_tokens]:
                    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                        generator.generate(prompts, new_tokens)
                    tell(True, sum(event.self_device_time_total for event in profile.key_averages()) / 1e6)
                case ["copy_bandwidth"]:
                    tell(True, _copy_bandwidth(setting.device))
    except Exception:  # whatever a model, a driver or a peer raises is told, and ends the measurement
        tell(False, traceback.format_exc()[-2000:])


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
    main(_name, Setting(Path(_folder), _device, _dtype, *map(int, _numbers)))

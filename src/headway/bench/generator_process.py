"""A generator in a process of its own: its threads, its memory and its patches are nobody else's."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from headway.bench.generators import GENERATORS, Answers, Setting

_COPY_BYTES = 1 << 28
_COPIES = 10


class GeneratorError(RuntimeError):
    """The process has failed; the message holds its last words."""


class GeneratorProcess:
    """Starts at once. name: as in `GENERATORS`. Raises GeneratorError."""

    def __init__(self, name: str, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, setting), daemon=True)
        self._process.start()
        theirs.close()  # or its end would not show here
        self.title = GENERATORS[name][0]
        self.version: str = self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.terminate()
        self._process.join()
        self._pipe.close()

    def generate(self, prompts: Sequence[list[int]], new_tokens: int) -> Answers:
        """See `Generator.generate`."""
        answers: Answers = self._ask("generate", prompts, new_tokens)
        return answers

    def device_seconds(self, prompts: Sequence[list[int]], new_tokens: int) -> float:
        """The same once more, on CUDA: the time of all that the device computed for it, in seconds."""
        seconds: float = self._ask("device_seconds", prompts, new_tokens)
        return seconds

    def copy_bandwidth(self) -> float:
        """Bytes per second, read and written, of a copy on the device."""
        bandwidth: float = self._ask("copy_bandwidth")
        return bandwidth

    def _ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        return self._receive()

    def _receive(self) -> Any:
        try:
            good, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise GeneratorError(f"its process ended with exit code {self._process.exitcode}") from None
        if not good:
            raise GeneratorError(answer)
        return answer


def _serve(pipe: Connection, name: str, setting: Setting) -> None:
    """Answers questions until the process is ended."""
    import torch

    torch.set_num_threads(setting.threads)
    try:
        generator = GENERATORS[name][1](setting)
        pipe.send((True, generator.version))
        while True:
            match pipe.recv():
                case "generate", prompts, new_tokens:
                    pipe.send((True, generator.generate(prompts, new_tokens)))
                case "device_seconds", prompts, new_tokens:
                    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                        generator.generate(prompts, new_tokens)
                    busy = sum(event.self_device_time_total for event in profile.key_averages())
                    pipe.send((True, busy / 1e6))
                case ("copy_bandwidth",):
                    pipe.send((True, _copy_bandwidth(setting.device)))
    except EOFError:
        return  # nobody asks any more
    except Exception:  # whatever a model, a driver or a peer raises is told, and ends the measurement
        pipe.send((False, traceback.format_exc()[-2000:]))


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

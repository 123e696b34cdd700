"""A model that says its prompt again and then ends: the whole engine with a device whose answers can be read.

write_echo_model(folder)        a model folder without weights: config and tokenizer
EchoExecutor                    the device
use_echo_model(monkeypatch)     makes `Engine.from_config` put it behind the real manager and writer
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import LlamaConfig

from headway.engine.engine import Engine
from headway.executor.base import Executor, OnDone
from headway.executor.device_thread import DeviceThread
from headway.model_files import ModelFiles
from headway.scheduler.batch import Batch, StepResult
from tests.tiny_tokenizer import CHAT_TEMPLATE, byte_tokenizer

TOKENIZER = byte_tokenizer(CHAT_TEMPLATE)
EOS = TOKENIZER.eos_token_id
MAX_MODEL_LEN = 256


def write_echo_model(folder: Path, *, chat_template: bool = True) -> Path:
    """Everything but weights, which this model has none of."""
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        max_position_embeddings=MAX_MODEL_LEN,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=None,
        eos_token_id=EOS,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    byte_tokenizer(CHAT_TEMPLATE if chat_template else None).save_pretrained(folder)
    return folder


class EchoExecutor(Executor):
    """Output token i is prompt token i; after the last one comes the end-of-sequence token, for ever.

    before_step: called on the device thread with each batch; may wait or raise.
    """

    def __init__(self, before_step: Callable[[Batch], None] | None = None) -> None:
        self._before_step = before_step
        self._prompts: dict[int, np.ndarray] = {}
        self._thread: DeviceThread | None = None
        self._on_done: OnDone | None = None

    def start(self, on_done: OnDone) -> None:
        self._on_done = on_done
        self._thread = DeviceThread(self._run, on_done)

    def launch(self, batch: Batch) -> None:
        self._thread.launch(batch)

    def restart(self) -> bool:
        return False

    def shutdown(self) -> None:
        if self._thread is not None:
            self._thread.stop(timeout=0.0)
            self._thread = None

    def _run(self, batch: Batch) -> StepResult:
        for admission in batch.admissions:
            self._prompts[admission.slot] = admission.request.prompt
        if self._before_step is not None:
            self._before_step(batch)
        tokens = []
        for row in np.flatnonzero(batch.samples):
            prompt = self._prompts[int(batch.slots[row])]
            at = int(batch.positions[row] + batch.num_new_tokens[row]) - len(prompt)
            tokens.append(prompt[at] if at < len(prompt) else EOS)
        return StepResult(batch.step_id, np.array(tokens, np.int32))


def use_echo_model(monkeypatch, before_step: Callable[[Batch], None] | None = None) -> None:
    """Every engine made from here on echoes."""

    def from_config(cls, config, on_effects):
        files = ModelFiles.resolve(config)
        num_blocks = config.num_blocks or 1024
        return cls.assemble(config, EchoExecutor(before_step), num_blocks, files.limits, on_effects)

    monkeypatch.setattr(Engine, "from_config", classmethod(from_config))


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Raises if the condition does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.001)

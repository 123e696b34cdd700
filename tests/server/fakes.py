"""An engine that is no process: it answers the client's messages as a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import LlamaConfig, PreTrainedTokenizerFast

from headway.client.engine_client import EngineClient
from headway.client.engine_life import Reopen
from headway.client.restart_budget import RestartBudget
from headway.config import SchedulerConfig
from headway.model_files import ModelFiles
from headway.model_limits import ModelLimits
from headway.request import FinishReason
from headway.scheduler.batch import Logprobs, PromptLogprobs
from headway.scheduler.effects import Effects, PromptOutputs, RequestEnd, TokenOutputs
from headway.scheduler.snapshot import Snapshot
from headway.wire import codec, to_client, to_engine
from headway.wire.refusals import kind_of
from tests.tiny_tokenizer import CHAT_TEMPLATE, byte_ids, byte_tokenizer

MODEL = "tiny"
ANSWER = "hello"  # what every request is answered with, one letter a step
MAX_MODEL_LEN = 64


@dataclass
class FakeLink:
    """A `Link` whose engine spells `ANSWER`, one token a step, up to max_tokens.

    refuse: (kind, message) refuses every request; with refuse_after, so many requests of a group are taken before.
    silent: requests are taken and never answered. accept: groups of several are told that they are accepted.
    error: every request ends with it after its first token. reason: why the other answers end.
    ask: answers a call, or raises; None leaves all calls open.
    """

    tokens: list[int]
    refuse: tuple[str, str] | None = None
    refuse_after: int = 0
    silent: bool = False
    accept: bool = True
    error: str | None = None
    reason: FinishReason = FinishReason.LENGTH
    ask: Callable[[to_engine.EngineCall], Any] | None = None

    pid: int = 0
    killed: bool = False

    def __post_init__(self) -> None:
        self.sent: list[to_engine.ToEngine] = []
        self._to_client: asyncio.Queue[to_client.ToClient] = asyncio.Queue()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def send(self, message: to_engine.ToEngine) -> None:
        message = codec.decode_to_engine(codec.encode(message))  # as it would arrive
        self.sent.append(message)
        if isinstance(message, to_engine.AddGroup):
            self._answer(message)
        elif isinstance(message, to_engine.Call) and self.ask is not None:
            try:
                self.say(to_client.Returned(message.number, self.ask(message.call)))
            except Exception as error:
                self.say(to_client.Raised(message.number, kind_of(error), str(error)))

    def sent_of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    def say(self, message: to_client.ToClient) -> None:
        self._to_client.put_nowait(codec.decode_to_client(codec.encode(message)))

    def end(self, how: str) -> None:
        self._ended.set_result(how)

    def step(self, uids: list[int], tokens: list[int], ended: list[RequestEnd] | None = None) -> None:
        """One step that sampled these tokens, each with its logprob of -1 and one alternative."""
        rows = np.arange(len(uids), dtype=np.int32)
        logprobs = Logprobs(
            rows=rows,
            sampled=np.full(len(uids), -1.0, np.float32),
            ranks=np.full(len(uids), 1, np.int32),
            top_ids=np.array([[token, (token + 1) % 256] for token in tokens], np.int32).reshape(-1, 2),
            top=np.array([[-1.0, -2.0] for _ in tokens], np.float32).reshape(-1, 2),
        )
        outputs = TokenOutputs(np.array(uids, np.int64), np.array(tokens, np.int32), logprobs)
        self.say(to_client.Step.of(Effects(tokens=[outputs], ended=ended or [])))

    def judge(self, uid: int, start: int, count: int, most: int) -> None:
        """One step that judged these positions of a prompt: position p has the logprob -p, and the token p at rank 1
        for alternative, p + 1 at rank 2, and so on."""
        positions = np.arange(start, start + count, dtype=np.int32)
        nth = np.arange(most, dtype=np.int32)
        found = PromptLogprobs(
            rows=np.zeros(1, np.int32),
            starts=np.array([start], np.int32),
            counts=np.array([count], np.int32),
            logprobs=-positions.astype(np.float32),
            ranks=np.full(count, 5, np.int32),
            top_ids=positions[:, None] + nth,
            top=np.tile(-nth.astype(np.float32) / 4, (count, 1)),
        )
        self.say(to_client.Step.of(Effects(prompt_logprobs=[PromptOutputs(np.array([uid], np.int64), found)])))

    def _answer(self, group: to_engine.AddGroup) -> None:
        adds = group.requests
        if self.refuse is not None and len(adds) > self.refuse_after:
            self.say(to_client.Refused(adds[0].uid, self.refuse_after, *self.refuse))
            adds = adds[: self.refuse_after]
        elif group.confirm and self.accept:
            self.say(to_client.Accepted(adds[0].uid))
        if self.silent:
            return
        self.say(to_client.Step.of(Effects(started=[(add.uid, 2) for add in adds])))
        for add in adds:
            if (most := add.sampling.prompt_logprobs) is not None:
                for start in range(1, len(add.prompt), 3):
                    self.judge(add.uid, start, min(3, len(add.prompt) - start), most)
            wanted = len(self.tokens) if add.sampling.max_tokens is None else add.sampling.max_tokens
            count = min(max(1, wanted), len(self.tokens))  # an engine gives one token at least
            for at, token in enumerate(self.tokens[:count], start=1):
                ended = []
                if self.error is not None:
                    ended = [RequestEnd(add.uid, add.request_id, FinishReason.ERROR, error=self.error)]
                elif at == count:
                    ended = [RequestEnd(add.uid, add.request_id, self.reason)]
                self.step([add.uid], [token], ended)
                if ended:
                    break

    async def receive(self) -> to_client.ToClient:
        return await self._to_client.get()

    async def ended(self) -> str:
        return await asyncio.shield(self._ended)

    async def close(self, *, kill: bool = False) -> None:
        self.killed = kill


async def settled() -> None:
    """What was said has been heard, and all that follows from it has happened: every task has had many turns."""
    for _ in range(100):
        await asyncio.sleep(0)


def fake_client(
    tokenizer: PreTrainedTokenizerFast | None = None,
    answer: list[int] | None = None,
    *,
    reopen: Reopen | None = None,
    restarts: RestartBudget | None = None,
    max_model_len: int = MAX_MODEL_LEN,
    **behaviour: Any,
) -> tuple[EngineClient, FakeLink]:
    """A client, in front of a fake engine. Needs a running loop.

    tokenizer: by default one with a token per byte. answer: the ids that every request is answered with.
    """
    tokenizer = tokenizer or byte_tokenizer(CHAT_TEMPLATE)
    link = FakeLink(byte_ids(tokenizer, ANSWER) if answer is None else answer, **behaviour)
    files = ModelFiles(
        path=Path("/models/tiny"),
        name=MODEL,
        hf_config=LlamaConfig(architectures=["LlamaForCausalLM"]),
        limits=ModelLimits(len(tokenizer), (tokenizer.eos_token_id,), max_model_len),
        default_sampling={"temperature": 0.5},
        tokenizer="",
    )
    config = SchedulerConfig(
        max_num_seqs=4, max_num_batched_tokens=64, max_model_len=max_model_len, num_blocks=100, block_size=16
    )
    client = EngineClient(files=files, tokenizer=tokenizer, config=config, link=link, reopen=reopen, restarts=restarts)
    return client, link


def status(failure: str | None = None, stalled: bool = False, **counts: int) -> to_client.Status:
    return to_client.Status(Snapshot(**counts), stalled, failure)

"""`AsyncLLM`: a model for asyncio programs; its engine is a process of its own."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from headway.client.bad_words import spelled_out
from headway.client.chat_template import ChatTemplate
from headway.client.conversation import Conversation
from headway.client.engine_client import EngineClient
from headway.client.restart_budget import RestartBudget
from headway.errors import RequestError
from headway.outputs import RequestDelta, RequestOutput
from headway.prompts import Messages, Prompt, as_list, ids_of, one_each, text_of
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.settings import EngineSettings, engine_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from headway.wire.to_client import Snapshot


class AsyncLLM:
    """Runs a model and answers many prompts at once, on one event loop.

        async with AsyncLLM("path/or/hub-id", max_num_seqs=64) as llm:
            async for delta in llm.stream("12+34="):
                print(delta.text, end="")
            outputs = await llm.generate(["1+1=", "2+2="], SamplingParams(temperature=0))

    Its methods have the names and arguments of `LLM`'s. They may run at the same time, in any number of tasks. A task
    that is cancelled, and a stream that is closed, aborts its requests.

    model, chat_template, settings: as in `LLM`.
    engine_restarts: how often within ten minutes an engine that died is started again.

    Raises TypeError for an unknown setting, ValueError for a setting that cannot work. `start` raises EngineStartError
    if the engine does not start. All methods must be called from the event loop that has started it.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        chat_template: str | None = None,
        engine_restarts: int = 0,
        **settings: Unpack[EngineSettings],
    ) -> None:
        self._wanted = engine_config(model, settings)
        self._template = chat_template
        self._restarts = RestartBudget(engine_restarts)
        self._started: EngineClient | None = None
        self._chat_template: ChatTemplate | None = None

    async def start(self) -> None:
        """Start the engine, and wait until it takes requests. `async with` does it too."""
        if self._started is not None:
            raise RuntimeError("this AsyncLLM was started already")
        client = await EngineClient.start(self._wanted, restarts=self._restarts)
        try:
            self._chat_template = ChatTemplate(client.tokenizer, client.files.name, self._template)
        except BaseException:
            await client.shutdown()
            raise
        self._started = client

    async def shutdown(self) -> None:
        """Stop the engine; requests in progress raise EngineDeadError. Idempotent."""
        client, self._started = self._started, None
        if client is not None:
            await client.shutdown()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._client.tokenizer

    def default_sampling_params(self) -> SamplingParams:
        """The sampling parameters of the model's generation config; defaults for parameters that it does not have."""
        return SamplingParams(**self._client.files.default_sampling)

    @property
    def num_open(self) -> int:
        """Requests that are not answered yet, and neither cancelled nor closed."""
        return self._client.num_open

    def snapshot(self) -> Snapshot:
        """The last published snapshot: the state of the scheduler in numbers."""
        return self._client.snapshot

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
    ) -> list[RequestOutput]:
        """Answer prompts; the outputs are in the order of the prompts. The arguments are those of `LLM.generate`.

        The number of prompts has no limit. Raises RequestError with the index of the prompt, before any request is
        added; QueueFullError if others fill the engine, EngineDeadError if it has stopped, RequestFailedError if an
        answer ends in an error: then the other answers are aborted.
        """
        given = as_list(prompts)
        texts = [text_of(prompt, index) for index, prompt in enumerate(given)]
        return await self._answer(
            [await self._tokens(*one) for one in zip(given, texts)], texts, sampling_params, priority
        )

    async def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, as `generate`. template_options: those of `LLM.render_chat`."""
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[Any] = [messages] if single else list(messages)
        texts: list[str | None] = [await self.render_chat(one, **template_options) for one in conversations]
        token_ids = [await self._written_out(text or "") for text in texts]
        return await self._answer(token_ids, texts, sampling_params, priority)

    async def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0
    ) -> AsyncGenerator[RequestDelta, None]:
        """Answer one prompt, delta by delta. Closing the generator aborts the request."""
        text = text_of(prompt, 0)
        request = self._request(await self._tokens(prompt, text), sampling_params, priority)
        async with aclosing(self._stream(request)) as deltas:
            async for delta in deltas:
                yield delta

    async def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        **template_options: Any,
    ) -> AsyncGenerator[RequestDelta, None]:
        """As `stream`, for a conversation. template_options: those of `LLM.render_chat`."""
        token_ids = await self._written_out(await self.render_chat(messages, **template_options))
        async with aclosing(self._stream(self._request(token_ids, sampling_params, priority))) as deltas:
            async for delta in deltas:
                yield delta

    async def render_chat(self, messages: Messages, **template_options: Any) -> str:
        """The text of the prompt for a conversation; see `LLM.render_chat`."""
        client, template = self._client, self._chat_template
        assert template is not None
        conversation = Conversation.of(messages, **template_options)
        return await client.prompts.texts.run(conversation.size, partial(template.render, conversation))

    async def reset_prefix_cache(self) -> int:
        """Empty the prefix cache; returns the number of blocks that it had."""
        return await self._client.reset_prefix_cache()

    # -- the way of a request ------------------------------------------------------------------------------------

    @property
    def _client(self) -> EngineClient:
        if self._started is None:
            raise RuntimeError("this AsyncLLM is not running: `async with AsyncLLM(...)`, or `await llm.start()`")
        return self._started

    async def _tokens(self, prompt: Prompt, text: str | None) -> list[int]:
        if text is None:
            return ids_of(prompt)
        (token_ids,) = await self._client.prompts.encode_prompts([text], add_special_tokens=True)
        return token_ids

    async def _written_out(self, text: str) -> list[int]:
        """The tokens of a text in which a template has written the special tokens."""
        (token_ids,) = await self._client.prompts.encode_prompts([text], add_special_tokens=False)
        return token_ids

    def _request(self, token_ids: list[int], sampling: SamplingParams | None, priority: int) -> NewRequest:
        client = self._client
        return NewRequest(
            request_id=uuid.uuid4().hex,
            prompt=client.pack(token_ids),
            sampling=spelled_out(self.default_sampling_params() if sampling is None else sampling, client.tokenizer),
            priority=priority,
            arrival_time=time.monotonic(),
        )

    async def _stream(self, request: NewRequest) -> AsyncGenerator[RequestDelta, None]:
        with self._client.submit([request], stream=True) as pending:
            async for updates in pending:
                for update in updates:
                    delta = update.output
                    assert isinstance(delta, RequestDelta)
                    if delta.prompt_logprobs is not None:
                        delta.prompt_logprobs = list(delta.prompt_logprobs)
                    yield delta

    async def _answer(
        self,
        token_ids: list[list[int]],
        texts: Sequence[str | None],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int],
    ) -> list[RequestOutput]:
        count = len(token_ids)
        params, priorities = one_each("sampling_params", sampling_params, count), one_each("priority", priority, count)
        requests = []
        for index, one in enumerate(zip(token_ids, params, priorities)):
            try:
                requests.append(self._request(*one))
            except RequestError as error:
                raise type(error)(f"prompt {index}: {error}") from None
        room = asyncio.Semaphore(max(1, self._client.capacity // max((r.sampling.n for r in requests), default=1)))

        async def answered(request: NewRequest, text: str | None) -> RequestOutput:
            async with room:
                return await self._whole(request, text)

        tasks = [asyncio.ensure_future(answered(*one)) for one in zip(requests, texts)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _whole(self, request: NewRequest, text: str | None) -> RequestOutput:
        with self._client.submit([request], stream=False) as pending:
            async for updates in pending:
                (update,) = updates
        output = update.output
        assert isinstance(output, RequestOutput)
        output.prompt = text
        if output.prompt_logprobs is not None:
            output.prompt_logprobs = list(output.prompt_logprobs)
        return output

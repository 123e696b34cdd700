"""`LLM`: a model in this process, for prompts in Python."""

from __future__ import annotations

import itertools
import queue
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from headway.client.bad_words import spelled_out
from headway.client.chat_template import ChatTemplate
from headway.client.conversation import Conversation
from headway.client.token_processor import Processed, TokenProcessor, expand
from headway.engine.engine import Engine
from headway.errors import EngineDeadError, QueueFullError, RequestError
from headway.kv_transfer_params import copied
from headway.model_files import ModelFiles
from headway.outputs import RequestDelta, RequestOutput
from headway.prompts import Messages, Prompt, as_list, ids_of, one_each, text_of
from headway.request import NewRequest, Transfer
from headway.sampling import SamplingParams
from headway.scheduler.audit import AuditReport
from headway.scheduler.effects import Effects
from headway.scheduler.snapshot import Snapshot
from headway.settings import EngineSettings, engine_config
from headway.token_ids import pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KVTransferParams = Mapping[str, Any] | None

_POLL_SECONDS = 0.05  # without effects for this long, more prompts are tried and the engine's health is checked
_REFRESH_SECONDS = 0.1  # between two updates of the progress bar


@dataclass(frozen=True, slots=True)
class _Job:
    """A checked request. uids: one for each of its answers. text: of the prompt, if the prompt was a text."""

    request: NewRequest
    uids: tuple[int, ...]
    text: str | None


class LLM:
    """Runs a model and answers prompts with it.

        with LLM("path/or/hub-id", max_num_seqs=64) as llm:
            outputs = llm.generate(["1+1=", "2+2="], SamplingParams(temperature=0))

    model: a local folder, a hub id, or "tiny-random:FAMILY" (see `tiny_random`); None: the small model that comes with
        Headway.
    chat_template: used instead of the model's template: a file, the text of a template, or the name of a template of
        the tokenizer.
    settings: the fields of `EngineConfig`, by name (scheduler, device, dtype, max_model_len, ...).

    For one thread at a time. For many clients at once use the server. Raises TypeError for an unknown setting, and
    ValueError, with value and limit, for a setting that cannot work.
    """

    def __init__(
        self, model: str | None = None, *, chat_template: str | None = None, **settings: Unpack[EngineSettings]
    ) -> None:
        config = engine_config(model, settings)
        self.files = ModelFiles.resolve(config)
        self.tokenizer: PreTrainedTokenizerBase = self.files.load_tokenizer()
        self._chat_template = ChatTemplate(self.tokenizer, self.files.name, chat_template)
        # The engine gets the folder: it and this object could resolve a hub id to different revisions.
        self.config = replace(config, model=str(self.files.path), served_model_name=self.files.name)
        self._effects: queue.SimpleQueue[Effects] = queue.SimpleQueue()
        self._processor = TokenProcessor(self.tokenizer, self.files.limits.eos_token_ids)
        self._request_ids = map(str, itertools.count())
        self._uids = itertools.count(1)
        self._busy = False
        # The engine gets the queue and not this object: else the engine would keep this object alive for ever.
        self._engine = Engine.from_config(self.config, self._effects.put)
        self._finalizer = weakref.finalize(self, self._engine.shutdown)
        self._engine.start()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] = 0,
        kv_transfer_params: KVTransferParams | Sequence[KVTransferParams] = None,
    ) -> list[RequestOutput]:
        """Answer prompts; the outputs are in the order of the prompts.

        prompts: one prompt or several, each a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}.
        sampling_params, priority: one value for all prompts, or one for each. None: `default_sampling_params()`.
        kv_transfer_params: likewise, in the words of vLLM's connectors: an engine of role prefill lends the KV of a
            prompt with {"do_remote_decode": True}, and what its output says is for an engine of role decode.
        use_tqdm: show a progress bar, if standard error is a terminal.

        The number of prompts has no limit: while the engine's queue is full, the others wait here. A request that fails
        ends with finish_reason "error" and the `error` of its answer; the other requests go on.

        Raises ValueError, with the index of the prompt, the value and the limit, before any request is added;
        EngineDeadError if the engine has stopped.
        """
        given = as_list(prompts)
        texts = [text_of(prompt, index) for index, prompt in enumerate(given)]
        encoded = iter(self._encode([text for text in texts if text is not None], add_special_tokens=True))
        token_ids = [ids_of(prompt) if text is None else next(encoded) for prompt, text in zip(given, texts)]
        jobs = self._make_jobs(texts, token_ids, sampling_params, priority, kv_transfer_params)
        return self._answer(jobs, use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] = 0,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or several; the chat template makes the prompts. Otherwise as `generate`.

        messages: [{"role": ..., "content": ...}, ...], or a list of such lists.
        template_options: the keyword arguments of `render_chat`.

        Raises RequestError for a conversation that `render_chat` refuses, with its index if there are several.
        """
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[Any] = [messages] if single else list(messages)
        texts = []
        for index, conversation in enumerate(conversations):
            try:
                texts.append(self.render_chat(conversation, **template_options))
            except RequestError as error:
                if single:
                    raise
                raise RequestError(f"conversation {index}: {error}") from error
        token_ids = self._encode(texts, add_special_tokens=False)
        return self._answer(self._make_jobs(texts, token_ids, sampling_params, priority), use_tqdm)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0
    ) -> Generator[RequestDelta, None, None]:
        """Answer one prompt, delta by delta. Closing the iterator aborts the request.

        Raises the errors of `generate`; errors of the prompt come at once, and not with the first delta.
        """
        text = text_of(prompt, 0)
        ids = ids_of(prompt) if text is None else self._encode([text], add_special_tokens=True)[0]
        return self._stream(self._make_jobs([text], [ids], sampling_params, priority))

    def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        **template_options: Any,
    ) -> Generator[RequestDelta, None, None]:
        """As `stream`, for a conversation. template_options: the keyword arguments of `render_chat`."""
        text = self.render_chat(messages, **template_options)
        token_ids = self._encode([text], add_special_tokens=False)
        return self._stream(self._make_jobs([text], token_ids, sampling_params, priority))

    def render_chat(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
    ) -> str:
        """The text of the prompt for a conversation, with special tokens written out.

        The options are the fields of `Conversation`. Raises RequestError, with the message that the server would send,
        if there is no template, if the messages are not valid, or if the template refuses the conversation.
        """
        conversation = Conversation.of(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
            tools=tools,
            documents=documents,
            reasoning_effort=reasoning_effort,
        )
        return self._chat_template.render(conversation)

    def default_sampling_params(self) -> SamplingParams:
        """The sampling parameters of the model's generation config; defaults for parameters that it does not have."""
        return SamplingParams(**self.files.default_sampling)

    def snapshot(self) -> Snapshot:
        """The last published snapshot: the state of the scheduler in numbers."""
        return self._engine.manager.snapshot()

    def reset_prefix_cache(self) -> int:
        """Empty the prefix cache; returns the number of blocks that it had."""
        return self._engine.manager.reset_prefix_cache()

    def audit(self) -> AuditReport:
        """Recount the slots and blocks of all owners."""
        return self._engine.manager.audit()

    def shutdown(self) -> None:
        """Stop the engine; it takes no more requests. Also runs when this object is collected. Idempotent."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    # -- from prompts to jobs ------------------------------------------------------------------------------------

    def _encode(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        # verbose=False: the tokenizer would warn of a long prompt, which the door refuses anyway.
        encoded = self.tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _make_jobs(
        self,
        texts: Sequence[str | None],
        token_ids: Sequence[list[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int],
        kv_transfer_params: KVTransferParams | Sequence[KVTransferParams] = None,
    ) -> list[_Job]:
        """Check all prompts and make their jobs. Raises before any request is added."""
        count = len(token_ids)
        if sampling_params is None:
            sampling_params = self.default_sampling_params()
        params = one_each("sampling_params", sampling_params, count)
        priorities = one_each("priority", priority, count)
        transfers = one_each("kv_transfer_params", kv_transfer_params, count)
        requests = []
        for index, (ids, sampling, its_priority, transfer) in enumerate(zip(token_ids, params, priorities, transfers)):
            try:
                prompt = pack(ids, self.files.limits.vocab_size)
                transfer = None if transfer is None else copied(transfer)
                request = NewRequest(
                    request_id=next(self._request_ids),
                    prompt=prompt,
                    sampling=spelled_out(sampling, self.tokenizer),
                    uid=0,
                    priority=its_priority,
                    transfer=Transfer.wanted_by(transfer, sampling),
                    kv_transfer_params=transfer,
                )
                self._engine.manager.door.make_request(request)
            except RequestError as error:
                raise type(error)(f"prompt {index}: {error}") from None
            requests.append(request)
        return [
            _Job(request, tuple(itertools.islice(self._uids, request.sampling.n)), text)
            for request, text in zip(requests, texts)
        ]

    # -- from jobs to answers ------------------------------------------------------------------------------------

    def _answer(self, jobs: list[_Job], show_progress: bool) -> list[RequestOutput]:
        outputs: dict[str, RequestOutput] = {}
        with _progress(len(jobs), show_progress) as report, closing(self._run(jobs, stream=False)) as run:
            for processed in run:
                for output in processed.outputs:
                    if output.prompt_logprobs is not None:
                        output.prompt_logprobs = list(output.prompt_logprobs)
                    outputs[output.request_id] = output
                report(len(outputs), processed.num_tokens)
        return [outputs[job.request.request_id] for job in jobs]

    def _stream(self, jobs: list[_Job]) -> Generator[RequestDelta, None, None]:
        with closing(self._run(jobs, stream=True)) as run:
            for processed in run:
                for delta in processed.deltas:
                    if delta.prompt_logprobs is not None:
                        delta.prompt_logprobs = list(delta.prompt_logprobs)
                    yield delta

    def _run(self, jobs: list[_Job], *, stream: bool) -> Generator[Processed, None, None]:
        """Add the jobs and yield their output until all have ended. If this is closed or interrupted before, the rest
        is aborted."""
        if self._busy:
            raise RuntimeError("this LLM is answering already: one call at a time, or use the server")
        self._busy = True
        processor = self._processor
        try:
            now = time.monotonic()
            for job in jobs:
                processor.add(job.request, job.uids, text=job.text, now=now, stream=stream)
            waiting = deque(answer for job in jobs for answer in expand(job.request, job.uids))
            while len(processor):
                self._add(waiting)
                effects = self._next_effects()
                if effects is not None:
                    processed = processor.process(effects, time.monotonic())
                    if processed.stop_uids:
                        self._engine.manager.finish(processed.stop_uids)
                    yield processed
        finally:
            self._busy = False
            left = [uid for job in jobs for uid in processor.discard(job.request.request_id)]
            if left:
                with suppress(EngineDeadError):  # then the requests have ended, and `_next_effects` has raised
                    self._engine.manager.abort(left)

    def _add(self, waiting: deque[NewRequest]) -> None:
        """Add waiting requests until the engine is full."""
        while waiting:
            try:
                self._engine.add(waiting[0])
            except QueueFullError:
                return
            waiting.popleft()

    def _next_effects(self) -> Effects | None:
        """The next effects; None if none came within _POLL_SECONDS. Raises EngineDeadError if the engine has failed."""
        try:
            effects = self._effects.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            effects = None
        failure = self._engine.failure()
        if failure is not None:
            raise EngineDeadError(failure)
        return effects


@contextmanager
def _progress(total: int, show: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields the function that reports (requests done, tokens just generated)."""
    if not show or not total or not sys.stderr.isatty():
        yield lambda _done, _tokens: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[rate]:.0f} tokens/s"))
    # No thread refreshes the bar: it is drawn between two steps.
    with Progress("answering", *columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task("", total=total, rate=0.0)
        started = drawn = time.monotonic()
        generated = 0

        def report(done: int, tokens: int) -> None:
            nonlocal generated, drawn
            generated += tokens
            now = time.monotonic()
            if now - drawn >= _REFRESH_SECONDS or done == total:
                drawn = now
                bar.update(task, completed=done, rate=generated / max(now - started, 1e-9), refresh=True)

        yield report

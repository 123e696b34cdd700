"""A model in this process: prompts in, answers out."""

from __future__ import annotations

import difflib
import itertools
import queue
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from headway.client.chat_template import ChatTemplate
from headway.client.conversation import Conversation
from headway.client.token_processor import Processed, TokenProcessor, expand
from headway.config import EngineConfig
from headway.engine.engine import Engine
from headway.error_text import describe
from headway.errors import EngineDeadError, QueueFullError, RequestError
from headway.model_files import ModelFiles
from headway.outputs import RequestDelta, RequestOutput
from headway.prompts import Messages, Prompt, as_list, ids_of, one_each, text_of
from headway.request import NewRequest
from headway.sampling import SamplingParams
from headway.scheduler.audit import AuditReport
from headway.scheduler.effects import Effects
from headway.scheduler.snapshot import Snapshot
from headway.token_ids import pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_POLL_SECONDS = 0.05  # how often to look for room in the queue, and at the engine's health, while it says nothing
_REFRESH_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that was checked and is ready to go in."""

    request: NewRequest
    uids: tuple[int, ...]
    text: str | None


class LLM:
    """Runs a model and answers prompts with it.

        with LLM("path/or/hub-id", max_num_seqs=64) as llm:
            outputs = llm.generate(["1+1=", "2+2="], SamplingParams(temperature=0))

    model: a local folder or a hub id; None is the small model that comes with Headway.
    chat_template: instead of the model's own: a file, the text of a template, or the name of one of the tokenizer's.
    settings: the fields of `EngineConfig`, by name (scheduler, device, dtype, max_model_len, ...).

    For one thread at a time; many clients at once are what the server is for. Raises TypeError for a setting that
    does not exist and ValueError, naming value and limit, for one that cannot work.
    """

    def __init__(self, model: str | None = None, *, chat_template: str | None = None, **settings: Any) -> None:
        config = _engine_config(model, settings)
        self.files = ModelFiles.resolve(config)
        self.tokenizer: PreTrainedTokenizerBase = self.files.load_tokenizer()
        self._chat_template = ChatTemplate(self.tokenizer, self.files.name, chat_template)
        # The engine gets the folder: a hub id must not resolve to one revision here and to another there.
        self.config = replace(config, model=str(self.files.path), served_model_name=self.files.name)
        self._effects: queue.SimpleQueue[Effects] = queue.SimpleQueue()
        self._processor = TokenProcessor(self.tokenizer, self.files.limits.eos_token_ids)
        self._request_ids = map(str, itertools.count())
        self._uids = itertools.count(1)
        self._busy = False
        # The engine is given the queue and not this object, which could otherwise never be collected.
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
    ) -> list[RequestOutput]:
        """Answer prompts; the outputs are in the order of the prompts.

        prompts: one or several of: text, token ids, {"prompt": text}, {"prompt_token_ids": ids}.
        sampling_params, priority: one for all, or one for each prompt. None: `default_sampling_params()`.
        use_tqdm: show a progress bar, where standard error is a terminal.

        More prompts than the engine's queue takes are handed in as room appears. A request that fails ends with
        finish_reason "error", and the `error` of its answer says why; the others go on.

        Raises ValueError naming the prompt's index, the value and the limit, before anything was handed in;
        EngineDeadError if the engine has stopped.
        """
        given = as_list(prompts)
        texts = [text_of(prompt, index) for index, prompt in enumerate(given)]
        encoded = iter(self._encode([text for text in texts if text is not None], add_special_tokens=True))
        token_ids = [ids_of(prompt) if text is None else next(encoded) for prompt, text in zip(given, texts)]
        return self._answer(self._make_jobs(texts, token_ids, sampling_params, priority), use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] = 0,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, as the model's chat template writes them; otherwise as `generate`.

        messages: [{"role": ..., "content": ...}, ...], or a list of such lists.
        template_options: as `render_chat` takes them.

        Raises RequestError for a conversation that `render_chat` refuses, naming its index if there are several.
        """
        single = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[Any] = [messages] if single else list(messages)
        texts = []
        for index, one in enumerate(conversations):
            try:
                texts.append(self.render_chat(one, **template_options))
            except RequestError as error:
                if single:
                    raise
                raise RequestError(f"conversation {index}: {error}") from error
        token_ids = self._encode(texts, add_special_tokens=False)
        return self._answer(self._make_jobs(texts, token_ids, sampling_params, priority), use_tqdm)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, priority: int = 0
    ) -> Generator[RequestDelta, None, None]:
        """Answer one prompt piece by piece. Closing the iterator aborts the request.

        Errors are those of `generate`, raised at once and not with the first piece.
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
        """`stream` for a conversation."""
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
    ) -> str:
        """The prompt that a conversation makes, special tokens written out.

        The options are those of `Conversation`, and the refusals are those of the server: raises RequestError without
        a template, for messages that are none, and for what the template refuses.
        """
        options: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "chat_template": chat_template,
            "chat_template_kwargs": None if chat_template_kwargs is None else dict(chat_template_kwargs),
        }
        try:
            conversation = Conversation.model_validate({"messages": messages, **options})
        except ValidationError as error:
            raise RequestError(describe(error)[0]) from None
        return self._chat_template.render(conversation)

    def default_sampling_params(self) -> SamplingParams:
        """What the model's generation config asks for, else the defaults."""
        return SamplingParams(**self.files.default_sampling)

    def snapshot(self) -> Snapshot:
        """The scheduler's state in numbers, as last published."""
        return self._engine.manager.snapshot()

    def reset_prefix_cache(self) -> int:
        """Forget what is cached of earlier prompts; returns how many blocks were."""
        return self._engine.manager.reset_prefix_cache()

    def audit(self) -> AuditReport:
        """Who owns which slots and blocks, recounted from the ground up."""
        return self._engine.manager.audit()

    def shutdown(self) -> None:
        """Stop the engine; it takes no more requests. Happens by itself when this object goes away. Idempotent."""
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
        # verbose: the tokenizer need not warn of what is refused with its length a moment later.
        encoded = self.tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _make_jobs(
        self,
        texts: Sequence[str | None],
        token_ids: Sequence[list[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int],
    ) -> list[_Job]:
        """Check everything. Raises before anything is handed in."""
        count = len(token_ids)
        if sampling_params is None:
            sampling_params = self.default_sampling_params()
        params = one_each("sampling_params", sampling_params, count)
        priorities = one_each("priority", priority, count)
        requests = []
        for index, (ids, sampling, one_priority) in enumerate(zip(token_ids, params, priorities)):
            try:
                prompt = pack(ids, self.files.limits.vocab_size)
                request = NewRequest(
                    request_id=next(self._request_ids), prompt=prompt, sampling=sampling, uid=0, priority=one_priority
                )
                self._engine.manager.door.make_request(request)
            except RequestError as error:
                raise RequestError(f"prompt {index}: {error}") from None
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
                outputs.update((output.request_id, output) for output in processed.outputs)
                report(len(outputs), processed.num_tokens)
        return [outputs[job.request.request_id] for job in jobs]

    def _stream(self, jobs: list[_Job]) -> Generator[RequestDelta, None, None]:
        with closing(self._run(jobs, stream=True)) as run:
            for processed in run:
                yield from processed.deltas

    def _run(self, jobs: list[_Job], *, stream: bool) -> Generator[Processed, None, None]:
        """Hand the jobs in and yield what comes of them until all have ended. What is left, when this is closed
        or interrupted, is aborted."""
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
                self._hand_in(waiting)
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
                with suppress(EngineDeadError):  # then they have ended; why it died is said where it was noticed
                    self._engine.manager.abort(left)

    def _hand_in(self, waiting: deque[NewRequest]) -> None:
        """Give the engine what it has room for."""
        while waiting:
            try:
                self._engine.add(waiting[0])
            except QueueFullError:
                return
            waiting.popleft()

    def _next_effects(self) -> Effects | None:
        """What the engine does next; None if that takes too long to wait for without looking around."""
        try:
            effects = self._effects.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            effects = None
        failure = self._engine.failure()
        if failure is not None:
            raise EngineDeadError(failure)
        return effects


def _engine_config(model: str | None, settings: dict[str, Any]) -> EngineConfig:
    known = [field.name for field in fields(EngineConfig) if field.name != "model"]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise TypeError(f"LLM has no setting {name!r}; {hint}")
    for name in ("device", "dtype"):
        if settings.get(name, "") is None:  # as other engines' users write "you decide"
            settings[name] = "auto"
    return EngineConfig(model=model, **settings)


@contextmanager
def _progress(total: int, show: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields what reports (requests done, tokens just generated) to it."""
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

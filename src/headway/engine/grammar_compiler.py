"""From the form of an answer to what the executor's matchers need: compiled in another process, kept, shared.

    job threads ──compile(form)──▶ kept? ──no──▶ a job in the grammar process ──▶ JSON ──▶ Grammar, kept

The grammar process is started when the first form comes: it takes seconds and memory that other requests do not need.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from headway.engine.grammar_process import Done, Job, Vocabulary, read_frame, write_frame
from headway.errors import RequestError
from headway.executor.grammar import Grammar, JsonTokens
from headway.structured_outputs import StructuredOutputs

if TYPE_CHECKING:
    from xgrammar import TokenizerInfo

logger = logging.getLogger(__name__)

SECONDS = 10.0  # that a grammar may take to compile
MEMORY = 1 << 30  # bytes that it may take meanwhile
MOST_BYTES = 256 << 20  # of all grammars that are kept
MOST_GRAMMARS = 1024
_START_SECONDS = 120.0  # for the process to import its libraries and read the vocabulary
_GRACE = 5.0  # seconds that an answer may be late before the process counts as stuck

_JSON = ("json", "json_object", "structural_tag")

Key = tuple[str, str, bool]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A grammar, or why there is none. size: bytes, about."""

    grammar: Grammar | None
    error: str | None
    size: int


class GrammarCompiler:
    """Compiles forms; for several threads at once, never for the writer.

    Grammars are kept, the least recently used go first; so are the errors of forms that have none. A grammar that is
    being compiled is compiled once, however many requests wait for it.

    vocabulary: of the model. most_bytes, most_grammars: what is kept.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, most_bytes: int = MOST_BYTES, most_grammars: int = MOST_GRAMMARS
    ) -> None:
        self._vocabulary = vocabulary
        self._most_bytes = most_bytes
        self._most_grammars = most_grammars
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._compiling: dict[Key, Future[_Kept]] = {}
        self._infos: dict[bool, TokenizerInfo] = {}
        self._json: dict[bool, JsonTokens] = {}
        self._process: _Process | None = None
        self._closed = False
        self._keeping = threading.Lock()  # of what is kept and compiled; held for microseconds
        self._starting = threading.Lock()  # of the process; held while it starts
        self.num_compiled = 0  # forms that were not kept

    @property
    def num_kept(self) -> int:
        """Grammars, and errors of forms that have none."""
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Of the grammars that are kept, about."""
        with self._keeping:
            return sum(kept.size for kept in self._kept.values())

    def compile(self, form: StructuredOutputs) -> Grammar:
        """The grammar of a form. Waits. Raises RequestError, which says what is wrong with the form and where, for a
        form that cannot be compiled within the bounds; RuntimeError if the grammar process does not work."""
        key = (form.kind, form.text, form.disable_any_whitespace)
        with self._keeping:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
            waiting: Future[_Kept] = Future()
            others = waiting if kept is not None else self._compiling.setdefault(key, waiting)
        if kept is None:
            kept = self._compile(key, waiting) if others is waiting else others.result()
        if kept.grammar is None:
            raise RequestError(f"structured_outputs: {kept.error}")
        return kept.grammar

    def close(self) -> None:
        """End the process; jobs that wait for it fail. Idempotent."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()

    def _compile(self, key: Key, waiting: Future[_Kept]) -> _Kept:
        try:
            kept = self._made(key)
        except BaseException as error:
            with self._keeping:
                del self._compiling[key]
            waiting.set_exception(error)
            raise
        with self._keeping:
            self.num_compiled += 1
            self._kept[key] = kept
            del self._compiling[key]
            size = sum(one.size for one in self._kept.values())
            while len(self._kept) > self._most_grammars or (size > self._most_bytes and len(self._kept) > 1):
                size -= self._kept.popitem(last=False)[1].size
        waiting.set_result(kept)
        return kept

    def _made(self, key: Key) -> _Kept:
        from xgrammar import CompiledGrammar

        kind, text, tight = key
        tagged = kind == "structural_tag"
        process = self._running()
        info = self._info(process, tagged=tagged)
        done = process.run(Job(kind, text, tight, tagged))
        if done is None:
            what = kind.replace("_", " ")
            bounds = f"{self._vocabulary.seconds:g} s, {self._vocabulary.memory >> 20} MiB"
            return _Kept(None, f"the {what} takes more than there is to compile it ({bounds}): make it simpler", 256)
        if done.error is not None:
            if not done.refused:
                raise RuntimeError(f"the grammar process failed: {done.error}")
            return _Kept(None, done.error, len(done.error) + len(text))
        compiled = CompiledGrammar.deserialize_json(done.compiled, info)
        json = self._json[tagged] if kind in _JSON else None
        return _Kept(Grammar(compiled, json), None, int(compiled.memory_size_bytes) + len(text))

    def _running(self) -> _Process:
        """The process; it is started if there is none."""
        with self._starting:
            if self._closed:
                raise RuntimeError("the engine is shutting down")
            if self._process is None or not self._process.is_alive:
                logger.info("starting the process that compiles grammars")
                self._process = _Process(self._vocabulary)
                if self._closed:  # meanwhile; `close` has not seen the process
                    self._process.kill()
            return self._process

    def _info(self, process: _Process, *, tagged: bool) -> TokenizerInfo:
        from xgrammar import TokenizerInfo

        with self._starting:
            if tagged not in self._infos:
                done = process.run(Job("vocabulary", "", tagged=tagged))
                if done is None or done.error is not None:
                    raise RuntimeError(f"the grammar process has no vocabulary: {done and done.error}")
                self._infos[tagged] = TokenizerInfo.deserialize_json(done.compiled)
                self._json[tagged] = JsonTokens.of(
                    self._infos[tagged].decoded_vocab,
                    allowed=b"\n\r\t" if tagged else b"\n\r",  # a structural tag has free text beside JSON
                )
            return self._infos[tagged]


class _Process:
    """A running grammar process. Raises RuntimeError if it cannot start."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._control, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "headway.engine.grammar_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # so that its jobs end with it
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "0"},
            )
        self._control.settimeout(_START_SECONDS)
        try:
            write_frame(self._control, msgspec.msgpack.encode(vocabulary))
            ready = msgspec.msgpack.decode(read_frame(self._control), type=Done)
        except (EOFError, OSError) as error:
            self.kill()
            raise RuntimeError(f"the grammar process did not start: {type(error).__name__}") from None
        if ready.error is not None:
            self.kill()
            raise RuntimeError(f"the grammar process did not start: {ready.error}")

    @property
    def is_alive(self) -> bool:
        return self._child.poll() is None

    def run(self, job: Job) -> Done | None:
        """Run a job. None: it took too long or too much. Raises RuntimeError if the process is stuck or gone."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                try:
                    socket.send_fds(self._control, [b"j"], [theirs.fileno()])
                except OSError:
                    raise RuntimeError("the grammar process has ended") from None
            ours.settimeout(self._vocabulary.seconds + _GRACE)
            try:
                write_frame(ours, msgspec.msgpack.encode(job))
                return msgspec.msgpack.decode(read_frame(ours), type=Done)
            except TimeoutError:  # not even the kernel ended the job: the process does not take jobs any more
                self.kill()
                raise RuntimeError("the grammar process does not answer") from None
            except (EOFError, OSError):
                if self.is_alive:
                    return None
                raise RuntimeError("the grammar process has ended") from None

    def kill(self) -> None:
        """End the process and the jobs that run in it."""
        if self._child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        with suppress(OSError):
            self._control.close()
        self._child.wait()

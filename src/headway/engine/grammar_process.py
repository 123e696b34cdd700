"""A process in which grammars are compiled, so that a grammar that takes too long or too much can be given up.

    engine  ──(a socket per job)──▶  this process: the vocabulary, one thread
                                       └ fork ▶ one job: compiles, answers by its socket, ends

The vocabulary is read once. A job runs in a process of its own: the kernel ends it when its time is up, wherever it is,
and it can take no more memory than its share. It writes the beginning of an answer too: what a grammar does to the
compiler, or to a matcher, happens here first, and not in the engine.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from headway.engine import schema_keywords
from headway.error_text import first_line
from headway.errors import RequestError
from headway.model_files import load_tokenizer
from headway.parent_process import at_end_of_parent

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarCompiler, TokenizerInfo

THREADS = 2  # of one job
TRIED_STEPS = 48  # tokens of an answer that a job writes, to see how long its masks take
SLOWEST_STEP = 0.1  # seconds of a core; all requests of a batch would wait for such a mask
_PREFIX = "] /"  # the errors of xgrammar begin with a time and the line of its source


class Vocabulary(msgspec.Struct, frozen=True):
    """What the process is made for. size: tokens that the model has logits for. stop_token_ids: that end an answer.

    seconds: a job may take. memory: bytes that it may take, beyond what the process has.
    """

    tokenizer: str
    trust_remote_code: bool
    size: int
    stop_token_ids: tuple[int, ...]
    seconds: float
    memory: int


class Job(msgspec.Struct, frozen=True):
    """kind, text: as in `StructuredOutputs`; kind "vocabulary": the vocabulary itself is asked for."""

    kind: str
    text: str
    disable_any_whitespace: bool = False
    tagged: bool = False


class Done(msgspec.Struct, frozen=True):
    """compiled: JSON of xgrammar. error: why there is none. refused: the error is that of the grammar."""

    compiled: str = ""
    error: str | None = None
    refused: bool = True


def token_infos(tokenizer: Any, vocabulary: Vocabulary) -> dict[bool, TokenizerInfo]:
    """The vocabulary for xgrammar. False: without special tokens, whose text is no text of an answer. True: with them,
    for structural tags, which may name them."""
    from xgrammar import TokenizerInfo

    whole = TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=vocabulary.size, stop_token_ids=list(vocabulary.stop_token_ids)
    )
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {token for token, what in added.items() if what.special}
    plain: list[bytes | str] = [""] * vocabulary.size
    for text, token in tokenizer.get_vocab().items():
        if token < vocabulary.size and token not in special:
            plain[token] = text
    return {False: TokenizerInfo.from_vocab_and_metadata(plain, whole.dump_metadata()), True: whole}


def compile_form(compiler: GrammarCompiler, job: Job) -> CompiledGrammar:
    """Raises RequestError for a schema that cannot be kept to, RuntimeError for what xgrammar cannot read."""
    separators = (",", ":") if job.disable_any_whitespace else None
    to_schema = partial(
        compiler.compile_json_schema, any_whitespace=not job.disable_any_whitespace, separators=separators
    )
    match job.kind:
        case "json":
            schema = json.loads(job.text)
            schema_keywords.prepare(schema)
            return to_schema(json.dumps(schema, ensure_ascii=False))
        case "json_object":
            return to_schema('{"type": "object", "additionalProperties": true}')
        case "regex":
            return compiler.compile_regex(job.text)
        case "choice":
            texts = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(job.text))
            return compiler.compile_grammar("root ::= " + " | ".join(texts))
        case "grammar":
            return compiler.compile_grammar(job.text)
    tag = json.loads(job.text)
    schema_keywords.prepare_tag(tag)
    return compiler.compile_structural_tag(json.dumps(_new_form(tag) if "structures" in tag else tag))


def _new_form(tag: dict[str, Any]) -> dict[str, Any]:
    """The older form of a structural tag, {"structures": [...], "triggers": [...]}, as the newer one."""
    tags = [
        {
            "begin": one["begin"],
            "content": {"type": "json_schema", "json_schema": one.get("schema") or {}},
            "end": one["end"],
        }
        for one in tag["structures"]
    ]
    triggered = {"type": "triggered_tags", "triggers": tag.get("triggers", []), "tags": tags}
    return {"type": "structural_tag", "format": triggered}


def run_job(infos: dict[bool, TokenizerInfo], job: Job) -> Done:
    """Compile a form, and try the first step of an answer in it."""
    from xgrammar import GrammarCompiler

    info = infos[job.tagged]
    if job.kind == "vocabulary":
        return Done(info.serialize_json())
    compiler = GrammarCompiler(info, max_threads=THREADS, cache_enabled=False)
    what = job.kind.replace("_", " ")
    try:
        compiled = compile_form(compiler, job)
        problem = _try_out(compiled)
        if problem is not None:
            return Done(error=f"the {what} {problem}")
        return Done(compiled.serialize_json())
    except RequestError as error:
        return Done(error=str(error))
    except MemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError) as error:  # all that xgrammar raises for bad grammars
        if "bad_alloc" in str(error):
            raise MemoryError from None
        return Done(error=f"the {what} cannot be compiled: {_without_prefix(first_line(error))}")


def _try_out(compiled: CompiledGrammar) -> str | None:
    """Write the beginning of an answer. Returns what is wrong with the grammar: it would hold up all answers."""
    from xgrammar import GrammarMatcher, allocate_token_bitmask

    matcher = GrammarMatcher(compiled)
    mask = allocate_token_bitmask(1, compiled.tokenizer_info.vocab_size)
    dice = random.Random(0)
    for step in range(TRIED_STEPS):
        began = time.process_time()
        matcher.fill_next_token_bitmask(mask)
        allowed = np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little"))
        if not step and not len(allowed):
            return "cannot be met by any text"
        ended = not len(allowed) or not matcher.accept_token(int(dice.choice(allowed))) or matcher.is_terminated()
        if (took := time.process_time() - began) > SLOWEST_STEP:
            return f"takes {took:.2g} s for a token; at most {SLOWEST_STEP:g} s are taken: make it simpler"
        if ended:
            break
    return None


def _without_prefix(message: str) -> str:
    head, found, tail = message.partition(_PREFIX)
    return tail.partition(": ")[2] if found and head.startswith("[") else message


def _limit(vocabulary: Vocabulary) -> None:
    """The kernel holds this process to its share of time and memory."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, vocabulary.seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sizes = Path("/proc/self/statm")
    if sizes.exists():  # of pages; the first is all that is mapped
        taken = int(sizes.read_text().split()[0]) * resource.getpagesize()
        most = taken + vocabulary.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _serve_one(channel: socket.socket, infos: dict[bool, TokenizerInfo], vocabulary: Vocabulary) -> None:
    _limit(vocabulary)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # xgrammar writes warnings about schemas of clients
    try:
        job = msgspec.msgpack.decode(read_frame(channel), type=Job)
        done = run_job(infos, job)
    except MemoryError:
        return  # the other side sees that nothing came
    except Exception as error:
        done = Done(error=f"{type(error).__name__}: {first_line(error)}", refused=False)
    write_frame(channel, msgspec.msgpack.encode(done))


def read_frame(channel: socket.socket) -> bytes:
    """One message: four bytes of length, then so many bytes. Raises EOFError if the other side ends before."""
    size = int.from_bytes(_read(channel, 4), "little")
    return _read(channel, size)


def _read(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def write_frame(channel: socket.socket, message: bytes) -> None:
    """Send one message as `read_frame` reads it."""
    channel.sendall(len(message).to_bytes(4, "little"))
    channel.sendall(message)


def serve(control: socket.socket) -> None:
    """Answer jobs until the engine is gone."""
    vocabulary = msgspec.msgpack.decode(read_frame(control), type=Vocabulary)
    try:
        tokenizer = load_tokenizer(vocabulary.tokenizer, trust_remote_code=vocabulary.trust_remote_code)
        infos = token_infos(tokenizer, vocabulary)
        ready = Done()
    except Exception as error:  # kinds of tokenizers have errors of their own
        infos, ready = {}, Done(error=f"{type(error).__name__}: {first_line(error)}", refused=False)
    write_frame(control, msgspec.msgpack.encode(ready))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # jobs that have ended leave nothing behind
    while infos:
        byte, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not byte:
            return
        for fd in fds:
            with socket.socket(fileno=fd) as channel:
                if os.fork() == 0:
                    _serve_one(channel, infos, vocabulary)
                    os._exit(0)


def main() -> None:
    at_end_of_parent(signal.SIGCONT)
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach a whole process group; the engine decides
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as control, suppress(EOFError, ConnectionError):
        serve(control)
    if os.getpgrp() == os.getpid():  # the engine is gone: nothing waits for the jobs that run
        os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()

"""Forms become grammars in a process of their own: shared, bounded, and given up where they take too much."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xgrammar

from headway import RequestError
from headway.engine import grammar_compiler, grammar_process
from headway.engine.grammar_compiler import GrammarCompiler
from headway.engine.grammar_process import Done, Job, Vocabulary, compile_form, run_job, token_infos
from headway.structured_outputs import StructuredOutputs
from tests.engine.running import eventually
from tests.tiny_tokenizer import byte_tokenizer, fallback_tokenizer

SECONDS = 4.0


def vocabulary_of(tokenizer: Any, folder: Path, padding: int = 7) -> Vocabulary:
    tokenizer.save_pretrained(folder)
    return Vocabulary(
        tokenizer=str(folder),
        trust_remote_code=False,
        size=len(tokenizer) + padding,
        stop_token_ids=(tokenizer.eos_token_id,),
        seconds=SECONDS,
        memory=1 << 30,
    )


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return vocabulary_of(byte_tokenizer(), tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def compiler(vocabulary: Vocabulary) -> Iterator[GrammarCompiler]:
    """With a process of its own."""
    made = GrammarCompiler(vocabulary)
    yield made
    made.close()


class Process:
    """Stands for the process, and answers as it is told: `answers` by the text of the job."""

    def __init__(self, *_: object) -> None:
        self.jobs: list[Job] = []
        self.is_alive = True

    def run(self, job: Job) -> Done | None:
        self.jobs.append(job)
        return Done(error=f"no {job.text}") if job.kind != "vocabulary" else Done(VOCABULARY)

    def kill(self) -> None:
        self.is_alive = False


VOCABULARY = xgrammar.TokenizerInfo(["a", "b", "</s>"], stop_token_ids=[2]).serialize_json()


def test_a_file_in_the_working_folder_is_no_module_of_the_process(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('not the library')")
    monkeypatch.chdir(tmp_path)
    process = grammar_compiler._Process(vocabulary)
    assert process.is_alive
    process.kill()


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """No process is started in this test; every form has an error."""
    stands = Process()
    monkeypatch.setattr(grammar_compiler, "_Process", lambda vocabulary: stands)
    return stands


def forms(*texts: str) -> list[StructuredOutputs]:
    return [StructuredOutputs(regex=text) for text in texts]


def test_a_form_is_compiled_once_and_shared(compiler: GrammarCompiler) -> None:
    form = StructuredOutputs(json={"type": "object", "properties": {"shared": {"type": "string"}}})
    before = compiler.num_compiled
    with ThreadPoolExecutor(4) as threads:
        grammars = list(threads.map(lambda _: compiler.compile(form), range(8)))
    assert compiler.num_compiled == before + 1
    assert all(grammar is grammars[0] for grammar in grammars)
    assert compiler.compile(StructuredOutputs(json=form.text)) is grammars[0]


@pytest.mark.parametrize(
    ("form", "place"),
    [
        ({"grammar": 'root ::= "a" b'}, "line 1, column 14"),
        ({"grammar": 'root ::= "a'}, "line 1, column 12"),
        ({"grammar": 'start ::= "a"'}, 'root rule with name "root"'),
        ({"grammar": 'root ::= root "a"'}, "cannot be met by any text"),
        ({"grammar": "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000}, "column"),
        ({"regex": "(a"}, "position"),
        ({"regex": "a{2,1}"}, "Lower bound"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum greater than maximum"),
        ({"json": {"enum": []}}, "enum"),
        ({"json": {"$ref": "#"}}, "Circular"),
        ({"json": {"$ref": "#/$defs/none"}}, "$defs"),
        ({"json": {"type": "array", "items": {"not": {}}}}, "#/items: 'not'"),
        (
            {"json": {"type": "array", "items": {"type": "string", "pattern": "^(?=a)b$"}}},
            "#/items: 'pattern' that looks",
        ),
        ({"json": {"type": "string", "pattern": "a(?<!b)c"}}, "'pattern' that looks"),
        ({"json": {"type": "string", "const": 5}}, "'const' has no value of the 'type'"),
        ({"json": {"type": ["integer", "null"], "enum": ["a", 0.5]}}, "'enum' has no value of the 'type'"),
        ({"json": {"anyOf": []}}, "'anyOf' is an empty list"),
        ({"json": {"type": []}}, "'type' is an empty list"),
        ({"json": {"type": "string", "maxLength": -1}}, "'maxLength' must be at least 0, got -1"),
        ({"json": {"type": "object", "patternProperties": {"^(?!b)a$": {}}}}, "'patternProperties' that look"),
        ({"json": {"type": "string", "anyOf": [{}, {"type": "integer"}]}}, "'type' of anyOf/1 is not among"),
        ({"json": {"$ref": "#/x/a~1b", "x": {"a/b": {"not": {}}}}}, "#/x/a~1b: 'not'"),
        ({"json": {"type": "array", "items": {"$ref": "#/x/0"}, "x": [{"type": []}]}}, "#/x/0: 'type'"),
        ({"structural_tag": '{"type": "structural_tag"}'}, "format"),
        ({"structural_tag": '{"structures": [{"begin": "<a>"}], "triggers": ["<a>"]}'}, "structural tag"),
    ],
)
def test_a_form_that_cannot_be_compiled_is_refused_with_the_place(
    compiler: GrammarCompiler, form: dict[str, Any], place: str
) -> None:
    with pytest.raises(RequestError, match="structured_outputs: ") as refusal:
        compiler.compile(StructuredOutputs(**form))
    assert place in str(refusal.value) and "\n" not in str(refusal.value) and "/project" not in str(refusal.value)


@pytest.mark.parametrize(
    "form",
    [
        {"regex": "(a{1000}){1000}"},
        {"regex": "(a|aa|aaa)*" * 30},
        {"json": {"type": "array", "items": {"type": "string", "minLength": 1000, "maxLength": 1_000_000}}},
        {"json": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}},
        {"json": {"enum": [f"value {i}" for i in range(3000)]}},
        {"choice": tuple(f"value {i}" for i in range(3000))},
        {"structural_tag": '{"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a>"]}'},
    ],
    ids=["repeated", "ambiguous", "long strings", "recursive", "long enum", "many choices", "older tag"],
)
def test_forms_that_look_costly_come_to_an_end(compiler: GrammarCompiler, form: dict[str, Any]) -> None:
    try:
        assert compiler.compile(StructuredOutputs(**form)).compiled.memory_size_bytes > 0
    except RequestError as error:
        assert "make it simpler" in str(error)


def test_a_form_that_takes_too_long_is_given_up_and_the_next_is_served(compiler: GrammarCompiler) -> None:
    hostile = StructuredOutputs(
        json={
            "type": "object",
            "properties": {f"p{i}": {"type": "string", "pattern": "^a{0,99}$"} for i in range(3500)},
        }
    )
    for _ in range(2):  # the second time it is known
        with pytest.raises(RequestError, match=rf"takes more than there is to compile it \({SECONDS:g} s"):
            compiler.compile(hostile)
    assert compiler.compile(StructuredOutputs(regex="after")) is not None


def test_a_process_that_has_ended_is_started_anew(compiler: GrammarCompiler) -> None:
    compiler.compile(StructuredOutputs(regex="a"))
    assert compiler._process is not None
    os.kill(compiler._process._child.pid, signal.SIGKILL)
    compiler._process._child.wait()
    assert compiler.compile(StructuredOutputs(regex="b")) is not None


@pytest.mark.parametrize("ended", ["closed", "without its engine"])
def test_jobs_end_with_their_process(vocabulary: Vocabulary, ended: str) -> None:
    compiler = GrammarCompiler(vocabulary)
    compiler.compile(StructuredOutputs(regex="a"))
    process = compiler._process
    assert process is not None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(process._control, [b"j"], [theirs.fileno()])  # a job that waits for its text
        assert eventually(lambda: len(children_of(process._child.pid)) == 1)
        (job,) = children_of(process._child.pid)
        os.kill(job, signal.SIGSTOP)  # it does not end by itself
        try:
            if ended == "closed":
                compiler.close()
            else:
                process._control.shutdown(socket.SHUT_RDWR)
                process._child.wait()
            assert eventually(lambda: not is_running(job))
        finally:
            with suppress(ProcessLookupError):
                os.kill(job, signal.SIGKILL)
    compiler.close()


_ENGINE = """
import sys, time
import msgspec
from headway.engine.grammar_compiler import _Process
from headway.engine.grammar_process import Vocabulary
process = _Process(msgspec.json.decode(sys.argv[1], type=Vocabulary))
print(process._child.pid, flush=True)
time.sleep(600)
"""


def test_a_process_that_is_stopped_ends_with_its_engine(vocabulary: Vocabulary) -> None:
    command = [sys.executable, "-c", _ENGINE, msgspec.json.encode(vocabulary).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        pid = int(engine.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        engine.kill()
    try:
        assert eventually(lambda: not is_running(pid))
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def children_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_compiler_that_is_closed_compiles_no_more(process: Process) -> None:
    compiler = GrammarCompiler(Vocabulary("", False, 3, (2,), 1.0, 1))
    with pytest.raises(RequestError):
        compiler.compile(StructuredOutputs(regex="a"))
    compiler.close()
    assert not process.is_alive
    with pytest.raises(RuntimeError, match="shutting down"):
        compiler.compile(StructuredOutputs(regex="b"))


def test_words_and_byte_fallback_are_spelled_as_the_tokenizer_spells_them() -> None:
    """SentencePiece: words that carry their space, bytes for the rest; the model has more logits than there are
    tokens, and no answer has one of these."""
    tokenizer = fallback_tokenizer()
    size = len(tokenizer) + 100
    infos = token_infos(tokenizer, Vocabulary("", False, size, (tokenizer.eos_token_id,), SECONDS, 1 << 30))
    xgrammar_compiler = xgrammar.GrammarCompiler(infos[False], max_threads=1)
    matcher = xgrammar.GrammarMatcher(compile_form(xgrammar_compiler, Job("regex", " hello( world)?ü")))

    def allowed() -> set[str]:
        return set(tokenizer.convert_ids_to_tokens(allowed_by(matcher, size)))

    assert allowed() == {"▁hello", "▁", "<0x20>"}
    assert matcher.accept_token(tokenizer.convert_tokens_to_ids("▁hello"))
    assert allowed() == {"▁world", "▁", "<0x20>", "<0xC3>"}
    for token in ("<0xC3>", "<0xBC>"):
        assert matcher.accept_token(tokenizer.convert_tokens_to_ids(token))
    assert allowed() == {"</s>"}


def allowed_by(matcher: xgrammar.GrammarMatcher, size: int) -> list[int]:
    mask = xgrammar.allocate_token_bitmask(1, size)
    matcher.fill_next_token_bitmask(mask)
    return np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8)[0], bitorder="little")).tolist()


def test_a_grammar_whose_masks_take_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests of a batch would wait for it."""
    tokenizer = byte_tokenizer()
    infos = token_infos(tokenizer, Vocabulary("", False, len(tokenizer), (tokenizer.eos_token_id,), SECONDS, 1 << 30))
    assert run_job(infos, Job("regex", "[ab]{9}")).error is None
    monkeypatch.setattr(grammar_process, "SLOWEST_STEP", 0.0)
    error = run_job(infos, Job("regex", "[ab]{9}")).error
    assert error is not None and "s for a token; at most 0 s are taken" in error


def test_special_tokens_are_no_text(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(StructuredOutputs(regex="<eos>|x"))
    allowed = allowed_by(xgrammar.GrammarMatcher(grammar.compiled), grammar.compiled.tokenizer_info.vocab_size)
    assert sorted(byte_tokenizer().convert_ids_to_tokens(allowed)) == ["<", "x"]


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(process: Process) -> None:
    compiler = GrammarCompiler(Vocabulary("", False, 3, (2,), 1.0, 1), most_grammars=2)

    def refused(form: StructuredOutputs) -> None:
        with pytest.raises(RequestError, match=f"no {form.text}"):
            compiler.compile(form)

    a, b, c = forms("a", "b", "c")
    for form in (a, b, a, c, a, b):
        refused(form)
    assert [job.text for job in process.jobs if job.kind == "regex"] == ["a", "b", "c", "b"]
    assert compiler.num_kept == 2


def test_what_is_kept_is_bounded_in_bytes(process: Process) -> None:
    compiler = GrammarCompiler(Vocabulary("", False, 3, (2,), 1.0, 1), most_bytes=100)
    for text in ("a" * 30, "b" * 30, "c" * 30, "d" * 300):
        with pytest.raises(RequestError):
            compiler.compile(StructuredOutputs(regex=text))
    assert compiler.num_kept == 1, "the last is kept, however large"


def test_a_failure_of_the_process_is_no_refusal_and_is_not_kept(process: Process) -> None:
    compiler = GrammarCompiler(Vocabulary("", False, 3, (2,), 1.0, 1))
    process.run = lambda job: Done(error="broken", refused=False)  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            compiler.compile(StructuredOutputs(regex="a"))
    assert compiler.num_kept == 0


def test_all_that_wait_for_a_form_hear_of_its_failure(process: Process) -> None:
    entered, go = threading.Event(), threading.Event()

    def run(job: Job) -> Done:
        entered.set()
        assert go.wait(30)
        raise RuntimeError("the grammar process has ended")

    process.run = run  # type: ignore[method-assign]
    compiler = GrammarCompiler(Vocabulary("", False, 3, (2,), 1.0, 1))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(compiler.compile, StructuredOutputs(regex="a"))
        assert entered.wait(30)
        second = threads.submit(compiler.compile, StructuredOutputs(regex="a"))
        go.set()
        for waiting in (first, second):
            with pytest.raises(RuntimeError, match="has ended"):
                waiting.result(30)

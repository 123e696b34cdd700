"""Answers in a given form, by a model of random weights: whatever runs beside them, and whatever happens to them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from headway import LLM
from headway.accuracy.pair import TRANSPORTS, ask_pair
from headway.engine import engine as engine_module
from headway.executor import grammar_rows, sampling_state
from headway.executor.grammar_rows import GrammarRows
from headway.request import FinishReason
from headway.sampling import SamplingParams
from headway.structured_outputs import StructuredOutputs
from tests.executor import served_jobs
from tests.executor.grammar_models import EOS, HereCompiler, byte_model, text_of
from tests.executor.random_schemas import random_schema
from tests.executor.served_jobs import BLOCK_SIZE, Job, Served

MAX_MODEL_LEN = 240
DRAWN = SamplingParams(temperature=1.0, max_tokens=300, seed=7)
LIST = StructuredOutputs(json={"type": "array", "items": {"enum": ["ab", "c"]}, "minItems": 3, "maxItems": 3})
WORD = StructuredOutputs(regex="[a-f]{4,9}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_model(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(autouse=True)
def _compile_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_grammar_compiler", lambda files: HereCompiler())


@pytest.fixture(params=["on a CPU", "as on CUDA"])
def both_ways(request: pytest.FixtureRequest) -> None:
    if request.param == "as on CUDA":
        request.getfixturevalue("as_on_cuda")


def serve(folder: Path, jobs: Sequence[Job], *, overlapped: bool = True, fits: int = 8, slots: int = 6) -> Served:
    return served_jobs.serve(
        jobs,
        fits=fits,
        max_model_len=MAX_MODEL_LEN,
        model=str(folder),
        max_num_seqs=slots,
        max_num_batched_tokens=64,
        async_scheduling=overlapped,
    )


def ask(folder: Path, form: StructuredOutputs | None, **sampling: Any) -> tuple[list[int], FinishReason]:
    """The answer to one request."""
    params = replace(DRAWN, structured_outputs=form, **sampling)
    served = serve(folder, [Job([5, 6, 7], params)])
    return served.answers[0], served.why[0]


def schemas(count: int, seed: int = 2) -> list[dict[str, Any]]:
    return [random_schema(random.Random(seed * 1000 + number)) for number in range(count)]


def form_jobs(found: Sequence[dict[str, Any]]) -> list[Job]:
    """A job for each schema, in different ways of drawing."""
    ways = (
        DRAWN,
        replace(DRAWN, seed=8, logprobs=2),
        replace(DRAWN, temperature=0.0),
        replace(DRAWN, seed=9, presence_penalty=0.5, logit_bias={40: 3.0}, top_p=0.9),
    )
    return [
        Job(
            [3 + number % 7] * (24 + number % 15),
            replace(ways[number % len(ways)], structured_outputs=StructuredOutputs(json=schema)),
        )
        for number, schema in enumerate(found)
    ]


def test_every_answer_keeps_to_its_schema_and_overlap_and_preemption_change_no_token(
    folder: Path, both_ways: None
) -> None:
    found = schemas(14)
    free = [Job([9] * 20, replace(DRAWN, max_tokens=110, ignore_eos=True, seed=seed)) for seed in range(3)]
    jobs = [*free, *form_jobs(found)]  # the free answers grow until the others have to make room
    plain = serve(folder, jobs, overlapped=False)
    for schema, tokens, why in zip(found, plain.answers[3:], plain.why[3:], strict=True):
        assert why is FinishReason.STOP, f"{schema}: {text_of(tokens)!r}"
        assert tokens[-1] == EOS
        text = text_of(tokens)
        assert jsonschema_rs.is_valid(schema, json.loads(text)), f"{schema}: {text!r}"
    overlapped = serve(folder, jobs)
    assert overlapped.most_in_flight == 2 and overlapped.answers == plain.answers
    tight = serve(folder, jobs, fits=1)
    assert tight.preemptions > 0 and tight.answers == plain.answers


def test_aborts_and_ends_in_flight_leave_the_grammars_of_others_alone(folder: Path, both_ways: None) -> None:
    """Slots change hands while steps that compute for their former requests are on the device."""
    jobs = []
    for number in range(30):
        sampling = replace(DRAWN, seed=number, max_tokens=(2, 40, 300)[number % 3], structured_outputs=LIST)
        if number % 5 == 4:
            sampling = replace(sampling, structured_outputs=None, max_tokens=9)
        jobs.append(Job([4 + number % 3] * 5, sampling, aborted=number % 6 == 1))
    served = serve(folder, jobs, slots=3)
    allowed = re.compile(r'\s*\[\s*("(ab|c)"\s*(,\s*"(ab|c)"\s*){2})\]')
    for job, tokens, why in zip(jobs, served.answers, served.why, strict=True):
        if job.sampling.structured_outputs is not None and why is FinishReason.STOP:
            assert allowed.fullmatch(text_of(tokens)), text_of(tokens)
        elif job.sampling.structured_outputs is not None:
            assert text_of(tokens).lstrip()[:1] in ("", "[")


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        (WORD, "[a-f]{4,9}"),
        (StructuredOutputs(choice=("yes", 'no "quotes"\n', "ü")), 'yes|no "quotes"\n|ü'),
        (StructuredOutputs(grammar='root ::= "<" word ">"\nword ::= [x-z] word | "."'), r"<[x-z]*\.>"),
        (StructuredOutputs(json_object=True), r"(?s)\s*\{.*"),
        (
            StructuredOutputs(json={"const": {"a": [1, "b"]}}, disable_any_whitespace=True),
            re.escape('{"a":[1,"b"]}'),
        ),
    ],
)
def test_each_kind_of_form_is_kept_to(folder: Path, form: StructuredOutputs, pattern: str) -> None:
    for seed in range(2):
        tokens, _ = ask(folder, form, seed=seed, max_tokens=80)
        assert re.fullmatch(pattern, text_of(tokens)), text_of(tokens)


def test_a_structural_tag_gives_a_form_to_what_is_between_tags_and_to_nothing_else(folder: Path) -> None:
    tag = {
        "type": "structural_tag",
        "format": {
            "type": "triggered_tags",
            "triggers": ["a"],
            "tags": [{"begin": "a<", "content": {"type": "regex", "pattern": "[0-9]{2}"}, "end": ">"}],
            "at_least_one": True,
            "stop_after_first": True,
        },
    }
    tokens, why = ask(folder, StructuredOutputs(structural_tag=json.dumps(tag)))
    assert why is FinishReason.STOP and re.fullmatch(r"a<[0-9]{2}>", text_of(tokens)), text_of(tokens)


def test_the_end_of_a_grammar_ends_the_answer_when_min_tokens_allows_it(folder: Path) -> None:
    """Until then the grammar goes on as long as it can, and the text stays what the grammar allows."""
    for seed in range(4):
        early, _ = ask(folder, WORD, seed=seed)
        assert 5 <= len(early) <= 10
        late, why = ask(folder, WORD, seed=seed, min_tokens=10)
        assert why is FinishReason.STOP and re.fullmatch("[a-f]{9}", text_of(late))
        assert late[:9].count(EOS) == 0 and late[9] == EOS
    choice = StructuredOutputs(choice=("no",))
    tokens, _ = ask(folder, choice, min_tokens=6)
    assert text_of(tokens) == "no" and len(tokens) >= 6, "it can only end, so end tokens fill what is missing"


def test_ignore_eos_goes_on_with_end_tokens_and_the_text_stays(folder: Path) -> None:
    tokens, why = ask(folder, StructuredOutputs(choice=("no",)), ignore_eos=True, max_tokens=12)
    assert why is FinishReason.LENGTH and text_of(tokens) == "no" and tokens[2:] == [EOS] * 10


def test_a_token_that_stops_the_answer_is_no_part_of_its_grammar(folder: Path) -> None:
    """A stop token ends a text that is complete; a grammar that could write it does not."""
    (stop,) = [token for token in range(256) if text_of([token]) == "b"]
    for seed in range(3):
        tokens, why = ask(folder, WORD, seed=seed, stop_token_ids=(stop,))
        assert why is FinishReason.STOP and re.fullmatch("[acdef]{4,9}", text_of(tokens[:-1]))


def test_the_form_begins_behind_the_reasoning(folder: Path) -> None:
    """The tokens that end the reasoning are found in the output alone, also over a preemption."""
    (first,), (second,) = ([token for token in range(256) if text_of([token]) == text] for text in ".!")
    form = replace(StructuredOutputs(choice=("yes",)), starts_after=(first, second))
    free, why = ask(folder, form, logit_bias={EOS: -100}, max_tokens=40)
    jobs = [Job([7, first, second], replace(DRAWN, seed=seed, structured_outputs=form)) for seed in range(6)]
    biased = [
        replace(job, sampling=replace(job.sampling, logit_bias={first: 30.0, second: 30.0, EOS: -50.0})) for job in jobs
    ]
    served = serve(folder, biased)
    for tokens in served.answers:
        at = next(i for i in range(1, len(tokens)) if (tokens[i - 1], tokens[i]) == (first, second))
        assert text_of(tokens[at + 1 :]) == "yes" and at + 5 == len(tokens)
    assert why is FinishReason.LENGTH and "yes" not in text_of(free)[:3]


def test_a_grammar_without_an_end_ends_by_length_and_holds_up_no_request(folder: Path) -> None:
    endless = StructuredOutputs(
        json={"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False}
    )
    served = serve(
        folder, [Job([5], replace(DRAWN, max_tokens=50, structured_outputs=form)) for form in (endless, WORD)]
    )
    assert served.why == [FinishReason.LENGTH, FinishReason.STOP]


def test_white_space_between_parts_of_json_comes_to_an_end(folder: Path) -> None:
    """A model that likes it would write nothing else."""
    (space,) = [token for token in range(256) if text_of([token]) == " "]
    form = StructuredOutputs(json={"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})
    tokens, why = ask(folder, form, logit_bias={space: 50.0})
    text = text_of(tokens)
    assert why is FinishReason.STOP and json.loads(text) == {"a": 1}
    assert " " * 16 in text and " " * 17 not in text


def test_a_batch_without_grammars_runs_no_code_of_grammars(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("_forbid", "_admit_grammar"):
        original = getattr(sampling_state.SamplingState, name)

        def counted(self: Any, *given: Any, name: str = name, original: Any = original) -> Any:
            if name == "_forbid" or given[0].request.grammar is not None:
                calls.append(name)
            return original(self, *given)

        monkeypatch.setattr(sampling_state.SamplingState, name, counted)
    monkeypatch.setattr(GrammarRows, "__init__", lambda *_: calls.append("GrammarRows"))
    serve(folder, [Job([5] * 9, replace(DRAWN, max_tokens=20, ignore_eos=True)) for _ in range(4)])
    assert calls == []


def test_masks_are_made_only_in_steps_that_have_a_row_with_a_grammar(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[GrammarRows] = []
    start = GrammarRows.__init__

    def noted(self: GrammarRows, vocab_size: int) -> None:
        start(self, vocab_size)
        made.append(self)

    monkeypatch.setattr(grammar_rows.GrammarRows, "__init__", noted)
    free = replace(DRAWN, max_tokens=60, ignore_eos=True)
    served = serve(folder, [Job([5], free), Job([6], replace(DRAWN, structured_outputs=WORD))])
    (rows,) = made
    assert len(served.answers[0]) == 60
    assert len(served.answers[1]) <= rows.num_masks <= len(served.answers[1]) + 1, "one step may be of a stale row"


def test_a_prefill_engine_draws_the_first_token_of_the_form_and_the_decode_engine_goes_on(folder: Path) -> None:
    def make(**settings: Any) -> LLM:
        common: dict[str, Any] = {"max_num_seqs": 4, "num_blocks": 64, "block_size": BLOCK_SIZE, "device": "cpu"}
        return LLM(str(folder), max_model_len=MAX_MODEL_LEN, **(common | settings))

    questions = [
        (job.prompt, replace(job.sampling, seed=number)) for number, job in enumerate(form_jobs(schemas(6, seed=3)))
    ]
    pair = ask_pair(make, TRANSPORTS[0], questions, 64)
    with make() as alone:
        expected = alone.generate(
            [prompt for prompt, _ in questions], [sampling for _, sampling in questions], use_tqdm=False
        )
    for mine, other in zip(pair.outputs, expected, strict=True):
        assert mine.outputs[0].token_ids == other.outputs[0].token_ids
        assert mine.outputs[0].finish_reason is FinishReason.STOP

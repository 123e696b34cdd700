"""A server as a process of its own, as users run it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import httpx
import openai
from transformers import LlamaConfig

from tests.server.fakes import MODEL
from tests.tiny_tokenizer import CHAT_TEMPLATE, byte_tokenizer

START_TIMEOUT = 240.0
PATIENCE = 240.0  # seconds for what a server does while the machine is busy with much else
_SERVE = """
import json, sys
import msgspec
from headway.config import EngineConfig
from headway.server.serve import serve
from headway.cluster.supervisor import serve_supervised
from headway.server.settings import ServerSettings
if __name__ == "__main__":
    config, options = json.loads(sys.argv[1])
    settings = msgspec.convert(options, ServerSettings)
    several = settings.api_server_count > 1 or settings.data_parallel_size > 1
    sys.exit((serve_supervised if several else serve)(EngineConfig(**config), settings))
"""


def tiny_config() -> LlamaConfig:
    tokenizer = byte_tokenizer()
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def save_without_weights(folder: Path) -> None:
    """What a simulated executor needs of a model: all but the weights."""
    config = tiny_config()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    byte_tokenizer(CHAT_TEMPLATE).save_pretrained(folder)


class Server:
    """Runs until `stop`; the temp folder of its processes is `folder`, so that leftovers can be seen.

    wait: until requests are taken; without it there is no client yet. env: more variables for its processes.
    options: more fields of `ServerSettings`. ca_certs: of a server with TLS.
    """

    def __init__(
        self,
        model: Path,
        *,
        engine_args: tuple[str, ...] = (),
        grace: float = 10.0,
        wait: bool = True,
        admin_api: bool = False,
        env: dict[str, str] | None = None,
        options: dict[str, object] | None = None,
        ca_certs: str | None = None,
        **config: object,
    ) -> None:
        self._verify = True if ca_certs is None else ssl.create_default_context(cafile=ca_certs)
        self.folder = Path(tempfile.mkdtemp(prefix="hw-"))
        options = {
            "port": 0,
            "shutdown_grace": grace,
            "engine_args": engine_args,
            "admin_api": admin_api,
            **(options or {}),
        }
        self._log = (self.folder.parent / f"{self.folder.name}.log").open("w+b")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _SERVE,
                json.dumps(
                    [
                        {"model": str(model), "served_model_name": MODEL, "preprocess_timeout": PATIENCE, **config},
                        options,
                    ]
                ),
            ],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "TMPDIR": str(self.folder), "OMP_NUM_THREADS": "1", **(env or {})},
            text=True,
        )
        if wait:
            self._wait()

    def _wait(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(rf"Headway serving {MODEL} at (https?://127\.0\.0\.1:\d+)\n", line)
        if found is None:
            self.kill()
            raise AssertionError(f"printed {line!r} and on standard error:\n{self.log()}")
        self.url = found[1]
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE, verify=self._verify)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
        self.async_openai = openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        self._log.close()
        Path(self._log.name).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)  # a process that ends removes its own part of it meanwhile

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()  # any of its threads may be the one that forked
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]

    def metric(self, name: str) -> float:
        page = self.http.get("/metrics").text
        (line,) = (line for line in page.splitlines() if line.startswith(f"headway:{name}{{"))
        return float(line.rsplit(" ", 1)[1])

    def wait_for(self, name: str, value: float, timeout: float = PATIENCE) -> None:
        """Until the metric has the value."""
        until = time.monotonic() + timeout
        while (now := self.metric(name)) != value:
            assert time.monotonic() < until, f"{name} is still {now}"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Signal it; returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def leftovers(self) -> list[Path]:
        return list(self.folder.iterdir())


def is_running(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def failed_start(model: Path | str, **options: object) -> tuple[int, str]:
    """(exit status, standard error) of a server that cannot start."""
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, json.dumps([{"model": str(model)}, {"port": 0, **options}])],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT,
    )
    assert not done.stdout
    return done.returncode, done.stderr

"""Make the pictures in docs/images: a plot of `headway bench serve`, and the screen of `headway top`.

    python tools/pictures.py

Each is of a real run on this machine, with a random model: the numbers differ from run to run. Takes about a minute,
and needs matplotlib (the `bench` extra).
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import threading
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from headway.bench.datasets import Dataset, Target, Workload
from headway.bench.load import LoadGenerator
from headway.bench.server_process import ServerProcess
from headway.cli import main
from headway.commands.remote_server import RemoteServer
from headway.commands.top import page_of
from headway.top.screen import Screen
from headway.top.window import Window

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
MODEL = "tiny-random:llama"
MOST_BYTES = 150 * 1024
_WINDOWS, _WINDOW_SECONDS = 12, 1.0
# Without the fonts that rich would have a browser fetch from another host.
SVG = re.sub(r"@font-face \{\{.*?\n    \}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def bench_serve(file: Path) -> None:
    arguments = ["--model", MODEL, "--request-rate", "5,10,20,40", "--num-prompts", "150"]
    if main(["bench", "serve", *arguments, "--plot", str(file)]) != 0:
        sys.exit("headway bench serve failed")


def top(file: Path) -> None:
    """The screen after some windows of a load that comes and goes."""
    with ServerProcess([MODEL, "--max-num-seqs", "32", "--num-blocks", "1024"]) as started:
        target = Target.ask(started.base_url, None)
        workload = Workload(
            dataset=Dataset.RANDOM, num_prompts=240, burstiness=0.2, prefix_len=64, output_len=64, range_ratio=0.5
        )
        generator = LoadGenerator(started.base_url, target.model, ignore_eos=True)
        load = threading.Thread(target=lambda: asyncio.run(generator.run(workload.requests(target, 16))))
        load.start()
        server = RemoteServer(started.base_url, {}, timeout=5.0)
        server_shown = Screen("http://127.0.0.1:8000")
        before = page_of(server)
        for _ in range(_WINDOWS):
            time.sleep(_WINDOW_SECONDS)
            window = Window(before, page_of(server))
            before, picture = window.now, server_shown.picture(window)
        load.join()
    console = Console(record=True, width=84, file=io.StringIO())
    console.print(picture)
    file.write_text(console.export_svg(title="headway top", code_format=SVG), encoding="utf-8")


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for draw, name in ((top, "top.svg"), (bench_serve, "bench-serve.png")):
        draw(IMAGES / name)
        if (IMAGES / name).stat().st_size > MOST_BYTES:
            sys.exit(f"{name} has more than {MOST_BYTES} bytes")

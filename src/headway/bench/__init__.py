"""Benchmarks of what users run, one file each; `app` is the command `headway bench`.

    serve.py            a server under load: datasets.py, traces.py, workload.py, load.py, report.py
    abuse.py            what clients notice of other clients' abuse: attacks.py, costly_bodies.py, raw_http.py,
                        neighbour.py, neighbour_process.py, peak_memory.py
    soak.py             the memory of an engine process under very many short requests
    throughput.py       tokens per second beside transformers: shapes.py, generators.py, generator_process.py
    transfer.py         KV blocks between two processes: lending_process.py
    benchmark.py        common to all benchmarks: tables.py, plot.py, machine.py, rounds.py
    child_process.py    programs that run beside this one: answering.py (their side), server_process.py

A benchmark may import anything of headway; only the command line imports a benchmark. Each has `--json`: one flat JSON
object per row and line, with units in the key names.

The benchmarks of the scheduler are a separate package, `lab/` in the repository. Its commands are found by their entry
points in the group ENTRY_POINTS, and imported when they are run.
"""

from typing import Any

import typer

from headway.bench import abuse, serve, soak, throughput, transfer
from headway.commands.command import Command
from headway.commands.laboratory import LaboratoryGroup

ENTRY_POINTS = "headway.bench"


class _Benchmarks(LaboratoryGroup):
    entry_point_group = ENTRY_POINTS

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Without the laboratory, an unknown name raises ValueError, which says how to install it."""
        found = super().get_command(ctx, cmd_name)
        if found is None and not self.laboratory():
            raise ValueError(
                f"no benchmark {cmd_name!r} is installed (there are {', '.join(self.commands)}); those of the "
                "scheduler come with the repository: run `make setup` in a clone, or `pip install ./lab` there"
            )
        return found


app = typer.Typer(
    cls=_Benchmarks,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
_EXAMPLES = {
    "abuse": ("", "--only shutdown", "--json"),
    "serve": ("", "--base-url localhost:8000 --request-rate 4,8,16", "--dataset random --input-len 512 --json"),
    "soak": ("", "--requests 50000 --json", "--executor transformers"),
    "throughput": ("", "--device cuda --shape qwen3-8b", "--threads 2 --requests 8,64 --json"),
    "transfer": ("", "--mib 256 --streams 8", "--json"),
}
for _name, _module in (
    ("abuse", abuse),
    ("serve", serve),
    ("soak", soak),
    ("throughput", throughput),
    ("transfer", transfer),
):
    _lines = (f"headway bench {_name} {options}".rstrip() for options in _EXAMPLES[_name])
    app.command(_name, cls=Command, epilog="\n".join(_lines))(_module.command)


@app.callback()
def _bench() -> None:
    """Measure Headway. Every benchmark has --json: one flat object per row and line."""

"""Benchmarks, one file each; `app` is the command `headway bench`.

A benchmark may import anything of headway; nothing but the command line imports a benchmark. Each has `--json`: one
flat JSON object per row and line, units in the key names. To add one: write a module with a function `command` that
typer can read, register it here, and give it a line in `suite.SUITE`, so that `headway bench all` runs it too.
"""

import typer

from headway.bench import churn, gap, intake, memory, preempt, prefix, query, serve, step, suite, throughput

app = typer.Typer(no_args_is_help=True, add_completion=False)
app.command("step")(step.command)
app.command("churn")(churn.command)
app.command("prefix")(prefix.command)
app.command("preempt")(preempt.command)
app.command("query")(query.command)
app.command("gap")(gap.command)
app.command("intake")(intake.command)
app.command("serve")(serve.command)
app.command("throughput")(throughput.command)
app.command("memory")(memory.command)
app.command("all")(suite.command)


@app.callback()
def _bench() -> None:
    """Measure Headway. Every benchmark has --json: one flat object per row and line."""

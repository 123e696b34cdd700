"""The laboratory: benchmarks of Headway's scheduler, alone, under load and beside other engines' schedulers.

    benches/      one file per benchmark, each a command of `headway bench`
    schedulers/   schedulers without a device: the workloads, who runs them, and ours as the workloads see it
    peers/        other engines' schedulers: their environments, processes and drivers
    rigs/         what a benchmark needs around the engine: a simulated device, a reader of its messages, scales
    suite.py      `headway bench all`

The laboratory may import anything of headway; headway imports nothing of it. Its commands reach the command line by the
entry points `headway.bench` of `lab/pyproject.toml`. Each has `--json`: one flat JSON object per row and line, units in
the key names. To add one: write a module in `benches/` with a function `command` that typer can read, give it an entry
point, and a line in `suite.SUITE`, so that `headway bench all` runs it too; then install the laboratory again.
"""

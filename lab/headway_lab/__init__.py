"""The laboratory: benchmarks of Headway's scheduler, alone, under load and beside other engines' schedulers.

    benches/      one file per benchmark, each a command of `headway bench`
    schedulers/   schedulers without a device: the workloads, the contenders, and the driver of our scheduler
    peers/        schedulers of other engines: their environments, processes and drivers
    rigs/         around the engine: a simulated device, a reader of its messages, a scale for its memory;
                  engines on virtual time
    suite.py      `headway bench all`

The laboratory may import anything of headway; headway imports nothing of it. Its commands reach the command line by the
entry points `headway.bench` of `lab/pyproject.toml`. Each has `--json`: one flat JSON object per row and line, units in
the key names. To add one: write a module in `benches/` with a function `command` that typer can read, give it an entry
point, and a line in `suite.SUITE`, so that `headway bench all` runs it too; then install the laboratory again.
"""

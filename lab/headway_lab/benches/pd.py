"""`headway bench pd`: prefill and decode on engines of their own, beside the same hardware as two mixed engines.

On virtual time: several real processes on one machine would share its cores, and compare nothing. The cores are real,
and so are the lender and the receiver of the connectors; a step lasts as long as a formula says, and the blocks travel
at a speed that is measured in the same run, by the code of `headway bench transfer`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from headway.bench import plot
from headway.bench.benchmark import Table, run_benchmark
from headway.bench.plot import PlotOption
from headway.bench.report import Row, percentile
from headway.bench.tables import Column, JsonOption
from headway.bench.transfer import BLOCK_SIZE, Bench, layout_of
from headway.commands.lists import numbers, whole_numbers
from headway.config import KVTransport, Role, SchedulerConfig
from headway.executor.simulated import StepTimeModel
from headway.request import Request
from headway.scheduler import AddRequest, Effects
from headway_lab.rigs.virtual_clients import Clients, Kind, Traffic
from headway_lab.rigs.virtual_engine import VirtualEngine
from headway_lab.rigs.virtual_link import Network, VirtualLink
from headway_lab.rigs.virtual_time import VirtualTime

MIN_REQUESTS = 100  # for a 99th percentile
MEASURED_BLOCKS, MEASURED_ROUNDS, STREAMS = 128, 7, 4  # 64 MiB
MESSAGES_OF_A_TRANSFER = 4  # one after the other: watch, progress, consume, consumed

COLUMNS = (
    Column("requests/s", "request_rate_req_per_s", "g"),
    Column("engines", "engines", ""),
    Column("tokens per step", "budget_tokens", ",d"),
    Column("blocks by", "transport", ""),
    Column("GB/s", "gb_per_s", ".2f"),
    Column("TTFT p50, ms", "ttft_p50_ms", ",.0f"),
    Column("p99", "ttft_p99_ms", ",.0f"),
    Column("ITL p50, ms", "itl_p50_ms", ",.1f"),
    Column("p99", "itl_p99_ms", ",.1f"),
    Column("output tokens/s", "output_throughput_tok_per_s", ",.0f"),
    Column("busy, %", "busy", ""),
    Column("preempted", "preemptions", ",d"),
    Column("not pulled", "lost_pulls", ",d"),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Of one engine; all engines have the same."""

    step_time: StepTimeModel
    num_blocks: int
    slots: int
    max_model_len: int

    def config(self, budget: int, role: Role = Role.MIXED) -> SchedulerConfig:
        """budget: the most tokens of a step."""
        return SchedulerConfig(
            role=role,
            max_num_seqs=self.slots,
            max_num_batched_tokens=budget,
            max_model_len=self.max_model_len,
            block_size=BLOCK_SIZE,
            num_blocks=self.num_blocks,
            reads_same_step=True,
        )


@dataclass(frozen=True, slots=True)
class Setup:
    """Two engines. network: between P and D; None: both are mixed, and requests go to them in turn.

    budget: the most tokens of a step. after_prefill: see `VirtualLink`.
    """

    budget: int
    network: Network | None = None
    after_prefill: bool = False

    @property
    def engines(self) -> str:
        if self.network is None:
            return "2 mixed"
        return "1P1D, routed" if self.after_prefill else "1P1D"


def run(setup: Setup, machine: Machine, traffic: Traffic) -> Row:
    """The figures of one run."""
    clock = VirtualTime()
    clients: Clients

    def take(effects: Effects) -> None:
        clients.take(effects)

    if setup.network is None:
        engines = [VirtualEngine(clock, machine.config(setup.budget), machine.step_time, take) for _ in range(2)]
        send: Callable[[Request], None] = lambda request: engines[request.uid % 2].tell(AddRequest(request))  # noqa: E731
    else:
        engines = [
            VirtualEngine(clock, machine.config(setup.budget, role), machine.step_time)
            for role in (Role.PREFILL, Role.DECODE)
        ]
        link = _joined(clock, engines, setup, machine, take)
        send = link.add
    clients = Clients(clock, traffic, send)
    clock.run(lambda: clients.are_done)
    for engine in engines:
        engine.core.audit()
    return _row(setup, traffic, engines, clients)


def _joined(
    clock: VirtualTime,
    engines: Sequence[VirtualEngine],
    setup: Setup,
    machine: Machine,
    take: Callable[[Effects], None],
) -> VirtualLink:
    """P and D, joined. take: gets what D has for clients."""
    assert setup.network is not None
    p, d = engines
    layout = layout_of(machine.num_blocks)
    link = VirtualLink(clock, p, d, layout, setup.network, after_prefill=setup.after_prefill)

    def of_d(effects: Effects) -> None:
        take(effects)
        link.of_d(effects)

    p.on_effects, d.on_effects = link.of_p, of_d
    return link


def _row(setup: Setup, traffic: Traffic, engines: Sequence[VirtualEngine], clients: Clients) -> Row:
    snapshots = [engine.core.snapshot() for engine in engines]
    shares = [round(100 * engine.busy_s / clients.ended_at) for engine in engines]
    names = ("P", "D") if setup.network is not None else ("", "")
    row: Row = {
        "request_rate_req_per_s": traffic.rate,
        "engines": setup.engines,
        "budget_tokens": setup.budget,
        "transport": None if setup.network is None else setup.network.name,
        "requests": traffic.requests,
        "seed": traffic.seed,
        "output_throughput_tok_per_s": round(clients.num_tokens / clients.ended_at, 1),
        "duration_s": round(clients.ended_at, 3),
        "busy": ", ".join(f"{name} {share}".strip() for name, share in zip(names, shares, strict=True)),
        "steps": sum(engine.num_steps for engine in engines),
        "preemptions": sum(snapshot.num_preemptions for snapshot in snapshots),
    }
    if setup.network is not None:
        row |= {
            "lost_pulls": snapshots[1].num_lost_pulls,
            "gb_per_s": round(setup.network.bytes_per_s / 1e9, 3),
            "message_ms": round(setup.network.message_s * 1e3, 4),
        }
    row |= _percentiles("ttft", list(clients.first_s.values())) | _percentiles("itl", clients.gaps_s)
    for index, kind in enumerate(traffic.kinds):
        first = [seconds for uid, seconds in clients.first_s.items() if clients.kind_of[uid] == index]
        row |= _percentiles(f"ttft_of_{kind.prompt_tokens}", first)
    return row


def _percentiles(name: str, seconds: Sequence[float]) -> Row:
    row: Row = {}
    for percent in (50, 99):
        value = percentile(seconds, percent)
        row[f"{name}_p{percent}_ms"] = None if value is None else round(1e3 * value, 3)
    return row


def measured(num_blocks: int = MEASURED_BLOCKS, rounds: int = MEASURED_ROUNDS) -> list[Network]:
    """What `headway bench transfer` finds now, for each transport: the speed of many blocks, and the time of a message,
    of which a transfer of one block takes `MESSAGES_OF_A_TRANSFER` one after the other. The fastest of all rounds: what
    else runs on the machine only slows it down. Raises as `headway.bench.transfer.measure`."""
    seconds: dict[tuple[KVTransport, int], list[float]] = {}
    with ExitStack() as stack:
        bench = Bench(num_blocks, STREAMS, stack)
        for number in range(rounds + 1):
            for transport, count in itertools.product(bench.transports, (1, num_blocks)):
                blocks = bench.consecutive[:count]
                transfer = bench.transfer(blocks, blocks, transport)
                begin = time.perf_counter()
                transfer()
                if number:  # the first round connects, and touches all memory
                    seconds.setdefault((transport, count), []).append(time.perf_counter() - begin)
    networks = []
    for transport in bench.transports:
        one, all_blocks = (min(seconds[transport, count]) for count in (1, num_blocks))
        speed = (num_blocks - 1) * layout_of(1).block_bytes / max(all_blocks - one, 1e-9)
        networks.append(Network(transport.value, speed, one / MESSAGES_OF_A_TRANSFER))
    return networks


def setups(budgets: Sequence[int], networks: Sequence[Network], *, routed: bool) -> list[Setup]:
    """Two mixed engines with each budget, and P and D, with the greatest budget, for each network."""
    mixed = [Setup(budget) for budget in budgets]
    ways = (False, True) if routed else (False,)
    return [*mixed, *(Setup(max(budgets), network, after) for network in networks for after in ways)]


def command(
    rates: Annotated[
        Sequence[float],
        typer.Option(
            parser=numbers(0.01, 10_000), metavar="R,...", help="Requests per second, to both engines together."
        ),
    ] = (2, 4, 8, 12),
    requests: Annotated[int, typer.Option(help="Requests at each rate; half of them have long prompts.")] = 300,
    long_prompt: Annotated[int, typer.Option(min=1, help="Tokens of a long prompt, on average.")] = 4096,
    short_output: Annotated[int, typer.Option(min=1, help="Tokens of the answer to it.")] = 64,
    short_prompt: Annotated[int, typer.Option(min=1, help="Tokens of the other prompts.")] = 256,
    long_output: Annotated[int, typer.Option(min=1, help="Tokens of the answer to them: a long decode.")] = 512,
    budgets: Annotated[
        Sequence[int],
        typer.Option(
            parser=whole_numbers(16, 1_000_000),
            metavar="N,...",
            help="The most tokens of a step of the mixed engines, each in turn; P and D have the greatest.",
        ),
    ] = (256, 2048),
    base_ms: Annotated[float, typer.Option(min=0.0, help="A step takes so long, ...")] = 10.0,
    per_token_ms: Annotated[float, typer.Option(min=0.0, help="... and so much more per token, ...")] = 0.05,
    per_seq_ms: Annotated[float, typer.Option(min=0.0, help="... and so much more per request.")] = 0.02,
    num_blocks: Annotated[int, typer.Option(help=f"Blocks of {BLOCK_SIZE} tokens of each engine.")] = 8192,
    slots: Annotated[int, typer.Option(min=1, help="The most requests that run at once in one engine.")] = 256,
    gb_per_s: Annotated[
        float | None, typer.Option(help="The speed at which blocks travel; without it, both transports are measured.")
    ] = None,
    message_ms: Annotated[
        float, typer.Option(min=0.0, help="With --gb-per-s: how long a message is on its way.")
    ] = 0.1,
    routed: Annotated[bool, typer.Option("--routed", help="Also P first, and then D, as routers do it.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals and lengths.")] = 1,
    as_json: JsonOption = False,
    plot_file: PlotOption = None,
) -> None:
    """Long prompts beside long decodes: two mixed engines beside one for prefill and one for decode.

    Both have the same two devices and get the same requests, on virtual time; so
    the table does not depend on this machine, except for the speed of the blocks,
    which is measured first. The KV is that of Llama 3.2 1B, 32 KiB per token.
    """
    if requests < 2 * MIN_REQUESTS:
        raise typer.BadParameter(
            f"must be at least {2 * MIN_REQUESTS}, or there are too few of each kind for a 99th percentile, got "
            f"{requests}",
            param_hint="--requests",
        )
    if gb_per_s is not None and not gb_per_s > 0:
        raise typer.BadParameter(f"must be above 0, got {gb_per_s:g}", param_hint="--gb-per-s")
    kinds = (Kind(long_prompt, short_output), Kind(short_prompt, long_output))
    step_time = StepTimeModel(base_ms / 1e3, per_token_ms / 1e3, per_seq_ms / 1e3)
    if step_time.base_s + step_time.per_token_s + step_time.per_seq_s == 0:
        raise typer.BadParameter("must be above 0, or --per-token-ms or --per-seq-ms must be", param_hint="--base-ms")
    machine = Machine(step_time, num_blocks, slots, max(kind.most_tokens for kind in kinds))
    for budget in budgets:
        machine.config(budget)  # raises ValueError for sizes that cannot work, before anything is measured
    title = f"{long_prompt} + {short_output} tokens beside {short_prompt} + {long_output}, {requests} requests"

    def rows() -> Iterator[Row]:
        if gb_per_s is not None:
            networks = [Network(f"{gb_per_s:g} GB/s", gb_per_s * 1e9, message_ms / 1e3)]
        else:
            networks = measured()
        for rate in rates:
            for setup in setups(budgets, networks, routed=routed):
                yield run(setup, machine, Traffic(kinds, rate, requests, seed))

    def draw(rows: Sequence[Row], file: Path) -> None:
        series: dict[str, tuple[list[float], list[float]]] = {}
        for row in rows:
            name = f"{row['engines']}, {row['transport'] or format(row['budget_tokens'], ',d') + ' tokens'}"
            xs, ys = series.setdefault(name, ([], []))
            xs.append(row["request_rate_req_per_s"])
            ys.append(row["itl_p99_ms"])
        plot.lines(file, f"{title}: ITL", "requests/s", "ITL p99, ms", series, log=False)

    run_benchmark(Table(title, COLUMNS, rows()), as_json=as_json, plot_file=plot_file, draw=draw)

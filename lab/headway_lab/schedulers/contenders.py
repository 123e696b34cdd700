"""The contenders: Headway's scheduler, and the schedulers of peers in the same run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

from headway.bench.child_process import ChildError
from headway.bench.rounds import Rounds, Samples
from headway.config import ReserveName
from headway_lab.peers import process
from headway_lab.schedulers import headway_system
from headway_lab.schedulers.workloads import Workload


class PeerName(StrEnum):
    """The values of `--peer`."""

    VLLM = "vllm"
    TRANSFORMERS = "transformers"


PeerOption = Annotated[
    list[PeerName] | None,
    typer.Option(
        "--peer",
        help="Run the workload also on the real scheduler of this peer, in turn with ours; may be given twice. The "
        "first run with vllm makes vLLM's environment.",
    ),
]

ThroughAdapterOption = Annotated[
    bool,
    typer.Option(
        "--through-adapter",
        help="With --peer vllm: run vLLM's own scheduler and headway.adapters.vllm in turn, both under vLLM's "
        "interface, for steps that follow each other and for overlapped steps.",
    ),
]
ADAPTER = "headway.adapters.vllm.HeadwayScheduler"


@dataclass(frozen=True, slots=True)
class Contender:
    """A scheduler that can run workloads. run: yields the samples of each round as it is run."""

    name: str
    version: str
    run: Callable[[Workload], Iterator[Samples]]


HEADWAY = Contender(
    headway_system.NAME, headway_system.VERSION, lambda workload: workload.run(headway_system.HeadwaySystem)
)


def with_reserve(rule: ReserveName) -> Contender:
    """Headway with another rule for admissions than its default."""
    make = partial(headway_system.HeadwaySystem, reserve=rule)
    return Contender(f"{HEADWAY.name}, reserve {rule}", HEADWAY.version, lambda workload: workload.run(make))


@contextmanager
def contenders(names: Sequence[PeerName] | None) -> Iterator[list[Contender]]:
    """Headway first, then these peers, started.

    Raises PeerMissing for a peer that cannot run here. A peer that fails during the measurement ends the command, with
    the last lines that the peer printed and exit code 1.
    """
    with _failures_told(), ExitStack() as stack:
        others = [stack.enter_context(process.open_peer(name)) for name in dict.fromkeys(names or ())]
        yield [HEADWAY, *(Contender(peer.name, peer.version, peer.run) for peer in others)]


@contextmanager
def groups(names: Sequence[PeerName] | None, through_adapter: bool) -> Iterator[list[list[Contender]]]:
    """Contenders that are compared with the first of their group: `contenders`; or through the adapter, ours and the
    peer's own under the peer's interface, one group for steps that follow each other and one for overlapped steps.

    Raises typer.BadParameter if the peer has no adapter, and what `contenders` raises.
    """
    if not through_adapter:
        with contenders(names) as systems:
            yield [systems]
        return
    if list(names or ()) != [PeerName.VLLM]:
        raise typer.BadParameter("needs --peer vllm, and no other peer", param_hint="--through-adapter")
    with (
        _failures_told(),
        process.open_peer(PeerName.VLLM, with_headway=True) as guest,  # its own process: each has its garbage alone
        process.open_peer(PeerName.VLLM) as host,
    ):
        yield [
            [
                Contender(
                    f"headway under {host.name}{kind}",
                    HEADWAY.version,
                    partial(guest.run, scheduler=ADAPTER, overlapped=overlapped),
                ),
                Contender(f"{host.name}{kind}", host.version, partial(host.run, overlapped=overlapped)),
            ]
            for kind, overlapped in (("", False), (", async", True))
        ]


@contextmanager
def _failures_told() -> Iterator[None]:
    try:
        yield
    except ChildError as error:
        print("headway:", error, file=sys.stderr)
        raise typer.Exit(1) from error


def in_turn(runs: Sequence[Iterator[Samples]]) -> list[Rounds]:
    """One round of each run after the other, until they end; what slows the machine down for a while slows all.

    All have the same number of rounds. Only one computes at a time.
    """
    return [list(rounds) for rounds in zip(*zip(*runs, strict=True), strict=True)]


def sums(samples: Mapping[str, Sequence[float]], *names: str) -> list[float]:
    """The sums, sample by sample, of several series."""
    return [sum(values) for values in zip(*(samples[name] for name in names), strict=True)]

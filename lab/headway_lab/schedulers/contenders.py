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
    try:
        with ExitStack() as stack:
            others = [stack.enter_context(process.open_peer(name)) for name in dict.fromkeys(names or ())]
            yield [HEADWAY, *(Contender(peer.name, peer.version, peer.run) for peer in others)]
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

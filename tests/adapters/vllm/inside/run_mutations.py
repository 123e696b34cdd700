"""python run_mutations.py [--cases N] [NAME ...]

Breaks the adapter in each way of mutations.py, each in a process of its own, and runs cases until one fails. Prints one
line of JSON: by mutation, the seed of that case, or null if none has failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
from multiprocessing.connection import Connection

from matrix import run_case
from mutations import MUTATIONS, RUNNER_V1_ALONE


def first_failure(name: str, cases: int, answer: Connection) -> None:
    """Send the seed of the first case that fails; None if there is none."""
    logging.disable()
    MUTATIONS[name]()
    for seed in range(cases):
        runner = 1 if name in RUNNER_V1_ALONE else 1 + seed % 2
        try:
            run_case(seed, asynchronous=True, runner=runner, kinds=("headway",))
        except Exception:
            answer.send(seed)
            return
    answer.send(None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    fork = multiprocessing.get_context("fork")  # what is broken is broken there alone; vLLM is imported once
    failures: dict[str, int | None] = {}
    for name in options.names or MUTATIONS:
        answer, there = fork.Pipe(duplex=False)
        process = fork.Process(target=first_failure, args=(name, options.cases, there))
        process.start()
        there.close()
        try:
            failures[name] = answer.recv()
        except EOFError:
            raise RuntimeError(f"the process of {name} has died") from None
        process.join()
    print(json.dumps(failures))


if __name__ == "__main__":
    main()

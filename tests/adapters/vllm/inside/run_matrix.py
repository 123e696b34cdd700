"""python run_matrix.py [--cases N] [--first SEED] [--kinds NAME ...] [--alone]

Runs random cases in each kind of engine. Prints one line of JSON: by kind, the sums of numbers by scheduler; or
`failed`, the seed of the first case that fails, and `why`. --alone: without vLLM's own scheduler beside.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections import Counter
from typing import Any

from matrix import run_case

KINDS: dict[str, dict[str, Any]] = {
    f"{name}, runner V{runner}": {"asynchronous": asynchronous, "runner": runner}
    for name, asynchronous in (("sync", False), ("async", True))
    for runner in (1, 2)
}


def run(kind: str, seeds: range, schedulers: tuple[str, ...]) -> dict[str, Any]:
    sums = {scheduler: Counter[str]() for scheduler in schedulers}
    for seed in seeds:
        try:
            numbers = run_case(seed, **KINDS[kind], kinds=schedulers)
        except Exception:
            return {"failed": seed, "why": traceback.format_exc()}
        for scheduler in schedulers:
            sums[scheduler].update(numbers[scheduler])
    return {"cases": len(seeds), **sums}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.cases)
    schedulers = ("headway",) if options.alone else ("stock", "headway")
    print(json.dumps({kind: run(kind, seeds, schedulers) for kind in options.kinds}))


if __name__ == "__main__":
    main()

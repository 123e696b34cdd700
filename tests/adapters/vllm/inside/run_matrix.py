"""python run_matrix.py [--cases N] [--first SEED] [--runner 1|2] [--asynchronous] [--alone]

Prints one line of JSON: the numbers of all cases by kind of scheduler. Exit status 1, with the first case that fails
and why, if one does. --alone: without vLLM's own scheduler beside.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections import Counter

import vllm
from matrix import run_case


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--runner", type=int, choices=(1, 2), default=1)
    parser.add_argument("--asynchronous", action="store_true")
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    kinds = ("headway",) if options.alone else ("stock", "headway")
    sums = {kind: Counter[str]() for kind in kinds}
    for seed in range(options.first, options.first + options.cases):
        try:
            numbers = run_case(seed, asynchronous=options.asynchronous, runner=options.runner, kinds=kinds)
        except Exception:
            traceback.print_exc()
            print(json.dumps({"vllm": vllm.__version__, "failed": seed}))
            return 1
        for kind in kinds:
            sums[kind].update(numbers[kind])
    print(json.dumps({"vllm": vllm.__version__, "cases": options.cases, **sums}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

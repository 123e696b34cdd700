"""Golden digests: compares the decisions of the scheduler with stored digests.

    python tools/golden.py            compare all seeds with tests/simulation/golden.json
    python tools/golden.py --write    store the present digests: only if a decision is meant to change

One digest stands for one simulated run of 2,000 events under injected faults (`headway simtest`): every batch, every
effect, every answer. Each seed has six runs: as the seed draws it, with static allocation (v0), with dynamic
allocation (v1 and v2 have the same core; `tests/managers/test_equivalence.py` compares the two managers), with traffic
of siblings, with traffic of transfers, and a world of P and D engines, of 500 events.

Exit status: 0 if all are equal; 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "tests" / "simulation" / "golden.json"
NUM_SEEDS = 200
NUM_STEPS = 2000
RUNS: dict[str, tuple[str, ...]] = {  # name -> options of simtest
    "drawn": (),
    "v0": ("--scheduler", "v0"),
    "v2": ("--scheduler", "v2"),
    "siblings": ("--traffic", "siblings"),
    "transfers": ("--traffic", "transfers"),
    "pairs": ("--traffic", "pairs"),
}
FEWER_STEPS = {"pairs": 500}  # of the runs whose events take longer

Digests = dict[str, str]  # name of the run -> digest, of one seed


def computed(jobs: int) -> list[Digests]:
    """The digests of the present code, by seed. Raises subprocess.CalledProcessError if a run breaks a rule."""
    found: list[Digests] = [{} for _ in range(NUM_SEEDS)]
    for name, own in RUNS.items():
        steps = str(FEWER_STEPS.get(name, NUM_STEPS))
        options = ["--seeds", f"0..{NUM_SEEDS - 1}", "--steps", steps, "--mode", "liveness", "--json"]
        options += ["--jobs", str(jobs), *own]
        command = [sys.executable, "-m", "headway.cli", "simtest", *options]
        for line in subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines():
            row = json.loads(line)
            found[row["seed"]][name] = row["decisions"]
    return found


def stored() -> list[Digests]:
    """The digests of the file, by seed."""
    digests: list[Digests] = json.loads(FILE.read_text())
    return digests


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare what the scheduler decides with stored digests.")
    parser.add_argument("--write", action="store_true", help="store the present digests instead")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    args = parser.parse_args(argv)
    found = computed(args.jobs)
    if args.write:
        FILE.write_text("[\n" + ",\n".join(f"  {json.dumps(digests)}" for digests in found) + "\n]\n")
        print(f"{len(found)} seeds stored")
        return 0
    changed = [seed for seed, (now, before) in enumerate(zip(found, stored(), strict=True)) if now != before]
    print(f"{len(found) - len(changed)} of {len(found)} seeds decide as stored, in all runs: {', '.join(RUNS)}")
    if changed:
        print(f"decided otherwise: seeds {', '.join(map(str, changed))}", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())

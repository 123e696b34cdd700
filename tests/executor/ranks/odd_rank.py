"""A rank that is not as the others: `python -m tests.executor.ranks.odd_rank`, with its oddity in the environment."""

from __future__ import annotations

import os
import sys

from headway.executor.ranks import process

ODDITY = "HEADWAY_TEST_ODDITY"
FEWER = 37  # blocks


def few_blocks_and_a_bad_step() -> None:
    """It has room for `FEWER` blocks, and its third step fails."""
    from headway.executor import transformers_executor
    from headway.executor.ranks.rank_executor import RankExecutor

    transformers_executor.choose_num_blocks = lambda *_: FEWER  # type: ignore[assignment]
    follow, steps = RankExecutor.follow, iter(range(100))

    def fail(self, batch):
        if next(steps) == 2:
            raise RuntimeError("the device caught fire\nand went out")
        follow(self, batch)

    RankExecutor.follow = fail  # type: ignore[method-assign]


def other_transformers() -> None:
    from headway.executor.ranks import rank

    makes = rank.makes
    rank.makes = lambda files: makes(files) | {"transformers": "4.0"}


def bad_weights() -> None:
    """It reads what is not a number."""
    from headway.executor import loader

    def read(files, device, dtype, num_ranks):
        from headway.executor.weights import _check_values, _Weights, read_weights

        module = read_weights(files, device, dtype, num_ranks)
        next(module.parameters()).data.fill_(float("nan"))
        _check_values(module, _Weights(files.path))

    loader.read_weights = read  # type: ignore[assignment]


if __name__ == "__main__":
    globals()[os.environ[ODDITY]]()
    status = process.main(sys.argv[1:])
    os._exit(status)

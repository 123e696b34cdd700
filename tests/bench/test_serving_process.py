"""Programs that serve HTTP, as children."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

from headway.bench.child_process import ChildError
from headway.bench.serving_process import ServingProcess, free_port

PATIENCE = 120.0  # seconds; a busy machine may need many


def serving(folder: Path, *, patience: float = PATIENCE) -> ServingProcess:
    """A server of a folder's files. It is healthy if there is a file `health`."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    return ServingProcess(command, port, start_timeout_s=patience, stop_timeout_s=0.0)


def test_the_block_begins_when_the_program_is_healthy(tmp_path: Path) -> None:
    (tmp_path / "health").write_text("yes")
    with serving(tmp_path) as server:
        assert httpx.get(f"{server.base_url}/health").text == "yes"


def test_a_program_that_is_not_healthy_in_time_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="does not answer at http"), serving(tmp_path, patience=0.0):
        pass


def test_a_program_that_ends_is_told_by_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    child = ServingProcess(command, free_port(), start_timeout_s=PATIENCE, stop_timeout_s=0.0)
    with pytest.raises(ChildError, match="no such model"), child:
        pass

"""`make model-check`: the model of the mailbox holds, its broken variants are caught, and a missing checker is said."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).parent.parent / "verification" / "check"


@pytest.mark.skipif(not (shutil.which("spin") and shutil.which("cc")), reason="Spin and a C compiler are not installed")
def test_the_mailbox_loses_no_wake_up_and_every_broken_variant_is_caught() -> None:
    done = subprocess.run([CHECK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mailbox.pml: no violation" in done.stdout
    assert done.stdout.count(": caught (invalid end state)") == 3


def test_without_the_checker_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    done = subprocess.run([CHECK], capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr == "model-check needs Spin and a C compiler: apt-get install spin gcc\n"

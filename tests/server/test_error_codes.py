"""The table of error codes holds every code that the server answers, with its status, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import headway
from headway.server.error_codes import ERROR_CODES
from headway.server.errors import ApiError

SERVER = Path(headway.__file__).parent / "server"
CODE = re.compile(
    r'code = "(\w+)"|code="(\w+)"|_CODE = "(\w+)"|"(shutting_down|engine_dead|not_found|method_not_allowed)"'
)


def test_every_code_of_the_sources_is_in_the_table_and_every_row_has_a_source() -> None:
    files = [path for path in SERVER.rglob("*.py") if path.name not in ("error_codes.py", "batch_files.py")]
    files.append(SERVER.parent / "client" / "pending_request.py")
    found = {name for file in files for groups in CODE.findall(file.read_text()) for name in groups if name}
    assert found == set(ERROR_CODES)


@pytest.mark.parametrize(("status", "code"), [(503, "queue_ful"), (500, "queue_full")])
def test_an_error_takes_no_other_code_and_no_other_status(status: int, code: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        ApiError(status, "no", code=code)

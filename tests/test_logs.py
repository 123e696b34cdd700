"""The form of log lines."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from headway.logs import JsonLines, LogFormat, LogLevel, leave_out, named


def record(message: str, *args: object, **more: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "headway.x", "levelname": "INFO", "msg": message, "args": args, **more})


def test_a_record_is_one_line_of_json() -> None:
    line = JsonLines().format(record("two\nlines of %s", "é", created=0.5, process=7))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.500+00:00",
        "level": "INFO",
        "logger": "headway.x",
        "process": 7,
        "message": "two\nlines of é",
    }


def test_an_exception_is_a_field_of_its_record() -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        line = JsonLines().format(record("failed", exc_info=sys.exc_info()))
    assert "ValueError: bad" in json.loads(line)["exception"] and "\n" not in line


def test_every_logger_writes_json_and_so_does_a_library() -> None:
    program = """
import logging
from headway.logs import LogFormat, log_to_standard_error
log_to_standard_error(LogFormat.JSON)
logging.getLogger("headway.x").info("one")
logging.getLogger("uvicorn.access").warning("two")
logging.getLogger("library").info("left out")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["one", "two"]


@pytest.mark.parametrize(
    ("level", "written"),
    [
        (LogLevel.DEBUG, ["debug", "info", "warning", "error", "of a library"]),
        (LogLevel.INFO, ["info", "warning", "error", "of a library"]),
        (LogLevel.WARNING, ["warning", "error", "of a library"]),
        (LogLevel.ERROR, ["error"]),
    ],
)
def test_lines_below_the_level_are_left_out_and_libraries_say_no_more(level: LogLevel, written: list[str]) -> None:
    program = f"""
import logging
from headway.logs import LogFormat, LogLevel, log_to_standard_error
log_to_standard_error(LogFormat.JSON, LogLevel("{level}"))
for name in ("debug", "info", "warning", "error"):
    getattr(logging.getLogger("headway.x"), name)(name)
logging.getLogger("library").info("left out")
logging.getLogger("library").warning("of a library")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == written


def test_the_line_of_a_server_gets_its_name_in_either_form() -> None:
    assert named("decode-0 ", "a line", LogFormat.TEXT) == "decode-0  | a line"
    assert json.loads(named("decode-0 ", '{"level": "INFO"}', LogFormat.JSON)) == {
        "server": "decode-0",
        "level": "INFO",
    }
    for printed in ("a line", "[1]", "{"):
        assert json.loads(named("p", printed, LogFormat.JSON)) == {"server": "p", "message": printed}


def test_requests_of_some_paths_are_left_out() -> None:
    access = logging.getLogger("uvicorn.access")
    before = list(access.filters)

    def is_written(path: str) -> bool:
        """As uvicorn writes it; whether the log is on does not matter."""
        arguments = ("1.2.3.4:5", "GET", path, "1.1", 200)
        form = '%s - "%s %s HTTP/%s" %d'
        return bool(access.filter(access.makeRecord(access.name, logging.INFO, "", 0, form, arguments, None)))

    try:
        leave_out(("/health",))
        written = [path for path in ("/health", "/health?x=1", "/v1/models") if is_written(path)]
    finally:
        access.filters[:] = before
    assert written == ["/v1/models"]

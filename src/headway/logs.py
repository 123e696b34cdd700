"""The form of log lines: one for all processes and all libraries, on standard error."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogFormat(StrEnum):
    """How a record of the log is written. json: one object per line."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least weight of a record that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """As `logging` counts."""
        return logging.getLevelNamesMapping()[self.name]


class JsonLines(logging.Formatter):
    """A record as one JSON object: time (ISO 8601, UTC), level, logger, process, message, and exception if there is
    one."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def log_to_standard_error(
    form: LogFormat = LogFormat.TEXT, level: LogLevel = LogLevel.INFO, *, libraries: int = logging.WARNING
) -> None:
    """Headway's own lines from `level` on, and the lines of libraries from the higher of the two levels on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form is LogFormat.JSON else logging.Formatter(_TEXT))
    logging.basicConfig(level=max(level.number, libraries), handlers=[handler])
    logging.getLogger("headway").setLevel(level.number)


def leave_out(paths: Sequence[str]) -> None:
    """Write no lines for HTTP requests of these paths. For uvicorn's access log, whose records have as arguments:
    client, method, path with query, version, status."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return not isinstance(record.args, tuple) or str(record.args[2]).partition("?")[0] not in paths

    if paths:
        logging.getLogger("uvicorn.access").addFilter(is_wanted)


def named(name: str, line: str, form: LogFormat) -> str:
    """A line of another process with the name of the process: before it, or as a field `server` of its object."""
    if form is LogFormat.TEXT:
        return f"{name} | {line}"
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        fields = {"message": line}  # a library that prints
    return json.dumps({"server": name.strip(), **fields}, ensure_ascii=False)

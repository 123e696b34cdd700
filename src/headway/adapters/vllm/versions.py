"""The versions of vLLM that this adapter was tested with, and how they differ. What depends on the version is asked of
vLLM here, and nowhere else."""

from __future__ import annotations

from typing import Any

import vllm
from vllm.v1.engine import EngineCoreOutput

from headway.adapters.vllm.log import logger_of

logger = logger_of(__name__)

TESTED = ("0.32.0", "0.33.0")

_OUTPUT_FIELDS = frozenset(EngineCoreOutput.__struct_fields__)


def warn_if_untested() -> None:
    """Say in the log that this version of vLLM was not tested."""
    version, _, _build = vllm.__version__.partition("+")
    if version not in TESTED:
        logger.warning(
            "HeadwayScheduler was tested with vLLM %s; this is %s. The interface of vLLM's scheduler is not public "
            "and changes between versions. Watch the first requests, or leave out --scheduler-cls.",
            " and ".join(TESTED),
            vllm.__version__,
        )


def error_field(message: str) -> dict[str, Any]:
    """The part of an ERROR output that tells the client why; 0.32 has no such field, and its log alone says it."""
    if "error" not in _OUTPUT_FIELDS:
        return {}
    from vllm.outputs import RequestError

    return {"error": RequestError(code="validation_error", message=message)}

"""Variables of the environment: one for each option of a command, and some with a reader of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headway.config import KV_SECRET_VARIABLE
from headway.managers import V1_SWITCH, V2_SWITCH
from headway.server.entrance.keys import KEYS_VARIABLE, VLLM_KEYS_VARIABLE

PREFIX = "HEADWAY_"
PREFILL_KEY_VARIABLE = f"{PREFIX}PREFILL_API_KEY"

# Variables that are not read as the option of their name is, or that have no option: what they are for.
SPECIAL: Mapping[str, str] = {
    KEYS_VARIABLE: "Keys of `serve` and `pd`, with commas or ends of lines between them, beside those of `--api-key`; "
    "commands that ask a server show the first.",
    VLLM_KEYS_VARIABLE: "The same for a server, by vLLM's name.",
    PREFILL_KEY_VARIABLE: "The key that a decode engine shows to prefill engines, where `--prefill-api-key` is absent.",
    KV_SECRET_VARIABLE: "The secret that engines share, where `--kv-secret` is absent.",
    V1_SWITCH: "FastDeploy's switch: 1 chooses `--scheduler v1`, where that is absent.",
    V2_SWITCH: "The same for v2.",
    "NO_COLOR": "Set: no colours in the terminal.",
    "OMP_NUM_THREADS": "Threads that compute on a CPU.",
    "HF_HOME": "Folder where models of the hub are kept.",
    "HF_TOKEN": "Key of the hub, for models that ask for one.",
    "HF_HUB_OFFLINE": "1: ask no hub; models must be there.",
}


def variable(param: Any) -> str | None:
    """The variable that gives a value to an option: --max-model-len is HEADWAY_MAX_MODEL_LEN. None for an argument, for
    --help, and where the variable has a reader of its own."""
    if param.param_type_name != "option" or param.is_eager:
        return None
    name = PREFIX + max(param.opts, key=len).lstrip("-").upper().replace("-", "_")
    return None if name in SPECIAL else name

"""Write the flags of `vllm serve` to src/headway/commands/vllm_serve_flags.json. Run by the Python of a vLLM:

    ~/.cache/headway/peers/vllm-0.33.0-python3.11/bin/python tools/vllm_flags.py

One object per line: the names of a flag, the names that turn it off, how many values it takes (0, 1, "?" or "+"), and
vLLM's default as text. The fate of each flag is in src/headway/commands/vllm_flags.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "src/headway/commands/vllm_serve_flags.json"


def flag(action: Any) -> dict[str, Any]:
    """One flag, of an argparse action."""
    off = getattr(action, "negative_option_strings", set())
    names = [name for name in action.option_strings if name not in off]
    default = action.default
    if action.type is json.loads or isinstance(default, list | dict):
        default = json.dumps(default)
    elif getattr(default, "value", default) is None or isinstance(default, bool | int | float | str):
        default = getattr(default, "value", default)
    else:
        default = None  # an object of vLLM's own
    return {
        "names": names,
        "off": sorted(off),
        "takes": 1 if action.nargs is None else action.nargs,
        "default": None if default in (None, "==SUPPRESS==", "null") else str(default),
    }


def main() -> None:
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    vllm.platforms._current_platform = CpuPlatform()  # some defaults depend on the platform; this one is everywhere
    from vllm.entrypoints.common.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    flags = [flag(action) for action in parser._actions if action.option_strings and action.dest != "help"]
    FILE.write_text("[\n" + ",\n".join(json.dumps(one) for one in flags) + "\n]\n")
    print(f"{len(flags)} flags of vLLM {vllm.__version__}")


if __name__ == "__main__":
    main()

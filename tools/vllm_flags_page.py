"""Write docs/vllm-flags.md: what becomes of each flag of vLLM, from the table in src/headway/commands/vllm_flags.py.

python tools/vllm_flags_page.py
"""

from __future__ import annotations

from pathlib import Path

from headway.commands.vllm_flags import FATES, OFF, ON, VERSION, Fate, Flag, Holds, Ignored, Refused, Taken, flags

FILE = Path(__file__).parents[1] / "docs/vllm-flags.md"
_TOP = f"""# The flags of `vllm serve`

What `headway serve` and `headway pd` make of each flag of vLLM {VERSION}, and of flags that earlier versions had. This
page is written by `tools/vllm_flags_page.py` from the table in `src/headway/commands/vllm_flags.py`.

    vllm    serve Qwen/Qwen3-0.6B --max-model-len 4k -tp 1 --enable-prefix-caching --served-model-name qwen small
    headway serve Qwen/Qwen3-0.6B --max-model-len 4k -tp 1 --enable-prefix-caching --served-model-name qwen small

- A flag may have underscores for hyphens, and its value after an equals sign: `--max_model_len=4096`.
- `1k` is 1000, `1K` is 1024, `2.5m` is 2,500,000, for every option that is a whole number.
- The model is an argument, or `--model NAME`.
- `--config FILE.yaml` holds flags by their names. The command line wins. A key that is not known is refused with its
  line.
- A value that is vLLM's own default asks for nothing. It passes, whatever the table says.
- Several names after `--served-model-name`: the first is in answers, requests may use all.
- If the model is named nowhere else, the last of several words after `--served-model-name` or `--api-key` is the model:
  `--served-model-name NAME MODEL`.
- A refused flag ends the command with exit code 2 and one line that says why.
"""


def _rows(kind: type[Fate]) -> list[str]:
    known = flags()
    return [_row(known[name], fate) for name, fate in sorted(FATES.items()) if isinstance(fate, kind)]


def _row(flag: Flag, fate: Fate) -> str:
    names = ", ".join(f"`{name}`" for name in flag.names)
    return f"| {names} | {_words(fate)} |"


def _words(fate: Fate) -> str:
    match fate:
        case Taken():
            values = ", ".join(f"`{theirs}` is `{ours}`" for theirs, ours in fate.values.items() if ours)
            words = "; ".join(filter(None, (values, fate.words)))
            return f"`{fate.ours}`" + (f": {words}" if words else "")
        case Holds():
            off = f"; off: `{fate.instead[OFF]}`" if OFF in fate.instead else ""
            shown = "" if set(fate.values) <= {ON, OFF} or len(fate.values) > 4 else ", ".join(fate.values)
            return f"{fate.words}{off}" + (f" (`{shown}`)" if shown else "")
    return fate.words


def page() -> str:
    """The text of the page."""
    parts = [
        ("Accepted", "An option of Headway does it.", "option", Taken),
        (
            "Accepted without effect: it holds already",
            "Other values than those named are refused.",
            "what holds",
            Holds,
        ),
        ("Ignored, with a warning", "They change no answer, and do nothing here.", "why", Ignored),
        ("Refused", "They cannot be done.", "why, and what to do", Refused),
    ]
    tables = [
        f"## {title}\n\n{text}\n\n| flag | {column} |\n|---|---|\n" + "\n".join(_rows(kind)) + "\n"
        for title, text, column, kind in parts
    ]
    return "\n".join([_TOP, *tables])


if __name__ == "__main__":
    FILE.write_text(page())

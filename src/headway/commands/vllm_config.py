"""A YAML file of flags, as vLLM's `--config` takes it: keys are the names of flags, without their hyphens.

model: Qwen/Qwen3-0.6B
max-model-len: 4k
served-model-name: [qwen, small]
enforce-eager: true
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

_IN_JSON = ("allowed-origins", "allowed-methods", "allowed-headers")  # lists that are one value
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True)
class Entry:
    """One key. place: "FILE.yaml, line 3". words: as on a command line; none for a flag that is off by default."""

    place: str
    words: tuple[str, ...]


def read_config(file: str) -> Iterator[Entry]:
    """The keys of a file, in their order. Raises ValueError, with the line, for a file that is no YAML of flags."""
    try:
        root = yaml.compose(Path(file).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ValueError(f"--config {file} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise ValueError(f"--config {file}{where} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"--config {file} must hold keys and values, one flag per line: max-model-len: 4096")
    seen: dict[str, str] = {}
    for key, value in root.value:
        place = f"{file}, line {key.start_mark.line + 1}"
        name = str(key.value).replace("_", "-")
        if name in seen:
            raise ValueError(f"{place}: {name} is there twice, also in {seen[name]}")
        seen[name] = place
        if value.tag == _NULL and value.value:  # "null" written out, as vLLM's own default; not a value that is missing
            continue
        yield Entry(place, tuple(_words(name, _constructed(value, place), place)))


def _constructed(node: Any, place: str) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{place}: the value cannot be read: {getattr(error, 'problem', error)}") from None
    finally:
        loader.dispose()


def _words(name: str, value: Any, place: str) -> Iterator[str]:
    match value:
        case True:
            yield f"--{name}"
        case False:
            yield f"--no-{name}"
        case None:
            raise ValueError(f"{place}: {name} has no value")
        case list() if name not in _IN_JSON and all(isinstance(one, str | int | float) for one in value):
            for one in value:
                yield from (f"--{name}", str(one))
        case list() | dict():
            yield from (f"--{name}", json.dumps(value))
        case _:
            yield from (f"--{name}", str(value))

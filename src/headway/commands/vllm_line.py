"""A command line in vLLM's words, as Headway's own options: `VllmCommand` translates before the options are read.

--max_model_len=1k --model m -tp 1 --num-gpu-blocks-override 9  ──▶  --max-model-len 1000 --num-blocks 9 m
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from headway.commands.command import Command, no_such_option
from headway.commands.vllm_config import Entry, read_config
from headway.commands.vllm_flags import FATES, OFF, ON, Fate, Flag, Holds, Ignored, Refused, Taken, flags
from headway.config import EngineConfig

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT])")
_SIZES = {letter: 10 ** (3 * power) for power, letter in enumerate("kmgt", 1)} | {
    letter: 2 ** (10 * power) for power, letter in enumerate("KMGT", 1)
}
_LEVEL = re.compile(r"-O=?(\d?)")  # -O3, -O 3: vLLM's own way to write --optimization-level
_DASH = re.compile(r"-[A-Za-z-]")  # how a flag begins; a number below 0 does not
_NAMES = "--served-model-name"
_LISTS = (_NAMES, "--api-key")  # flags that take several words
_MODEL = "MODEL"


@dataclass(frozen=True, slots=True)
class _Item:
    """One setting. option: of ours, by which a setting of the command line replaces a setting of a file. words: for
    the options of ours; of the model, its name."""

    option: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Own:
    """An option of ours. root: of both its forms, --x and --no-x."""

    root: str
    takes_value: bool
    is_number: bool
    hidden: bool


class VllmCommand(Command):
    """A command that takes its options in vLLM's words too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises ValueError for a flag that is not known, or refused."""
        if not ctx.resilient_parsing:  # as the completion of a shell reads a line, which is not complete
            args = _Translation(_own_options(self.params)).line(args)
        rest: list[str] = super().parse_args(ctx, args)
        return rest


def _own_options(params: Iterable[Any]) -> dict[str, _Own]:
    """The options by their names. (Of a parameter only what every version of typer has is looked at.)"""
    whole = {name for name, kind in get_type_hints(EngineConfig).items() if kind in (int, int | None)}
    own = {"--help": _Own("--help", False, False, False)}
    for param in params:
        if param.param_type_name != "option":
            continue
        for name in (*param.opts, *param.secondary_opts):
            root = "--" + name.removeprefix("--").removeprefix("no-")
            own[name] = _Own(root, not param.is_flag, param.name in whole, param.hidden)
    return own


class _Translation:
    def __init__(self, own: dict[str, _Own]) -> None:
        self._own = own
        self._flags: dict[str, tuple[str, Flag]] = {}  # by every name: the first name, and the flag
        for first, flag in flags().items():
            for name in (*flag.names, *flag.off):
                self._flags[name] = first, flag

    def line(self, args: Sequence[str]) -> list[str]:
        """The words for the options of ours. The model comes last, and so does what follows `--`."""
        given = list(args)
        rest = given[given.index("--") :] if "--" in given else []
        items = list(self._items(given[: len(given) - len(rest)]))
        files = [item.words[0] for item in items if item.option == "--config"]
        items = [item for item in items if item.option != "--config"]
        named = {item.option for item in items}
        from_files = [item for file in files for entry in read_config(file) for item in self._of_entry(entry)]
        items = [item for item in from_files if item.option not in named] + items
        models = [word for item in items if item.option == _MODEL for word in item.words]
        if not models:
            items, models = _with_model_at_end(items)
        options = [word for item in _with_aliases(items) if item.option != _MODEL for word in item.words]
        if len(set(models)) > 1:
            raise ValueError(f"the model is named twice: {' and '.join(dict.fromkeys(models))}")
        return [*options, *models[:1], *rest]

    def _of_entry(self, entry: Entry) -> Iterator[_Item]:
        """The settings of one key of a file. An error names its line."""
        try:
            items = list(self._items(entry.words))
        except ValueError as error:
            raise ValueError(f"{entry.place}: {error}") from None
        if any(item.option == "--config" for item in items):
            raise ValueError(f"{entry.place}: a file of flags names no other file")
        yield from items

    def _items(self, words: Sequence[str]) -> Iterator[_Item]:
        queue = list(words)
        while queue:
            word = queue.pop(0)
            if (level := _LEVEL.fullmatch(word)) is not None:
                word = "--optimization-level" + (f"={level[1]}" if level[1] else "")
            if not _DASH.match(word):
                yield _Item(_MODEL, (word,))
                continue
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            if name in ("--help", "--help-all") or word == "-h":
                part = "--help-all" if equals else name  # of vLLM's --help=PART all is shown
                yield _Item(part, (part,))
                continue
            values = [value] if equals else None

            def take(how: int | str, values: list[str] | None = values) -> list[str]:
                return values if values is not None else _take(queue, how)

            if name in self._own and not self._is_said_otherwise(name):
                yield self._of_own(name, take)
            elif not self._is_off_anyway(name):
                yield from self._of_vllm(name, take)

    def _is_said_otherwise(self, name: str) -> bool:
        """Whether an option of ours has values in vLLM that ours does not have, or several at once."""
        first, flag = self._flags.get(name, ("", None))
        fate = FATES.get(first)
        return flag is not None and isinstance(fate, Taken) and (flag.takes == "+" or bool(fate.values))

    def _is_off_anyway(self, name: str) -> bool:
        """Whether the name turns an option of ours off that is off by default, as a file of flags may say it."""
        own = self._own.get("--" + name.removeprefix("--no-"))
        return name.startswith("--no-") and own is not None and not own.takes_value

    def _of_own(self, name: str, take: Callable[[int | str], list[str]]) -> _Item:
        own = self._own[name]
        if own.root == "--model":
            return _Item(_MODEL, tuple(take(1)))
        if not own.takes_value:
            return _Item(own.root, (name,))
        values = take(1)
        if not values:
            raise ValueError(f"Option '{name}' requires an argument.")
        if own.is_number:
            values = [_number(value) for value in values]
        return _Item(own.root, (name, *values))

    def _of_vllm(self, given: str, take: Callable[[int | str], list[str]]) -> Iterator[_Item]:
        name = given.partition(".")[0].removesuffix("+")  # --compilation-config.mode 3 is a part of its JSON
        if name not in self._flags:
            raise ValueError(self._unknown(given))
        first, flag = self._flags[name]
        values = [OFF if name in flag.off else ON] if flag.takes == 0 else take(flag.takes)
        fate = FATES[first]
        match fate:
            case Taken():
                yield from self._taken(fate, flag, name, values)
                return
            case Holds() if values[:1] and values[0] in fate.instead:
                instead = fate.instead[values[0]]
                yield _Item(self._own[instead].root, (instead,))
                return
            case Holds() if all(value in fate.values for value in values):
                return
        if " ".join(values) in _nothing(flag, fate):
            return
        if isinstance(fate, Ignored):
            logger.warning("%s has no effect: %s", given, fate.words)
            return
        assert isinstance(fate, Holds | Refused)
        what = " ".join([given, *values]) if isinstance(fate, Holds) and flag.takes else given  # no tokens and keys
        raise ValueError(f"{what} is not supported: {fate.words}")

    def _taken(self, fate: Taken, flag: Flag, name: str, values: list[str]) -> Iterator[_Item]:
        if fate.ours == _MODEL:
            yield _Item(_MODEL, tuple(values))
        elif fate.ours == "--config":
            yield _Item("--config", tuple(values))
        elif fate.ours not in self._own:
            raise ValueError(f"{name} is not supported by this command")
        elif flag.takes == 0:
            if values == [ON]:
                yield _Item(self._own[fate.ours].root, (fate.ours,))
        else:
            yield from self._with_values(fate, values)

    def _with_values(self, fate: Taken, values: list[str]) -> Iterator[_Item]:
        own = self._own[fate.ours]
        if not values:
            raise ValueError(f"Option '{fate.ours}' requires an argument.")
        words: list[str] = []
        for given in values:
            value = fate.values.get(given, given)
            if (
                value != "" or given == ""
            ):  # nothing that was given is not what asks for nothing: no key is no open door
                number = _number(value) if own.is_number or fate.unit > 1 else value
                words += [fate.ours, number if fate.unit == 1 else str(int(number) / fate.unit)]
        if words:
            yield _Item(own.root, tuple(words))

    def _unknown(self, name: str) -> str:
        """The refusal of a name that is neither ours nor vLLM's, with the names that are meant most likely."""
        taken = {
            flag_name
            for flag_name, (first, _) in self._flags.items()
            if flag_name.startswith("--") and not isinstance(FATES[first], Refused)
        }
        known = taken | {own for own, option in self._own.items() if not option.hidden}
        return no_such_option(name, known)


def _nothing(flag: Flag, fate: Fate) -> tuple[str, ...]:
    """The values of a flag that ask for nothing: vLLM's default, and for a flag without one what stands for none."""
    if flag.default is not None:
        return (flag.default,)
    if isinstance(fate, Holds):  # its values say all
        return ()
    return (OFF,) if flag.takes == 0 else ("None", "null", "none")


def _take(queue: list[str], how: int | str) -> list[str]:
    """Take the values of a flag from the front of the queue: one, one if there is one ("?"), or all ("+")."""
    most = len(queue) if how == "+" else 1
    taken: list[str] = []
    while queue and len(taken) < most and not (_DASH.match(queue[0]) and (how != 1 or queue[0].startswith("--"))):
        taken.append(queue.pop(0))
    return taken


def _with_model_at_end(items: Sequence[_Item]) -> tuple[list[_Item], list[str]]:
    """The settings, and the model. The last of several words after a flag that takes a list is the model if no model is
    named, as in `--served-model-name NAME MODEL`: a model that is taken for a name, or a key, would not be missed."""
    for index, item in reversed(list(enumerate(items))):
        if item.option in _LISTS and len(item.words) > 2:
            shorter = _Item(item.option, item.words[:-2])
            return [*items[:index], shorter, *items[index + 1 :]], [item.words[-1]]
    return list(items), []


def _with_aliases(items: Sequence[_Item]) -> Iterator[_Item]:
    """The settings, with one --served-model-name, and the further names as --model-alias."""
    names = [name for item in items if item.option == _NAMES for name in item.words[1::2]]
    for name in names[:1]:
        yield _Item(_NAMES, (_NAMES, name))
    yield from (_Item("--model-alias", ("--model-alias", name)) for name in names[1:])
    yield from (item for item in items if item.option != _NAMES)


def _number(text: str) -> str:
    """A whole number as people write it: 1k is 1000, 1K is 1024, 2.5m is 2500000; other texts are as they were."""
    if (found := _NUMBER.fullmatch(text)) is None:
        return text
    size = float(found[1]) * _SIZES[found[2]]
    if not size.is_integer() or ("." in found[1] and found[2].isupper()):
        raise ValueError(f"{text!r} is no whole number: k, m, g, t stand for 1000, ...; K, M, G, T for 1024, ...")
    return str(int(size))

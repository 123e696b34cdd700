"""A command as its users see it: its help, the variables of its options, the model's name, what is said of bad lines.

--help shows the panel "Common" and the examples, --help-all every panel. Both are plain text, at most 80 columns wide.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from headway.commands.environment import PREFIX, SPECIAL, variable
from headway.spelling import near

COMMON = "Common"  # the panel of options that name no panel
MODEL, MODEL_ARGUMENT = "model", "model_argument"  # parameters: --model MODEL, and MODEL without it
_ALL = "headway.help_all"  # whether all panels are shown, in the `meta` of a context
_NAMES_WIDTH = 30  # columns; text stands under a name that is longer

# The module of click's usage errors depends on the version of typer. This is their common base in every version.
UsageError: Any = typer.BadParameter.__bases__[0]


class Command(TyperCommand):
    """A command with plain help, a variable HEADWAY_OPTION for each option, and one rule for naming its model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rich_markup_mode = None
        params: list[Any] = self.params
        for param in params:
            if not getattr(param, "envvar", None):
                param.envvar = variable(param)
                param.show_envvar = False  # the help names the rule once

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, with --help and --help-all."""
        return [*super().get_params(ctx), *([_help_all()] if self._has_more() else [])]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises ValueError for an option that is not known, a model that is named twice, and a variable of the
        environment that cannot be."""
        try:
            rest: list[str] = super().parse_args(ctx, args)
        except UsageError as error:
            raise self._explained(ctx, error) from None
        _name_model(ctx)
        if not ctx.resilient_parsing:
            self._name_misspelt_variables(ctx)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Raises ValueError as the command does, with the variable of the environment that the message is about."""
        try:
            return super().invoke(ctx)
        except ValueError as error:
            named = [p.envvar for p in _from_environment(ctx) if p.name in str(error) or p.opts[0] in str(error)]
            if not named:
                raise
            raise ValueError(f"{error} (from the environment: {', '.join(named)})") from error

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the panels, or of many the first alone."""
        panels = self.panels(ctx)
        shown = panels if ctx.meta.get(_ALL) else {COMMON: panels.get(COMMON, [])}
        for panel, records in shown.items():
            with formatter.section(typer.style(panel, bold=True)):
                formatter.write_dl(records, col_max=_NAMES_WIDTH)
        more = [panel for panel in panels if panel not in shown]
        if more:
            formatter.write_paragraph()
            formatter.write_text(f"{self._count(panels, more)} more options with --help-all: {', '.join(more)}.")
            formatter.write_text("Each option is a variable too: --max-num-seqs 8 is HEADWAY_MAX_NUM_SEQS=8.")

    def panels(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """The options that are shown, (name, text) by panel; the common ones first."""
        panels: dict[str, list[tuple[str, str]]] = {COMMON: []}
        for param in sorted(self.get_params(ctx), key=_place):
            record = param.get_help_record(ctx)
            if record is not None:
                panels.setdefault(_panel(param), []).append(record)
        return panels

    def format_epilog(self, _ctx: Any, formatter: Any) -> None:
        """Write the examples, a command line each."""
        if self.epilog:
            with formatter.section(typer.style("Examples", bold=True)):
                for line in self.epilog.splitlines():
                    formatter.write(f"  {line}\n")

    def _name_misspelt_variables(self, ctx: Any) -> None:
        """Say which variables of the environment look like an option of this command, and are read by no command."""
        own = _variables(self)
        known = own.union(SPECIAL, *map(_variables, getattr(ctx.find_root().command, "commands", {}).values()))
        for name in sorted(name for name in os.environ.keys() - known if name.startswith(PREFIX)):
            # Without the prefix, by which all are alike.
            meant = near(name.removeprefix(PREFIX), (one.removeprefix(PREFIX) for one in own))
            if meant:
                close = " or ".join(PREFIX + one for one in meant)
                typer.echo(f"headway: {name} in the environment is not read: did you mean {close}?", err=True)

    def _has_more(self) -> bool:
        return any(_panel(param) != COMMON for param in self.params)

    @staticmethod
    def _count(panels: dict[str, list[tuple[str, str]]], names: Iterable[str]) -> int:
        return sum(len(panels[name]) for name in names)

    def _explained(self, ctx: Any, error: Any) -> Exception:
        """The error; for an unknown option with the options that are meant most likely, for a bad value of the
        environment with the name of the variable."""
        if getattr(error, "option_name", None) is not None and hasattr(error, "possibilities"):
            params: list[Any] = self.params
            known = [name for param in params if not param.hidden for name in param.opts if name.startswith("-")]
            return ValueError(no_such_option(error.option_name, known))
        param = getattr(error, "param", None)
        if param is not None and param in _from_environment(ctx):
            given = os.environ.get(param.envvar, "")
            return ValueError(f"{param.envvar}={given[:100]} in the environment, for {param.opts[0]}: {error.message}")
        return error if isinstance(error, Exception) else ValueError(str(error))


def no_such_option(name: str, known: Iterable[str]) -> str:
    """The refusal of an option, with the known options that are meant most likely."""
    close = near(name, known)
    return f"No such option: {name}" + (f" (did you mean {' or '.join(close)}?)" if close else "")


def _place(param: Any) -> int:
    """Arguments stand first, and the model after them."""
    return 0 if param.param_type_name == "argument" else 1 if param.name == MODEL else 2


def _panel(param: Any) -> str:
    return getattr(param, "rich_help_panel", None) or COMMON


def _variables(command: Any) -> set[str]:
    return {param.envvar for param in command.params if isinstance(param.envvar, str)}


def _from_environment(ctx: Any) -> list[Any]:
    """The parameters whose values are from variables of the environment."""
    sources = ((param, ctx.get_parameter_source(param.name)) for param in ctx.command.params)
    return [param for param, source in sources if source is not None and source.name == "ENVIRONMENT"]


def _name_model(ctx: Any) -> None:
    """Let MODEL and --model MODEL be the same. What is typed goes before the environment. Raises ValueError for two
    names."""
    word = ctx.params.get(MODEL_ARGUMENT)
    if word is None:
        return
    option = ctx.params.get(MODEL)
    typed = ctx.get_parameter_source(MODEL).name == "COMMANDLINE"
    if typed and option != word:
        raise ValueError(f"the model is named twice: {word} and {option}")
    ctx.params[MODEL] = word


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        context.meta[_ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


def _with_help_all(
    help_all: Annotated[
        bool,
        typer.Option(
            "--help-all", callback=_show_all, is_eager=True, expose_value=False, help="Show all options and exit."
        ),
    ] = False,
) -> None:
    """Only its option counts."""


@cache
def _help_all() -> Any:
    """The parameter --help-all. It is made as typer makes one: the classes of parameters differ between versions."""
    alone = typer.Typer(add_completion=False)
    alone.command()(_with_help_all)
    command: Any = typer.main.get_command(alone)
    return command.params[0]

"""Commands that the laboratory brings, a package of its own (`lab/` in the repository)."""

from __future__ import annotations

from importlib.metadata import EntryPoints, entry_points
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from headway.commands.command import Command


class LaboratoryGroup(TyperGroup):
    """The commands of a group and, if the laboratory is installed, its commands after them. They are found by their
    entry points, and imported when they are run."""

    entry_point_group: ClassVar[str]

    def laboratory(self) -> EntryPoints:
        """The commands of the laboratory; empty if it is not installed."""
        return entry_points(group=self.entry_point_group)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        return [*super().list_commands(ctx), *(entry.name for entry in self.laboratory())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; None for an unknown name."""
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        entries = self.laboratory()
        if cmd_name not in entries.names:
            return None
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name, cls=Command)(entries[cmd_name].load())
        return typer.main.get_command(alone)

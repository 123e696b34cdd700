"""Pictures of results, PNG or SVG, by matplotlib, which comes with the `bench` extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from headway.bench.machine import described, machine

FORMATS = (".png", ".svg")

PlotOption = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw the figures too: a .png or .svg file.")
]


def check(file: Path | None) -> None:
    """Raise BadParameter if the picture cannot be drawn. Called before any measurement."""
    if file is None:
        return
    problem = None
    if file.suffix.lower() not in FORMATS:
        problem = f"must end in {' or '.join(FORMATS)}, got {str(file)!r}"
    elif not file.absolute().parent.is_dir():
        problem = f"there is no folder {str(file.parent)!r}"
    elif importlib.util.find_spec("matplotlib") is None:
        problem = "needs matplotlib: pip install 'headway[bench]'"
    if problem is not None:
        raise typer.BadParameter(problem, param_hint="--plot")


def lines(
    file: Path, title: str, x: str, y: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, log: bool
) -> None:
    """One line per series, through its (x, y) values. log: both axes are logarithmic; else y begins at 0."""
    figure, axes = _figure(title)
    for label, (xs, ys) in series.items():
        axes.plot(xs, ys, marker="o" if len(xs) < 30 else None, label=label)
    if log:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({value for xs, _ in series.values() for value in xs})
        axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        axes.yaxis.set_major_formatter("{x:,g}")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend()
    figure.savefig(file, dpi=150)


Stacks = Mapping[str, Mapping[str, float | None]]
"""Bars by their labels, each made of named parts; a part that is None is not drawn."""


def bars(file: Path, title: str, x: str, stacks: Stacks) -> None:
    """One bar per entry of `stacks`, from top to bottom, with its sum at its end."""
    figure, axes = _figure(title)
    _draw_bars(axes, x, stacks)
    figure.savefig(file, dpi=150)


def panels(file: Path, title: str, named: Mapping[str, tuple[str, Stacks]]) -> None:
    """Panels of bars, one below the other. named: by the title of a panel, the unit of its bars, and the bars."""
    panels_figure(title, named).savefig(file, dpi=100)


def panels_figure(title: str, named: Mapping[str, tuple[str, Stacks]]) -> Any:
    """The figure that `panels` writes."""
    from matplotlib.figure import Figure

    num_bars = sum(len(stacks) for _, stacks in named.values())
    figure = Figure(figsize=(8, 1.0 * len(named) + 0.35 * num_bars + 0.6), layout="constrained")
    figure.suptitle(title)
    _sign(figure)
    heights = [2 + len(stacks) for _, stacks in named.values()]
    for axes, (name, (unit, stacks)) in zip(
        figure.subplots(len(named), squeeze=False, height_ratios=heights).flat, named.items()
    ):
        axes.set_title(name, loc="left", fontsize="medium")
        _draw_bars(axes, unit, stacks)
    return figure


def _draw_bars(axes: Any, x: str, stacks: Stacks) -> None:
    labels = list(stacks)
    ends = [0.0] * len(labels)
    for part in dict.fromkeys(part for parts in stacks.values() for part in parts):
        drawn = [i for i, label in enumerate(labels) if stacks[label].get(part) is not None]
        values = [stacks[labels[i]][part] or 0.0 for i in drawn]
        if drawn:
            axes.barh(drawn, values, left=[ends[i] for i in drawn], label=part)
        for i, value in zip(drawn, values):
            ends[i] += value
    for i, end in enumerate(ends):
        known = any(value is not None for value in stacks[labels[i]].values())
        number = f"{end:,.0f}" if end >= 100 else f"{end:,.3g}"
        axes.text(end, i, f" {number if known else 'too few samples'}", ha="left", va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)  # from top to bottom
    axes.set_xlim(0, max(ends) * 1.25 or 1.0)  # room for the number at the end of the longest bar
    axes.set_xlabel(x)
    if axes.containers:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the bars, never on them


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    _sign(figure)
    return figure, axes


def _sign(figure: Any) -> None:
    """Say in a corner on which machine the figures were measured."""
    figure.supxlabel(described(machine()), x=0.99, ha="right", fontsize="x-small", color="gray")

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


def bars(file: Path, title: str, x: str, stacks: Mapping[str, Mapping[str, float]]) -> None:
    """One bar per entry of `stacks`, from top to bottom, made of its named parts, with their sum at its end."""
    figure, axes = _figure(title)
    labels = list(stacks)
    ends = [0.0] * len(labels)
    for part in dict.fromkeys(part for parts in stacks.values() for part in parts):
        values = [stacks[label].get(part, 0.0) for label in labels]
        axes.barh(labels, values, left=ends, label=part)
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    for i, end in enumerate(ends):
        axes.text(end, i, f" {end:,.0f}", ha="left", va="center")
    axes.invert_yaxis()
    axes.set_xlabel(x)
    axes.margins(x=0.12)
    axes.legend()
    figure.savefig(file, dpi=150)


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    figure.supxlabel(described(machine()), x=0.99, ha="right", fontsize="x-small", color="gray")
    return figure, axes

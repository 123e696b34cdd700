"""`--plot` draws PNG and SVG, and says at once when it cannot."""

import importlib.util

import pytest

from headway.bench import plot
from headway.cli import main


@pytest.fixture
def no_matplotlib(monkeypatch):
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else known(name))


def test_without_matplotlib_one_line_says_how_to_get_it(no_matplotlib, tmp_path, capsys):
    assert main(["bench", "step", "--running", "2", "--steps", "100", "--plot", str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert not out  # before anything is measured
    assert "pip install 'headway[bench]'" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("benchmark", ["step", "churn", "prefix", "preempt", "memory"])
@pytest.mark.parametrize(("name", "says"), [("a.pdf", ".png or .svg"), ("nowhere/a.png", "no folder")])
def test_a_file_that_cannot_be_drawn_is_refused_before_anything_is_measured(benchmark, name, says, tmp_path, capsys):
    assert main(["bench", benchmark, "--plot", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert not out and says in err


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
@pytest.mark.parametrize("log", [True, False])
def test_lines(suffix, begins, log, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"lines{suffix}"
    plot.lines(file, "title", "x", "y", {"one": ([1, 2], [3, 4]), "two": ([1, 2], [5, 6])}, log=log)
    assert file.read_bytes().startswith(begins)


def test_bars_say_what_they_sum_up_to(tmp_path):
    pytest.importorskip("matplotlib").rcParams["svg.fonttype"] = "none"
    file = tmp_path / "bars.svg"
    plot.bars(file, "title", "µs", {"ours": {"a": 1.0, "b": 2.0}, "theirs": {"a": 40.0}})
    text = file.read_text()
    for shown in ("ours", "theirs", " 3<", " 40<", "µs", "title"):
        assert shown in text


def figure_of(stacks):
    pytest.importorskip("matplotlib")
    figure = plot.panels_figure("title", {"first": ("ms", stacks), "second": ("ms", stacks)})
    figure.draw_without_rendering()
    return figure


def test_a_legend_names_only_what_is_drawn():
    figure = figure_of({"few": {"median": 3.0, "up to p99": None}, "fewer": {"median": None, "up to p99": None}})
    for axes in figure.axes:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["median"]
        assert [text.get_text() for text in axes.texts] == [" 3", " too few samples"]
    for axes in figure_of({"one": {"median": None}}).axes:
        assert axes.get_legend() is None


@pytest.mark.parametrize("longest", [0.004, 3.0, 123456.0])
def test_the_numbers_of_bars_lie_inside_the_axes_and_the_legend_beside_them(longest):
    figure = figure_of({"one": {"median": 0.5, "up to p99": longest}, "2": {"median": longest / 2, "up to p99": None}})
    for axes in figure.axes:
        for text in axes.texts:
            assert axes.bbox.x0 <= text.get_window_extent().x0 and text.get_window_extent().x1 <= axes.bbox.x1
        legend = axes.get_legend().get_window_extent()
        assert legend.x0 >= axes.bbox.x1 and legend.x1 <= figure.bbox.x1

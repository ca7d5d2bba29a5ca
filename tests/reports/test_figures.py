"""Figures: what is drawn, and whether it can be read."""

import json
import re
from xml.etree import ElementTree

import pytest
from matplotlib.text import Text

from klqlit.reports.experiment import read_experiment
from klqlit.reports.figures import critic, curves, frontier
from klqlit.reports.figures.style import STYLE, Gallery, canvas, inline, legend_above, look, words
from klqlit.reports.figures.win_rates import win_rate_figure
from klqlit.reports.win_rates import find_series
from reports.folders import critic_rows, write_everything, write_rows, write_run


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return read_experiment([write_everything(tmp_path_factory.mktemp("runs"))])


@pytest.fixture(scope="module")
def task(found):
    return found.tasks[0]


@pytest.fixture(scope="module")
def drawn(found, task):
    """One figure of each family, with its layout done."""
    figures = {
        "curve": curves.learning_curve(task, 0.1, "objective/J", curves.by_updates),
        "seconds": curves.learning_curve(task, 0.1, "reward/score", curves.by_seconds),
        "stages": curves.seconds_by_stage(task),
        "frontier": frontier.frontier(task),
        "gold": frontier.over_optimisation(task, "KLQ"),
        "wins": win_rate_figure(find_series(found, task)[0]),
        "V": critic.calibration(task, 0.1, "V"),
        "variance": critic.explained_variance(task, 0.1),
    }
    for figure in figures.values():
        figure.draw_without_rendering()
    return figures


def unseen(axes):
    """Labels of ticks beyond the ends of the axes."""
    (left, right), (low, high) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
    across = [label for label in axes.get_xticklabels() if not left <= label.get_position()[0] <= right]
    return across + [label for label in axes.get_yticklabels() if not low <= label.get_position()[1] <= high]


FAMILIES = ("curve", "seconds", "stages", "frontier", "gold", "wins", "V", "variance")


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_large_enough_and_inside(drawn, name):
    figure = drawn[name]
    frame = figure.bbox
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and text not in unseen(figure.axes[0]):
            assert text.get_fontsize() >= 9, text
            box = text.get_window_extent()
            assert frame.x0 - 1 <= box.x0 <= box.x1 <= frame.x1 + 1, text
            assert frame.y0 - 1 <= box.y0 <= box.y1 <= frame.y1 + 1, text


@pytest.mark.parametrize("name", FAMILIES)
def test_the_legend_covers_no_data(drawn, name):
    figure = drawn[name]
    (axes,) = figure.axes
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert len(legend.get_texts()) >= 2


def test_colours_are_fixed_and_told_apart_without_colour():
    names = ["KLQ", "PPO, clip", "PPO, penalty", "RLOO"]
    assert look(names, "KLQ")["color"] == "#0072b2"
    assert look(names, "PPO, clip")["color"] == "#d55e00"
    assert look(["RLOO", "PPO"], "PPO")["color"] == "#d55e00"
    looks = [look(names, name) for name in names]
    for key in ("color", "marker", "linestyle"):
        assert len({style[key] for style in looks}) == 4


# Numbers --------------------------------------------------------------------------------------------------------------


def test_a_curve_is_the_mean_over_seeds_at_each_phase(task):
    """J at the end: 3.1, 3.2, 3.3 less 0.1 times 10. Rollouts of phase 3 come after 3 updates, validations after 4."""
    runs = task.cells[0].runs
    line = curves.curve(runs, "objective/J", curves.by_updates, 0)
    assert [point.x for point in line] == [0, 1, 2, 3]
    assert [point.y.mean for point in line] == pytest.approx([0.0, 2.2 / 3, 4.4 / 3, 2.2])
    assert line[-1].y.count == 3
    held_out = curves.curve(runs, "val/objective/J", curves.by_updates, 1)
    assert [point.x for point in held_out] == [2, 4]
    assert held_out[-1].y.mean == pytest.approx(2.2)


def test_seconds_are_those_that_have_passed(task):
    """Phases take 3.5, 4.5, 5.5 and 6.5 seconds; the first rollout is sampled at 0."""
    runs = task.cells[0].runs
    assert [p.x for p in curves.curve(runs, "reward/score", curves.by_seconds, 0)] == [0.0, 3.5, 8.0, 13.5]
    assert [p.x for p in curves.curve(runs, "val/reward/score", curves.by_seconds, 1)] == [8.0, 20.0]


def test_seeds_of_different_lengths_are_averaged_where_all_are(tmp_path):
    for seed in (1, 2):
        folder = write_run(tmp_path / str(seed), seed=seed)
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text("".join(lines[: 3 * seed]))
    runs = read_experiment([tmp_path]).tasks[0].cells[0].runs
    assert [p.x for p in curves.curve(runs, "reward/score", curves.by_updates, 0)] == [0, 1]


def test_without_times_there_is_no_curve_by_seconds(tmp_path):
    folder = write_run(tmp_path / "run")
    write_rows(folder / "metrics.jsonl", [{"step": i, "epoch": i, "reward/score": 1.0} for i in range(3)])
    task = read_experiment([tmp_path]).tasks[0]
    assert curves.learning_curve(task, 0.1, "reward/score", curves.by_seconds) is None
    assert curves.learning_curve(task, 0.1, "reward/score", curves.by_updates) is not None
    assert curves.learning_curve(task, 0.1, "reward/gold", curves.by_updates) is None
    assert curves.seconds_by_stage(task) is None


def test_a_wide_band_does_not_set_the_scale(task, drawn):
    axes = drawn["curve"].axes[0]
    values = [y for line in axes.get_lines() for y in line.get_ydata()]
    low, high = axes.get_ylim()
    assert min(values) - 0.1 * (max(values) - min(values)) < low < min(values)
    assert max(values) < high < max(values) + 0.1 * (max(values) - min(values))
    assert len(axes.collections) == 2


def test_two_seeds_are_drawn_and_not_a_band(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / str(seed), seed=seed, score=seed)
    figure = curves.learning_curve(read_experiment([tmp_path]).tasks[0], 0.1, "reward/score", curves.by_updates)
    assert len(figure.axes[0].collections) == 0
    assert len(figure.axes[0].get_lines()) == 4  # mean, two seeds, dots


def test_the_frontier_goes_through_each_tau(drawn):
    """KL 1 / tau and score 3.2 for KLQ; 1.2 / tau and 2.7 for PPO; the reference at 0, 0."""
    axes = drawn["frontier"].axes[0]
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    containers = {c.get_label(): c.lines[0].get_xydata().tolist() for c in axes.containers}
    assert containers["KLQ"] == [pytest.approx([2.5, 3.2]), pytest.approx([10.0, 3.2])]
    assert containers["PPO"] == [pytest.approx([3.0, 2.7]), pytest.approx([12.0, 2.7])]
    assert points["reference"] == [[0.0, 0.0]]
    assert sorted(text.get_text() for text in axes.texts) == ["0.1", "0.1", "0.4", "0.4"]


def test_optima_are_means_over_problems(tmp_path):
    for seed in (1, 2):
        folder = write_run(tmp_path / str(seed), seed=seed)
        (folder / "optimum.json").write_text(json.dumps({"tau": 0.1, "score": seed, "kl": 2.0 * seed, "J": 0.0}))
    task = read_experiment([tmp_path]).tasks[0]
    ((tau, (kl, score)),) = frontier.optima(task.runs).items()
    assert (tau, kl.mean, score.mean) == (0.1, 3.0, 1.5)
    figure = frontier.frontier(task)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert "exact optimum" in labels


def test_gains_are_in_deviations_of_the_reference(task):
    """Validations after phases 1 and 3: score 3.2 / 3 and 3.2 in deviations of 2, gold half of it in those of 1."""
    cell = task.cells[0]
    assert frontier.gains(cell, "score") == [pytest.approx((10 / 3, 3.2 / 6)), pytest.approx((10.0, 1.6))]
    assert frontier.gains(cell, "gold") == [pytest.approx((10 / 3, 3.2 / 6)), pytest.approx((10.0, 1.6))]


def test_gold_is_needed_for_over_optimisation(tmp_path):
    write_run(tmp_path / "run", gold=False)
    task = read_experiment([tmp_path]).tasks[0]
    assert frontier.over_optimisation(task, "KLQ") is None
    assert frontier.frontier(task, "reward/gold") is None


def test_win_rates_stand_at_their_taus(drawn):
    axes = drawn["wins"].axes[0]
    assert [float(tick.get_text()) for tick in axes.get_xticklabels()] == [0.1, 0.4]
    assert axes.get_ylim() == (0, 1)
    assert [container.get_label() for container in axes.containers] == ["plain", "length-controlled"]


def test_bins_are_those_of_the_last_validation(tmp_path):
    folder = write_run(tmp_path / "run")
    old = critic_rows(step=16)
    old[0]["V"] = {"bins": [{"predicted": 9.0, "realised": 9.0, "count": 1}]}
    write_rows(folder / "critic.jsonl", old + critic_rows(step=32))
    run = read_experiment([tmp_path]).runs[0]
    assert critic.bins(run, "V") == [(-1.0, -2.0), (0.0, 0.0), (1.5, 3.0)]


# Files ----------------------------------------------------------------------------------------------------------------


def test_names_are_drawn_as_they_stand(tmp_path):
    figure, axes = canvas()
    axes.plot([0, 1], label=words("_hidden $x$ <script>alert(1)</script>"))
    legend_above(figure, axes)
    picture = Gallery(tmp_path).add(figure, "A/../name:1", 'title "quoted" <b>')
    text = (tmp_path / f"{picture.name}.svg").read_text()
    assert "_hidden $x$ &lt;script&gt;" in text
    assert "<script" not in picture.svg
    assert 'aria-label="title &#34;quoted&#34; &lt;b&gt;"' in picture.svg
    assert {path.name for path in tmp_path.iterdir()} == {"a-..-name-1.svg", "a-..-name-1.png"}


def test_two_figures_of_one_name_get_files_of_their_own(tmp_path):
    gallery = Gallery(tmp_path)
    names = [gallery.add(canvas()[0], name, "t").name for name in ("τ = 0.1", "τ = 0.1", "!!!")]
    assert len(set(names)) == 3
    assert len(list(tmp_path.iterdir())) == 6


def test_ids_of_two_figures_do_not_meet(drawn, tmp_path):
    gallery = Gallery(tmp_path)
    svgs = [gallery.add(drawn[name], name, name).svg for name in ("wins", "V")]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in svgs]
    assert not ids[0] & ids[1]
    for svg, own in zip(svgs, ids, strict=True):
        used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg))
        assert used
        assert used <= own


def test_inlined_drawings_are_well_formed(drawn, tmp_path):
    svg = Gallery(tmp_path).add(drawn["frontier"], "x", "x").svg
    root = ElementTree.fromstring(svg)
    assert root.attrib["viewBox"]
    assert "width" not in root.attrib
    assert "metadata" not in svg
    with pytest.raises(AssertionError):
        inline("<svg><g/></svg>", "a", "b")


def test_the_same_runs_give_the_same_files(task, tmp_path):
    texts = []
    for name in ("one", "two"):
        figure = curves.learning_curve(task, 0.1, "objective/J", curves.by_updates)
        Gallery(tmp_path / name).add(figure, "j", "J")
        texts.append((tmp_path / name / "j.svg").read_bytes())
    assert texts[0] == texts[1]


def test_text_stays_text():
    assert STYLE["svg.fonttype"] == "none"

"""Win rates over tau: whose view, which seeds, which judge."""

import json
import os

import pytest
from scipy.stats import t as student

from klqlit.reports.chapters import task_chapter
from klqlit.reports.experiment import read_experiment
from klqlit.reports.figures.style import Gallery
from klqlit.reports.intervals import crossed, over_seeds
from klqlit.reports.win_rates import find_series, left_out, pooled
from reports.folders import write_comparison, write_run


@pytest.fixture
def runs(tmp_path):
    """KLQ and PPO at one tau with two seeds each."""
    return {
        (name, seed): write_run(tmp_path / f"{name}{seed}", name, 0.1, seed)
        for name in ("KLQ", "PPO")
        for seed in (1, 2)
    }


def series_of(root):
    found = read_experiment([root])
    return find_series(found, found.tasks[0])


def test_a_single_comparison_keeps_its_own_interval(runs, tmp_path):
    write_comparison(tmp_path / "judged", runs["KLQ", 1], runs["PPO", 1], ["win", "win", "tie", "loss"])
    (series,) = series_of(tmp_path)
    assert (series.first, series.second, list(series.points)) == ("KLQ", "PPO", [0.1])
    share = pooled(series.points[0.1], "win_rate")
    assert (share.rate, share.low, share.high) == (0.625, 0.5, 0.6875)


def test_the_other_side_s_view_is_the_mirror_image(runs, tmp_path):
    """Side A is PPO: KLQ's rate is 1 - 0.625, and the ends of the interval change places."""
    write_comparison(tmp_path / "judged", runs["PPO", 1], runs["KLQ", 1], ["win", "win", "tie", "loss"])
    (series,) = series_of(tmp_path)
    assert (series.first, series.second) == ("KLQ", "PPO")
    share = pooled(series.points[0.1], "win_rate")
    assert (share.rate, share.low, share.high) == (0.375, 0.3125, 0.5)
    controlled = pooled(series.points[0.1], "length_controlled")
    assert (controlled.rate, controlled.low, controlled.high) == (1 - 0.3125, 1 - 0.625, 1 - 0.15625)
    assert series.points[0.1][0].values() == {"p0": [0.0], "p1": [0.0], "p2": [0.5], "p3": [1.0]}


def test_seeds_are_pooled_with_their_prompts_in_common(runs, tmp_path):
    outcomes = {1: ["win", "win", "tie", "loss"] * 10, 2: ["win", "tie", "tie", "loss"] * 10}
    write_comparison(tmp_path / "j1", runs["KLQ", 1], runs["PPO", 1], outcomes[1])
    # The second was judged the other way round.
    mirrored = [{"win": "loss", "loss": "win", "tie": "tie"}[outcome] for outcome in outcomes[2]]
    write_comparison(tmp_path / "j2", runs["PPO", 2], runs["KLQ", 2], mirrored)
    (series,) = series_of(tmp_path)
    value = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    spread = crossed([{f"p{i}": [value[o]] for i, o in enumerate(row)} for row in outcomes.values()])
    share = pooled(series.points[0.1], "win_rate")
    assert share.rate == pytest.approx((0.625 + 0.5) / 2)
    half = spread.interval().half
    assert (share.low, share.high) == (
        pytest.approx(max(share.rate - half, 0)),
        pytest.approx(min(share.rate + half, 1)),
    )
    assert spread.of_prompts > 0
    # Length-controlled: 0.3125 and 1 - 0.25, with their own spread and the prompts' part of the plain verdicts.
    controlled = pooled(series.points[0.1], "length_controlled")
    rates = over_seeds([0.3125, 0.75])
    assert controlled.rate == pytest.approx(rates.mean)
    variance = (rates.half / student.ppf(0.975, 1)) ** 2 + spread.of_prompts
    assert controlled.low == pytest.approx(max(0.0, rates.mean - student.ppf(0.975, 1) * variance**0.5))


def test_a_seed_without_a_length_controlled_rate_counts_in_no_part_of_it(runs, tmp_path):
    for name in ("KLQ", "PPO"):
        runs[name, 3] = write_run(tmp_path / f"{name}3", name, 0.1, 3)
    for seed, outcomes in (
        (1, ["win", "tie"] * 10),
        (2, ["win", "loss"] * 10),
        (3, ["loss", "loss", "win", "win"] * 5),
    ):
        folder = write_comparison(tmp_path / f"j{seed}", runs["KLQ", seed], runs["PPO", seed], outcomes)
    judged = json.loads((folder / "judged.json").read_text())
    judged["statistics"]["length_controlled"] = None
    (folder / "judged.json").write_text(json.dumps(judged))
    (series,) = series_of(tmp_path)
    duels = series.points[0.1]
    assert len(duels) == 3
    assert pooled(duels, "length_controlled") == pooled(duels[:2], "length_controlled")


def test_without_judgments_seeds_alone_count(runs, tmp_path):
    for seed, outcomes in ((1, ["win", "win", "tie"]), (2, ["win", "win", "win"])):
        folder = write_comparison(tmp_path / f"j{seed}", runs["KLQ", seed], runs["PPO", seed], outcomes)
        (folder / "judgments.jsonl").unlink()
    (series,) = series_of(tmp_path)
    share, rates = pooled(series.points[0.1], "win_rate"), over_seeds([2.5 / 3, 1.0])
    assert share.rate == pytest.approx(rates.mean)
    assert share.low == pytest.approx(max(0.0, rates.low))
    assert share.high == 1.0


def test_judges_are_kept_apart(runs, tmp_path):
    for i, digest in enumerate(("aa", "bb")):
        judge = {"class": "EndpointJudge", "model": "m", "template_hash": digest}
        write_comparison(tmp_path / f"j{i}", runs["KLQ", 1], runs["PPO", 1], ["win"], judge=judge)
    assert [series.judge["template_hash"] for series in series_of(tmp_path)] == ["aa", "bb"]


def test_only_runs_of_the_same_tau_and_of_different_variants_meet(runs, tmp_path):
    far = write_run(tmp_path / "far", "PPO", 0.4, 1)
    write_comparison(tmp_path / "j1", runs["KLQ", 1], far, ["win"])
    write_comparison(tmp_path / "j2", runs["KLQ", 1], runs["KLQ", 2], ["win"])
    write_comparison(tmp_path / "j3", runs["KLQ", 1], None, ["win"])
    assert series_of(tmp_path) == []


def test_a_comparison_without_verdicts_gives_no_point(runs, tmp_path):
    write_comparison(tmp_path / "j", runs["KLQ", 1], runs["PPO", 1], [None, None])
    (series,) = series_of(tmp_path)
    assert pooled(series.points[0.1], "win_rate") is None


def test_of_repeated_comparisons_the_longest_counts_then_the_newest(runs, tmp_path):
    """Four folders of one pair of runs: the sides swapped, fewer prompts, the same number again and later."""
    klq, ppo = runs["KLQ", 1], runs["PPO", 1]
    write_comparison(tmp_path / "j1", klq, ppo, ["win", "win"])
    write_comparison(tmp_path / "j2", ppo, klq, ["win"])
    write_comparison(tmp_path / "j3", ppo, klq, ["win", "tie"])
    write_comparison(tmp_path / "j4", klq, ppo, ["loss", "loss"])
    for age, name in enumerate(("j2", "j3", "j1", "j4")):
        os.utime(tmp_path / name / "judged.json", (1e9 - age, 1e9 - age))
    found = read_experiment([tmp_path])
    (series,) = find_series(found, found.tasks[0])
    assert [duel.judged.name for duel in series.points[0.1]] == ["j3"]
    assert pooled(series.points[0.1], "win_rate").rate == 0.25
    assert left_out(found, found.tasks[0]) == [
        f"{name} is left out of the win rates over τ: j3 compares the same runs" for name in ("j1", "j2", "j4")
    ]


def test_runs_of_different_seeds_are_not_pooled(runs, tmp_path):
    write_comparison(tmp_path / "j1", runs["KLQ", 1], runs["PPO", 1], ["win"])
    write_comparison(tmp_path / "j2", runs["KLQ", 1], runs["PPO", 2], ["loss"])
    found = read_experiment([tmp_path])
    (series,) = find_series(found, found.tasks[0])
    assert pooled(series.points[0.1], "win_rate").rate == 1.0
    (note,) = left_out(found, found.tasks[0])
    assert note == "j2 is left out of the win rates over τ: its runs have different seeds, 1 and 2"
    chapter = task_chapter(found, found.tasks[0], Gallery(tmp_path), "t")
    (section,) = [one for one in chapter.sections if one.key == "t-wins"]
    assert f"{note}." in section.missing

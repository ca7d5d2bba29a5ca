"""Tables, against numbers calculated by hand."""

import json
import re

import pytest
from scipy.stats import t as student

from klqlit.reports import judged_tables, tables
from klqlit.reports.experiment import read_experiment
from klqlit.reports.intervals import with_error
from reports.folders import write_comparison, write_everything, write_run

T2 = float(student.ppf(0.975, 2))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return read_experiment([write_everything(tmp_path_factory.mktemp("runs"))]).tasks[0]


def test_the_summary(task):
    """Scores 3.1, 3.2, 3.3 at tau 0.1 with KL 10: J is 1 less, deviation 0.1."""
    table = tables.summary(task)
    assert table.headings == ["", "τ", "seeds", "J", "score", "gold score", "KL, nats", "wins by score", "wins by gold"]
    half = T2 * 0.1 / 3**0.5
    assert table.rows[0] == [
        "KLQ",
        "0.1",
        "3",
        with_error(2.2, half),
        with_error(3.2, half),
        with_error(1.6, half / 2),
        "10.0",
        "90.0 ± 0.0 %",
        "50.0 ± 0.0 %",
    ]
    assert [row[:2] for row in table.rows] == [
        ["KLQ", "0.1"],
        ["PPO", "0.1"],
        ["KLQ", "0.4"],
        ["PPO", "0.4"],
        ["reference", "–"],
    ]
    # The reference pays nothing for KL, so that its J is its score.
    assert table.rows[-1] == ["reference", "–", "–", "0", "0", "0", "0", "–", "–"]
    assert table.note.startswith("On held-out prompts")


def test_win_rates_of_a_judge_during_training_have_columns(tmp_path):
    folder = write_run(tmp_path / "run")
    row = {"step": 31, "epoch": 3, "val/judge/win_rate": 0.625, "val/judge/win_rate_low": 0.5}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    table = tables.summary(read_experiment([tmp_path]).tasks[0])
    assert (table.headings[-1], table.rows[0][-1]) == ("wins by judge", "62.5 %")


def test_differences_are_paired_by_seed(task):
    """Scores differ by 0.5 at each seed, so that the interval vanishes although the scores themselves spread."""
    (table,) = tables.differences(task)
    assert table.title == "KLQ − PPO, paired by seed"
    assert table.headings == ["τ", "pairs", "J", "score", "gold score", "KL, nats"]
    (tau, pairs, objective, score, _, kl), _ = table.rows
    assert (tau, pairs) == ("0.1", "3")
    assert float(score.split(" ± ")[0]) == pytest.approx(0.5)
    assert float(objective.split(" ± ")[0]) == pytest.approx(0.5 + 0.1 * 2)
    assert float(kl.split(" ± ")[0].replace("−", "-")) == pytest.approx(-2.0)


def test_seeds_that_only_one_has_are_left_out_of_the_difference(tmp_path):
    for name, seeds in (("KLQ", (1, 2)), ("PPO", (2, 3))):
        for seed in seeds:
            write_run(tmp_path / f"{name}{seed}", name, seed=seed, score=float(seed) + (name == "KLQ"))
    (table,) = tables.differences(read_experiment([tmp_path]).tasks[0])
    assert table.rows[0][:4] == ["0.1", "1", "1.00", "1.00"]
    assert tables.differences(read_experiment([tmp_path / "KLQ1"]).tasks[0]) == []


def test_seconds_by_stage(task):
    """1 and 0.5 in each of four phases, and 2, 3, 4, 5: 3.5 on average."""
    table = tables.times(task)
    assert table.headings == ["", "τ", "generation", "scoring", "optimization", "total", "device"]
    assert table.rows[0] == ["KLQ", "0.1", "1.00", "0.500", "3.50", "5.00", "abacus"]


def test_shares_of_the_way_to_the_optimum(tmp_path):
    """J 2.4 on the way from 0.4 to 4.4 is a half; at the other seed, from 1.4 to 3.4, too."""
    for seed, ends in ((1, (0.4, 4.4)), (2, (1.4, 3.4))):
        folder = write_run(tmp_path / str(seed), seed=seed)
        optimum = {"tau": 0.1, "score": ends[1] + 1, "kl": 10.0, "J": ends[1], "reference": ends[0]}
        (folder / "optimum.json").write_text(json.dumps(optimum))
    task = read_experiment([tmp_path]).tasks[0]
    (row,) = tables.optimum_table(task).rows
    assert row[:4] == ["KLQ", "0.1", "2", "3.90"]
    assert row[-1].startswith("50.0 ± ")
    assert tables.summary(task).note.startswith("Computed exactly")


def test_what_is_not_there_makes_no_table(tmp_path):
    folder = write_run(tmp_path / "run", gold=False)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if "time/" not in k} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    task = read_experiment([tmp_path]).tasks[0]
    assert tables.times(task) is None
    assert tables.optimum_table(task) is None
    assert "gold score" not in tables.summary(task).headings
    # One seed: no interval.
    assert tables.summary(task).rows[0][3] == "2.40"


def test_comparisons_and_what_they_rest_on(tmp_path):
    judge = {"class": "EndpointJudge", "model": "gpt", "template": "summary", "template_hash": "0123456789abcdef"}
    write_comparison(tmp_path / "judged", None, None, ["win", "win", "tie", "loss"], judge=judge)
    write_comparison(
        tmp_path / "void", None, None, [None], judge={"class": "RewardJudge", "reward": {"class": "a.b.Gold"}}
    )
    found = read_experiment([tmp_path]).comparisons
    first, second = judged_tables.comparisons(found).rows
    assert first == [
        "judged",
        "side <A>",
        "B",
        judged_tables.judge_name(judge),
        "0123456789ab",
        "62.5 [50.0, 68.8] %",
        "31.2 [15.6, 62.5] %",
        "0.04",
    ]
    assert second[3].startswith("RewardJudge, a.b.Gold #")
    assert second[4:7] == ["–", "–", "–"]
    assert re.fullmatch(r"EndpointJudge, gpt, summary #[0-9a-f]{6}", first[3])
    # Another setting, another judge.
    assert judged_tables.judge_name(judge | {"temperature": 1.0}) != first[3]
    first, second = judged_tables.verdict_counts(found).rows
    assert first == ["judged", "4", "4", "1", "2", "3", "75.0 %", "50.0 %", "87.5 %", "–"]
    assert second[:3] == ["void", "1", "0"]

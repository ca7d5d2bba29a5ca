"""Folders as they may be: whole, half-written, renamed, empty."""

import json
import math

import pytest

from klqlit.reports.experiment import read_experiment
from klqlit.reports.reading import read_rows
from klqlit.reports.runs import read_run
from reports.folders import config, write_comparison, write_everything, write_run, write_supervised


def test_a_run_by_hand(tmp_path):
    """Score 3 and KL 6 after 3 of 4 phases; the last validation is the last row's."""
    run = read_run(write_run(tmp_path / "run", "KLQ", 0.1, 7), "run")
    assert (run.algorithm, run.tau, run.seed, run.task, run.aligned) == ("KLQ", 0.1, 7, "MiniHH", True)
    assert run.series("reward/score") == pytest.approx({0: 0.0, 1: 1.0, 2: 2.0, 3: 3.0})
    assert run.series("val/reward/score") == pytest.approx({1: 1.0, 3: 3.0})
    assert run.final("objective/J") == pytest.approx(3.0 - 0.1 * 6.0)
    assert run.final("nothing") is None
    assert run.seconds == {0: 3.5, 1: 8.0, 2: 13.5, 3: 20.0}
    assert (run.status, run.device, run.problems) == ("finished, 32 steps", "abacus", [])
    assert {row["policy"].rpartition(" ")[0] for row in run.last_rows(run.samples)} == {"KLQ says"}


def test_without_validation_the_last_phase_counts(tmp_path):
    folder = write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [row for row in rows if "val/objective/J" not in row]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    run = read_run(folder, "run")
    assert not run.validated
    assert run.final("reward/score") == pytest.approx(3.0)


def test_torn_and_broken_lines_are_named(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "reward/sc')
    (folder / "samples.jsonl").write_text('nonsense\n{"step": 1}\n[1]\n')
    (folder / "critic.jsonl").write_bytes(b"\xff\xfe{}\n")
    run = read_run(folder, "run")
    assert run.problems == [
        "metrics.jsonl: the last line is torn, and was left out",
        "samples.jsonl: 2 of 3 lines cannot be read, and were left out",
        "critic.jsonl: the last line is torn, and was left out",
    ]
    assert run.final("reward/score") == pytest.approx(3.0)


def test_line_ends_of_other_kinds_are_text(tmp_path):
    file, problems = tmp_path / "rows.jsonl", []
    rows = [{"policy": f"one{end}other"} for end in ("\u2028", "\u2029", "\x85")]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join([*lines, '{"policy": "to']), encoding="utf-8")
    assert read_rows(file, problems) == rows
    assert problems == ["rows.jsonl: the last line is torn, and was left out"]
    file.write_text("")
    assert read_rows(file, problems) == []
    assert len(problems) == 1


@pytest.mark.parametrize("text", ["{", "- 1", "a: !!python/object:os.system {}", ""])
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, text):
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text(text)
    run = read_run(folder, "run")
    assert run.problems == ["config.yaml: cannot be read, and was left out"]
    assert (run.algorithm, run.tau, run.task, run.aligned) == ("run", None, "unknown task", True)


def test_numbers_that_are_none_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    values = [math.nan, math.inf, None, "many", True, 2.5]
    rows = [{"step": i, "epoch": i, "reward/score": value} for i, value in enumerate(values)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_run(folder, "run").series("reward/score") == {5: 2.5}


@pytest.mark.parametrize(
    ("record", "model", "finished", "status"),
    [
        (None, True, True, "finished, 32 steps"),
        (None, False, False, "step 32: no model was exported"),
        (
            {"state": "running", "step": 0, "starts": [{"steps": 64}]},
            False,
            False,
            "step 32 of 64: still running, or killed",
        ),
        (
            {"state": "stopped", "step": 33, "reason": "Divergence: NaN", "starts": [{"steps": None}]},
            True,
            False,
            "stopped at step 33: Divergence: NaN",
        ),
        ({"state": "finished", "step": 32, "starts": "none"}, False, True, "finished, 32 steps"),
    ],
)
def test_the_state_of_a_run(tmp_path, record, model, finished, status):
    folder = write_run(tmp_path / "run")
    (folder / "run.json").unlink()
    if record is not None:
        (folder / "run.json").write_text(json.dumps(record))
    if model:
        (folder / "model").mkdir()
    run = read_run(folder, "run")
    assert (run.finished, run.status) == (finished, status)


def test_other_runs_and_tasks(tmp_path):
    reward = read_run(write_supervised(tmp_path / "reward"), "reward")
    assert (reward.aligned, reward.algorithm, reward.task, reward.final("accuracy")) == (
        False,
        "RewardModelling",
        "MiniHH",
        0.8125,
    )
    settings = config("KLQ", 0.1, 1)
    settings["data"]["init_args"]["source"] = {"class_path": "klqlit.TableSource", "init_args": {"path": "a/rows.csv"}}
    folder = write_run(tmp_path / "table")
    (folder / "config.yaml").write_text(json.dumps(settings))
    assert read_run(folder, "table").task == "TableSource rows.csv"
    (folder / "label.json").write_text('{"task": "mine", "algorithm": "KLQ, tuned"}')
    assert read_run(folder, "table").task == "mine"


# Many ----------------------------------------------------------------------------------------------------------------


def test_everything_below_a_folder_is_found_once(tmp_path):
    write_everything(tmp_path / "runs")
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    found = read_experiment([tmp_path / "runs", tmp_path / "runs" / "klq-0.1-1"])
    assert len(found.runs) == 12
    assert len(found.comparisons) == 6
    assert [run.name for run in found.others] == ["reward"]
    (task,) = found.tasks
    assert (task.name, task.variants, task.taus, task.notes) == ("MiniHH", ["KLQ", "PPO"], [0.1, 0.4], [])
    assert [(cell.variant, cell.tau, [run.seed for run in cell.runs]) for cell in task.cells] == [
        (variant, tau, [1, 2, 3]) for variant in ("KLQ", "PPO") for tau in (0.1, 0.4)
    ]


def test_nothing_to_report_says_how_to_make_something(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"nothing to report in .*empty.*`python -m klqlit fit --config FILE"):
        read_experiment([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"there is no folder '.*nowhere': give the folder of a run"):
        read_experiment([tmp_path / "nowhere"])


def test_runs_with_other_settings_are_no_seeds_of_one_another(tmp_path):
    for alpha in (0.5, 1.0):
        for seed in (1, 2):
            write_run(tmp_path / f"{alpha}-{seed}", "KLQ", 0.1, seed, alpha=alpha)
    write_run(tmp_path / "ppo", "PPO")
    (task,) = read_experiment([tmp_path]).tasks
    assert task.variants == ["KLQ, alpha 0.5", "KLQ, alpha 1", "PPO"]
    assert [len(cell.runs) for cell in task.cells] == [2, 2, 1]


def test_long_labels_are_numbered_and_explained(tmp_path):
    for name in ("short", "a/very/long/name/of/a/directory"):
        write_run(tmp_path / name[0], "KLQ", q_loss=name)
    (task,) = read_experiment([tmp_path]).tasks
    assert task.variants == ["KLQ no. 1", "KLQ no. 2"]
    assert task.notes[0] == "KLQ no. 1 is KLQ, q_loss a/very/long/name/of/a/directory"


def test_a_folder_may_say_what_it_is(tmp_path):
    for beta, tau in ((0.1, 0.2), (0.3, 0.4), (0.2, 0.4)):
        folder = write_run(tmp_path / f"{beta}", "PPO", tau, 1 if beta != 0.2 else 2, beta=beta)
        (folder / "label.json").write_text('{"algorithm": "PPO, penalty"}')
    trial = write_run(tmp_path / "trial", "PPO", 0.2, 100)
    (trial / "label.json").write_text('{"role": "trial"}')
    found = read_experiment([tmp_path])
    assert found.tasks[0].variants == ["PPO, penalty"]
    assert [len(cell.runs) for cell in found.tasks[0].cells] == [1, 2]
    assert [run.name for run in found.others] == ["trial"]


def test_a_seed_counts_once_and_unfinished_runs_not_at_all(tmp_path):
    write_run(tmp_path / "one", seed=1)
    write_run(tmp_path / "again", seed=1)
    other = write_run(tmp_path / "other", seed=2)
    (other / "run.json").write_text('{"state": "running", "step": 3, "starts": []}')
    found = read_experiment([tmp_path])
    (cell,) = found.tasks[0].cells
    assert len(cell.runs) == 1
    assert not cell.unfinished
    assert found.tasks[0].notes == [
        "KLQ, τ = 0.1: left out of means and figures, since they did not finish: other (step 32: still running, or "
        "killed)",
        "KLQ, τ = 0.1: one left out, since again has the same seed 1",
    ]
    assert {run.name for run in found.left_out} == {"one", "other"}


def test_where_none_is_finished_all_count(tmp_path):
    for seed in (1, 2):
        folder = write_run(tmp_path / str(seed), seed=seed)
        (folder / "run.json").unlink()
    (cell,) = read_experiment([tmp_path]).tasks[0].cells
    assert (len(cell.runs), cell.unfinished) == (2, True)


# Comparisons ---------------------------------------------------------------------------------------------------------


def test_a_side_is_found_where_it_is_and_where_it_was_moved_to(tmp_path):
    klq = write_run(tmp_path / "new" / "task" / "klq", "KLQ")
    ppo = write_run(tmp_path / "new" / "task" / "ppo", "PPO")
    gone = tmp_path / "old"
    write_comparison(tmp_path / "new" / "judged" / "1", klq, gone / "task" / "ppo", ["win"])
    write_comparison(tmp_path / "new" / "judged" / "2", gone / "elsewhere" / "klq", None, ["win"])
    found = read_experiment([tmp_path / "new"])
    first, second = found.comparisons
    assert found.run_of(first, "a").folder == klq
    assert found.run_of(first, "b").folder == ppo
    assert found.run_of(second, "a") is None
    assert found.run_of(second, "b") is None


def test_a_run_that_is_there_but_not_in_the_report_is_not_mistaken(tmp_path):
    for name in ("mine", "theirs"):
        write_run(tmp_path / name / "runs" / "klq", "KLQ")
    write_comparison(tmp_path / "mine" / "judged", tmp_path / "theirs" / "runs" / "klq", None, ["win"])
    found = read_experiment([tmp_path / "mine"])
    assert found.run_of(found.comparisons[0], "a") is None


def test_a_broken_comparison_is_named(tmp_path):
    folder = write_comparison(tmp_path / "judged", None, None, ["win"])
    (folder / "judged.json").write_text('{"a": 3, "counts": [], "statistics": {"win_rate": {"rate": "x"}}')
    (judged,) = read_experiment([tmp_path]).comparisons
    assert judged.problems == ["judged.json: cannot be read, and was left out"]
    assert (judged.share("win_rate"), judged.count("pairs"), judged.judge) == (None, None, {"name": "None"})

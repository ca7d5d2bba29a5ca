"""A judge during training: what it is asked, when, and what is logged."""

import json
import math
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from callbacks import judged_ranks
from finetuning.runs import fit, new_module
from finetuning.runs import source as table_source
from judges.small import SmallJudge
from klqlit.algorithms.comparison import Comparison, Scored
from klqlit.callbacks.judged import JudgedWinRate, as_pairs, metrics_of
from klqlit.cli import main
from klqlit.data.supervised import CompletionDataModule
from klqlit.judges.matching import prompt_id
from klqlit.judges.records import JudgedPair, Pair
from pages import ROOT, first_cells, section
from runs import make_completions, make_data, make_module, make_sequences, make_trainer, two_rows

METRICS = first_cells(section(ROOT / "docs" / "metrics.md", "Each validation with a judge"))


def train(path, root, callback, **options):
    """A run of two phases, with a validation after each."""
    trainer = make_trainer(root, callback, **({"limit_val_batches": 1.0} | options))
    trainer.fit(make_module(path), make_data())
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/judge")}


def test_the_policy_is_side_a():
    sequences = make_sequences([[1], [1]], [[2], [3]])
    policy = make_completions([("p", "mine"), ("q", "other")], sequences, ended=[True, False])
    reference = make_completions([("p", "theirs"), ("q", "still")], sequences)
    policy = replace(policy, columns={"id": [None, 7], "topic": ["x", "y"]})
    sides = [Scored(completions=c, scores=sequences.tokens[:, 0].float(), gold=None) for c in (policy, reference)]
    first, second = as_pairs(Comparison(policy=sides[0], reference=sides[1], rollout=two_rows()))
    assert (first.id, first.prompt, first.a, first.b) == (prompt_id("p"), "p", "mine", "theirs")
    assert (second.id, second.a_ended, second.b_ended, second.columns) == ("7", False, True, {"id": 7, "topic": "y"})


def judged(a_first, a_second, i, **options):
    pair = Pair(id=str(i), prompt="p", a="a", b="b")
    return JudgedPair(pair=pair, a_first=a_first, a_second=a_second, **options)


def test_metrics_by_hand():
    pairs = [
        judged("win", "win", 0),
        judged("win", "loss", 1),
        judged("loss", "loss", 2),
        judged("win", None, 3, unreadable=1),
    ]
    metrics = metrics_of(pairs)
    assert metrics["win_rate"] == pytest.approx(0.5)
    assert metrics["unreadable"] == pytest.approx(1 / 4)
    assert metrics["inconsistent"] == pytest.approx(1 / 3)
    assert metrics["win_rate_low"] < 0.5 < metrics["win_rate_high"]
    assert "inconsistent" not in metrics_of([judged("win", "win", 0, both_orders=False)])
    assert metrics_of([judged(None, None, 0, unreadable=2)]) == {"unreadable": 1.0}


def test_failed_questions_are_a_warning():
    with pytest.warns(UserWarning, match="2 questions failed"):
        metrics_of([judged("win", "win", 0), judged(None, None, 1, failed=2)])


@pytest.mark.slow
def test_every_validation_is_judged_and_logged_as_the_page_says(quitter_dir, tmp_path):
    judge = SmallJudge()
    metrics = train(quitter_dir, tmp_path, JudgedWinRate(judge))
    assert set(metrics) == set(METRICS)
    assert metrics["val/judge/win_rate_low"] <= metrics["val/judge/win_rate"] <= metrics["val/judge/win_rate_high"]
    assert metrics["val/judge/unreadable"] == metrics["val/judge/inconsistent"] == 0
    assert {prompt for prompt, _, _ in judge.asked} == {"Why?", "How much is it?", "Who?"}
    assert (tmp_path / "judgments.sqlite").is_file()


@pytest.mark.slow
def test_phases_between_two_rounds(quitter_dir, tmp_path):
    judge = SmallJudge()
    assert not train(quitter_dir, tmp_path / "a", JudgedWinRate(judge, every_n_phases=4), max_epochs=3)
    assert not judge.asked
    assert train(quitter_dir, tmp_path / "b", JudgedWinRate(judge, every_n_phases=2), check_val_every_n_epoch=2)
    assert judge.asked
    # What was judged is not asked again where the run is repeated.
    before = judge.asked.total()
    train(quitter_dir, tmp_path / "b", JudgedWinRate(judge, every_n_phases=2), check_val_every_n_epoch=2)
    assert judge.asked.total() == before


@pytest.mark.slow
def test_against_stored_completions(quitter_dir, tmp_path):
    rows = [{"prompt": prompt, "completion": "x" * 1000} for prompt in ("Who?", "Why?", "What else?")]
    file = tmp_path / "stored.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    callback = JudgedWinRate(SmallJudge(), against=str(file), name="stored", cache=str(tmp_path / "mine.sqlite"))
    trainer = make_trainer(tmp_path / "run", callback, limit_val_batches=1.0)
    with pytest.warns(UserWarning, match="1 of 3 validation prompts have no completion in the file"):
        trainer.fit(make_module(quitter_dir), make_data())
    assert float(trainer.callback_metrics["val/stored/win_rate"]) == 0
    assert (tmp_path / "mine.sqlite").is_file()


@pytest.mark.slow
def test_a_judge_that_gives_up_is_a_warning_and_training_goes_on(quitter_dir, tmp_path):
    with pytest.warns(UserWarning, match=r"no win rate this time: the small judge is tired \(1 of \d judgments kept"):
        metrics = train(quitter_dir, tmp_path, JudgedWinRate(SmallJudge(stops_after=1)))
    assert not metrics


@pytest.mark.slow
def test_a_judge_that_takes_too_long_is_a_warning(quitter_dir, tmp_path):
    def slow(question):
        time.sleep(0.3)
        return "tie"

    with pytest.warns(UserWarning, match=r"longer than timeout=0.1 seconds: 1 of \d judgments kept"):
        metrics = train(quitter_dir, tmp_path, JudgedWinRate(SmallJudge(slow), timeout=0.1), max_epochs=1)
    assert not metrics


@pytest.mark.slow
def test_a_judge_that_is_misused_ends_the_run(quitter_dir, tmp_path):
    def refuse(question):
        raise ValueError("the judge needs the column 'topic'")

    with pytest.raises(ValueError, match="needs the column 'topic'"):
        train(quitter_dir, tmp_path, JudgedWinRate(SmallJudge(refuse)))


@pytest.mark.parametrize(
    ("callback", "trainer", "message"),
    [
        ({"every_n_phases": 3}, {"check_val_every_n_epoch": 2}, "every_n_phases=3 must be a multiple of .*_epoch=2"),
        (
            {"every_n_phases": 3},
            {"check_val_every_n_epoch": None, "val_check_interval": 2},
            "every_n_phases=3 must be a multiple of trainer.check_val_every_n_epoch=None",
        ),
        ({}, {"limit_val_batches": 0}, "trainer.limit_val_batches=0 leaves none"),
    ],
)
def test_phases_without_validation_are_an_error_before_training(quitter_dir, tmp_path, callback, trainer, message):
    with pytest.raises(ValueError, match=message):
        train(quitter_dir, tmp_path, JudgedWinRate(SmallJudge(), **callback), **trainer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_phases": 0}, "every_n_phases=0 must be positive"),
        ({"max_prompts": -1}, "max_prompts=-1 must be positive"),
        ({"timeout": 0.0}, "timeout=0.0 must be positive"),
        ({"timeout": math.nan}, "timeout=nan must be positive"),
        ({"against": "nowhere.jsonl"}, "there is no file of completions 'nowhere.jsonl'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        JudgedWinRate(SmallJudge(), **options)


def test_a_cache_of_something_else_is_an_error_before_training(quitter_dir, tmp_path):
    (tmp_path / "judgments.sqlite").write_text("no database at all " * 10)
    with pytest.raises(ValueError, match="file is not a database"):
        train(quitter_dir, tmp_path, JudgedWinRate(SmallJudge()))


def test_a_stage_without_policy_is_refused(tmp_path):
    callback = JudgedWinRate(SmallJudge())
    with pytest.raises(ValueError, match="compares a policy with its reference: SupervisedFinetuning has none"):
        fit(new_module("sft"), CompletionDataModule(table_source(tmp_path), 4), tmp_path, callbacks=[callback])


@pytest.mark.slow
def test_from_a_configuration(quitter_dir, tmp_path, capfd):
    (tmp_path / "rows.json").write_text(json.dumps([f"What is {i} and two?" for i in range(30)]))
    (tmp_path / "run.yaml").write_text(f"""
run_dir: {tmp_path}/run
trainer:
  max_epochs: 1
  accelerator: cpu
  callbacks:
    - class_path: klqlit.JudgedWinRate
      init_args: {{judge: {{class_path: klqlit.LengthJudge}}, every_n_phases: 1, max_prompts: 2}}
model:
  class_path: klqlit.KLQ
  init_args:
    policy: {{class_path: klqlit.LanguagePolicy, init_args: {{path: {quitter_dir}}}}}
    reward: {{class_path: klqlit.FunctionReward, init_args: {{function: runs.vowels}}}}
    sampler: {{response_length: 6}}
data:
  class_path: klqlit.OnlineDataModule
  init_args:
    {{rollouts: 8, minibatches: 2, epochs: 1, max_prompt_tokens: 100,
      source: {{class_path: klqlit.TableSource, init_args: {{path: {tmp_path}/rows.json, validation_rows: 3}}}}}}
""")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["fit", f"--config={tmp_path}/run.yaml"]) == 0
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("val/judge/win_rate" in row for row in logged)


def on_two_ranks(*arguments):
    """What became of `judged_ranks` on two processes."""
    return subprocess.run(
        [sys.executable, str(Path(judged_ranks.__file__)), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_the_first_of_two_ranks_asks_and_both_log_the_same(quitter_dir, tmp_path):
    judged_ranks.run(quitter_dir, str(tmp_path), 1, SmallJudge())
    done = on_two_ranks(quitter_dir, tmp_path, 2)
    assert done.returncode == 0, done.stderr[-4000:]
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert alone["asked"] == [f"held out {i}?" for i in range(5)]
    assert second["asked"] == []
    assert alone["logged"] == first["logged"] == second["logged"]
    assert set(alone["logged"]) == set(METRICS)
    # The second run found all its judgments in the first one's cache.
    assert first["asked"] == []


@pytest.mark.slow
def test_a_judge_that_fails_ends_both_ranks(quitter_dir, tmp_path):
    """Whatever it raises: a rank that was not told would wait for the first until it is killed."""
    assert on_two_ranks(quitter_dir, tmp_path, 2, "broken").returncode != 0
    assert (tmp_path / "error-0.txt").read_text() == "KeyError: 'broken'"
    assert "judging failed on the first rank, which says why" in (tmp_path / "error-1.txt").read_text()

"""Files of rows that a continued run writes on."""

import json

import pytest

from klqlit.loggers import JSONLinesLogger, StepRows
from runs import make_data, make_module, make_trainer


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_carry_their_step(tmp_path):
    file = StepRows(tmp_path / "deep" / "rows.jsonl")
    file.append(3, [{"a": 1.0}, {"b": "é"}])
    file.append(4, [{"a": 2.0}])
    assert rows(file.path) == [{"step": 3, "a": 1.0}, {"step": 3, "b": "é"}, {"step": 4, "a": 2.0}]


def test_a_continued_run_writes_no_step_twice(tmp_path):
    first = StepRows(tmp_path / "rows.jsonl")
    for step in (1, 2, 3):
        first.append(step, [{"run": 1}])
    # The checkpoint was of step 1: steps 2 and 3 are taken again.
    second = StepRows(tmp_path / "rows.jsonl")
    for step in (2, 3):
        second.append(step, [{"run": 2}])
    assert rows(first.path) == [{"step": 1, "run": 1}, {"step": 2, "run": 2}, {"step": 3, "run": 2}]


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a"')
    StepRows(path).append(2, [{"a": 5}])
    assert rows(path) == [{"step": 1, "a": 1}, {"step": 2, "a": 5}]


@pytest.mark.parametrize(
    "bad", [b"", b'{"step": 2, "a"', b"[2]", b"2", b'{"a": 2}', b'{"step": "2"}', b"\0" * 8, b"\xff"]
)
def test_spoilt_lines_are_left_out_and_counted(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1, "a": 1}\n' + bad + b'\n{"step": 2, "a": "\xc3\xa9"}\n')
    with pytest.warns(UserWarning, match=r"1 of 3 lines of .*rows\.jsonl cannot be read and are left out"):
        StepRows(path).append(3, [{"a": 5}])
    assert rows(path) == [{"step": 1, "a": 1}, {"step": 2, "a": "é"}, {"step": 3, "a": 5}]


def test_the_logger_writes_metrics(tmp_path):
    logger = JSONLinesLogger(str(tmp_path / "metrics.jsonl"))
    logger.log_metrics({"loss": 0.5}, step=7)
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 7, "loss": 0.5}]


def test_a_fit_that_goes_on_drops_the_rows_of_steps_it_takes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "a": 1}\n{"step": 1, "a": 1}\n{"step": 2, "a": 1}\n')
    logger = JSONLinesLogger(str(path), purge_step=1)
    for step in (1, 2):
        logger.log_metrics({"a": 2.0}, step=step)
    assert rows(path) == [{"step": 0, "a": 1}, {"step": 1, "a": 2}, {"step": 2, "a": 2}]


def test_a_validation_after_a_fit_keeps_its_rows(quitter_dir, tmp_path):
    path = tmp_path / "metrics.jsonl"
    module, data = make_module(quitter_dir), make_data()

    def trainer():
        return make_trainer(tmp_path, logger=JSONLinesLogger(str(path)), log_every_n_steps=1, limit_val_batches=1.0)

    trainer().fit(module, data)
    fitted = rows(path)
    assert fitted
    trainer().validate(module, data)
    assert rows(path)[: len(fitted)] == fitted
    assert [row["step"] for row in rows(path)[len(fitted) :]] == [0]

"""Rows of `completions.jsonl`."""

import json
from dataclasses import replace

import lightning as L
import torch

from klqlit.algorithms.comparison import Scored
from klqlit.callbacks.completions import CompletionWriter, as_rows, interleave
from klqlit.judges.matching import prompt_id, read_completions
from runs import make_completions, make_data, make_module, make_sequences, make_trainer


def scored(**columns):
    sequences = make_sequences([[1], [1]], [[2], [3]])
    completions = make_completions([("p", " one"), ("q", "")], sequences, ended=[True, False])
    return Scored(completions=replace(completions, columns=columns), scores=torch.tensor([1.0, 2.5]), gold=None)


def test_rows_have_the_prompts_columns_and_its_id():
    assert as_rows(scored(topic=["bread", None])) == [
        {
            "id": prompt_id("p"),
            "prompt": "p",
            "completion": " one",
            "ended": True,
            "score": 1.0,
            "columns": {"topic": "bread"},
        },
        {
            "id": prompt_id("q"),
            "prompt": "q",
            "completion": "",
            "ended": False,
            "score": 2.5,
            "columns": {"topic": None},
        },
    ]
    assert [row["id"] for row in as_rows(scored(id=[12, "x"]))] == ["12", "x"]
    assert [row["gold"] for row in as_rows(replace(scored(), gold=torch.tensor([0.0, 4.0])))] == [0.0, 4.0]


def test_what_is_written_is_read_again_but_for_half_a_surrogate_pair(tmp_path):
    path = tmp_path / "run" / "completions.jsonl"
    writer, trainer, module = CompletionWriter(str(path)), make_trainer(tmp_path), L.LightningModule()
    writer.on_predict_batch_end(trainer, module, scored(kind=[complex(1, 2), 1], cut=["\ud83d", "ü"]), None, 0)
    writer.on_predict_epoch_end(trainer, module)
    first, second = read_completions(path)
    assert (first.prompt, first.text, first.ended) == ("p", " one", True)
    assert first.columns == {"kind": "(1+2j)", "cut": "?"}
    assert (second.text, second.ended, second.columns["cut"]) == ("", False, "ü")
    assert [file.name for file in path.parent.iterdir()] == ["completions.jsonl"]
    assert json.loads(path.read_text().splitlines()[0])["id"] == prompt_id("p")


def test_a_second_predict_writes_its_own_rows_alone(quitter_dir, tmp_path):
    path = tmp_path / "completions.jsonl"
    trainer = make_trainer(tmp_path, CompletionWriter(str(path)))
    module, data = make_module(quitter_dir), make_data()
    for _ in range(2):
        trainer.predict(module, data)
        assert [row.prompt for row in read_completions(path)] == ["Why?", "How much is it?", "Who?"]


def test_ranks_are_put_back_in_order():
    assert interleave([[0, 2, 4], [1, 3]]) == [0, 1, 2, 3, 4]

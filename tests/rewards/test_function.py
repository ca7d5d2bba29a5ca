"""A python function as a reward."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from klqlit.rewards.function import FunctionReward
from runs import make_completions, make_sequences


def two(**columns):
    completions = make_completions([("a?", "one"), ("b?", "three")], make_sequences([[1], [2]], [[3], [4]]))
    return replace(completions, columns=columns)


def test_function_gets_texts_and_columns_by_name():
    seen = {}

    def score(prompts, completions, answer, **rest):
        seen.update(prompts=prompts, completions=completions, answer=answer, rest=rest)
        return [len(text) for text in completions]

    scores = FunctionReward(score)(two(answer=[7, 8], topic=["x", "y"]))
    assert scores.tolist() == [3.0, 5.0]
    assert scores.dtype == torch.float32
    assert seen == {
        "prompts": ["a?", "b?"],
        "completions": ["one", "three"],
        "answer": [7, 8],
        "rest": {"topic": ["x", "y"]},
    }


@pytest.mark.parametrize("scores", [(1, 2), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])])
def test_any_sequence_of_numbers_will_do(scores):
    assert FunctionReward(lambda prompts, completions: scores)(two()).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_scores_is_refused(count):
    with pytest.raises(ValueError, match=rf"reward\.function returned {count} scores for 2 completions"):
        FunctionReward(lambda prompts, completions: [1.0] * count)(two())


@pytest.mark.parametrize(
    ("score", "shown"),
    [
        ("good", r"'good' \(str\)"),
        ("1.5", r"'1.5' \(str\)"),
        (None, r"None \(NoneType\)"),
        ([1.0, 2.0], r"\[1.0, 2.0\] \(list\)"),
        (torch.ones(2), r"tensor\(\[1., 1.\]\) \(Tensor\)"),
    ],
)
def test_what_is_no_number_is_named_with_its_completion(score, shown):
    with pytest.raises(ValueError, match=rf"reward\.function returned {shown} for completion 1: return a number"):
        FunctionReward(lambda prompts, completions: [0.5, score])(two())


def test_a_function_has_no_weights():
    assert list(FunctionReward(len).parameters()) == []

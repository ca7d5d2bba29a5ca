"""ROUGE-L and length as judges, against numbers by hand."""

import threading

import pytest
import torch

from klqlit.judges.base import Question
from klqlit.judges.baselines import LengthJudge, RougeJudge, rouge_l
from klqlit.judges.local import chosen_device, higher, weights_digest


def question(first, second, **columns):
    return Question(prompt="p", first=first, second=second, columns=columns)


def test_rouge_l_by_hand():
    # "the cat on mat" in common: P = 4/5, R = 4/6.
    assert rouge_l("The cat on a mat.", "the cat sat on the mat") == pytest.approx(2 * 0.8 * (4 / 6) / (0.8 + 4 / 6))
    assert rouge_l("one two", "two one") == 0.5
    assert rouge_l("same words", "Same words!") == 1.0
    assert rouge_l("", "words") == rouge_l("words", "") == rouge_l("", "") == 0.0


def test_the_response_nearer_to_the_reference_wins():
    questions = [
        question("a cat", "a dog", completion="a dog"),
        question("a cat", "a dog", completion="the cat"),
        question("a cat", "a dog", completion="a bird"),
    ]
    found = dict(RougeJudge().judge(questions))
    assert [found[i].verdict for i in range(3)] == ["second", "first", "tie"]
    assert found[0].answer == "ROUGE-L 0.5000 and 1.0000"


def test_another_reference_column_and_a_missing_one():
    [(_, judgment)] = RougeJudge("gold").judge([question("x", "y", gold="x z")])
    assert judgment.verdict == "first"
    with pytest.raises(ValueError, match=r"reference_column='gold': the prompt 'p' has no text .*columns: a, b\)"):
        list(RougeJudge("gold").judge([question("x", "y", gold="x"), question("x", "y", a=1, b=2)]))
    with pytest.raises(ValueError, match=r"its columns: completion\)"):
        list(RougeJudge("gold").judge([question("x", "y", completion="x")]))


def test_the_reference_itself_is_no_side():
    """Whichever place it has: that differs between questions of one side."""
    two = [question("a cat", "a dog", completion=" a cat\n"), question("x", "a bird", completion="a bird")]
    same = two * 4
    with pytest.raises(ValueError, match=r"the reference text itself in every question \(8\)"):
        list(RougeJudge().judge(same))
    assert len(list(RougeJudge().judge([*same, question("x", "y", completion="z")]))) == 9
    assert len(list(RougeJudge().judge(two))) == 2, "a few may be chance"
    assert list(RougeJudge().judge([])) == []


@pytest.mark.parametrize(
    ("prefer", "verdicts"), [("longer", ["first", "second", "tie"]), ("shorter", ["second", "first", "tie"])]
)
def test_length(prefer, verdicts):
    questions = [question("one two", "incomprehensibilities"), question("", " one\n"), question("a b", "ccc  ddd")]
    found = list(LengthJudge(prefer).judge(questions))
    assert [index for index, _ in found] == [0, 1, 2]
    assert [judgment.verdict for _, judgment in found] == verdicts
    assert found[0][1].answer == "2 and 1 words"


def test_swapping_swaps_the_verdict_and_costs_nothing():
    other = {"first": "second", "second": "first", "tie": "tie"}
    for judge in (RougeJudge(), LengthJudge(), LengthJudge("shorter")):
        assert not judge.sees_order
        assert (judge.estimate([]).requests, judge.estimate([]).cost) == (0, 0.0)
        for first, second in [("a b", "a"), ("a", "b"), ("a b c", "b c")]:
            asked = question(first, second, completion="a b d")
            [(_, one), (_, swapped)] = judge.judge([asked, asked.swapped()])
            assert swapped.verdict == other[one.verdict]


def test_prefer_is_checked():
    with pytest.raises(ValueError, match="prefer='long' must be 'longer' or 'shorter'"):
        LengthJudge("long")


def test_identities_differ():
    judges = [RougeJudge(), RougeJudge("gold"), LengthJudge(), LengthJudge("shorter")]
    assert len({str(judge.identity) for judge in judges}) == 4


@pytest.mark.parametrize("judge", [RougeJudge(), LengthJudge()])
def test_stopping(judge):
    stopping = threading.Event()
    found = []
    for item in judge.judge([question("a", "b", completion="a c")] * 5, stopping):
        found.append(item)
        if len(found) == 2:
            stopping.set()
    assert [index for index, _ in found] == [0, 1]


def test_higher():
    assert higher(1.0, 0.0) == "first"
    assert higher(0.0, 1.0) == "second"
    assert higher(0.5, 0.5) == "tie"
    assert higher(0.5, 0.25, margin=0.25) == "tie"
    assert higher(0.25, 0.75, margin=0.25) == "second"


def test_a_digest_is_of_names_shapes_and_values():
    layer = torch.nn.Linear(2, 3)
    digest = weights_digest(layer)
    again = torch.nn.Linear(2, 3)
    again.load_state_dict(layer.state_dict())
    assert weights_digest(again) == digest
    with torch.no_grad():
        again.weight[0, 0] += 1e-6
    assert weights_digest(again) != digest
    assert weights_digest(layer.to(torch.bfloat16)) != digest
    assert weights_digest(torch.nn.Identity()) == weights_digest(torch.nn.ReLU())


def test_devices():
    assert chosen_device("cpu") == torch.device("cpu")
    assert chosen_device(None).type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device='gpu' is none that torch knows"):
        chosen_device("gpu")

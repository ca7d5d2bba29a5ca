"""Rewards as judges: they score what they would score in training, and the higher score wins."""

import copy
import math
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import pytest
import torch
from torch import nn

from builders import save, tiny_reward_model, tiny_tokenizer
from klqlit.data.miniature.hh_score import score_answer
from klqlit.judges.base import Question
from klqlit.judges.cache import canonical
from klqlit.judges.reward import RewardJudge
from klqlit.models.tabular import ResponseTree
from klqlit.rewards.base import Reward
from klqlit.rewards.function import FunctionReward
from klqlit.rewards.miniature import MiniHHGold, MiniSumsGold, MiniTLDRGold
from klqlit.rewards.model import RewardModel
from klqlit.rewards.table import TableReward
from runs import make_completions, make_sequences

QUESTIONS = [
    Question(prompt="How do I", first=" bake bread?", second=" not", first_ended=True, second_ended=False),
    Question(prompt="What", first=" is the sum of two and two?", second=""),
    Question(prompt="Who", first=" knows?", second=" knows?"),
    Question(prompt="\n\nHuman: Can you help me?", first=" Of course.", second=" No."),
    Question(prompt="Why?", first=" Mix flour.", second=" Mix flour."),
]


def words(prompts, completions, **columns):
    """A reward: words."""
    return [float(len(text.split())) for text in completions]


def marked(prompts, completions, *, wanted, **columns):
    """A reward: 1 where the row's word is there."""
    return [float(word in text) for word, text in zip(wanted, completions, strict=True)]


def judged(judge, questions):
    found = dict(judge.judge(questions))
    return [found[i] for i in range(len(questions))]


def verdicts(judge, questions):
    return [judgment.verdict for judgment in judged(judge, questions)]


@pytest.fixture(scope="module")
def reward_dir(tmp_path_factory):
    tokenizer = tiny_tokenizer()

    def make(seed):
        return save(tmp_path_factory.mktemp("reward"), tiny_reward_model("llama", tokenizer, seed=seed), tokenizer)

    return make


@pytest.mark.parametrize("size", [1, 2, 64])
def test_a_reward_model_scores_as_in_training(reward_dir, size):
    reward = RewardModel(reward_dir(0))
    found = judged(RewardJudge(reward, batch_size=size), QUESTIONS)
    texts = [(q.prompt, text) for q in QUESTIONS for text in (q.first, q.second)]
    ended = [end for q in QUESTIONS for end in (q.first_ended, q.second_ended)]
    scores = reward(make_completions(texts, make_sequences([[1]] * 10, [[2]] * 10), ended)).tolist()
    for i, judgment in enumerate(found):
        first, second = scores[2 * i : 2 * i + 2]
        assert [float(score) for score in judgment.answer.split()[1::2]] == pytest.approx([first, second], rel=1e-4)
        if abs(first - second) > 1e-5:
            assert judgment.verdict == ("first" if first > second else "second")
    assert {judgment.verdict for judgment in found} == {"first", "second", "tie"}


def test_gold_rewards_judge_by_their_columns():
    good = " Sure! To bake bread, get flour, yeast and a hot oven. And borrow things before you buy. Good luck!"
    asked = {"topic": "bake bread", "aspect": "tools", "situation": "I have little money", "id": 3}
    question = Question(prompt="p", first="No.", second=good, columns=asked)
    [(_, judgment)] = RewardJudge(MiniHHGold()).judge([question])
    assert judgment.verdict == "second"
    scores = [score_answer(asked["topic"], asked["aspect"], asked["situation"], text) for text in ("No.", good)]
    assert judgment.answer == f"scores {scores[0]:.6g} and {scores[1]:.6g}"
    with pytest.raises(ValueError, match="the gold reward of MiniHH needs the column 'topic'"):
        list(RewardJudge(MiniHHGold()).judge([question, Question(prompt="p", first="x", second="y")]))
    for reward in (MiniTLDRGold(), MiniSumsGold()):
        with pytest.raises(ValueError, match="needs the column"):
            list(RewardJudge(reward).judge([question]))


def test_functions_judge_with_columns():
    questions = [
        Question(prompt="p", first="a cat", second="a dog", columns={"wanted": word}) for word in ("cat", "dog", "a")
    ]
    assert verdicts(RewardJudge(FunctionReward(marked), batch_size=2), questions) == ["first", "second", "tie"]


def test_the_margin():
    questions = [Question(prompt="p", first="a b c", second=text) for text in ("a b", "a", "a b c d e")]
    assert verdicts(RewardJudge(FunctionReward(words)), questions) == ["first", "first", "second"]
    assert verdicts(RewardJudge(FunctionReward(words), margin=1.0), questions) == ["tie", "first", "second"]
    assert judged(RewardJudge(FunctionReward(words)), questions)[1].answer == "scores 3 and 1"


def test_swapping_swaps_the_verdict():
    judge = RewardJudge(FunctionReward(words))
    other = {"first": "second", "second": "first", "tie": "tie"}
    swapped = verdicts(judge, [question.swapped() for question in QUESTIONS])
    assert swapped == [other[verdict] for verdict in verdicts(judge, QUESTIONS)]
    assert not judge.sees_order
    assert judge.estimate(QUESTIONS).requests == 10


def test_nothing_is_scored_where_nothing_is_to_be_judged():
    assert list(RewardJudge(FunctionReward(words)).judge([])) == []


def test_stopping():
    stopping = threading.Event()
    found = []
    for item in RewardJudge(FunctionReward(words), batch_size=2).judge(QUESTIONS, stopping):
        found.append(item)
        stopping.set()
    assert [index for index, _ in found] == [0, 1]


@final
class PerToken(Reward):
    """A reward for each token."""

    def forward(self, completions):
        return torch.zeros(completions.sequences.tokens.shape)


@final
class Scaled(Reward):
    """Characters, scaled by a setting and a weight."""

    def __init__(self, scale, weight=1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, completions):
        return self.scale * self.weight * torch.tensor([float(len(text)) for text in completions.completions])


def test_rewards_on_tokens_cannot_judge():
    with pytest.raises(ValueError, match="PerToken scores tokens and cannot judge texts"):
        list(RewardJudge(PerToken()).judge(QUESTIONS))
    tree = ResponseTree(prompts=2, vocab_size=3, horizon=2)
    with pytest.raises(ValueError, match="a TableReward scores tokens"):
        RewardJudge(TableReward(torch.zeros(7, 3), tree))


def test_scores_that_are_not_finite_are_refused():
    reward = FunctionReward(lambda prompts, completions, **columns: [float("nan")] * len(prompts))
    with pytest.raises(ValueError, match="the judging reward gave a score that is not finite"):
        list(RewardJudge(reward).judge(QUESTIONS))


def test_the_identity_tells_a_retrained_model_from_the_old_one(reward_dir):
    one, again, other = (RewardJudge(RewardModel(path)) for path in (reward_dir(0), reward_dir(0), reward_dir(1)))
    described = one.identity["reward"]
    assert described["class"] == "klqlit.rewards.model.RewardModel"
    assert described["path"] == one.reward.path
    assert described["append_eos"] is True
    # The directories differ, and the weights tell.
    assert described["weights"] == again.identity["reward"]["weights"] != other.identity["reward"]["weights"]


def test_the_identity_of_other_rewards():
    judges = [
        RewardJudge(FunctionReward(words)),
        RewardJudge(FunctionReward(marked)),
        RewardJudge(FunctionReward(words), margin=1.0),
        RewardJudge(MiniHHGold()),
        RewardJudge(Scaled(1.0)),
        RewardJudge(Scaled(2.0)),
        RewardJudge(Scaled(1.0, weight=2.0)),
    ]
    assert len({str(judge.identity) for judge in judges}) == 7
    assert RewardJudge(Scaled(1.0)).identity == judges[4].identity
    assert judges[0].identity["reward"]["function"].startswith(f"{__name__}.words ")
    assert "0x" not in str([judge.identity for judge in judges])


def test_the_identity_tells_an_edited_function_from_the_old_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for name, text in [("one", "0.0"), ("two", "1.0")]:
        source = f"def score(prompts, completions, **columns):\n    return [{text}] * len(prompts)\n"
        (tmp_path / f"scoring_{name}.py").write_text(source)
        module = __import__(f"scoring_{name}")
        module.score.__module__ = "scoring"
        found.append(RewardJudge(FunctionReward(module.score)).identity["reward"]["function"])
    assert found[0] != found[1]
    assert {text.split()[0] for text in found} == {"scoring.score"}


@final
class Lexicon(Reward):
    """Any attribute, public and private."""

    def __init__(self, words, hidden=None):
        super().__init__()
        self.words = words
        self._hidden = hidden

    def forward(self, completions):
        return torch.zeros(len(completions))


class Settings:
    """An object with the default repr."""

    def __init__(self, value):
        self.value = value
        self.me = self


@dataclass(slots=True)
class Slotted:
    """An object without a dict."""

    value: int


def bound(value):
    """A function with a value that it closes over."""
    return lambda prompts, completions: [value] * len(prompts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["good"], ["bad"]),
        ({"a": ("x", 1)}, {"a": ("x", 2)}),
        ({"x", "y"}, {"x", "z"}),
        (Path("a"), Path("b")),
        (re.compile("a" * 300), re.compile("a" * 301)),
        (partial(words, x=1), partial(words, x=2)),
        (partial(words), partial(marked)),
        (Settings(1), Settings(2)),
        (Settings(["x"]), Settings(["y"])),
        (Slotted(1), Slotted(2)),
        (bound(1), bound(2)),
        (lambda x: x + 1, lambda x: x + 2),
        ([torch.tensor([1.0])], [torch.tensor([2.0])]),
        (np.arange(3), np.arange(4)),
        ([str(i) for i in range(1000)], [str(i) for i in range(1001)]),
        (Settings(1).__init__, Settings(2).__init__),
        ("x".join, "y".join),
    ],
)
def test_every_attribute_is_part_of_the_identity(one, other):
    for rewards in ([Lexicon(one), Lexicon(other)], [Lexicon([], one), Lexicon([], other)]):
        first, second = (canonical(RewardJudge(reward).identity) for reward in rewards)
        assert first != second
        assert first == canonical(RewardJudge(copy.deepcopy(rewards[0])).identity)
        assert " at 0x" not in first
        assert len(first) < 1000


def test_the_identity_is_the_same_in_another_process(tmp_path):
    (tmp_path / "lexicon.py").write_text(
        "import functools, re, torch\n"
        "from klqlit.rewards.base import Reward\n"
        "from klqlit.judges.reward import RewardJudge\n"
        "class Thing: pass\n"
        "def score(prompts, completions): return [x in {'a', 'b', 'c'} for x in prompts]\n"
        "class Words(Reward):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.words, self.thing, self.lock = {'a', 'b', 'c', 'd'}, Thing(), __import__('threading').Lock()\n"
        "        self.part = functools.partial(score, x=Thing())\n"
        "    def forward(self, completions): return torch.zeros(len(completions))\n"
    )
    run = [sys.executable, "-c", "import lexicon; print(lexicon.RewardJudge(lexicon.Words()).identity)"]
    found = [
        subprocess.run(
            run, cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert "lexicon.Words" in found[0]


def test_the_identity_tells_an_edited_helper_from_the_old_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "helped.py"
    text = "def helper(): return {}\n\ndef score(prompts, completions): return [helper()] * len(prompts)\n"
    file.write_text(text.format("0.0"))
    reward = FunctionReward(__import__("helped").score)
    before = RewardJudge(reward).identity
    assert RewardJudge(reward).identity == before
    file.write_text(text.format("1.0"))
    assert RewardJudge(reward).identity != before


def test_rewards_within_a_reward_are_described():
    outer = [Lexicon(None), Lexicon(None)]
    for reward, inner in zip(outer, (["good"], ["bad"]), strict=True):
        reward.parts = nn.ModuleList([Lexicon(inner)])
    one, other = (RewardJudge(reward).identity for reward in outer)
    assert one != other


def test_the_reward_is_moved_when_it_is_first_asked():
    reward, stopping = Scaled(1.0), threading.Event()
    judge = RewardJudge(reward, device="meta")
    assert reward.weight.device.type == "cpu"
    stopping.set()
    assert list(judge.judge(QUESTIONS, stopping)) == []
    assert reward.weight.device.type == "meta"


def test_arguments_out_of_range():
    for margin in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"margin must be a finite number of at least 0, got {margin}"):
            RewardJudge(FunctionReward(words), margin=margin)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        RewardJudge(FunctionReward(words), batch_size=0)

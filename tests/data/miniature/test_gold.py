"""Gold scores: numbers worked out by hand, the order of the levels, and what no text can get round."""

import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klqlit.data.miniature.hh_phrases import ASPECTS, SITUATIONS, TOPICS
from klqlit.data.miniature.hh_score import grade_answer, score_answer
from klqlit.data.miniature.sums_score import grade_solution, score_solution
from klqlit.data.miniature.text import is_closed, length_penalty, repetition, strangeness
from klqlit.data.miniature.tldr_score import grade_summary, score_summary
from klqlit.rewards.miniature import MiniHHGold, MiniSumsGold, MiniTLDRGold
from klqlit.types import Completions, Sequences

from .tasks import CASES

BREAD = ("bake bread", "tools", "I have little money")
SISTER = ("sister", "read my diary", "I sleep very badly", "move out")
each_task = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_a_complete_answer_earns_every_credit():
    text = " Sure! To bake bread, get flour, yeast and a hot oven. And borrow things before you buy. Good luck!"
    assert grade_answer(*BREAD, text) == {
        "content": pytest.approx(1.0 + 0.6 + 0.8),
        "relevance": pytest.approx(0.4),
        "length": 0.0,
        "manners": pytest.approx(0.8),
        "language": 0.0,
    }


def test_an_answer_with_two_of_three_keys_earns_two_thirds():
    grades = grade_answer(*BREAD, "You need flour and yeast.")
    assert grades["content"] == pytest.approx(2 / 3)
    assert grades["length"] == pytest.approx(math.exp(-1) - 1)  # 5 words, 8 below 13
    assert grades["language"] == pytest.approx(-4 * 3 / 6)  # "flour and", "and yeast" and "yeast" at the end are new


def test_an_answer_to_another_question_pays_for_its_fact_and_idle_sentences():
    grades = grade_answer(*BREAD, "To play chess, first learn how each piece moves. As for you, wear warm socks.")
    assert grades["content"] == 0.0
    assert grades["relevance"] == pytest.approx(-0.4 - 0.5 - 0.3 - 2 * 0.3)
    assert grades["manners"] == 0.0


def test_rudeness_forfeits_courtesy():
    grades = grade_answer(*BREAD, "Sure, what a stupid question. Are you too lazy to look it up? Good luck!")
    assert grades["manners"] == pytest.approx(-1.2)  # two rude words, nothing for "sure" and "luck"


def test_the_aspect_decides_which_fact_counts():
    text = "It takes about four hours."
    assert score_answer("bake bread", "time", "I am new to this", text) > score_answer(*BREAD, text) + 1.0


def test_a_complete_summary_earns_every_credit():
    text = " My sister read my diary, so I sleep very badly. Should I move out?"
    expected = {"content": pytest.approx(3.2), "faith": 0.0, "brevity": 0.0, "form": 0.0, "language": 0.0}
    assert grade_summary(*SISTER, text) == expected


def test_a_fact_of_another_post_costs_its_credit_the_bonus_and_faith():
    grades = grade_summary(*SISTER, "My brother read my diary and I sleep very badly. Should I move out?")
    assert grades["content"] == pytest.approx(0.8 + 0.8 + 0.6)
    assert grades["faith"] == -0.5


def test_asides_cost_brevity_and_form():
    grades = grade_summary(*SISTER, "My sister read my diary. It was raining all day. We live near the sea.")
    assert grades["brevity"] == pytest.approx(-0.8)
    assert grades["form"] == pytest.approx(-0.8)


def test_a_worked_solution_earns_every_credit():
    assert grade_solution("9 + 4 - 2", " 9 + 4 = 13. 13 - 2 = 11. The answer is 11.") == {
        "answer": 1.5,
        "steps": 1.5,
        "truth": 0.0,
        "format": 0.5,
        "length": 0.0,
    }


def test_a_slip_keeps_the_steps_before_it():
    grades = grade_solution("9 + 4 - 2", "9 + 4 = 13. 13 - 2 = 12. The answer is 12.")
    assert grades == {"answer": 0.0, "steps": 0.75, "truth": -0.4, "format": 0.5, "length": 0.0}


def test_naming_every_number_earns_no_answer():
    text = " ".join(f"The answer is {number}." for number in range(20))
    assert grade_solution("9 + 4 - 2", text)["answer"] == 0.0
    assert score_solution("9 + 4 - 2", text) < 0.0


def test_a_right_answer_without_steps_earns_less_than_with_them():
    assert score_solution("9 + 4 - 2", "The answer is 11.") == pytest.approx(2.0)


def test_helpers_by_hand():
    assert length_penalty(20, 13, 30, 8.0) == 0.0
    assert length_penalty(38, 13, 30, 8.0) == pytest.approx(math.exp(-1) - 1)
    assert repetition("go away now go away now") == pytest.approx(1 / 4)  # 4 runs, one of them a second time
    assert repetition("go away") == 0.0
    assert strangeness("", frozenset()) == 1.0
    assert strangeness("Go away", frozenset([("", "go"), ("go", "away")])) == pytest.approx(1 / 3)
    assert [is_closed(text) for text in ("Go.", "go.", "Go", " 3. ", "")] == [True, False, False, True, False]


@each_task
def test_the_best_level_leads_by_far(case):
    means = case.mean_scores()
    best = means.pop(case.best)
    assert best > max(means.values()) + 0.8


def test_levels_are_ordered():
    means = CASES["hh"].mean_scores()
    assert means["good"] > means["plain"] > means["curt"] > means["vague"] > means["off_topic"]
    assert means["plain"] > means["wrong"] > means["rude"]
    means = CASES["tldr"].mean_scores()
    assert means["complete"] > means["wrong"] > means["wordy"] > means["vague"]
    assert means["partial"] > means["bare"] > means["vague"]
    assert means["complete"] > means["partial"] > means["wrong"]
    means = CASES["sums"].mean_scores()
    assert means["worked"] > means["bare"] > means["unfinished"] > means["guess"]
    assert means["bare"] > means["misread"] > means["slip"]


@each_task
def test_scores_vary_by_about_one_and_the_best_is_far_above_the_mean(case):
    rows = case.task(size=800).rows("train")
    scores = torch.tensor([case.gold(row, "completion") for row in rows])
    assert 0.8 < scores.std() < 1.8
    assert scores.max() > scores.mean() + 1.3 * scores.std()


@each_task
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200), seed=st.integers(0, 99))
def test_any_text_has_a_finite_score_and_none_beats_the_best_level(case, text, seed):
    rng = Random(seed)
    problem = case.draw("train", rng)
    score = case.score(problem, text)
    assert math.isfinite(score)
    assert score < case.score(problem, case.write(problem, case.best, rng))


@each_task
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), blanks=st.text(alphabet=" \n\t", max_size=5))
def test_white_space_around_a_text_does_not_matter(case, seed, blanks):
    rng = Random(seed)
    problem = case.draw("train", rng)
    text = case.write(problem, rng.choice(list(case.levels)), rng)
    assert case.score(problem, blanks + text + blanks) == case.score(problem, text)


@each_task
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), times=st.integers(2, 6))
def test_saying_a_thing_again_never_pays(case, seed, times):
    rng = Random(seed)
    problem = case.draw("train", rng)
    text = case.write(problem, rng.choice(list(case.levels)), rng)
    assert case.score(problem, text * times) < case.score(problem, case.write(problem, case.best, rng)) - 0.5


def test_heaped_key_words_do_not_beat_a_sentence():
    heap = "Sure bread. Flour yeast oven. Borrow buy. Bread flour. Luck."
    sentence = "You need flour, yeast and a hot oven. And borrow things before you buy."
    assert score_answer(*BREAD, heap) < score_answer(*BREAD, sentence)
    assert score_summary(*SISTER, "Sister read diary sleep badly move.") < score_summary(
        *SISTER, "My sister read my diary."
    )


def test_no_phrase_states_another_fact():
    facts = [fact for topic in TOPICS.values() for fact in topic.facts.values()]
    tips = [situation.tip for situation in SITUATIONS.values()]
    for phrases in (facts, tips):
        assert len(set(phrases)) == len(phrases)
        for phrase in phrases:
            assert phrase.keys
            assert sum(other.keys <= set(phrase.text.lower().replace(",", "").split()) for other in phrases) == 1


def test_wrong_columns_are_refused():
    with pytest.raises(ValueError, match="no columns of MiniHH"):
        score_answer("boil eggs", ASPECTS[0], "I am new to this", "")
    with pytest.raises(ValueError, match=r"person='dog' is no column of MiniTLDR"):
        score_summary("dog", *SISTER[1:], "")
    with pytest.raises(ValueError, match=r"chain='9 \+' is no column of MiniSums"):
        score_solution("9 +", "")


@pytest.mark.parametrize(("name", "reward"), [("hh", MiniHHGold()), ("tldr", MiniTLDRGold()), ("sums", MiniSumsGold())])
def test_rewards_score_each_row_by_its_columns(name, reward):
    case = CASES[name]
    rows = case.task(size=8).rows("train")
    columns = {column: [row[column] for row in rows] for column in case.columns}
    scores = reward(completions([row["prompt"] for row in rows], [row["completion"] for row in rows], columns))
    assert scores.tolist() == pytest.approx([case.gold(row, "completion") for row in rows])
    del columns[case.columns[0]]
    with pytest.raises(ValueError, match=f"needs the column '{case.columns[0]}'"):
        reward(completions(["x"], ["y"], {name: values[:1] for name, values in columns.items()}))


def completions(prompts: list[str], texts: list[str], columns: dict[str, list[str]]) -> Completions:
    tokens, mask = torch.zeros(len(texts), 1, dtype=torch.long), torch.ones(len(texts), 1, dtype=torch.bool)
    sequences = Sequences(prompt_tokens=tokens, prompt_mask=mask, tokens=tokens, mask=mask)
    return Completions(prompts=prompts, completions=texts, sequences=sequences, ended=mask[:, 0], columns=dict(columns))

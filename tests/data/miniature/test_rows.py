"""What holds for the rows of all three miniature tasks."""

import hashlib
import json
import subprocess
import sys

import pytest

from klqlit.data.miniature.pairs import preference
from klqlit.data.miniature.tokenizer import train_tokenizer

from .tasks import CASES, Case

GOLDEN = {
    "hh": "74ab1d5bbe52d52b",
    "tldr": "7c186edf8868eb58",
    "sums": "a21bd45bd9eb38d7",
}
each_task = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def digest(rows: list[dict[str, str]]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def combination(case: Case, row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[column] for column in case.columns)


@pytest.mark.parametrize("name", CASES)
def test_rows_are_the_recorded_ones(name):
    task = CASES[name].task(seed=0, size=50, validation_size=20)
    assert digest(task.rows("train") + task.rows("validation")) == GOLDEN[name]


@each_task
def test_another_seed_gives_other_rows(case):
    rows = case.task(seed=0, size=30).rows("train")
    assert case.task(seed=0, size=30).rows("train") == rows
    assert case.task(seed=1, size=30).rows("train") != rows


def test_rows_do_not_depend_on_the_process():
    program = (
        "import json; from klqlit.data.miniature import MiniHH, MiniSums, MiniTLDR; "
        "print(json.dumps([task(size=20).rows('train') for task in (MiniHH, MiniTLDR, MiniSums)]))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])[0] == CASES["hh"].task(size=20).rows("train")


@each_task
def test_splits_share_no_combination_whatever_their_seeds(case):
    trained = {combination(case, row) for seed in (0, 1) for row in case.task(seed=seed, size=1_500).rows("train")}
    held_out = {combination(case, row) for row in case.task(seed=2, validation_size=400).rows("validation")}
    assert len(held_out) >= 30
    assert not trained & held_out


@each_task
def test_thousands_of_prompts_are_distinct(case):
    assert len({row["prompt"] for row in case.task(size=2_400).rows("train")}) >= 2_000


@each_task
def test_rows_have_the_contract_of_a_source(case):
    task = case.task(size=200, validation_size=100)
    assert (len(task.rows("train")), len(task.rows("validation"))) == (200, 100)
    for row in task.rows("train"):
        assert set(row) == {"prompt", "completion", "chosen", "rejected", *case.columns}
        for column in ("completion", "chosen", "rejected"):
            assert row[column][0] == " "
            assert row[column] == " " + row[column].strip()


def test_prompts_are_formatted_as_documented():
    prompts = {name: case.task(size=1).rows("train")[0]["prompt"] for name, case in CASES.items()}
    assert prompts["hh"].startswith("\n\nHuman: ")
    assert prompts["hh"].endswith("\n\nAssistant:")
    assert prompts["tldr"].startswith("SUBREDDIT: r/")
    assert prompts["tldr"].index("\n\nTITLE: ") < prompts["tldr"].index("\n\nPOST: ")
    assert prompts["tldr"].endswith("\n\nTL;DR:")
    assert prompts["sums"].startswith("Question: ")
    assert prompts["sums"].endswith("\nAnswer:")


def test_preference_is_the_logistic_function():
    assert preference(0.0, 0.3) == 0.5
    assert preference(0.3, 0.3) == pytest.approx(0.7310585786300049)
    assert preference(-0.6, 0.3) == pytest.approx(0.11920292202211755)
    assert preference(1e6, 0.3) == 1.0


@each_task
def test_noise_flips_as_many_pairs_as_bradley_terry_says(case):
    rows = case.task(size=2_000).rows("train")
    temperature = sys.modules[case.task.__module__].TEMPERATURE
    margins = [case.gold(row, "chosen") - case.gold(row, "rejected") for row in rows]
    expected = sum(preference(-abs(margin), temperature) for margin in margins if margin) / len(rows)
    flipped = sum(margin < 0 for margin in margins) / len(rows)
    assert 0.07 < expected < 0.15
    assert flipped == pytest.approx(expected, abs=0.02)  # three standard errors of 2,000 draws


@each_task
def test_prompts_and_completions_fit_the_documented_tokens(case):
    rows = case.task(size=1_000).rows("train")
    columns = ("prompt", "completion", "chosen", "rejected")
    tokenizer = train_tokenizer([row[column] for row in rows for column in columns], 1024)
    for row in rows:
        assert len(tokenizer.encode(row["prompt"])) <= case.prompt_tokens
        for column in columns[1:]:
            assert len(tokenizer.encode(row[column])) + 1 <= case.completion_tokens


@each_task
def test_a_prompt_that_fits_stays_as_it_is(case):
    task = case.task(size=5)
    for row in task.rows("train"):
        assert task.shorten(row["prompt"], count_words, 1_000) == row["prompt"]


@each_task
def test_a_shortened_prompt_keeps_its_frame_and_drops_no_more_than_needed(case):
    task = case.task(size=5)
    for row in task.rows("train"):
        full = count_words(row["prompt"])
        shortened = task.shorten(row["prompt"], count_words, full - 3)
        assert count_words(shortened) == full - 3
        assert shortened.split()[0] == row["prompt"].split()[0]
        assert shortened.split()[-1] == row["prompt"].split()[-1]


@each_task
def test_a_limit_below_the_frame_is_refused(case):
    task = case.task(size=1)
    with pytest.raises(ValueError, match="limit=1 prompt tokens leave no room"):
        task.shorten(task.rows("train")[0]["prompt"], count_words, 1)


def count_words(text: str) -> int:
    return len(text.split())

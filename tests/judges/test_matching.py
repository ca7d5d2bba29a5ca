"""Completions find their prompts again, and what is wrong with a file is said."""

import gzip
import hashlib
import json

import pytest

from klqlit.judges.matching import Response, human_responses, match, prompt_id, read_completions


def responses(*prompts, start=0, **options):
    """Completions numbered from `start`."""
    return [
        Response(id=prompt_id(prompt), prompt=prompt, text=f"answer {i}", **options)
        for i, prompt in enumerate(prompts, start=start)
    ]


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_order_does_not_matter():
    matched = match(responses("p", "q", "r"), responses("r", "p", "q", start=10))
    assert [(pair.prompt, pair.a, pair.b) for pair in matched.pairs] == [
        ("p", "answer 0", "answer 11"),
        ("q", "answer 1", "answer 12"),
        ("r", "answer 2", "answer 10"),
    ]
    assert (matched.only_in_a, matched.only_in_b, matched.duplicate_prompts) == ([], [], 0)


def test_prompts_of_one_side_are_listed():
    matched = match(responses("p", "q", "s"), responses("q", "t"))
    assert [pair.prompt for pair in matched.pairs] == ["q"]
    assert [response.prompt for response in matched.only_in_a] == ["p", "s"]
    assert [response.prompt for response in matched.only_in_b] == ["t"]


def test_duplicates_are_paired_in_turn_and_share_an_id():
    matched = match(responses("p", "q", "p", "p"), responses("p", "p", "q", start=10))
    assert [(pair.a, pair.b) for pair in matched.pairs] == [
        ("answer 0", "answer 10"),
        ("answer 1", "answer 12"),
        ("answer 2", "answer 11"),
    ]
    assert matched.pairs[0].id == matched.pairs[2].id != matched.pairs[1].id
    assert [response.text for response in matched.only_in_a] == ["answer 3"]
    assert matched.duplicate_prompts == 1


def test_ids_of_their_own_win_over_the_text():
    a = [Response(id="1", prompt="p", text="a1"), Response(id="2", prompt="p", text="a2")]
    b = [Response(id="2", prompt="p", text="b2"), Response(id="1", prompt="p", text="b1")]
    assert [(pair.id, pair.a, pair.b) for pair in match(a, b).pairs] == [("1", "a1", "b1"), ("2", "a2", "b2")]


def test_ids_of_one_side_alone_are_not_needed():
    a = [Response(id="1", prompt="p", text="a"), Response(id="2", prompt="q", text="a")]
    assert [pair.id for pair in match(a, responses("q", "p")).pairs] == [prompt_id("p"), prompt_id("q")]


def test_an_id_that_means_another_prompt_on_each_side_is_an_error():
    a, b = [Response(id="1", prompt="p", text="a")], [Response(id="1", prompt="q", text="b")]
    with pytest.raises(ValueError, match="the two sides give the id '1' to two prompts, 'p' and 'q'"):
        match(a, b)


def test_no_common_prompt_shows_one_of_each():
    with pytest.raises(ValueError, match=r"no prompt in common.* of a: 'p'; of b: 'r'"):
        match(responses("p", "q"), responses("r"))


def test_columns_are_those_on_which_the_sides_agree():
    a = responses("p", columns={"x": 1, "y": 2, "run": "a"})
    b = responses("p", columns={"x": 1, "z": 3, "run": "b"})
    assert match(a, b).pairs[0].columns == {"x": 1, "y": 2, "z": 3}
    assert match(b, a).pairs[0].columns == {"x": 1, "y": 2, "z": 3}


def test_completions_are_read(tmp_path):
    row = {"prompt": "Why?", "completion": "", "ended": False, "score": 1.5, "topic": "bread", "columns": {"age": 3}}
    (response,) = read_completions(write(tmp_path / "a.jsonl", row))
    digest = hashlib.sha256(b"Why?").hexdigest()[:16]
    assert response == Response(id=digest, prompt="Why?", text="", ended=False, columns={"topic": "bread", "age": 3})
    (response,) = read_completions(write(tmp_path / "b.jsonl", {"prompt": "Why?", "completion": " So.", "id": 7}))
    assert response == Response(id="7", prompt="Why?", text=" So.")


def test_packed_files_are_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "p", "completion": "c"}\n'))
    assert [response.text for response in read_completions(path)] == ["c"]


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    (response,) = read_completions(write(tmp_path / "a.jsonl", '{"prompt": "p", "completion": "cut \\ud83d"}'))
    assert response.text == "cut ?"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "completion": "c"}, '{"prompt": "p", "compl'], r"a\.jsonl, line 2, column \d+: broken JSON"),
        ([{"prompt": "p"}], r"a\.jsonl, row 1 lacks 'completion'; it has 'prompt'"),
        ([{"query": "p", "answer": "c"}], "row 1 lacks 'prompt' and 'completion'; it has 'query', 'answer'"),
        ([{"prompt": "p", "completion": None}], r"row 1: 'completion' holds None \(NoneType\); it must hold text"),
        ([{"prompt": "p", "completion": "c", "ended": "perhaps"}], "'ended' is 'perhaps'; it must be true or false"),
        ([{"prompt": "p", "completion": "c", "columns": [1]}], r"'columns' holds \[1\]; it must hold an object"),
        (
            [{"prompt": "p", "completion": "c", "id": 1}, {"prompt": "q", "completion": "c", "id": 1}],
            r"a\.jsonl gives the id '1' to two prompts, 'p' and 'q'",
        ),
        ([], r"a\.jsonl' is empty"),
    ],
)
def test_broken_files_are_explained(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_completions(write(tmp_path / "a.jsonl", *rows))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file of completions '.*none\.jsonl'"):
        read_completions(tmp_path / "none.jsonl")


def test_human_responses_are_the_datasets_completions_else_the_chosen_ones():
    rows = responses("p", columns={"completion": " one", "chosen": " two"}) + responses(
        "q", columns={"chosen": " three"}
    )
    assert [(human.prompt, human.text, human.ended) for human in human_responses(rows)] == [
        ("p", " one", True),
        ("q", " three", True),
    ]
    with pytest.raises(ValueError, match=r"no further column `chosen` or `completion` \('topic'\)"):
        human_responses(responses("p", columns={"topic": "bread"}))

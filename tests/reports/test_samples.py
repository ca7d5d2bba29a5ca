"""Completions side by side, and token by token."""

import json

import pytest

from klqlit.reports import samples, tokens
from klqlit.reports.experiment import read_experiment
from klqlit.reports.tokens import mix, read_completion, scale, visible
from klqlit.reports.win_rates import find_series
from reports.folders import PROMPTS, token_rows, write_comparison, write_rows, write_run


@pytest.fixture
def pair(tmp_path):
    return write_run(tmp_path / "klq", "KLQ"), write_run(tmp_path / "ppo", "PPO", score=1.0)


def collect(root):
    found = read_experiment([root])
    return samples.collect(found.tasks[0], find_series(found, found.tasks[0]))


def test_runs_of_one_tau_and_seed_stand_beside_each_other(pair, tmp_path):
    write_run(tmp_path / "klq2", "KLQ", seed=2)
    found = collect(tmp_path)
    assert (found.variants, found.total, found.judged) == (["KLQ", "PPO"], 6, False)
    first = found.rows[0]
    assert (first.prompt, first.tau, first.seed) == (PROMPTS[0], 0.1, 1)
    assert (first.reference.text, first.reference.gold) == ("reference 0", 0.25)
    assert {name: (a.text, a.score, a.gold) for name, a in first.answers.items()} == {
        "KLQ": ("KLQ says 0", 3.0, 0.5),
        "PPO": ("PPO says 0", 1.0, 0.5),
    }
    assert [list(row.answers) for row in found.rows if row.seed == 2] == [["KLQ"]] * 3


def test_verdicts_stand_beside_the_texts_they_were_given_on(pair, tmp_path):
    """Prompts 0 to 2 are those of the samples, prompt 3 is the comparison's own."""
    write_comparison(
        tmp_path / "judged", pair[1], pair[0], ["loss", "win", "tie", None], texts=("PPO says", "KLQ says")
    )
    found = collect(tmp_path)
    said = {row.prompt: row.verdicts for row in found.rows}
    judge = "(LengthJudge, summary)"
    assert said == {
        PROMPTS[0]: [f"KLQ wins {judge}"],
        PROMPTS[1]: [f"PPO wins {judge}"],
        PROMPTS[2]: [f"tie, the orders disagree {judge}"],
        "prompt 3?": [f"no verdict {judge}"],
    }
    assert found.rows[0].answers["KLQ"].score == 3.0
    assert found.rows[-1].reference is None


def test_verdicts_on_other_texts_get_a_row_of_their_own(pair, tmp_path):
    write_comparison(tmp_path / "judged", *pair, ["win"], texts=("other", "PPO says"))
    found = collect(tmp_path)
    rows = [row for row in found.rows if row.prompt == PROMPTS[0]]
    assert sorted((row.answers["KLQ"].text, len(row.verdicts)) for row in rows) == [("KLQ says 0", 0), ("other 0", 1)]


def test_scores_come_from_the_judged_completions_too(pair, tmp_path):
    folder = write_comparison(tmp_path / "judged", *pair, [None, None, None, "win"])
    write_rows(tmp_path / "c.jsonl", [{"prompt": "prompt 3?", "completion": "KLQ says 3", "score": 7.5, "gold": 1.5}])
    summary = json.loads((folder / "judged.json").read_text())
    summary["a"]["completions"] = str(tmp_path / "c.jsonl")
    (folder / "judged.json").write_text(json.dumps(summary))
    row = next(row for row in collect(tmp_path).rows if row.prompt == "prompt 3?")
    assert (row.answers["KLQ"].score, row.answers["KLQ"].gold, row.answers["PPO"].score) == (7.5, 1.5, None)


def test_every_tau_and_seed_gets_some_rows(tmp_path):
    for tau in (0.1, 0.2, 0.4):
        for seed in range(10):
            folder = write_run(tmp_path / f"{tau}-{seed}", "KLQ", tau, seed)
            rows = [{"step": 1, "prompt": f"{i}", "reference": "", "policy": ""} for i in range(50)]
            write_rows(folder / "samples.jsonl", rows)
    found = collect(tmp_path)
    assert found.total == 1500
    assert len(found.rows) == 60
    assert len({(row.tau, row.seed) for row in found.rows}) == 30


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_a_completion_token_by_token():
    found = read_completion(token_rows()[0], "KLQ")
    assert (found.variant, found.prompt, found.score) == ("KLQ", PROMPTS[0], "1.50")
    assert [token.text for token in found.tokens] == [" baby", "⏎\n", "<eos>"]
    assert found.tokens[0].cells == ["2.000", "0.000", "0.200", "1.400", "0.500"]
    assert found.tokens[0].hint == "log(π/π_b) 2.000 · V 0.000 · Q 0.200 · return 1.400 · advantage 0.500"
    assert found.scales["logratio"] == "blue −2.00 · white 0 · orange 2.00"
    assert found.scales["value"] == "white 0 · purple 1.00"
    # Half as far below 0 as the first is above it; the third is 0.
    assert [token.colours["logratio"] for token in found.tokens] == ["#e8a673", "#b9d8ea", "#ffffff"]


def test_colours_by_hand():
    """55 % of the colour at the end of the scale, on white."""
    assert mix((0, 114, 178), 1.0) == "#73b1d5"
    assert mix((0, 114, 178), 0.0) == "#ffffff"
    assert scale([0.0, 0.0], centred=True)[0] == ["#ffffff", "#ffffff"]
    assert scale([2.0, 2.0], centred=False)[0] == ["#ffffff", "#ffffff"]


def test_dark_text_is_readable_on_every_colour():
    """WCAG asks for a contrast of 4.5 with #1c1c1c."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    strongest = [*scale([-1.0, 1.0], centred=True)[0], scale([0.0, 1.0], centred=False)[0][1]]
    for color in strongest:
        assert (luminance(color) + 0.05) / (luminance("#1c1c1c") + 0.05) > 4.5


@pytest.mark.parametrize(("text", "shown"), [("a\nb", "a⏎\nb"), ("", "·"), (" x", " x")])
def test_tokens_that_cannot_be_seen_are_shown(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize("change", [{"tokens": None}, {"value": [1.0]}, {"q": "x"}, {"tokens": [], "logratio": []}])
def test_lines_that_do_not_fit_are_left_out(change):
    assert read_completion(token_rows()[0] | change, "KLQ") is None


def test_of_each_tau_the_seed_that_most_have(tmp_path):
    write_run(tmp_path / "a", "KLQ", 0.1, 1)
    write_run(tmp_path / "b", "KLQ", 0.1, 2)
    write_run(tmp_path / "c", "PPO", 0.1, 2)
    write_run(tmp_path / "d", "PPO", 0.4, 5)
    block = tokens.collect(read_experiment([tmp_path]).tasks[0])
    assert [view.title for view in block.views] == ["MiniHH, τ = 0.1, seed 2", "MiniHH, τ = 0.4, seed 5"]
    assert [one.variant for one in block.views[0].prompts[0]] == ["KLQ", "PPO"]

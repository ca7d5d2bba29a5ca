"""`python -m klqlit analyse`: files in, numbers and sentences out, and one line for each mistake."""

import csv
import json
import random
from dataclasses import replace

import pytest

from klqlit.cli import main
from klqlit.commands.analyse import run
from klqlit.commands.comparisons import as_row
from klqlit.judges.records import JudgedPair, Pair
from klqlit.judges.summary import summarise
from klqlit.judges.verdict_files import is_judgments, read_judgments
from pages import blocks


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def write_table(name="verdicts.csv", *, agree=1.0):
    """Verdicts on 40 pairs in both orders: response0 wins 3 of 4, and always when it is shown first."""
    chance = random.Random(0)
    with open(name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["", "prompt", "response0", "response1", "preferred", "shuffled"])
        writer.writeheader()
        for i in range(40):
            for shuffled in (False, True):
                wins = not shuffled or i % 4 > 1
                wins ^= chance.random() > agree
                writer.writerow(
                    {
                        "": i,
                        "prompt": f"Post {i}, with a comma\nand a second line",
                        "response0": "longer " * (5 + i % 3),
                        "response1": "word " * 6,
                        "preferred": "response0" if wins else "response1",
                        "shuffled": shuffled,
                    }
                )
    return name


TABLE = ["--a", "response0", "--b", "response1", "--verdict", "preferred", "--win", "response0", "--loss", "response1"]
TABLE += ["--swapped", "shuffled"]


def write_judgments(name="judgments.jsonl", verdict="win"):
    """Our own judgments of twelve pairs."""
    rows = [
        {
            "id": f"{i:x}",
            "prompt": f"prompt {i}",
            "a": "x " * (i % 4),
            "b": "y y",
            "a_first": verdict,
            "a_second": "loss" if i < 3 else verdict,
            "outcome": "tie" if i < 3 else verdict,
            "inconsistent": i < 3,
            "unreadable": 0,
            "failed": 0,
            "answers": {},
        }
        for i in range(12)
    ]
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def test_a_table_from_elsewhere(capsys):
    assert main(["analyse", write_table(), *TABLE, "--out", "new/summary.json"]) == 0
    shown = capsys.readouterr().out
    assert "response0 against response1" in shown
    # 20 of 40 prompts are won in both orders, the others are ties.
    assert "response0 wins 75.0 % (95 % interval" in shown
    assert "response0 wins 100.0 % of 40 prompts where shown first and 50.0 % of 40 where shown second" in shown
    assert "The verdict changed with the order in 50.0 % of 40 pairs" in shown
    with open("new/summary.json", encoding="utf-8") as file:
        written = json.load(file)
    assert written["a"] == {"name": "response0"}
    assert written["counts"]["pairs"] == 40
    assert written["statistics"]["win_rate"]["rate"] == 0.75
    assert (written["statistics"]["wins"], written["statistics"]["ties"]) == (20, 20)
    assert (written["level"], written["draws"], written["length"]) == (0.95, 10_000, "words")


def test_own_judgments_need_no_option(capsys):
    run([write_judgments()])
    shown = capsys.readouterr().out
    assert "A wins 87.5 % (95 % interval" in shown
    assert "The verdict changed with the order in 25.0 % of 12 pairs" in shown


@pytest.mark.parametrize("file", ["folder", "folder/judgments.jsonl"])
def test_sides_are_called_as_judge_called_them(tmp_path, capsys, file):
    (tmp_path / "folder").mkdir()
    write_judgments("folder/judgments.jsonl")
    (tmp_path / "folder" / "judged.json").write_text(json.dumps({"a": {"name": "mine"}, "b": {"name": "theirs"}}))
    run([file])
    shown = capsys.readouterr().out
    assert "mine against theirs" in shown
    assert "mine wins 87.5 %" in shown
    run([file, "--name_a", "new"])
    assert "new against theirs" in capsys.readouterr().out


def test_judgments_say_the_same_after_they_were_written():
    """Pairs judged in both orders, in one, by a judge who does not see the order, in part, and not at all."""
    pair = Pair(id="0", prompt="p", a="x y", b="z")
    pairs = [
        JudgedPair(pair=pair, a_first="win", a_second="loss", answers={"a_first": "A", "a_second": "A"}),
        JudgedPair(pair=replace(pair, id="1"), a_first=None, a_second="loss", both_orders=False),
        JudgedPair(pair=replace(pair, id="2"), a_first="win", a_second="win", both_orders=False),
        JudgedPair(pair=replace(pair, id="3"), a_first="win", a_second=None, unreadable=1),
        JudgedPair(pair=replace(pair, id="4"), a_first=None, a_second=None, failed=2),
    ]
    rows = [json.loads(json.dumps(as_row(pair))) for pair in pairs]
    assert is_judgments(rows)
    assert summarise(read_judgments(rows, "f")) == summarise(pairs)


def test_verdicts_that_name_places(capsys):
    rows = [{"prompt": f"p{i}", "a": "x", "b": "y", "v": "AAB="[i % 4], "turned": i % 8 > 3} for i in range(16)]
    with open("v.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    columns = ["--verdict", "v", "--swapped", "turned"]
    values = ["--first", "A", "--second=B", "--tie", "="]
    run(["v.jsonl", *columns, *values, "--name_a", "new", "--name_b", "old", "--level", "0.9"])
    shown = capsys.readouterr().out
    assert "new wins 50.0 % (90 % interval" in shown
    # Two wins, a loss and a tie where first; the mirror image where second.
    assert "new wins 62.5 % of 8 prompts where shown first and 37.5 % of 8 where shown second" in shown
    assert "All pairs were judged in one order only" in shown


def test_options_of_the_analysis_count():
    def analysed(*options):
        run([write_table(), *TABLE, *options, "--out", "s.json"])
        with open("s.json", encoding="utf-8") as file:
            found = json.load(file)
        return found, found["statistics"]["win_rate"], found["statistics"]["by_length"]

    _, rate, by_length = analysed()
    _, narrow, _ = analysed("--level", "0.5")
    assert rate["low"] < narrow["low"] < narrow["high"] < rate["high"]
    # Five to seven words of six letters against six of four.
    _, _, by_characters = analysed("--length", "characters")
    assert [by_length[group]["pairs"] for group in ("a_longer", "b_longer", "equal")] == [13, 14, 13]
    assert [by_characters[group]["pairs"] for group in ("a_longer", "b_longer", "equal")] == [40, 0, 0]
    rates = [analysed("--draws", "100", "--seed", str(seed))[1] for seed in range(5)]
    assert rates != [rates[0]] * 5
    found, again, _ = analysed("--draws", "100", "--seed", "3")
    assert again == rates[3]
    assert (found["draws"], found["seed"]) == (100, 3)


def test_two_judges(capsys):
    first, second = write_table("one.csv"), write_table("other.csv", agree=0.8)
    run([first, "--against", second, *TABLE, "--out", "s.json"])
    shown = capsys.readouterr().out
    with open("s.json", encoding="utf-8") as file:
        written = json.load(file)
    assert written["agreement"]["pairs"] == 40
    assert 0 < written["agreement"]["kappa"] < written["agreement"]["raw"] < 1
    assert f"The two judges agree on {100 * written['agreement']['raw']:.1f} % of 40 pairs" in shown
    assert (written["file"], written["against"]["file"]) == ("one.csv", "other.csv")
    assert written["statistics"] != written["against"]["statistics"]
    assert shown.index("one.csv:") < shown.index("other.csv:") < shown.index("The two judges")


def test_own_judgments_against_a_table():
    own = write_judgments()
    with open("other.jsonl", "w", encoding="utf-8") as file:
        for i in range(12):
            row = {"prompt": f"prompt {i}", "a": "x " * (i % 4), "b": "y y", "better": "A"}
            file.write(json.dumps(row) + "\n")
    run([own, "--against", "other.jsonl", "--verdict", "better", "--win", "A", "--out", "s.json"])
    with open("s.json", encoding="utf-8") as file:
        assert json.load(file)["agreement"]["raw"] == 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--wni", "x"], "'--wni' is not expected, did you mean '--win'?; `python -m klqlit analyse --help` lists"),
        (["--swaped=x"], "'--swaped' is not expected, did you mean '--swapped'?"),
        (["other.csv"], "'other.csv' is not expected"),
        (["--level", "much"], "argument --level: invalid float value: 'much'"),
        ([*TABLE, "--level", "95"], "level must lie between 0 and 1, such as 0.95, got 95.0"),
        ([*TABLE, "--draws", "1"], "draws must be at least 100"),
        (["--length", "tokens"], "argument --length: invalid choice: 'tokens'"),
        (["--win"], "argument --win: expected one argument"),
        (["--verdict", "prefered"], "has no column 'prefered'; it has 'prompt', 'response0', 'response1', 'preferred'"),
        ([], "verdicts.csv, row 1 has no column 'verdict'"),
        (["--verdict", "preferred"], "column 'preferred' holds 'response0' (60 rows), 'response1' (20 rows)"),
        (["--verdict", "preferred", "--win", "x", "--loss", "x"], "'x' cannot mean both --win and --loss"),
        ([*TABLE, "--against", "none.csv"], "there is no file of verdicts 'none.csv'"),
        ([*TABLE, "--out", "verdicts.csv/s.json"], "--out verdicts.csv/s.json: cannot write there"),
    ],
)
def test_a_mistake_gives_one_line(options, message, capsys):
    assert main(["analyse", write_table(), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("klqlit: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_command_without_file(capsys):
    assert main(["analyse"]) == 2
    assert "the following arguments are required: FILE" in capsys.readouterr().err


def test_options_that_own_judgments_do_not_need_are_refused(capsys):
    assert main(["analyse", write_judgments(), "--win", "A", "--a", "x"]) == 2
    assert "whose columns and verdicts are known: leave out --a, --win" in capsys.readouterr().err


def test_help_lists_the_options(capsys):
    with pytest.raises(SystemExit) as end:
        main(["analyse", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--against", "--swapped", "--unreadable", "--out", "examples:"))


@pytest.mark.parametrize("block", [b for b in blocks("bash") if b.page.name == "statistics.md"], ids=lambda b: b.where)
def test_the_documentation_shows_what_its_commands_print(block, capsys):
    for name, text in block.files.items():
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
    for words in block.commands:
        assert words[:4] == ["python", "-m", "klqlit", "analyse"]
        run(words[4:])
    assert block.output in (None, "".join(line.rstrip() + "\n" for line in capsys.readouterr().out.splitlines()))

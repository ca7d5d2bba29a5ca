"""`judge` from the command line: every kind of side, what it writes, and what it refuses."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from builders import save, tiny_language_model, tiny_reward_model, tiny_tokenizer
from judges.servers import JudgeServer, longer_wins, refuse
from klqlit.cli import main
from klqlit.judges.matching import read_completions

CONFIG = """
trainer: {{max_epochs: 1, accelerator: cpu, callbacks: [klqlit.SampleTable]}}
model:
  class_path: klqlit.{algorithm}
  init_args:
    policy: {{class_path: klqlit.LanguagePolicy, init_args: {{path: {folder}/policy}}}}
    reward: {{class_path: klqlit.RewardModel, init_args: {{path: {folder}/reward}}}}
    sampler: {{response_length: 6}}
    optimization: {{lr: 1.0e-2}}
data:
  class_path: klqlit.OnlineDataModule
  init_args:
    rollouts: 8
    minibatches: 2
    epochs: 1
    max_prompt_tokens: 100
    validation_prompts: 6
    seed: ${{seed_everything}}
    source: {{class_path: klqlit.TableSource, init_args: {{path: {folder}/rows.json, validation_rows: 8}}}}
"""


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files of completions in the current folder; A's is longer, equal and shorter, and two prompts stand alone."""
    monkeypatch.chdir(tmp_path)
    a = [{"prompt": f"p{i}", "completion": "word " * n} for i, n in enumerate((3, 2, 1, 5))]
    b = [{"prompt": f"p{i}", "completion": "other " * 2} for i in (2, 1, 0, 9)]
    write(tmp_path / "a.jsonl", *a)
    write(tmp_path / "b.jsonl", *b)
    return tmp_path


def judge(*options, judge="LengthJudge"):
    return main(["judge", "--judge", judge, *map(str, options)])


def test_files_are_compared_and_everything_is_written(files, capsys):
    assert judge("--a", "a.jsonl", "--b", "b.jsonl") == 0
    folder = files / "runs" / "judged" / "a-vs-b-LengthJudge"
    result = json.loads((folder / "judged.json").read_text())
    assert result["a"] == {"name": "a", "source": "a.jsonl", "run": None, "completions": "a.jsonl"}
    assert result["judge"]["class"] == "LengthJudge"
    assert [result["statistics"][kind] for kind in ("wins", "ties", "losses")] == [1, 1, 1]
    assert result["statistics"]["win_rate"]["rate"] == 0.5
    counts = result["counts"]
    assert [counts[name] for name in ("pairs", "only_in_a", "only_in_b", "duplicate_prompts")] == [3, 1, 1, 0]
    assert set(result) >= {"level", "draws", "versions"}
    assert [(row["prompt"], row["outcome"]) for row in rows(folder / "judgments.jsonl")] == [
        ("p0", "win"),
        ("p1", "tie"),
        ("p2", "loss"),
    ]
    assert [(row["side"], row["prompt"]) for row in rows(folder / "unmatched.jsonl")] == [("a", "p3"), ("b", "p9")]
    shown = capsys.readouterr().out
    assert "1 completions of a have no partner and are left out (unmatched.jsonl lists them): 'p3'" in shown
    assert "win rate, ties as half" in shown
    assert f"Written to {folder.relative_to(files)}" in shown


def test_swapped_sides_turn_the_numbers_round(files):
    assert judge("--a", "a.jsonl", "--b", "b.jsonl", "--max_prompts", "1", "--out", "one") == 0
    assert judge("--a", "b.jsonl", "--b", "a.jsonl", "--max_prompts", "3", "--out", "other") == 0
    one, other = (json.loads((files / name / "judged.json").read_text()) for name in ("one", "other"))
    assert (one["counts"]["pairs"], one["statistics"]["wins"]) == (1, 1)
    assert (other["counts"]["pairs"], other["statistics"]["losses"]) == (3, 1)


def test_empty_completions_are_allowed_and_counted(files, capsys):
    write(files / "a.jsonl", {"prompt": "p1", "completion": ""}, {"prompt": "p2", "completion": " "})
    assert judge("--a", "a.jsonl", "--b", "b.jsonl") == 0
    assert "2 completions of a are empty" in capsys.readouterr().out
    result = json.loads((files / "runs/judged/a-vs-b-LengthJudge/judged.json").read_text())
    assert (result["counts"]["empty_a"], result["statistics"]["losses"]) == (2, 2)


def test_a_dry_run_asks_and_writes_nothing(files, capsys):
    with JudgeServer(lambda text, i: longer_wins(text)) as server:
        options = ["--a", "a.jsonl", "--b", "b.jsonl", "--judge.model=m", f"--judge.base_url={server.base_url}"]
        assert judge(*options, "--dry_run", judge="EndpointJudge") == 0
        assert not server.asked
        assert "3 pairs, 6 questions, of which 0 are judged" in capsys.readouterr().out
        assert judge(*options, "--max_prompts=1", judge="EndpointJudge") == 0
        assert len(server.asked) == 2
        prices = ["--judge.input_price=0", "--judge.output_price=8"]
        assert judge(*options, "--dry_run", *prices, judge="EndpointJudge") == 0
        shown = capsys.readouterr().out
        assert "3 pairs, 6 questions, of which 2 are judged" in shown
        assert "the others take 4 requests" in shown
        assert "cost: about 0.0328" in shown  # 4 answers of 1,024 tokens at 8 a million
        assert judge(*options, "--one_order", "--out", "one", judge="EndpointJudge") == 0
        assert len(server.asked) == 2 + 2


def test_a_judge_that_gives_up_says_what_is_kept(files, capsys):
    answers = [longer_wins, longer_wins]
    with JudgeServer(lambda text, i: answers[i](text) if i < 2 else refuse(401, "bad key")) as server:
        options = ["--a", "a.jsonl", "--b", "b.jsonl", "--judge.model=m", f"--judge.base_url={server.base_url}"]
        assert judge(*options, "--judge.concurrency=1", judge="EndpointJudge") == 2
    error = capsys.readouterr().err
    assert "2 of 6 judgments kept; run again to go on" in error
    assert not (files / "runs" / "judged" / "a-vs-b-EndpointJudge").exists()


def test_results_of_two_judges_are_not_mixed(files, capsys):
    options = ["--a", "a.jsonl", "--b", "b.jsonl"]
    assert judge(*options, "--out", "x") == 0
    assert judge(*options, "--out", "x") == 0
    assert judge(*options, "--out", "x", "--judge.prefer=shorter") == 2
    assert "--out x holds a comparison of other sides or by another judge" in capsys.readouterr().err
    assert judge(*options) == 0
    assert judge(*options, "--judge.prefer=shorter") == 0
    assert judge(*options, "--judge.prefer=shorter") == 0
    folders = sorted(path.parent.name for path in (files / "runs" / "judged").glob("*/judged.json"))
    assert len(folders) == 2
    assert folders[0] == "a-vs-b-LengthJudge"
    assert folders[1].startswith("a-vs-b-LengthJudge-")


def test_a_cache_of_another_version_is_refused(files, capsys):
    assert judge("--a", "a.jsonl", "--b", "b.jsonl") == 0
    with sqlite3.connect(files / "runs/judged/judgments.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    assert judge("--a", "a.jsonl", "--b", "b.jsonl") == 2
    error = capsys.readouterr().err
    assert "'runs/judged/judgments.sqlite' was written in format 99" in error
    assert "give another file with --cache, or delete this one" in error


def refuse_options():
    sides = ["--a", "a.jsonl", "--b", "b.jsonl"]
    length = ["--judge", "LengthJudge"]
    return [
        ([*length, "--a", "a.jsonl"], "these options are required: --b"),
        (sides, "these options are required: --judge"),
        ([*length, "--a", "none", "--b", "b.jsonl"], "--a none is not there: give a run's folder"),
        ([*length, "--a", ".", "--b", "b.jsonl"], "--a . is neither a run's folder nor an exported model"),
        ([*length, "--a", "dataset", "--b", "dataset"], "one side must have completions of its own"),
        (
            [*length, "--a", "reference", "--b", "b.jsonl"],
            "--a reference: its prompts and how to sample are known from",
        ),
        ([*length, "--a", "broken.jsonl", "--b", "b.jsonl"], "broken.jsonl, line 1, column 15: broken JSON"),
        ([*length, "--a", "empty.jsonl", "--b", "b.jsonl"], "'empty.jsonl' is empty"),
        (
            [*length, "--a", "others.jsonl", "--b", "b.jsonl"],
            "no prompt in common: give completions",
        ),
        ([*length, "--a", "a.jsonl", "--b", "dataset"], "`chosen` or `completion` (it has none). Give that side as a"),
        ([*length, *sides, "--config", "x.yaml"], "neither side needs any: drop it"),
        ([*length, *sides, "--max_prompts", "0"], "--max_prompts 0 must be at least 1"),
        ([*length, *sides, "--level", "95"], "level must lie between 0 and 1, such as 0.95, got 95"),
        ([*length, *sides, "--draws", "many"], "draws: expected an int, got 'many'"),
        ([*length, *sides, "--cache", "a.jsonl"], "the cache 'a.jsonl' cannot be used (file is not a database)"),
        ([*length, *sides, "--out", "a.jsonl/x"], "--out a.jsonl/x cannot be written"),
        ([*length, *sides, "--judge.prefr", "x"], "judge: Option 'prefr' is not accepted; did you mean 'prefer'?"),
        ([*length, *sides, "--levle", "0.9"], "there is no option --levle; did you mean --level?"),
        ([*length, *sides, "--xyz=1"], "there is no option --xyz; see `--help`"),
        (
            ["--judge", "LengthJugde", *sides],
            "path string: LengthJugde; did you mean 'klqlit.LengthJudge'?",
        ),
        (["--judge", "Nobody", *sides], "path string: Nobody; choose one of EndpointJudge"),
        (
            [*length, *sides, "--judge.foo=1"],
            "Option 'foo' is not accepted; `--judge.help LengthJudge` lists the options",
        ),
        (["--judge", "RewardJudge", "--judge.reward", "Gold", *sides], "choose one of RewardModel, FunctionReward"),
    ]


@pytest.mark.parametrize(("options", "message"), refuse_options())
def test_a_mistake_gives_one_clear_line(files, capsys, options, message):
    (files / "broken.jsonl").write_text('{"prompt": "p"')
    (files / "empty.jsonl").write_text("")
    write(files / "others.jsonl", {"prompt": "q", "completion": "c"})
    assert main(["judge", *options]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("klqlit: error:")]
    assert len(error) == 1
    assert message in error[0]


@pytest.mark.slow
def test_a_process_of_its_own(files):
    command = [sys.executable, "-m", "klqlit", "judge", "--b", "b.jsonl", "--judge", "LengthJudge"]
    done = subprocess.run([*command, "--a", "a.jsonl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Written to runs/judged/a-vs-b-LengthJudge" in done.stdout
    failed = subprocess.run([*command, "--a", "none"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("klqlit: error: --a none is not there")


# Policies -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a policy, a reward model, rows with human responses, and a short run of each algorithm."""
    folder = tmp_path_factory.mktemp("workshop")
    tokenizer = tiny_tokenizer()
    save(folder / "policy", tiny_language_model("llama", tokenizer), tokenizer)
    save(folder / "reward", tiny_reward_model("llama", tokenizer), tokenizer)
    table = [{"prompt": f"What is {i} and two?", "completion": f" It is {i + 2}.", "number": i} for i in range(40)]
    (folder / "rows.json").write_text(json.dumps(table))
    for algorithm in ("KLQ", "PPO"):
        config = folder / f"{algorithm}.yaml"
        config.write_text(CONFIG.format(folder=folder, algorithm=algorithm))
        assert main(["fit", f"--config={config}", f"--run_dir={folder / algorithm}"]) == 0
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result_of(place):
    (file,) = place.glob("runs/judged/*/judged.json")
    return json.loads(file.read_text()), rows(file.with_name("judgments.jsonl"))


@pytest.mark.slow
def test_two_runs_answer_the_same_prompts_and_stay_as_they_were(workshop, place):
    before = {path: path.stat().st_mtime_ns for path in workshop.rglob("*")}
    assert judge("--a", workshop / "KLQ", "--b", workshop / "PPO") == 0
    result, _ = result_of(place)
    assert (result["a"]["name"], result["b"]["name"]) == ("KLQ", "PPO")
    assert result["a"]["run"] == str(workshop / "KLQ")
    assert result["counts"]["prompts"] == result["counts"]["pairs"] == 6
    assert result["counts"]["only_in_a"] == result["counts"]["only_in_b"] == 0
    assert {path: path.stat().st_mtime_ns for path in workshop.rglob("*")} == before


@pytest.mark.slow
def test_the_last_checkpoint_and_the_exported_model_are_the_same_policy(workshop, place):
    """Same weights, prompts and seeds: every completion is the same."""
    assert judge("--a", workshop / "KLQ", "--b", workshop / "KLQ" / "model") == 0
    result, pairs = result_of(place)
    assert result["counts"]["identical"] == len(pairs) == 6
    assert {pair["outcome"] for pair in pairs} == {"tie"}


@pytest.mark.slow
def test_the_reference_is_the_policy_as_it_started(workshop, place):
    assert judge("--a", workshop / "policy", "--b", "reference", "--config", workshop / "KLQ.yaml") == 0
    result, _ = result_of(place)
    assert result["counts"]["identical"] == 6
    assert judge("--a", workshop / "PPO", "--b", "reference", "--out", "other") == 0
    other = json.loads((place / "other" / "judged.json").read_text())
    assert other["counts"]["identical"] < 6
    texts = [{row.text for row in read_completions(side["b"]["completions"])} for side in (result, other)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_the_dataset_is_its_human_responses(workshop, place, capfd):
    sides = ["--a", "dataset", "--b", workshop / "KLQ", "--max_prompts", "8"]
    assert judge(*sides) == 0
    result, pairs = result_of(place)
    assert result["counts"]["pairs"] == 8  # more than the configuration's 6
    for pair in pairs:
        number = int(pair["prompt"].split()[2])
        assert pair["a"] == f" It is {number + 2}."
    assert result["statistics"]["by_position"] is result["statistics"]["inconsistent_rate"] is None
    # Nothing overlaps with the human responses more than they do.
    assert judge(*sides, "--out", "other", judge="RougeJudge") == 2
    assert "is the reference text itself in every question" in "".join(capfd.readouterr())


@pytest.mark.slow
def test_completions_of_predict_are_a_side(workshop, place):
    run = workshop / "KLQ"
    options = [f"--config={run}/config.yaml", f"--run_dir={place}/mine", f"--ckpt_path={run}/checkpoints/step-2.ckpt"]
    assert main(["predict", *options]) == 0
    assert judge("--a", "mine/completions.jsonl", "--b", run) == 0
    result, pairs = result_of(place)
    assert result["a"]["name"] == "mine"
    assert result["counts"]["identical"] == len(pairs) == 6


@pytest.mark.slow
def test_a_stage_before_is_a_side_by_its_exported_model(workshop, place):
    stage = place / "sft"
    stage.mkdir()
    (stage / "config.yaml").write_text("model: {class_path: klqlit.SupervisedFinetuning, init_args: {}}\n")
    (stage / "model").symlink_to(workshop / "policy")
    assert judge("--a", "sft", "--b", "reference", "--config", workshop / "PPO.yaml") == 0
    result, _ = result_of(place)
    assert (result["a"]["name"], result["a"]["run"], result["counts"]["identical"]) == ("sft", "sft", 6)
    assert judge("--a", "sft", "--b", workshop / "KLQ", "--out", "other") == 0


@pytest.mark.slow
def test_completions_are_generated_once_and_again_when_the_weights_change(workshop, place, capsys):
    options = ["--a", workshop / "KLQ", "--b", "reference"]
    assert judge(*options, "--dry_run") == 0
    assert capsys.readouterr().out.count("generating") == 2
    assert judge(*options) == 0
    assert judge(*options, judge="RougeJudge") == 0
    assert "generating" not in capsys.readouterr().out
    checkpoint = workshop / "KLQ" / "checkpoints" / "step-2.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes())
    assert judge(*options) == 0
    assert capsys.readouterr().out.count("generating completions of KLQ") == 1


@pytest.mark.slow
def test_a_run_without_weights_is_refused(workshop, place, capsys):
    (place / "new").mkdir()
    (place / "new" / "config.yaml").write_text((workshop / "KLQ.yaml").read_text())
    assert judge("--a", "new", "--b", "dataset") == 2
    assert "--a new has neither a checkpoint nor an exported model" in capsys.readouterr().err

"""The whole report: what it says, what it hides, and that nothing in the folders stops it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from markupsafe import Markup

from klqlit.callbacks.critic_record import critic_row
from klqlit.cli import main
from klqlit.commands.report import parse
from klqlit.reports.experiment import read_experiment
from klqlit.reports.figures.style import Gallery, Picture
from klqlit.reports.page import write_report
from klqlit.reports.texts import TEXTS
from klqlit.reports.tokens import NUMBERS
from reports.folders import (
    phase_rows,
    write_comparison,
    write_everything,
    write_rows,
    write_run,
    write_supervised,
)
from runs import two_rows

SECTIONS = ("summary", "curves", "time", "frontier", "wins", "overoptimisation", "critic", "samples", "tokens")
ATTACK = '<script>document.title="taken"</script><img src=x onerror=alert(1)>"\'{{ 7*7 }}\x1b[2J\x00'


class Page(HTMLParser):
    """Tags with their attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made, and not written: most of the time goes there."""

    def add(self, figure, name, title):
        self.names.append(name)
        return Picture(name=f"f{len(self.names)}", svg=Markup("<svg></svg>"), title=title)

    monkeypatch.setattr(Gallery, "add", add)


def report(root, out):
    return write_report(read_experiment([root]), out, [str(root)]).read_text(encoding="utf-8")


def section(text, key):
    return text.split(f'<section id="{key}">')[1].split("</section>")[0]


def missing(text, key):
    return re.findall(r"<li>(.*?)</li>", section(text, key))


# All there ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    write_everything(root / "runs")
    assert main(["report", str(root / "runs"), "--out", str(root / "out")]) == 0
    return root / "out"


def test_the_command_writes_page_and_figures(whole):
    text = (whole / "index.html").read_text()
    for key in SECTIONS:
        assert not missing(text, f"t1-{key}"), key
    figures = {path.stem for path in (whole / "figures").glob("*.svg")}
    assert figures == {path.stem for path in (whole / "figures").glob("*.png")}
    shown = {attributes["id"].removeprefix("fig-") for attributes in Page(text).named("figure")}
    assert shown == figures
    # Four curves by updates and seconds, and three of the critic, at each tau; bars, two frontiers, wins, two of gold.
    assert len(figures) == 2 * (4 * 2 + 3) + 1 + 2 + 1 + 2


def test_nothing_is_loaded_from_elsewhere(whole):
    text = (whole / "index.html").read_text()
    page = Page(text)
    assert not page.named("link")
    assert not page.named("img")
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", text)
    (policy,) = [a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")


def test_every_link_leads_somewhere_and_ids_are_unique(whole):
    page = Page((whole / "index.html").read_text())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.named("a"):
        assert link["href"].removeprefix("#") in ids


def test_versions_devices_and_the_reward_model_are_listed(whole):
    text = (whole / "index.html").read_text()
    assert "torch 2.9" in section(text, "runs")
    assert "not recorded: run.json is missing" in section(text, "runs")
    assert re.search(r"reward</td>.*RewardModelling.*0.375.*81.2 %", section(text, "runs"), re.DOTALL)
    assert "0123456789ab" in section(text, "judged")
    assert section(text, "settings").count("<details") == 13


# Bad and missing ------------------------------------------------------------------------------------------------------


def test_what_models_write_is_text(undrawn, tmp_path):
    klq = write_run(tmp_path / "runs" / "klq", "KLQ")
    ppo = write_run(tmp_path / "runs" / "ppo", "PPO")
    for name in ("samples", "tokens"):
        rows = [json.loads(line) for line in (klq / f"{name}.jsonl").read_text().splitlines()]
        for row in rows:
            row |= {"prompt": ATTACK, "policy": ATTACK, "reference": ATTACK, "completion": ATTACK}
            if "tokens" in row:
                row["tokens"] = [ATTACK] * 3
        write_rows(klq / f"{name}.jsonl", rows)
    judge = {"class": ATTACK, "template_hash": ATTACK, "model": ATTACK}
    write_comparison(tmp_path / "runs" / "judged", klq, ppo, ["win", None], texts=(ATTACK, ATTACK), judge=judge)
    (klq / "label.json").write_text(json.dumps({"algorithm": ATTACK, "task": ATTACK}))
    (klq / "run.json").write_text(json.dumps({"state": "stopped", "reason": ATTACK, "starts": [{"device": ATTACK}]}))
    text = report(tmp_path / "runs", tmp_path / "out")
    page = Page(text)
    assert len(page.named("script")) == 1
    assert not page.named("img")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert text.count("&lt;script&gt;") > 10
    assert "{{ 7*7 }}" in text
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text)
    assert "␛" in text


def test_secrets_are_hidden(undrawn, tmp_path):
    folder = write_run(tmp_path / "runs" / "klq", "KLQ", hf_token="hush-hush", url="https://me:hush-hush@host")
    other = write_run(tmp_path / "runs" / "other", "KLQ", seed=2, hf_token="hush-hush-2", url="https://host")
    judge = {"class": "EndpointJudge", "api_key": "hush-hush", "base_url": "http://host/v1?key=hush-hush"}
    write_comparison(tmp_path / "runs" / "judged", folder, other, ["win"], judge=judge)
    text = report(tmp_path / "runs", tmp_path / "out")
    assert "hush" not in text
    assert text.count("[hidden]") >= 4


def test_a_single_run_says_what_would_make_more_of_it(undrawn, tmp_path):
    write_run(tmp_path / "run", gold=False)
    text = report(tmp_path / "run", tmp_path / "out")
    said = {key: " ".join(missing(text, f"t1-{key}")) for key in SECTIONS}
    assert "Only KLQ was run" in said["summary"]
    assert "--seed_everything 2" in said["summary"]
    assert "model.gold" in said["curves"]
    assert "--model.tau 0.1" in said["frontier"]
    assert "python -m klqlit judge --a RUN --b RUN" in said["wins"]
    assert "model.gold" in said["overoptimisation"]
    assert "python -m klqlit judge" in said["samples"]
    assert not any(said[key] for key in ("time", "critic", "tokens"))


@pytest.mark.parametrize(
    ("file", "key", "said"),
    [
        ("metrics.jsonl", "curves", "No run has logged a phase yet. <code>python -m klqlit fit"),
        ("metrics.jsonl", "time", "did not log the time of each stage"),
        ("metrics.jsonl", "frontier", "No run has logged score and KL yet"),
        ("metrics.jsonl", "summary", "No run has logged J yet"),
        ("samples.jsonl", "samples", "<code>klqlit.SampleTable</code>"),
        ("critic.jsonl", "critic", "there is no critic.jsonl"),
        ("tokens.jsonl", "tokens", "There is no tokens.jsonl"),
    ],
)
@pytest.mark.parametrize("empty", [True, False])
def test_a_missing_file_is_named_where_it_is_missed(undrawn, tmp_path, file, key, said, empty):
    folder = write_run(tmp_path / "run")
    (folder / file).write_text("") if empty else (folder / file).unlink()
    text = report(tmp_path / "run", tmp_path / "out")
    assert said in " ".join(missing(text, f"t1-{key}"))


def test_a_run_without_configuration_is_shown_all_the_same(undrawn, tmp_path):
    folder = write_run(tmp_path / "lone")
    (folder / "config.yaml").unlink()
    text = report(tmp_path, tmp_path / "out")
    assert '<h2 id="t1">unknown task</h2>' in text
    assert "there is no config.yaml" in " ".join(missing(text, "runs"))
    assert "Learning curves" in text


def test_each_task_has_a_chapter(undrawn, tmp_path):
    write_run(tmp_path / "one")
    other = write_run(tmp_path / "two")
    (other / "label.json").write_text('{"task": "Second"}')
    text = report(tmp_path, tmp_path / "out")
    assert re.findall(r'<h2 id="(\w+)">(.*?)</h2>', text) == [
        ("t1", "MiniHH"),
        ("t2", "Second"),
        ("what", "What was run"),
    ]


def test_runs_and_comparisons_alone_make_a_report(undrawn, tmp_path):
    write_supervised(tmp_path / "sft")
    assert "RewardModelling" in section(report(tmp_path / "sft", tmp_path / "o1"), "runs")
    write_comparison(tmp_path / "judged", None, None, ["win"])
    assert "LengthJudge" in section(report(tmp_path / "judged", tmp_path / "o2"), "judged")


RUBBISH = [None, "x", [], {}, -1, float("nan"), [None], True]


def mutants(value):
    """The value with each of its parts replaced by rubbish, one at a time."""
    yield from RUBBISH
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        for changed in mutants(part):
            copy = value.copy()
            copy[key] = changed
            yield copy


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "run.json",
        "critic.jsonl",
        "tokens.jsonl",
        "samples.jsonl",
        "metrics.jsonl",
        "optimum.json",
        "judged",
    ],
)
def test_no_file_stops_the_report(undrawn, tmp_path, name):
    """Every value of every kind of file, replaced by values of other types."""
    root = tmp_path / "runs"
    folder, other = write_run(root / "klq", "KLQ"), write_run(root / "ppo", "PPO")
    judged = write_comparison(root / "judged", folder, other, ["win", "tie"])
    optimum = {"tau": 0.1, "score": 1.0, "kl": 2.0, "J": 3.0, "reference": 0.0}
    (folder / "optimum.json").write_text(json.dumps(optimum))
    path = judged / "judged.json" if name == "judged" else folder / name
    whole = (
        yaml.safe_load(path.read_text()) if path.suffix != ".jsonl" else json.loads(path.read_text().splitlines()[-1])
    )
    if name == "metrics.jsonl":
        whole = phase_rows(0.1, score=3.0, kl=6.0)[-1]
    every = list(mutants(whole))
    # Evenly spread ones: a report takes a moment.
    for changed in every[:: max(1, len(every) // 12)]:
        path.write_text(json.dumps(changed) + "\n")
        assert "What was run" in report(root, tmp_path / "out")


# The command ----------------------------------------------------------------------------------------------------------


def test_options():
    assert vars(parse(["a", "b", "--out", "c"])) == {"runs": ["a", "b"], "out": "c"}
    assert parse(["a"]).out == "report"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "the following arguments are required: RUN"),
        (["runs", "--otu", "x"], "'--otu' is not expected, did you mean '--out'?"),
        (["runs", "--verbose"], "'--verbose' is not expected"),
        (["nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line(options, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("klqlit: error: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named(undrawn, tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--out .*file.* cannot be written"):
        report(tmp_path / "run", tmp_path / "file")


# The documentation ----------------------------------------------------------------------------------------------------

DOCS = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")


def test_the_documentation_lists_the_sections():
    rows = re.findall(r"^\| (.+?) \|", DOCS, re.MULTILINE)
    assert {title for key, (title, _) in TEXTS.items() if key in SECTIONS} <= set(rows)


def test_the_documentation_shows_the_formats():
    rollout = two_rows()
    written = critic_row(rollout, torch.zeros(2, 2), tau=0.1, bins=3)
    (shown,) = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL))
    assert list(shown) == ["step", "epoch", *written]
    assert list(shown["V"]) == list(written["V"])
    assert list(shown["V"]["bins"][0]) == list(written["V"]["bins"][0])
    for name in ("state", "reason", *NUMBERS):
        assert f"`{name}`" in DOCS

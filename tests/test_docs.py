"""What the documentation says can be done: commands parse, python runs, names and links exist, metrics are listed."""

import ast
import json
import re
import runpy
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from builders import save, tiny_language_model, tiny_reward_model, tiny_tokenizer
from finetuning.runs import fit, new_module
from finetuning.runs import source as table_source
from klqlit import cli
from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.ppo import PPO
from klqlit.command_line import CommandLine, read
from klqlit.data.supervised import CompletionDataModule, PreferenceDataModule
from klqlit.rewards.function import FunctionReward
from pages import PAGES, ROOT, Block, anchors, blocks, first_cells, links, quoted, run, section
from runs import make_data, make_module, make_trainer, vowels

METRICS = ROOT / "docs" / "metrics.md"
FREE = {"cat", "cd", "git", "hf", "mkdir", "scontrol", "source", "squeue", "tail", "tensorboard"}
"""Commands that are not ours to check."""
SMALLER = {"max_epochs=100": "max_epochs=1", "rollouts=192": "rollouts=8"}
"""Sizes in python blocks, and what a test takes instead."""
PARTS = ("klqlit", "functional", "algorithms", "models", "rewards", "rollout", "finetuning", "callbacks", "seeding")

by_place = {"ids": lambda block: block.where}


@pytest.fixture
def workplace(tmp_path, monkeypatch, policy_dir, reward_dir):
    """The repository's root as a reader has it after the stages that a page speaks of, with tiny models."""
    for folder in ("configs", "examples", "benchmarks", "scripts"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    language_models = [
        "models/policy",
        "path/to/sft",
        *(f"runs/{name}/model" for name in ("mini_hh/sft", "tldr/sft", "tldr/klq")),
    ]
    reward_models = ["models/reward", "path/to/reward", "runs/mini_hh/reward/model", "runs/tldr/reward/model"]
    for names, target in ((language_models, policy_dir), (reward_models, reward_dir)):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).symlink_to(target)
    rows = [json.dumps({"prompt": f"What is {i} and {i}?"}) for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory):
    """A model that reads as many tokens as the default settings ask for; rotary positions have no weights."""
    tokenizer = tiny_tokenizer()
    model = tiny_language_model("llama", tokenizer)
    model.config.max_position_embeddings = 1024
    return save(tmp_path_factory.mktemp("policy"), model, tokenizer)


@pytest.fixture(scope="module")
def reward_dir(tmp_path_factory):
    tokenizer = tiny_tokenizer()
    return save(tmp_path_factory.mktemp("reward"), tiny_reward_model("llama", tokenizer), tokenizer)


# Shell ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("bash"), **by_place)
def test_commands_can_be_given(block: Block, workplace: Path, monkeypatch, capsys) -> None:
    for name, text in block.files.items():
        Path(name).write_text(text)
    for words in block.commands:
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, value = words.pop(0).split("=", 1)
            monkeypatch.setenv(name, value)
            if name == "PYTHONPATH":
                monkeypatch.syspath_prepend(str(ROOT / value))
        check_command(words, monkeypatch, capsys)


def check_command(words: list[str], monkeypatch, capsys) -> None:
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert rest, words
        assert set(rest) <= set(targets), words
    elif program == "pip" or rest[:2] == ["-m", "pip"]:
        extras = {extra for word in rest for found in re.findall(r"\[(.+)\]", word) for extra in found.split(",")}
        assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras), words
    elif Path(program).name in ("python", "python3") and rest[:2] == ["-m", "klqlit"]:
        check_options(rest[2:], monkeypatch, capsys)
    elif Path(program).name in ("python", "python3") and rest[0].endswith(".py"):
        check_script(rest, monkeypatch, capsys)
    elif program == "sbatch":
        check_job(rest, monkeypatch, capsys)
    else:
        assert program in FREE or rest[:2] in (["-m", "venv"], ["-m", "pytest"]), f"unknown command {words}"


def check_options(options: list[str], monkeypatch, capsys) -> None:
    """The whole command line is read, as it stands and with `--print_config`; nothing is loaded."""
    command, *options = options
    if command.startswith("-"):
        assert cli.main([command]) == 0
        return
    assert command in cli.COMMANDS
    if command in cli.OTHER_COMMANDS:
        import_module(f"klqlit.commands.{command}").parse(options)
        return
    monkeypatch.setattr(sys, "argv", ["klqlit"])  # or else Lightning warns that there are arguments beside `args`
    with pytest.raises(SystemExit) as end:
        read(command, [*options, "--print_config"])
    assert end.value.code == 0
    assert "class_path" in capsys.readouterr().out
    if "--print_config" not in options:
        monkeypatch.setattr(CommandLine, "_set_seed", lambda self: None)
        monkeypatch.setattr(CommandLine, "instantiate_classes", lambda self: None)
        read(command, options)


def check_job(words: list[str], monkeypatch, capsys) -> None:
    """What stands before the script is SLURM's: an option that the script sets too, or one of the few others that the
    pages use. What follows it is read as the script hands it on."""
    place = words.index("scripts/klqlit.sbatch")
    script = (ROOT / words[place]).read_text()
    own = set(re.findall(r"^#SBATCH (--[\w-]+)", script, re.MULTILINE))
    other = {"--account", "--array", "--dependency", "--no-requeue", "--partition"}
    assert {option.split("=")[0] for option in words[:place]} <= own | other, words
    options = words[place + 1 :]
    if any(option.startswith("--array") for option in words[:place]):
        assert "${seed_everything}" in " ".join(options), words
        options = [*options, "--seed_everything", "3"]
    command = re.search(r'python -m klqlit (.+) "\$@"$', script, re.MULTILINE)
    assert command
    check_options([*command[1].split(), *options], monkeypatch, capsys)


def check_script(words: list[str], monkeypatch, capsys) -> None:
    """Values are read by the script's own parser before its help ends it; the help lists every option."""
    script, *options = words
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", [script, *options, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"{option.split('=')[0]} " in text for option in options if option.startswith("--")), words


@pytest.mark.parametrize(
    "words",
    [
        ["make", "nothing"],
        ["pip", "install", ".[nothing]"],
        ["rm", "-rf", "x"],
        ["sbatch", "--gpu=1", "scripts/klqlit.sbatch", "--config=configs/tldr_klq.yaml"],
        ["sbatch", "--array=1-5", "scripts/klqlit.sbatch", "--config=configs/tldr_klq.yaml"],
    ],
)
def test_wrong_commands_are_found(words: list[str], monkeypatch, capsys) -> None:
    with pytest.raises(AssertionError):
        check_command(words, monkeypatch, capsys)


def test_wrong_options_after_a_job_script_are_found(workplace: Path, monkeypatch, capsys) -> None:
    with pytest.raises(ValueError, match="teu"):
        check_command(
            ["sbatch", "scripts/klqlit.sbatch", "--config=configs/tldr_klq.yaml", "--model.teu=1"], monkeypatch, capsys
        )


def test_wrong_options_of_other_commands_are_found(monkeypatch, capsys) -> None:
    with pytest.raises(ValueError, match="swaped"):
        check_options(["analyse", "verdicts.csv", "--swaped=x"], monkeypatch, capsys)


@pytest.mark.parametrize("option", ["--model.teu=1", "--model.tau=abc", "--config=configs/none.yaml"])
def test_wrong_options_are_found(option: str, workplace: Path, monkeypatch, capsys) -> None:
    with pytest.raises(ValueError, match=re.escape(option.split("=")[0].split(".")[-1].strip("-"))):
        check_options(["fit", "--config", "configs/tldr_klq.yaml", option], monkeypatch, capsys)


# Python and YAML -----------------------------------------------------------------------------------------------------

PAGES_WITH_CODE = sorted({block.page for kind in ("python", "yaml") for block in blocks(kind)})


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: page.name)
def test_python_runs_and_yaml_fits_it(page: Path, workplace: Path, monkeypatch, capsys) -> None:
    """A page's python runs in order as one module and prints what the page says; its YAML names what is in it."""
    module = ModuleType("my_code")
    monkeypatch.setitem(sys.modules, "my_code", module)
    for block, output in run(page, vars(module), SMALLER):
        assert block.output in (None, output), f"{block.where} prints {output}"
    for number, block in enumerate(blocks("yaml")):
        if block.page == page:
            Path(f"{number}.yaml").write_text(block.text)
            options = ["fit", "--config", "configs/mini_hh_klq.yaml", "--config", f"{number}.yaml"]
            check_options(options, monkeypatch, capsys)


# Names ---------------------------------------------------------------------------------------------------------------


def resolve(name: str) -> None:
    """Import what a dotted name says."""
    parts = name.removeprefix("klqlit.").split(".") if name != "klqlit" else []
    found: Any = import_module("klqlit")
    for i, part in enumerate(parts):
        if part in vars(found) or not isinstance(found, ModuleType):
            found = vars(found)[part]
        else:
            try:
                found = import_module(".".join(["klqlit", *parts[: i + 1]]))
            except ModuleNotFoundError:
                found = getattr(found, part)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_text_exist(page: Path) -> None:
    for name in quoted(page):
        if re.fullmatch(rf"(?:{'|'.join(PARTS)})(?:\.\w+)+|(?:types|data\.\w+|metrics\.\w+)\.[A-Z]\w*", name):
            resolve(name)
        elif match := re.fullmatch(r"((?:tests|src|docs|configs|examples|benchmarks)/[\w/.]+?)(?:::(\w+))?", name):
            path = ROOT / match[1]
            assert path.exists(), name
            assert not match[2] or f"def {match[2]}(" in path.read_text(), name


def test_missing_names_are_found() -> None:
    resolve("functional.returns.q_values")
    for name in ("functional.returns.nothing", "klqlit.Nothing", "models.nothing"):
        with pytest.raises((AttributeError, KeyError, ModuleNotFoundError)):
            resolve(name)


def test_theory_names_every_equation() -> None:
    named = {name.split(".")[-1] for name in quoted(ROOT / "docs" / "theory.md")}
    files = [ROOT / "src" / "klqlit" / "functional" / f"{name}.py" for name in ("returns", "klq", "ppo", "kl")]
    functions = {node.name for file in files for node in ast.parse(file.read_text()).body if "name" in vars(node)}
    helpers = {"discounted_sum", "hold_near", "value_error", "clip_fraction"}
    assert {name for name in functions if not name.startswith("_")} - helpers <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_index_lists_every_page() -> None:
    assert {ROOT / "docs" / target for target in links(ROOT / "docs" / "README.md")} >= set(PAGES[2:]) - {
        ROOT / "docs" / "README.md"
    }


@pytest.mark.parametrize(
    ("page", "heading"), [("train.md", "Errors and their way out"), ("slurm.md", "Layouts that do not fit")]
)
def test_error_messages_are_the_codes(page: str, heading: str) -> None:
    """The pieces between the dots of each message in the table stand in a string of the package."""
    strings = [
        node.value
        for file in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    messages = first_cells(section(ROOT / "docs" / page, heading))
    assert messages
    for message in messages:
        for piece in filter(None, message.split("...")):
            assert any(piece in string for string in strings), message


# Metrics -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory, model_dir) -> set[str]:
    """Names that tiny runs of KLQ and PPO log."""
    names = set()
    for algorithm in (KLQ, PPO):
        module = make_module(model_dir("llama"), algorithm, gold=FunctionReward(vowels))
        root = tmp_path_factory.mktemp("run")
        trainer = make_trainer(root, max_epochs=1, limit_val_batches=1)
        trainer.fit(module, make_data())
        names |= set(trainer.callback_metrics)
    return names


@pytest.mark.slow
def test_metrics_of_klq_and_ppo_are_those_of_the_page(logged: set[str]) -> None:
    phase = first_cells(section(METRICS, "Each phase of KLQ and PPO"))
    again = {f"val/{name}" for name in phase[: phase.index("policy/ended") + 1]}
    validation = first_cells(section(METRICS, "Each validation of KLQ and PPO"))
    assert logged == {*phase, *again, *validation}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "kind", "heading"),
    [
        ("sft", CompletionDataModule, "Supervised fine-tuning"),
        ("reward", PreferenceDataModule, "Reward modelling"),
    ],
)
def test_metrics_of_fine_tuning_are_those_of_the_page(stage: str, kind: Any, heading: str, tmp_path: Path) -> None:
    trainer = fit(new_module(stage), kind(table_source(tmp_path), 4), tmp_path)
    assert set(trainer.callback_metrics) == set(first_cells(section(METRICS, heading)))

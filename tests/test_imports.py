"""Imports run one way, and habits that a reader relies on hold everywhere."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "klqlit"
FILES = sorted(ROOT.rglob("*.py"))

# Each layer may import itself and what stands before it.
LAYERS = [
    {"functional"},
    {
        "version",
        "seeding",
        "tokenising",
        "files",
        "disk",
        "redaction",
        "run_folder",
        "run_lock",
        "hub",
        "allocator",
        "printable",
        "ranks",
        "user_code",
    },
    {"types"},
    {"data", "metrics"},
    {"models"},
    {"strategies"},
    {"rewards"},
    {"rollout"},
    {"algorithms"},
    {"finetuning"},
    {"judges"},
    {"loggers"},
    {"callbacks"},
    {"launching"},
    {"reports"},
    {"resuming"},
    {"options"},
    {"command_line"},
    {"planning"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEAVES = {"functional", "version", "hub", "seeding", "tokenising", "types", "ranks"}

# Attributes named by the fields of a record, or by the configured names of a parser: no probing.
NAMED_FIELDS = {"types.py", "data/online.py", "rollout/gathering.py"}


def layer(part):
    return next(i for i, parts in enumerate(LAYERS) if part in parts)


def tree(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(file):
    """Names of all modules that a file imports, functions' inner imports included."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            assert node.module is not None
            yield node.module


def own(file):
    """The parts of this package that a file imports."""
    return {name.split(".")[1] for name in imported(file) if name.startswith("klqlit.")}


def part_of(file):
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def in_part(*parts):
    chosen = [file for file in FILES if part_of(file) in parts]
    assert chosen
    return chosen


def test_there_are_files_to_check():
    assert len(FILES) > 40


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file):
    if file == ROOT / "__init__.py":
        assert own(file) == {"version"}
        return
    here = part_of(file)
    below = {part for parts in LAYERS[: layer(here)] for part in parts}
    assert own(file) <= below | {here}


def test_functional_imports_torch_and_shapes_only():
    allowed = set(sys.stdlib_module_names) | {"torch", "jaxtyping", "klqlit"}
    for file in in_part("functional"):
        assert {name.split(".")[0] for name in imported(file)} <= allowed, file
        assert own(file) <= {"functional"}, file


def test_data_and_metrics_see_no_model():
    for part in ("data", "metrics"):
        for file in in_part(part):
            assert own(file) <= LEAVES | {part}, file


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_probed(file):
    calls = {
        node.func.id for node in ast.walk(tree(file)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"hasattr", "setattr", "delattr"}
    assert "getattr" not in calls or str(file.relative_to(ROOT)) in NAMED_FIELDS
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            assert len(node.args) == 2, "a default would hide a missing field"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_annotations_are_evaluated(file):
    """Shapes are checked at run time, so annotations must not become strings."""
    assert "__future__" not in set(imported(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_class_is_abstract_or_final(file):
    for node in ast.walk(tree(file)):
        if not isinstance(node, ast.ClassDef):
            continue
        decorators = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
        bases = {ast.unparse(base) for base in node.bases}
        kinds = decorators & {"final", "dataclass"} | bases & {"ABC", "Protocol", "RuntimeError", "ValueError"}
        assert kinds, f"{node.name} is neither abstract nor final, nor a record, nor an error"

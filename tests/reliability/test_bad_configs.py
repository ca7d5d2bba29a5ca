"""Spoiled configurations: every real one, changed so that it is wrong. The command line says so before it builds."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from klqlit import command_line
from klqlit.cli import main
from reliability.mutations import spoiled
from reliability.refusals import assert_clear, bounded, fuzz

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
WHOLE = [path for path in CONFIGS if "class_path" in path.read_text() and "model:" in path.read_text()]
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in WHOLE}


class Accepted(Exception):
    """The parser had nothing against a configuration."""


@pytest.fixture(autouse=True)
def _parse_only(monkeypatch):
    def stop(self: Any) -> None:
        raise Accepted

    monkeypatch.setattr(command_line.CommandLine, "instantiate_classes", stop)
    monkeypatch.setattr(command_line.CommandLine, "_set_seed", lambda self: None)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("configs") / "spoiled.yaml"


def complaint(file, capsys, text: str | bytes, command: str = "fit") -> str | None:
    """What a command says of a configuration, in one line; None where the parser takes it."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    capsys.readouterr()
    try:
        with bounded():
            status = main([command, f"--config={file}"])
    except Accepted:
        return None
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith("klqlit: error: "), error
    assert error.count("\n") == 1, error
    assert_clear(error.strip())
    return error


def paths(value: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all names in nested objects."""
    if not isinstance(value, dict):
        return []
    return [path for name, part in value.items() for path in ((*above, name), *paths(part, (*above, name)))]


def replaced(config: dict[str, Any], path: tuple[str, ...], value: Any) -> str:
    config = copy.deepcopy(config)
    inner = config
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return yaml.safe_dump(config, sort_keys=False)


def renamed(config: dict[str, Any], path: tuple[str, ...], name: str) -> str:
    config = copy.deepcopy(config)
    inner = config
    for part in path[:-1]:
        inner = inner[part]
    inner[name] = inner.pop(path[-1])
    return yaml.safe_dump(config, sort_keys=False)


@st.composite
def places(draw: st.DrawFn, leaves: bool = False) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A real configuration, and the path of a name in it."""
    config = yaml.safe_load(TEXTS[draw(st.sampled_from(sorted(TEXTS)))])
    found = [path for path in paths(config) if not leaves or not isinstance(at(config, path), dict)]
    return config, draw(st.sampled_from(found))


def at(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = config[name]
    return config


def test_the_real_ones_are_taken(file, capsys):
    """Else every refusal below would prove nothing."""
    assert len(TEXTS) >= 18
    assert [complaint(file, capsys, text) for text in TEXTS.values()] == [None] * len(TEXTS)


@given(place=places(), extra=st.sampled_from("xyz_"))
@settings(fuzz, max_examples=40)
def test_unknown_names(file, capsys, malformed, place, extra):
    config, path = place
    name = path[-1] + extra
    error = complaint(file, capsys, renamed(config, path, name))
    # A class without its class_path is what is wrong then, and a model without its arguments lacks them.
    assert error is not None
    assert name in error or path[-1] in ("class_path", "init_args", "model", "data"), error
    malformed["configurations with unknown names"] += 1


@given(place=places(leaves=True), value=st.sampled_from(({"a": {"b": 1}}, [[1], [2]], {"class_path": "os.system"})))
@settings(fuzz, max_examples=40)
def test_wrong_types(file, capsys, malformed, place, value):
    config, path = place
    error = complaint(file, capsys, replaced(config, path, value))
    assert error is not None
    malformed["configurations with wrong types"] += 1


REFERENCES = (
    "${{{path}}}",
    "${{nothing.of.this.name}}",
    "${{",
    "${{a:}}",
    "${{oc.env:NO_SUCH_VARIABLE}}",
    "${{no_such:1}}",
)


@given(place=places(leaves=True), reference=st.sampled_from(REFERENCES))
@settings(fuzz, max_examples=40)
def test_references_that_lead_nowhere(file, capsys, malformed, place, reference):
    config, path = place
    text = replaced(config, path, reference.format(path=".".join(path)))
    assert complaint(file, capsys, text) is not None
    malformed["configurations with broken references"] += 1


@given(place=places(leaves=True), number=st.sampled_from(("1e400x", "9" * 5000, "0x", "--1", ".nano")))
@settings(fuzz, max_examples=40)
def test_broken_numbers(file, capsys, malformed, place, number):
    config, path = place
    if isinstance(at(config, path), bool) or not isinstance(at(config, path), int | float):
        return
    text = replaced(config, path, "NUMBER").replace("NUMBER", number)
    error = complaint(file, capsys, text)
    assert error is not None
    malformed["configurations with broken numbers"] += 1


@given(name=st.sampled_from(sorted(TEXTS)), at=st.integers(0, 60))
@settings(fuzz, max_examples=40)
def test_a_name_twice(file, capsys, malformed, name, at):
    lines = TEXTS[name].splitlines()
    single = [i for i, line in enumerate(lines) if ": " in line and not line.lstrip().startswith(("#", "-"))]
    chosen = single[at % len(single)]
    error = complaint(file, capsys, "\n".join([*lines[: chosen + 1], *lines[chosen:]]))
    assert f"spoiled.yaml' cannot be read: line {chosen + 2}: " in error
    assert f"stands twice (first on line {chosen + 1})" in error
    malformed["configurations with a name twice"] += 1


@given(name=st.sampled_from(sorted(TEXTS)), data=st.data())
@settings(fuzz, max_examples=150)
def test_spoiled_bytes(file, capsys, malformed, name, data):
    if complaint(file, capsys, data.draw(spoiled(TEXTS[name].encode()))) is not None:
        malformed["configurations of spoiled bytes"] += 1


BOMBS = {
    "doubling": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
    "nine to the ninth": "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
    "objects": "a0: &a0 {x: y}\n" + "".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}\n" for i in range(1, 40)),
    "merged": "a0: &a0 {x0: y}\n"
    + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], x{i}: y}}\n" for i in range(1, 40)),
    "itself": "a: &a [*a]\n",
    "itself, in an object": "a: &a {b: {c: *a}}\n",
    "itself, merged": "a: &a {<<: *a}\n",
    "deep": "a: " + "[" * 400 + "]" * 400 + "\n",
    "deeper": "a: " + "[" * 50_000 + "\n",
    "deep objects": "".join(" " * i + "a:\n" for i in range(300)),
    "long": "a: " + "x" * 2**21 + "\n",
    "no such anchor": "a: *b\n",
}
TAGS = (
    "!!python/object/apply:os.system ['touch executed']",
    "!!python/object/new:subprocess.Popen [[touch, executed]]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1]",
    "!!binary aGVsbG8=",
    "!!set {a}",
    "!custom x",
    "!<tag:example.org,2000:x> y",
)


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(file, capsys, malformed, bomb):
    for name in sorted(TEXTS)[:6]:
        for text in (BOMBS[bomb] + TEXTS[name], TEXTS[name] + BOMBS[bomb]):
            assert "spoiled.yaml' cannot be read: " in complaint(file, capsys, text)
            malformed["configurations that multiply or nest without end"] += 1


@pytest.mark.parametrize("command", ["validate", "test", "predict", "plan"])
@pytest.mark.parametrize("text", [BOMBS["doubling"], BOMBS["itself"], "run_dir: a\nrun_dir: b\n", f"a: {TAGS[0]}\n"])
def test_other_commands_read_as_strictly(file, capsys, text, command):
    said = complaint(file, capsys, text, command)
    assert said is not None
    assert said == complaint(file, capsys, text)


@given(place=places(leaves=True), tag=st.sampled_from(TAGS))
@settings(fuzz, max_examples=50)
def test_tags(file, capsys, malformed, place, tag):
    config, path = place
    text = replaced(config, path, "TAG").replace("TAG", tag)
    error = complaint(file, capsys, text)
    assert "spoiled.yaml' cannot be read: line " in error
    assert "the tag " in error
    assert not Path("executed").exists()
    malformed["configurations with tags"] += 1


@pytest.mark.parametrize(
    "text", [b"", b"\0", b"- a\n", b"a\n", b"12\n", b"\xff\xfea", b"{", b"a: 'b", b"a: b: c", b"%"]
)
def test_what_is_no_configuration(file, capsys, malformed, text):
    assert "spoiled.yaml'" in complaint(file, capsys, text)
    malformed["configurations of foreign bytes"] += 1

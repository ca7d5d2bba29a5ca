"""What models wrote is shown, and does not steer what shows it."""

import io

import pytest
from rich.console import Console

from klqlit.callbacks.samples import as_table
from klqlit.cli import main, show_trace
from klqlit.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ümläut, 漢字, 🙂\tand\nlines\r\n", "plain, ümläut, 漢字, 🙂\tand\nlines\r\n"),
        ("\x00\x08\x1b[2J\x7f", "␀␈␛[2J␡"),
        ("\x9b2J", "\ufffd2J"),
        ("", ""),
    ],
)
def test_control_characters_become_pictures(text, shown):
    assert printable(text) == shown


def test_a_completion_does_not_steer_the_terminal():
    row = {name: f"\x1b[2J\x1b]0;taken\x07{name}" for name in ("prompt", "reference", "policy")}
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=200)
    console.print(as_table([row | {"reference_score": 0.0, "policy_score": 1.0}], "samples"))
    assert "␛[2J␛]0;taken␇policy" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()
    assert "\x1b]0" not in screen.getvalue()


def test_an_error_does_not_steer_the_terminal(capsys, tmp_path):
    """A configuration's own words stand in what is said of it."""
    config = tmp_path / "config.yaml"
    config.write_text('model: {class_path: "\\e[2JKLQ"}\n')
    assert main(["fit", "--config", str(config)]) == 2
    error = ValueError("\x1b[2Jrow")
    show_trace(ValueError, error, None)
    shown = capsys.readouterr().err
    assert "␛[2Jrow" in shown
    assert "\x1b" not in shown

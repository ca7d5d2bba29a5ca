"""What a person sees of a run: a bar on a terminal, lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from klqlit.callbacks import progress
from klqlit.callbacks.progress import Progress
from runs import make_data, make_module, make_trainer


@pytest.fixture
def shown(monkeypatch, quitter_dir, tmp_path):
    """Runs two phases of four steps and returns what was written, on a terminal or not."""

    def run(*, terminal, validate=False):
        text = io.StringIO()
        monkeypatch.setattr(progress, "Console", lambda: Console(file=text, force_terminal=terminal, width=160))
        # A bar that is drawn at each change shows all of them.
        monkeypatch.setattr(progress, "RichProgress", EachChange)
        options = {"limit_val_batches": 1.0} if validate else {}
        bar = Progress(interval=0.0)
        make_trainer(tmp_path, bar, enable_progress_bar=True, **options).fit(make_module(quitter_dir), make_data())
        return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())) if line]

    return run


class EachChange(progress.RichProgress):
    def update(self, *args, **fields):
        super().update(*args, **fields)
        self.refresh()


def stages(lines):
    found = (re.match(r"(\w+)\W.*?(\d+/8) steps", line) for line in lines)
    return list(dict.fromkeys(match.groups() for match in found if match))


def test_a_bar_goes_through_the_stages_of_each_phase(shown):
    lines = shown(terminal=True)
    updates = [("updating", f"{step}/8") for step in range(8)]
    assert stages(lines) == [("sampling", "0/8"), *updates[:4], ("sampling", "4/8"), *updates[4:], ("done", "8/8")]


def test_the_numbers_beside_it_are_those_of_the_phase_before(shown):
    lines = shown(terminal=True)
    first, second = (
        next(line for line in lines if line.startswith("updating") and step in line) for step in ("3/8", "5/8")
    )
    assert "score" not in first
    assert re.search(r"score \S+  KL \S+  J \S+  loss \S+$", second.rstrip())


def test_a_validation_shows_what_it_found(shown):
    lines = shown(terminal=True, validate=True)
    assert any(re.search(r"^validating.*4/8.* val win rate [\d.]+", line) for line in lines), lines


def test_where_there_is_no_terminal_lines_are_printed(shown):
    lines = shown(terminal=False)
    assert [line.split("  ")[0] for line in lines] == [f"step {step}/8" for step in range(1, 9)]
    assert re.search(r"score \S+  KL \S+", lines[-1])


def test_the_numbers_are_read_as_often_whatever_the_number_of_steps(quitter_dir, tmp_path, monkeypatch):
    """To read them is to wait for a GPU."""
    monkeypatch.setattr(progress, "Console", lambda: Console(file=io.StringIO(), force_terminal=True))
    read = []
    metrics = Progress._metrics
    monkeypatch.setattr(Progress, "_metrics", lambda bar, trainer: read.append(1) or metrics(bar, trainer))

    def reads(epochs):
        read.clear()
        bar = Progress(interval=1e9)
        trainer = make_trainer(tmp_path, bar, enable_progress_bar=True, max_epochs=1)
        trainer.fit(make_module(quitter_dir), make_data(epochs=epochs))
        return len(read)

    assert reads(epochs=1) == reads(epochs=3) > 0

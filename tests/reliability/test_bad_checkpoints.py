"""Garbage given as a checkpoint: refused in one line that names it, before anything is built, or harmless."""

import copy
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st

from klqlit.resuming.checkpoint_checks import RestoreCheck, check_loops, check_weights, restoring
from klqlit.resuming.checkpoint_files import check_contents, examine, load
from reliability.mutations import spoiled
from reliability.refusals import fuzz, refusal
from runs import make_data, make_module, make_trainer


class Exploding:
    """Leaves a proof where a pickle of it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.fixture(scope="module")
def module(quitter_dir):
    return make_module(quitter_dir)


@pytest.fixture(scope="module")
def whole(quitter_dir, tmp_path_factory):
    """A checkpoint in the middle of a phase, with an optimizer that has a state."""
    root = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(root, max_steps=2, max_epochs=-1)
    trainer.fit(make_module(quitter_dir), make_data())
    trainer.save_checkpoint(root / "whole.ckpt")
    return root / "whole.ckpt"


@pytest.fixture
def place(tmp_path):
    return tmp_path / "spoiled.ckpt"


def write(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def examined(path: Path | str, module: Any) -> str | None:
    """What is said of a checkpoint by all that looks at it before the trainer does."""

    def look() -> None:
        examine(str(path))
        check_contents(str(path), training=True)
        check_weights(str(path), module)

    message = refusal(look)
    assert message is None or str(path) in message
    return message


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_the_whole_one_is_taken(whole, module):
    assert examined(whole, module) is None


def test_spoiled_bytes(whole, place, module, malformed):
    """Refused; or, where only unused bytes of the archive changed, the same checkpoint to the last bit."""
    content, original = whole.read_bytes(), load(str(whole))

    @given(spoiled(content))
    @settings(fuzz, max_examples=300)
    def check(bytes_):
        place.write_bytes(bytes_)
        if examined(place, module) is None:
            assert equal(load(str(place)), original)
        else:
            malformed["checkpoints of spoiled bytes"] += 1

    check()


def test_every_part_of_it_damaged(whole, place, module, malformed):
    """One flipped bit in each tensor's bytes, which torch itself would load without a word."""
    with zipfile.ZipFile(whole) as archive:
        parts = [entry for entry in archive.infolist() if entry.file_size]
    content = whole.read_bytes()
    for part in parts:
        # A local header is 30 bytes, the name, and what stands in it as a length.
        extra = int.from_bytes(content[part.header_offset + 28 : part.header_offset + 30], "little")
        at = part.header_offset + 30 + len(part.filename.encode()) + extra + part.file_size // 2
        place.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert "is damaged: the checksum of its part" in examined(place, module)
        malformed["checkpoints of spoiled bytes"] += 1


@given(content=st.one_of(st.binary(max_size=300), st.binary(max_size=50).map(lambda b: b"PK\x03\x04" + b)))
@settings(fuzz, max_examples=40)
def test_foreign_bytes(tmp_path_factory, module, malformed, content):
    place = tmp_path_factory.getbasetemp() / "foreign.ckpt"
    place.write_bytes(content)
    assert examined(place, module) is not None
    malformed["checkpoints of foreign bytes"] += 1


FOREIGN = (
    None,
    1,
    "a",
    [1],
    (1, 2),
    {},
    {1: 2},
    {"state_dict": {}},
    {"model": {}},
    torch.ones(2),
    {"a": torch.ones(2)},
)


@pytest.mark.parametrize("content", FOREIGN, ids=[str(i) for i in range(len(FOREIGN))])
def test_what_other_programs_save(place, module, malformed, content):
    assert examined(write(place, content), module) is not None
    malformed["checkpoints of other programs"] += 1


PARTS = (
    "state_dict",
    "loops",
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "optimizer_states",
    "lr_schedulers",
)
WRONG = (None, "a", 1.5, -1, True, [], {"a": 1}, torch.ones(1))


@pytest.mark.parametrize("part", [*PARTS, "callbacks"])
def test_parts_that_are_missing_or_of_other_types(whole, place, module, malformed, part):
    content = load(str(whole))
    original = content.pop(part)
    assert f"lacks {part!r}" in examined(write(place, content), module)
    for value in WRONG:
        if type(value) is type(original) and value != -1:
            continue
        assert examined(write(place, content | {part: value}), module) is not None
        malformed["checkpoints of wrong parts"] += 1


@given(data=st.data())
@settings(fuzz, max_examples=40)
def test_weights_of_other_names_shapes_and_kinds(whole, tmp_path_factory, module, malformed, data):
    content = load(str(whole))
    weights = dict(content["state_dict"])
    name = data.draw(st.sampled_from(sorted(name for name, value in weights.items() if value.dim())))
    value = weights.pop(name)
    change = data.draw(st.sampled_from(("lost", "renamed", "longer", "shorter", "turned", "integers", "no tensor")))
    changed = {
        "lost": {},
        "renamed": {name + "x": value},
        "longer": {name: torch.cat([value, value])},
        "shorter": {name: value[:-1]},
        "turned": {name: value[None]},
        "integers": {name: value.long()},
        "no tensor": {name: [1.0]},
    }[change]
    place = tmp_path_factory.getbasetemp() / "weights.ckpt"
    assert name in examined(write(place, content | {"state_dict": weights | changed}), module)
    malformed["checkpoints of other models"] += 1


def counters(loops: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    found = []
    for name, value in loops.items():
        found += counters(value) if isinstance(value, dict) else [(loops, name)] if isinstance(value, int) else []
    return found


@given(data=st.data())
@settings(fuzz, max_examples=40)
def test_counters_that_count_nothing(whole, tmp_path_factory, module, malformed, data):
    content = load(str(whole))
    content["loops"] = copy.deepcopy(content["loops"])
    names = ("ready", "started", "processed", "completed")
    places = [place for place in counters(content["loops"]) if place[1] in names]
    inner, name = data.draw(st.sampled_from(places))
    inner[name] = data.draw(st.sampled_from((-1, "three", None, 1.5, 10**30, [1])))
    place = tmp_path_factory.getbasetemp() / "counters.ckpt"
    assert f"where Lightning counts what is {name}" in examined(write(place, content), module)
    malformed["checkpoints of wrong counters"] += 1


def without(content: dict[str, Any], *path: Any) -> dict[str, Any]:
    return with_value(content, path, None, lost=True)


def with_value(content: Any, path: tuple[Any, ...], value: Any, lost: bool = False) -> Any:
    if not path:
        return value
    first, *rest = path
    if isinstance(content, list):
        return [with_value(item, tuple(rest), value, lost) if i == first else item for i, item in enumerate(content)]
    if lost and not rest:
        return {name: item for name, item in content.items() if name != first}
    return content | {first: with_value(content.get(first, {}), tuple(rest), value, lost)}


STATE = ("optimizer_states", 0, "state", 0)
DATA = "OnlineDataModule"
LATER = {
    "no group": lambda c: with_value(c, ("optimizer_states", 0, "param_groups"), []),
    "one group": lambda c: with_value(
        c, ("optimizer_states", 0, "param_groups"), c["optimizer_states"][0]["param_groups"][:1]
    ),
    "no optimizer": lambda c: c | {"optimizer_states": []},
    "an optimizer without state": lambda c: without(c, "optimizer_states", 0, "state"),
    "a state of another shape": lambda c: with_value(c, (*STATE, "exp_avg"), torch.ones(3, 5)),
    "a state of no numbers": lambda c: with_value(c, (*STATE, "exp_avg"), "a"),
    "a fit loop without its parts": lambda c: with_value(c, ("loops", "fit_loop"), {}),
    "no fit loop": lambda c: c | {"loops": {}},
    "no progress": lambda c: without(c, "loops", "fit_loop", "epoch_progress"),
    "progress without a count": lambda c: without(c, "loops", "fit_loop", "epoch_progress", "current", "completed"),
    "a list for progress": lambda c: with_value(c, ("loops", "fit_loop", "epoch_loop.batch_progress"), [1]),
    "schedules that are none": lambda c: c | {"lr_schedulers": [1]},
    "a version that is none": lambda c: c | {"pytorch-lightning_version": "banana"},
    "no phase": lambda c: without(c, "phase"),
    "a phase of numbers": lambda c: c | {"phase": 3},
    "metrics that are none": lambda c: with_value(c, ("phase", "metrics"), "a"),
    "sums that are none": lambda c: with_value(c, ("phase", "training"), {"train/loss": 1}),
    "data of numbers": lambda c: c | {DATA: 3},
    "no phase in the data": lambda c: without(c, DATA, "phase"),
    "a phase that is text": lambda c: with_value(c, (DATA, "phase"), "one"),
    "rows without a mask": lambda c: without(c, DATA, "experience", "sequences.mask"),
    "rows with a name beyond": lambda c: with_value(c, (DATA, "experience", "odd"), torch.ones(2)),
    "rows that are fewer": lambda c: with_value(c, (DATA, "experience", "logprobs"), torch.ones(3, 6)),
    "rows that are text": lambda c: with_value(c, (DATA, "experience", "returns"), "a"),
    "rows of text": lambda c: with_value(c, (DATA, "experience"), "a"),
}


@pytest.mark.parametrize("what", LATER)
def test_what_only_the_trainer_can_know(whole, place, quitter_dir, tmp_path, malformed, what):
    write(place, LATER[what](load(str(whole))))
    check = RestoreCheck()
    trainer = make_trainer(tmp_path, check, max_steps=3, max_epochs=-1)

    def fit() -> None:
        examine(str(place))
        check_contents(str(place), training=True)
        check_loops(str(place), trainer)
        with restoring(str(place), check):
            trainer.fit(make_module(quitter_dir), make_data(), ckpt_path=str(place), weights_only=True)

    message = refusal(fit)
    assert message is not None
    assert str(place) in message
    malformed["checkpoints that cannot be restored"] += 1


# Code ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["new", "legacy", "pickle", "in a weight", "in the loops", "in a callback"])
def test_an_exploding_pickle_does_not(whole, place, module, tmp_path, malformed, form):
    bad, content = Exploding(tmp_path / "proof"), load(str(whole))
    if form == "legacy":
        torch.save(content | {"x": bad}, place, _use_new_zipfile_serialization=False)
    elif form == "pickle":
        place.write_bytes(pickle.dumps(bad))
    else:
        extra = {
            "new": {"x": bad},
            "in a weight": {"state_dict": content["state_dict"] | {"policy.x": bad}},
            "in the loops": {"loops": content["loops"] | {"x": bad}},
            "in a callback": {"callbacks": {"x": bad}},
        }[form]
        write(place, content | extra)
    message = examined(place, module)
    assert message is not None
    assert form in ("legacy", "pickle") or "mkdir: they are not loaded, since they could run code" in message
    assert not (tmp_path / "proof").exists()
    with pytest.raises(FileExistsError if (tmp_path / "proof").mkdir() else OSError):
        pickle.loads(pickle.dumps(bad))  # the proof would have appeared
    malformed["checkpoints that would run code"] += 1


def test_a_packed_archive_is_no_checkpoint(whole, place, module, malformed):
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(place, "w", method) as new:
            for name in old.namelist():
                new.writestr(name, b"\0" * 2**25 if name.endswith("data.pkl") else old.read(name))
        assert place.stat().st_size < 2**21
        assert "is packed" in examined(place, module)
        malformed["bombs"] += 1


@pytest.fixture
def sharded(tmp_path):
    """A directory as torch writes it, with tensors and with values that it pickles."""
    folder = tmp_path / "sharded.ckpt"
    content = {"state_dict": {"w": torch.ones(3), "b": torch.zeros(2)}, "optimizer_0": {"lr": 0.1, "name": "policy"}}
    dcp.save(content, checkpoint_id=folder, no_dist=True)
    torch.save({"loops": {}, "epoch": 0}, folder / "meta.pt")
    return folder


def test_a_whole_directory_is_taken(sharded):
    assert refusal(lambda: examine(str(sharded))) is None


@pytest.mark.parametrize("name", [".metadata", "meta.pt", "__0_0.distcp"])
def test_spoiled_directories(sharded, malformed, name):
    content = (sharded / name).read_bytes()

    @given(spoiled(content))
    @settings(fuzz, max_examples=40)
    def check(bytes_):
        (sharded / name).write_bytes(bytes_)
        message = refusal(lambda: examine(str(sharded)))
        if message is not None:
            assert str(sharded) in message
            malformed["sharded checkpoints of spoiled bytes"] += 1

    check()
    (sharded / name).unlink()
    assert str(sharded) in refusal(lambda: examine(str(sharded)))


@pytest.mark.parametrize("where", [".metadata", "meta.pt", "a shard"])
def test_an_exploding_pickle_in_a_directory_does_not(sharded, tmp_path, malformed, where):
    """torch reads `.metadata`, and plain values in shards, with a pickle that would run it."""
    bad = Exploding(tmp_path / "proof")
    if where == ".metadata":
        (sharded / where).write_bytes(pickle.dumps(bad))
    elif where == "meta.pt":
        torch.save({"x": bad}, sharded / where)
    else:
        metadata = pickle.loads((sharded / ".metadata").read_bytes())
        index = next(index for index in metadata.storage_data if index.fqn == "optimizer_0.lr")
        info = metadata.storage_data[index]
        torch.save(bad, shard := io.BytesIO())
        info.offset, info.length = (sharded / info.relative_path).stat().st_size, len(shard.getvalue())
        with (sharded / info.relative_path).open("ab") as file:
            file.write(shard.getvalue())
        (sharded / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "could run code" in refusal(lambda: examine(str(sharded)))
    assert not (tmp_path / "proof").exists()
    malformed["checkpoints that would run code"] += 1


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "nothing"])
def test_a_directory_does_not_lead_outside(sharded, malformed, name):
    (sharded.parent / "outside").write_bytes(b"x" * 5000)
    metadata = pickle.loads((sharded / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = name
    (sharded / ".metadata").write_bytes(pickle.dumps(metadata))
    assert f"it has no file {name!r}" in refusal(lambda: examine(str(sharded)))
    malformed["sharded checkpoints that lead outside"] += 1

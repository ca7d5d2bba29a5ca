"""Which checkpoints are whole."""

import pytest
import torch

from klqlit.run_folder import (
    check_writable,
    checkpoint_folder,
    complete,
    fault_of,
    newest_checkpoint,
    pending_path,
    remove_pending,
    set_later_aside,
)


@pytest.fixture
def folder(tmp_path):
    folder = checkpoint_folder(tmp_path)
    folder.mkdir()
    return folder


def write_file(path):
    torch.save({"state": torch.arange(1000)}, path)


def write_folder(path):
    """As torch's distributed format and Lightning lay it out."""
    path.mkdir()
    (path / ".metadata").write_bytes(b"metadata")
    (path / "__0_0.distcp").write_bytes(bytes(1000))
    (path / "__1_0.distcp").write_bytes(bytes(1000))
    write_file(path / "meta.pt")


def checkpoint(folder, step, write=write_file):
    path = folder / f"step-{step}.ckpt"
    write(pending_path(path))
    complete(pending_path(path), path)
    return path


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_the_latest_step_is_the_newest(tmp_path, folder, write):
    assert newest_checkpoint(str(tmp_path)) is None
    for step in (9, 10, 2):
        checkpoint(folder, step, write)
    assert newest_checkpoint(str(tmp_path)) == str(folder / "step-10.ckpt")
    assert not list(folder.glob(".*"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def gone(path):
    path.unlink()


@pytest.mark.parametrize(
    ("write", "part", "damage", "fault"),
    [
        (write_file, "", cut, r"step-5.ckpt was cut off after \d+ bytes"),
        (write_file, "", empty, "step-5.ckpt is empty"),
        (write_folder, "__1_0.distcp", cut, "__1_0.distcp has 999 bytes of 1000"),
        (write_folder, "__0_0.distcp", gone, "it lacks __0_0.distcp"),
        (write_folder, "meta.pt", empty, "meta.pt has 0 bytes of"),
        (write_folder, ".metadata", gone, "it lacks .metadata"),
    ],
)
def test_a_torn_checkpoint_is_named_and_the_one_before_is_used(tmp_path, folder, write, part, damage, fault):
    checkpoint(folder, 4, write)
    damage(checkpoint(folder, 5, write) / part)
    with pytest.warns(UserWarning, match=rf"step-5\.ckpt is not whole \({fault}.*\) and is passed over"):
        assert newest_checkpoint(str(tmp_path)) == str(folder / "step-4.ckpt")


@pytest.mark.parametrize(("part", "fault"), [("meta.pt", "it lacks meta.pt"), (".metadata", "it lacks .metadata")])
def test_a_folder_that_another_program_wrote_needs_its_metadata(folder, part, fault):
    write_folder(path := folder / "step-3.ckpt")
    assert fault_of(path) is None
    (path / part).unlink()
    assert fault_of(path) == fault


@pytest.mark.parametrize("before", [write_file, write_folder])
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_checkpoint_of_the_same_step_is_replaced(folder, before, write):
    checkpoint(folder, 3, before)
    path = checkpoint(folder, 3, write)
    assert fault_of(path) is None
    assert path.is_dir() == (write is write_folder)
    assert [p.name for p in folder.iterdir()] == ["step-3.ckpt"]


def test_what_a_killed_run_left_unfinished_is_no_checkpoint(tmp_path, folder):
    write_file(pending_path(folder / "step-7.ckpt"))
    write_folder(pending_path(folder / "step-8.ckpt"))
    (folder / "step-best.ckpt").write_text("another name")
    assert newest_checkpoint(str(tmp_path)) is None
    remove_pending(folder)
    assert [path.name for path in folder.iterdir()] == ["step-best.ckpt"]


def test_later_checkpoints_step_aside(folder):
    for step in (2, 4, 6):
        checkpoint(folder, step)
    set_later_aside(folder, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-2.ckpt", "step-4.ckpt.aside", "step-6.ckpt.aside"]


def test_a_run_folder_that_can_be_written_is_left_as_it_is(tmp_path):
    check_writable(str(tmp_path / "runs" / "new"))
    check_writable(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_no_run_folder(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"run_dir='.*': .*/file is a file, and must be a folder; choose another"):
        check_writable(str(tmp_path / "file" / below))


@pytest.mark.parametrize("name", ["/proc/nope", "/proc/nope/deeper"])
def test_a_run_folder_that_cannot_be_made_is_refused(name):
    with pytest.raises(ValueError, match=r"nothing can be written to run_dir=.*; choose another --run_dir"):
        check_writable(name)

"""Frozen weights in a file: the same numbers, no memory while they are not read, and no file left behind."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from builders import tiny_language_model, tiny_tokenizer
from klqlit.models.weight_file import ALIGNMENT, WeightFile, move_to_file
from runs import memory_of_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="weights are moved to a file on Linux only")

RESIDENT = """
import sys
from pathlib import Path

import torch
from torch import nn

from klqlit.allocator import keep_freed_memory
from klqlit.models.weight_file import move_to_file


def resident():
    return int(Path("/proc/self/smaps_rollup").read_text().split("Rss:")[1].split()[0]) * 1024
"""
"""What both programs begin with."""

PROGRAM = (
    RESIDENT
    + """
layer = nn.Linear(2**12, 2**12, bias=False).requires_grad_(False)
layer.weight.sum()  # what torch sets up at its first sum is no weight's memory
before = resident()
file = move_to_file([layer])
moved = resident()
layer.weight.sum()
read = resident()
file.let_go()
print(before - moved, read - moved, resident() - moved)
"""
)

ROOM = (
    RESIDENT
    + """
keep_freed_memory()
file = move_to_file([nn.Linear(2**11, int(sys.argv[1]) * 2**7, bias=False).requires_grad_(False)])
large = [torch.ones(2**20) for _ in range(64)]
behind = torch.ones(16)  # so that not only the end of the heap is given back
del large
before = resident()
file.make_room()
print(before - resident())
"""
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the file is made."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def frozen(dtype=torch.float32):
    return tiny_language_model("qwen2", tiny_tokenizer()).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_parameters_hold_the_same_numbers(folder, dtype):
    model = frozen(dtype)
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    assert move_to_file([model]) is not None
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (parameter, values) in before.items():
        assert after[name] is parameter
        assert memory_of_file(parameter) is not None
        assert parameter.data_ptr() % ALIGNMENT == 0
        assert parameter.dtype == dtype
        assert torch.equal(parameter, values)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_no_file_is_left_behind(folder):
    file = move_to_file([frozen()])
    assert file is not None
    assert list(folder.iterdir()) == []


def test_memory_is_taken_only_while_the_weights_are_read(folder):
    """The weight has 64 MiB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=120)
    gained, read, left = (int(number) / 2**20 for number in done.stdout.split())
    assert gained > 60
    assert read > 60
    assert left < 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not GNU's")
@pytest.mark.parametrize(("weights", "least", "most"), [(64, 240, 300), (63, 0, 1)])
def test_room_is_made_for_large_weights_only(folder, weights, least, most):
    """MiB: 256 are free in the heap."""
    command = [sys.executable, "-c", ROOM, str(weights)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert least <= int(done.stdout) / 2**20 <= most


def test_what_is_written_to_a_weight_is_kept(folder):
    layer = nn.Linear(64, 64).requires_grad_(False)
    file = move_to_file([layer])
    layer.weight.copy_(torch.eye(64))
    file.let_go()
    assert torch.equal(layer.weight, torch.eye(64))


def test_weights_outlive_the_file_s_owner(folder):
    layer = nn.Linear(64, 64).requires_grad_(False)
    before = layer.weight.clone()
    move_to_file([layer])
    assert torch.equal(layer.weight, before)


def test_one_model_twice_is_moved_once(folder):
    model = frozen()
    once, twice = (len(move_to_file(models)._mapping) for models in ([model], [model, model]))
    assert once == twice


def test_what_is_trained_stays(folder):
    layer = nn.Linear(64, 64)
    layer.bias.requires_grad_(False)
    assert move_to_file([layer]) is not None
    assert memory_of_file(layer.bias) is not None
    assert memory_of_file(layer.weight) is None


@pytest.mark.parametrize(
    "weight",
    [torch.empty(3, 0), torch.empty(8, 4).T, torch.empty(8, 4, device="meta")],
    ids=["empty", "not contiguous", "without numbers"],
)
def test_what_cannot_be_moved_stays(folder, weight):
    layer = nn.Module()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    assert move_to_file([layer]) is None
    assert layer.weight.data_ptr() == weight.data_ptr()


def test_models_without_weights_have_no_file(folder):
    assert move_to_file([nn.Identity()]) is None


@pytest.fixture
def small_files():
    """Within it, a file of this process may have 1,024 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_room_the_weights_stay_in_memory(tmp_path, small_files):
    layer = nn.Linear(64, 64).requires_grad_(False)
    place, values = layer.weight.data_ptr(), layer.weight.clone()
    with pytest.raises(OSError, match="File too large"):
        WeightFile(layer.parameters(), tmp_path)
    assert layer.weight.data_ptr() == place
    assert torch.equal(layer.weight, values)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(monkeypatch, caplog):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    layer = nn.Linear(4, 4).requires_grad_(False)
    with caplog.at_level("INFO"):
        assert move_to_file([layer]) is None
    assert "cannot be written to /nowhere (No such file or directory). Set TMPDIR" in caplog.text
    assert memory_of_file(layer.weight) is None


def test_the_default_is_no_folder_in_memory(monkeypatch):
    """/tmp is main memory on many systems; /var/tmp must outlast a reboot."""
    monkeypatch.delenv("TMPDIR", raising=False)
    places = []
    monkeypatch.setattr("klqlit.models.weight_file.WeightFile", lambda found, folder: places.append(folder))
    move_to_file([nn.Linear(4, 4).requires_grad_(False)])
    assert places == [Path("/var/tmp")]

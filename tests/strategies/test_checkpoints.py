"""Sharded checkpoints build nothing but tensors and plain values, and say what is wrong with them."""

import io
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from klqlit.cli import main
from klqlit.strategies.checkpoints import META, check_complete, consolidate
from klqlit.strategies.records import RecordsUnpickler


@pytest.fixture
def folder(tmp_path):
    """As one rank writes it."""
    weights = {
        "policy.weight": torch.arange(6.0).reshape(2, 3),
        "shaping.count": torch.tensor(3.0, dtype=torch.float64),
    }
    tensors = {"state_dict": weights, "optimizer_0": {"0": {"exp_avg": torch.ones(2, 3), "step": torch.tensor(4.0)}}}
    dcp.save(tensors, checkpoint_id=str(tmp_path / "step-4.ckpt"), no_dist=True)
    rest = {"global_step": 4, "optimizer_states": [{"param_groups": [{"lr": 0.1, "params": [0]}]}]}
    torch.save(rest, tmp_path / "step-4.ckpt" / META)
    return tmp_path / "step-4.ckpt"


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_file_holds_all_that_the_folder_does(folder, tmp_path, capsys):
    assert main(["consolidate", str(folder), str(tmp_path / "one.ckpt")]) == 0
    assert "--ckpt_path" in capsys.readouterr().out
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    assert torch.equal(saved["state_dict"]["policy.weight"], torch.arange(6.0).reshape(2, 3))
    assert saved["state_dict"]["shaping.count"].dtype == torch.float64
    (optimizer,) = saved["optimizer_states"]
    assert optimizer["param_groups"] == [{"lr": 0.1, "params": [0]}]
    assert optimizer["state"].keys() == {0}
    assert float(optimizer["state"][0]["step"]) == 4


def test_a_folder_without_its_last_file_is_no_checkpoint(folder, tmp_path, capsys):
    (folder / META).unlink()
    assert main(["consolidate", str(folder), str(tmp_path / "one.ckpt")]) == 2
    assert "a directory without meta.pt" in capsys.readouterr().err
    assert not (tmp_path / "one.ckpt").exists()


def test_metadata_runs_no_code(folder, tmp_path):
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "touched")))
    with pytest.raises(ValueError, match="could run code"):
        consolidate(str(folder), str(tmp_path / "one.ckpt"))
    assert not (tmp_path / "touched").exists()


class Attribute:
    """Unpickling it asks an object for an attribute, as Python 3.11.0 to 3.11.3 write members of enumerations."""

    def __init__(self, owner, name):
        self.asked = owner, name

    def __reduce__(self):
        return getattr, self.asked


def test_members_of_enumerations_are_read_as_any_python_writes_them():
    for member in _MEM_FORMAT_ENCODING:
        for written in (member, Attribute(_MEM_FORMAT_ENCODING, member.name)):
            assert RecordsUnpickler(io.BytesIO(pickle.dumps(written))).load() is member


@pytest.mark.parametrize(
    "asked", [(_MEM_FORMAT_ENCODING, "__init_subclass__"), (_MEM_FORMAT_ENCODING, ["x"]), (Metadata, "__init__")]
)
def test_no_other_attribute_is_read(asked):
    with pytest.raises(pickle.UnpicklingError, match=r"its \.metadata asks for .* which no checkpoint of ours does"):
        RecordsUnpickler(io.BytesIO(pickle.dumps(Attribute(*asked)))).load()


def test_the_rest_is_read_without_code(folder, tmp_path):
    torch.save({"global_step": Evil(tmp_path / "touched")}, folder / META)
    with pytest.raises(ValueError, match="could run code"):
        consolidate(str(folder), str(tmp_path / "one.ckpt"))
    assert not (tmp_path / "touched").exists()


def test_missing_weights_are_named():
    check_complete(["a", "b"], ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"lacks 4 weights of this model \(b, c, d, \.\.\.\)"):
        check_complete("abcde", "a")

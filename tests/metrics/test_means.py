"""Means over everything given since the last reset."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from klqlit.metrics.means import Means

examples = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def test_a_mean_weighs_numbers_and_not_updates():
    means = Means()
    means.update({"a": torch.tensor([1.0, 2.0, 3.0])})
    means.update({"a": torch.tensor([10.0])})
    means.update({"b": torch.tensor(7.0)})
    assert means.compute() == {"a": 4.0, "b": 7.0}


def test_masked_numbers_are_never_read():
    means = Means()
    means.update({"a": torch.tensor([[1.0, float("nan")], [3.0, 5.0]])}, torch.tensor([[True, False], [True, True]]))
    assert means.compute() == {"a": 3.0}


@examples
@given(st.lists(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=4), min_size=1, max_size=5))
def test_the_split_into_updates_does_not_matter(parts):
    split, whole = Means(), Means()
    for part in parts:
        split.update({"a": torch.tensor(part)})
    whole.update({"a": torch.tensor([x for part in parts for x in part])})
    assert split.compute()["a"] == pytest.approx(whole.compute()["a"], abs=1e-6)


def test_nan_is_not_hidden():
    means = Means()
    means.update({"a": torch.tensor([1.0, float("nan")])})
    assert means.compute()["a"] != means.compute()["a"]


def test_reset_forgets_names_too():
    means = Means()
    means.update({"a": torch.tensor([1.0])})
    means.reset()
    assert means.compute() == {}
    means.update({"b": torch.tensor([2.0])})
    assert means.compute() == {"b": 2.0}


def test_restored_means_go_on_where_they_were():
    means, copy = Means(), Means()
    means.update({"a": torch.tensor([1.0, 2.0])})
    means.update({"b": torch.tensor([5.0])})
    copy.restore(means.sums())
    for each in (means, copy):
        each.update({"a": torch.tensor([6.0])})
    assert copy.compute() == means.compute() == {"a": 3.0, "b": 5.0}


def test_means_of_several_ranks_go_on_together_on_one():
    means = Means()
    means.restore({"a": torch.tensor([[3.0, 2.0], [6.0, 1.0]])})
    assert means.compute() == {"a": 3.0}
    assert means.sums()["a"].tolist() == [[9.0, 3.0]]


def test_restoring_replaces_what_was_there():
    means = Means()
    means.update({"old": torch.tensor([1.0])})
    means.restore({})
    assert means.compute() == {}


def test_gradients_are_not_kept():
    means = Means()
    means.update({"a": torch.ones(2, requires_grad=True) * 2})
    assert not means.sums()["a"].requires_grad


def test_many_small_numbers_are_not_lost():
    """2^24 + 1 is no float32: a sum of float32 stands still there."""
    means = Means()
    means.update({"a": torch.tensor([2.0**24])})
    for _ in range(64):
        means.update({"a": torch.tensor([1.0])})
    assert means.compute()["a"] == pytest.approx((2**24 + 64) / 65, rel=1e-9)


def test_several_quantities_of_the_same_tokens_are_added_as_each_alone():
    together, alone = Means(), Means()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        values = {name: torch.randn(4, 5 + seed, generator=generator) for name in ("a", "b", "c")}
        mask = torch.rand(4, 5 + seed, generator=generator) < 0.6
        values["b"][~mask] = float("nan")
        together.update(values, mask)
        for name, x in values.items():
            alone.update({name: x[mask]})
    assert together.compute() == pytest.approx(alone.compute(), rel=1e-12)


def test_quantities_of_different_kinds_are_added_together():
    means = Means()
    means.update(
        {"length": torch.tensor([3, 5]), "ended": torch.tensor([True, False]), "score": torch.tensor([0.5, 1])}
    )
    assert means.compute() == {"length": 4.0, "ended": 0.5, "score": 0.75}


def test_a_name_may_be_given_in_different_company():
    means, copy = Means(), Means()
    means.update({"a": torch.tensor([1.0]), "b": torch.tensor([2.0])})
    means.update({"b": torch.tensor([4.0, 6.0]), "c": torch.tensor([8.0, 9.0])})
    copy.restore(means.sums())
    for each in (means, copy):
        assert each.compute() == {"a": 1.0, "b": 4.0, "c": 8.5}

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


def test_a_run_that_goes_on_adds_up_as_one_that_never_stopped():
    """To the last bit, wherever it was cut: what is compared has more digits than a sum can hold."""
    generator = torch.Generator().manual_seed(0)
    given = [{name: torch.randn(64, generator=generator).double().exp() for name in "ab"} for _ in range(8)]
    mask = torch.rand(64, generator=generator) < 0.7

    def update(means, step):
        means.update(given[step], mask)
        means.update({"norm": given[step]["a"][0]})

    whole = Means()
    for step in range(8):
        update(whole, step)
    for cut in range(1, 8):
        first, rest = Means(), Means()
        for step in range(cut):
            update(first, step)
        rest.restore(first.sums())
        for step in range(cut, 8):
            assert rest.compute().keys() == {"a", "b", "norm"}
            update(rest, step)
        assert rest.compute() == whole.compute()
        assert all(torch.equal(rest.sums()[name], sums) for name, sums in whole.sums().items())


def test_what_was_given_may_change_afterwards():
    means = Means()
    numbers, mask = torch.tensor([1.0, 3.0, 8.0]), torch.tensor([True, True, False])
    means.update({"a": numbers}, mask)
    means.update({"b": numbers})
    numbers.zero_()
    mask.zero_()
    assert means.compute() == {"a": 2.0, "b": 4.0}


def test_a_shape_that_does_not_fit_is_refused_at_once():
    means = Means()
    means.update({"a": torch.tensor([1.0, 3.0])})
    refused = (RuntimeError, TypeError)  # torch's, or that of the shapes in the signature
    with pytest.raises(refused):
        means.update({"a": torch.ones(4, 99)}, torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(refused):
        means.update({"a": torch.ones(4), "b": torch.ones(5)})
    assert means.compute() == {"a": 2.0}


def test_quantities_of_different_kinds_are_added_together():
    means = Means()
    means.update(
        {"length": torch.tensor([3, 5]), "ended": torch.tensor([True, False]), "score": torch.tensor([0.5, 1])}
    )
    assert means.compute() == {"length": 4.0, "ended": 0.5, "score": 0.75}


def test_names_may_hold_spaces():
    means = Means()
    means.update({"a b": torch.tensor([1.0])})
    means.update({"a": torch.tensor([2.0]), "b": torch.tensor([3.0])})
    assert means.compute() == {"a b": 1.0, "a": 2.0, "b": 3.0}


def test_a_name_may_be_given_in_different_company():
    means, copy = Means(), Means()
    means.update({"a": torch.tensor([1.0]), "b": torch.tensor([2.0])})
    means.update({"b": torch.tensor([4.0, 6.0]), "c": torch.tensor([8.0, 9.0])})
    copy.restore(means.sums())
    for each in (means, copy):
        assert each.compute() == {"a": 1.0, "b": 4.0, "c": 8.5}

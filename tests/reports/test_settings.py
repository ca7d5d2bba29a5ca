"""Configurations: what separates runs."""

import pytest

from klqlit.reports.settings import differing, flatten, refining, separating, short


def test_settings_are_flat():
    nested = {"a": {"b": 1, "c": {}}, "d": [{"e": 2}, {"e": 3}], "f": [4, 5]}
    assert flatten(nested) == {"a.b": 1, "a.c": {}, "d.0.e": 2, "d.1.e": 3, "f": [4, 5]}


def test_differing_settings_by_name():
    assert differing([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "c": 4}]) == ["b", "c"]
    assert differing([{"a": 1}]) == []


def test_what_depends_on_tau_alone_does_not_separate():
    """The learning rate is chosen for each tau; alpha differs at one and the same."""
    runs = [
        (tau, 1, {"model.init_args.tau": tau, "lr": tau / 100, "alpha": alpha})
        for tau in (0.1, 0.2)
        for alpha in (1, 0.5)
    ]
    assert separating(runs) == ["alpha"]


def test_seeds_output_and_hardware_do_not_separate():
    names = (
        "seed_everything",
        "run_dir",
        "data.init_args.seed",
        "trainer.devices",
        "model.init_args.scoring_batch_size",
    )
    assert separating((0.1, i, dict.fromkeys(names, i)) for i in range(3)) == []


def test_models_separate_only_at_the_same_seed():
    own = [(0.1, seed, {"policy.path": f"sft-{seed}"}) for seed in (1, 2)]
    assert separating(own) == []
    assert separating([*own, (0.1, 1, {"policy.path": "sft-other"})]) == ["policy.path"]


def test_names_that_tell_nothing_more_are_left_out():
    settings = [{"a": 1, "b": "x", "c": 1}, {"a": 2, "b": "y", "c": 1}, {"a": 2, "b": "y", "c": 2}]
    assert refining(["a", "b", "c"], settings) == ["a", "c"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("model.init_args.optimization.lr", "optimization.lr"),
        ("model.class_path", "model"),
        ("data.init_args.source.class_path", "source"),
        ("trainer.max_epochs", "max_epochs"),
    ],
)
def test_short_names(name, shown):
    assert short(name) == shown

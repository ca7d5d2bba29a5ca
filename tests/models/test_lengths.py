"""Rows are put together where padding would cost more than a pass of its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import ARCHITECTURES
from klqlit.models import lengths
from klqlit.models.critic import SeparateCritic
from klqlit.models.lengths import FEWEST, similar_lengths
from klqlit.models.policy import LanguagePolicy
from runs import make_sequences

examples = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def computed(groups, sizes):
    return sum(len(group) * max(sizes[row] for row in group) for group in groups)


def test_short_and_long_rows_are_parted():
    assert similar_lengths([200, 100, 200, 100]) == [[1, 3], [0, 2]]


def test_rows_of_one_length_stay_together():
    assert similar_lengths([300] * 8) == [[*range(8)]]


def test_three_lengths_make_three_groups():
    assert similar_lengths([1000, 200, 2000, 1000, 200, 2000]) == [[1, 4], [0, 3], [2, 5]]


def test_a_little_padding_is_cheaper_than_a_pass():
    """Cutting the two short rows off would spare 20 of 400 tokens."""
    assert similar_lengths([90, 100, 90, 100]) == [[0, 2, 1, 3]]


def test_few_tokens_are_cheaper_than_a_pass():
    assert similar_lengths([5, 50, 5, 50]) == [[0, 2, 1, 3]]


@examples
@given(st.lists(st.integers(1, 600), min_size=1, max_size=20))
def test_groups_hold_every_row_once_and_no_cut_is_left_that_pays(sizes):
    groups = similar_lengths(sizes)
    assert sorted(row for group in groups for row in group) == [*range(len(sizes))]
    assert computed(groups, sizes) <= len(sizes) * max(sizes)
    if len(groups) > 1:
        assert all(len(group) * max(sizes[row] for row in group) >= FEWEST for group in groups)
    for group in groups:
        # A second look at a group finds nothing to cut.
        assert len(similar_lengths([sizes[row] for row in group])) == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_groups_change_neither_logprobs_nor_values_nor_gradients(architecture, model_dir, monkeypatch):
    policy = LanguagePolicy(model_dir(architecture), attn_implementation="eager")
    critic = SeparateCritic(policy)
    torch.nn.init.ones_(critic.head.weight)
    prompts = [[*range(3, 3 + size)] for size in (2, 30, 4, 25, 3)]
    responses = [[*range(40, 40 + size)] for size in (7, 1, 20, 12, 2)]
    sequences = make_sequences(prompts, responses, left=1, right=1)

    def evaluated():
        policy.zero_grad()
        critic.zero_grad()
        logprobs, values = policy(sequences, temperature=1.0).logprobs, critic(sequences, None)
        (logprobs * values).sum().backward()
        gradients = [p.grad.clone() for p in (*policy.parameters(), *critic.parameters()) if p.grad is not None]
        return logprobs.detach(), values.detach(), gradients

    together = evaluated()
    monkeypatch.setattr(lengths, "FEWEST", 1)
    assert len(similar_lengths(sequences.attention_mask.sum(dim=1).tolist())) > 1
    apart = evaluated()
    torch.testing.assert_close(apart[:2], together[:2])
    for one, other in zip(apart[2], together[2], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)

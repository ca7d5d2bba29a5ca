"""Groups of rows share one look-up of the embedding, and nothing else changes."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from builders import ARCHITECTURES
from klqlit.models.embedded_once import embedded_once
from klqlit.models.policy import LanguagePolicy

PARTS = [torch.tensor([[3, 4, 5], [4, 4, 6]]), torch.tensor([[4, 7]]), torch.tensor([[3, 4, 5], [4, 4, 6]])]


@pytest.fixture(params=ARCHITECTURES)
def trunk(request, model_dir):
    return LanguagePolicy(model_dir(request.param)).model.base_model


def read(trunk, tokens):
    return trunk(input_ids=tokens, use_cache=False).last_hidden_state


def trained(trunk, total):
    """Gradients, and from how many look-ups in embeddings they came."""
    trunk.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        total().backward()
    counts = {row.key: row.count for row in profiler.key_averages()}
    gradients = {name: p.grad.clone() for name, p in trunk.named_parameters() if p.grad is not None}
    return gradients, counts["aten::embedding_dense_backward"]


def test_gradients_are_those_of_each_part_alone_from_a_single_look_up(trunk):
    def alone():
        return sum(read(trunk, tokens).square().sum() for tokens in PARTS)

    def together():
        with embedded_once(trunk, PARTS):
            return alone()

    assert_close(together(), alone())
    (expected, many), (found, few) = trained(trunk, alone), trained(trunk, together)
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Models that look positions up go on doing so for each part.
    assert many - few == len(PARTS) - 1


def test_other_tokens_are_looked_up_as_ever(trunk):
    other = torch.tensor([[9, 8]])
    expected = read(trunk, other)
    parts = PARTS[:2]
    of_parts = [read(trunk, tokens) for tokens in parts]
    with embedded_once(trunk, parts):
        assert torch.equal(read(trunk, other), expected)
        for tokens, states in zip(parts, of_parts, strict=True):
            assert torch.equal(read(trunk, tokens), states)
        # All parts were given out: from here on the embedding is asked again.
        assert torch.equal(read(trunk, parts[0]), of_parts[0])


def test_afterwards_the_trunk_is_as_it_was(trunk):
    with pytest.raises(RuntimeError, match="halfway"), embedded_once(trunk, PARTS):
        raise RuntimeError("halfway")
    embedding = trunk.get_input_embeddings()
    assert not embedding._forward_hooks
    assert not embedding._forward_pre_hooks


def test_a_trunk_of_another_kind_is_left_alone():
    trunk = nn.Embedding(10, 4)
    with embedded_once(trunk, PARTS):
        assert torch.equal(trunk(PARTS[0]), trunk.weight[PARTS[0]])

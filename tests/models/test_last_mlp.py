"""The last MLP is computed where it is read, and nothing else changes."""

import pytest
import torch
from torch import nn
from transformers import Qwen2MoeConfig, Qwen2MoeModel

from builders import ARCHITECTURES
from klqlit.models.last_mlp import last_mlp_before_tokens
from klqlit.models.policy import LanguagePolicy
from klqlit.models.states import token_states
from runs import make_sequences

PROMPTS = [[3, 4, 5], [6], [8, 9, 10, 11, 12], [13, 14]]
RESPONSES = [[20, 21], [22, 23, 24, 25], [26], [27, 28, 29]]


@pytest.fixture(params=ARCHITECTURES)
def trunk(request, model_dir):
    return LanguagePolicy(model_dir(request.param)).model.base_model


@pytest.fixture
def sequences():
    return make_sequences(PROMPTS, RESPONSES, left=1, right=1)


def blocks(trunk):
    return next(child for child in trunk.children() if isinstance(child, nn.ModuleList))


def states_read(trunk, sequences):
    """Number of states that the MLP of each block reads."""
    token_states(trunk, sequences)  # looks at the trunk once
    seen = []
    hooks = [
        block.get_submodule("mlp").register_forward_hook(
            lambda m, inputs, output: seen.append(inputs[0][..., 0].numel())
        )
        for block in blocks(trunk)
    ]
    states = token_states(trunk, sequences)
    for hook in hooks:
        hook.remove()
    return seen, states


def plain(trunk, sequences):
    aligned = sequences.aligned()
    return trunk(input_ids=aligned.tokens, use_cache=False).last_hidden_state[aligned.rows, aligned.columns]


def test_the_last_mlp_reads_the_states_before_response_tokens_only(trunk, sequences):
    """17 tokens in 4 rows, 10 of them of responses."""
    assert states_read(trunk, sequences)[0] == [17, 10]


def test_so_it_is_in_padded_rows(trunk, sequences):
    """4 rows of 5 columns."""
    trunk.config._attn_implementation = "eager"
    assert states_read(trunk, sequences)[0] == [20, 10]


def test_states_and_gradients_are_those_of_the_plain_trunk(trunk, sequences):
    def gradients(states):
        found = torch.autograd.grad(states.square().sum(), list(trunk.parameters()), allow_unused=True)
        return [gradient for gradient in found if gradient is not None]

    fast, slow = token_states(trunk, sequences), plain(trunk, sequences)
    torch.testing.assert_close(fast, slow)
    for one, other in zip(gradients(fast), gradients(slow), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_afterwards_the_trunk_is_as_it_was(trunk, sequences):
    before = plain(trunk, sequences)
    token_states(trunk, sequences)
    assert torch.equal(plain(trunk, sequences), before)
    with pytest.raises(RuntimeError, match="halfway"), last_mlp_before_tokens(trunk, sequences.aligned()):
        raise RuntimeError("halfway")
    assert torch.equal(plain(trunk, sequences), before)


def test_blocks_that_are_computed_again_are_left_alone(trunk, sequences):
    trunk.gradient_checkpointing_enable()
    trunk.train()
    seen, states = states_read(trunk, sequences)
    assert seen == [20, 20]
    states.sum().backward()


def test_experts_are_left_alone(sequences):
    size = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "shared_expert_intermediate_size": 8}
    torch.manual_seed(0)
    trunk = Qwen2MoeModel(Qwen2MoeConfig(**size, **experts, **heads))
    seen, states = states_read(trunk, sequences)
    assert seen == [17, 17]
    torch.testing.assert_close(states, plain(trunk, sequences))

"""Rows of different lengths are read without padding, and as ever otherwise."""

from functools import partial
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from transformers import (
    BloomConfig,
    BloomModel,
    DogeConfig,
    DogeModel,
    Lfm2Config,
    Lfm2Model,
    MistralConfig,
    MistralModel,
)

from builders import ARCHITECTURES
from klqlit.models.blocks import transformer_blocks
from klqlit.models.critic import SeparateCritic
from klqlit.models.evaluation import evaluate
from klqlit.models.packed import can_be_packed, packed, rows_apart
from klqlit.models.policy import LanguagePolicy
from klqlit.models.states import token_states
from runs import make_sequences

PROMPTS = [[3, 4, 5], [6], [8, 9, 10, 11, 12], [13, 14]]
RESPONSES = [[20, 21], [22, 23, 24, 25, 26, 27], [28], [29, 30, 31]]
LENGTHS = [4, 6, 5, 4]  # without the last token of each, which predicts nothing

SMALL = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}

examples = settings(max_examples=50, deadline=None, derandomize=True, database=None)


@pytest.fixture(params=ARCHITECTURES)
def policy(request, model_dir):
    return LanguagePolicy(model_dir(request.param))


@pytest.fixture
def llama(model_dir):
    return LanguagePolicy(model_dir("llama")).model.base_model


@pytest.fixture
def sequences():
    return make_sequences(PROMPTS, RESPONSES, left=1, right=1)


def tokens_read(trunk, sequences):
    """Number of tokens that the trunk reads in each pass."""
    seen = []
    hook = trunk.get_input_embeddings().register_forward_hook(lambda m, inputs, output: seen.append(inputs[0].numel()))
    token_states(trunk, sequences)
    hook.remove()
    return seen


def one_by_one(policy, critic, sequences):
    """Log-probabilities and values of each row alone, in the order of the mask."""
    parts = [sequences.select(torch.tensor([row])) for row in range(len(sequences))]
    logprobs = [policy(part, temperature=0.7).logprobs[part.mask] for part in parts]
    values = [critic(part, None)[part.mask] for part in parts]
    return torch.cat(logprobs), torch.cat(values)


# What it gives --------------------------------------------------------------------------------------------------------


@examples
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8), st.data())
def test_packed_rows_hold_every_token_once_with_its_position(sizes, data):
    token = st.integers(0, 500)
    prompts, responses = (
        [data.draw(st.lists(token, min_size=pair[i], max_size=pair[i])) for pair in sizes] for i in (0, 1)
    )
    sequences = make_sequences(prompts, responses, left=2, right=3)
    aligned, where = packed(sequences)
    rows = [(prompt + response)[:-1] for prompt, response in zip(prompts, responses, strict=True)]
    assert aligned.tokens.tolist() == [[*chain(*rows)]]
    assert where["position_ids"].tolist() == [[i for row in rows for i in range(len(row))]]
    assert where["row_lengths"] == [len(row) for row in rows]
    assert set(aligned.rows.tolist()) == {0}
    before = [(prompt + response)[len(prompt) - 1 : -1] for prompt, response in zip(prompts, responses, strict=True)]
    assert aligned.tokens[aligned.rows, aligned.columns].tolist() == [*chain(*before)]


def test_a_trunk_reads_no_padding(policy, sequences):
    trunk = policy.model.base_model
    token_states(trunk, sequences)  # looks at the trunk once
    assert tokens_read(trunk, sequences) == [sum(LENGTHS)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_logprobs_values_and_gradients_are_those_of_each_row_alone(policy, sequences, precision):
    critic = SeparateCritic(policy)
    nn.init.ones_(critic.head.weight)

    def evaluated(compute):
        policy.zero_grad()
        critic.zero_grad()
        # The trunks are looked at for the first time under autocast, too.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            logprobs, values = compute()
        (logprobs * values).sum().backward()
        gradients = [p.grad.clone() for p in (*policy.parameters(), *critic.parameters()) if p.grad is not None]
        return logprobs.detach(), values.detach(), gradients

    def together():
        logprobs, values = evaluate(policy, critic, sequences, temperature=0.7)
        return logprobs[sequences.mask], values[sequences.mask]

    fast, slow = evaluated(together), evaluated(lambda: one_by_one(policy, critic, sequences))
    close = {} if precision == "32-true" else {"atol": 0.1, "rtol": 0.05}
    torch.testing.assert_close(fast[:2], slow[:2], **close)
    assert len(fast[2]) == len(slow[2])
    close = {"atol": 1e-4, "rtol": 1e-4} if precision == "32-true" else {"atol": 0.5, "rtol": 0.1}
    for one, other in zip(fast[2], slow[2], strict=True):
        torch.testing.assert_close(one, other, **close)


def test_no_row_sees_another(policy, sequences):
    critic = SeparateCritic(policy)
    before = evaluate(policy, critic, sequences, temperature=1.0)[0]
    sequences.tokens[1, :5] = 40
    after = evaluate(policy, critic, sequences, temperature=1.0)[0]
    same = [0, 2, 3]
    torch.testing.assert_close(after[same], before[same])
    assert not torch.allclose(after[1], before[1])


def test_attention_is_the_usual_one_afterwards(llama, sequences):
    with pytest.raises(RuntimeError, match="halfway"), rows_apart(llama):
        raise RuntimeError("halfway")
    token_states(llama, sequences)
    assert llama.config._attn_implementation == "sdpa"


# When it is done ------------------------------------------------------------------------------------------------------


def test_rows_of_about_one_length_are_padded(llama):
    """A tenth of 4 rows of 10 columns is padding."""
    alike = make_sequences([[3] * 5] * 4, [[9] * 6, [9] * 5, [9] * 5, [9] * 4])
    assert tokens_read(llama, alike) == [40]


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_other_attention_is_left_alone(llama, attention):
    llama.config._attn_implementation = attention
    assert not can_be_packed(llama)


def test_blocks_that_are_computed_again_are_left_alone(llama):
    llama.gradient_checkpointing_enable()
    assert not can_be_packed(llama)


@pytest.mark.parametrize("way", CheckpointImpl)
def test_blocks_that_torch_computes_again_are_left_alone(way, policy, sequences):
    """Their gradients would be those of other attention, or none."""
    plain, values = policy(sequences, temperature=1.0), []
    wrapper = partial(checkpoint_wrapper, checkpoint_impl=way)
    for again in (False, True):
        if again:
            blocks = transformer_blocks(policy.model)
            apply_activation_checkpointing(policy.model, check_fn=blocks.__contains__, checkpoint_wrapper_fn=wrapper)
        output = policy(sequences, temperature=1.0)
        torch.testing.assert_close(output.logprobs, plain.logprobs)
        policy.zero_grad()
        output.logprobs[sequences.mask].sum().backward()
        values.append([p.grad.clone() for p in policy.parameters()])
    torch.testing.assert_close(values[1], values[0], atol=1e-5, rtol=1e-4)


def test_attention_with_a_mask_of_its_own_is_left_alone(sequences):
    torch.manual_seed(0)
    trunk = DogeModel(DogeConfig(**SMALL))
    assert not can_be_packed(trunk)
    token_states(trunk, sequences)


def test_compiled_blocks_are_left_alone(llama):
    assert can_be_packed(llama)
    transformer_blocks(llama)[-1].get_submodule("self_attn").compile()
    assert not can_be_packed(llama)


@pytest.mark.parametrize("window", [None, 4096])
def test_windows_are_left_alone(window):
    trunk = MistralModel(MistralConfig(**SMALL, sliding_window=window))
    assert can_be_packed(trunk) == (window is None)


def test_states_that_go_from_token_to_token_are_left_alone(sequences):
    torch.manual_seed(0)
    trunk = Lfm2Model(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]))
    assert not can_be_packed(trunk)
    assert tokens_read(trunk, sequences) == [24]


def test_models_with_attention_of_their_own_are_left_alone(sequences):
    """BLOOM also takes no positions: ALiBi."""
    trunk = BloomModel(BloomConfig(vocab_size=320, hidden_size=16, n_layer=2, n_head=2))
    assert not can_be_packed(trunk)
    assert tokens_read(trunk, sequences) == [24]


@pytest.mark.parametrize("share", [1, 1e-4])
def test_a_trunk_that_lets_rows_see_each_other_is_found_out(llama, share):
    def look_back(block, inputs, output):
        return output + share * output.cumsum(dim=1)

    transformer_blocks(llama)[0].register_forward_hook(look_back)
    assert not can_be_packed(llama)


def test_a_trunk_is_looked_at_once(llama, sequences):
    assert tokens_read(llama, sequences) == [3, 5, 5, sum(LENGTHS)]
    assert tokens_read(llama, sequences) == [sum(LENGTHS)]

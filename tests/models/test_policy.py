"""A policy's log-probabilities are those of its model on each row alone, whatever stands around the row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from builders import ARCHITECTURES, save, tiny_language_model, tiny_tokenizer
from klqlit.functional import linear_logprobs
from klqlit.models.policy import LanguagePolicy
from klqlit.models.positions import positions
from klqlit.models.states import few_logits, has_plain_head
from runs import make_sequences

ids = st.integers(0, 319)
rows = st.lists(
    st.tuples(st.lists(ids, min_size=1, max_size=7), st.lists(ids, min_size=1, max_size=6)), min_size=1, max_size=4
)
examples = settings(max_examples=12, deadline=None, derandomize=True, database=None)
PROMPTS = [[3, 4, 5], [6], [8, 9, 10, 11, 12], [13, 14]]
RESPONSES = [[20, 21], [22, 23, 24, 25], [26], [27, 28, 29]]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def policy(request, model_dir):
    return LanguagePolicy(model_dir(request.param))


@pytest.fixture(scope="module")
def llama(model_dir):
    return LanguagePolicy(model_dir("llama"))


@torch.no_grad()
def alone(policy, prompt, response, temperature=1.0):
    """What transformers gives for one row without any padding."""
    logits = policy.model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    table = (logits / temperature).log_softmax(dim=-1)
    return table[torch.arange(len(response)), torch.tensor(response)]


@examples
@given(rows=rows, left=st.integers(0, 4), right=st.integers(0, 4), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_logprobs_are_those_of_each_row_alone(policy, rows, left, right, temperature):
    prompts, responses = [list(part) for part in zip(*rows, strict=True)]
    sequences = make_sequences(prompts, responses, left=left, right=right)
    with torch.no_grad():
        logprobs = policy(sequences, temperature=temperature).logprobs
    for row, (prompt, response) in enumerate(rows):
        torch.testing.assert_close(logprobs[row, : len(response)], alone(policy, prompt, response, temperature))


def test_tokens_in_padding_are_never_read(policy):
    sequences = make_sequences(PROMPTS, RESPONSES, left=2, right=2)
    mask = sequences.attention_mask
    first = policy(sequences, temperature=1.0).logprobs
    for poison in (0, 1, 319):
        sequences.prompt_tokens[~sequences.prompt_mask] = poison
        sequences.tokens[~sequences.mask] = poison
        again = policy(sequences, temperature=1.0).logprobs
        assert torch.equal(first[sequences.mask], again[sequences.mask])
    assert bool((~mask).any())


def test_padding_sends_no_gradient(policy):
    sequences = make_sequences(PROMPTS, RESPONSES, left=2, right=2)
    policy.zero_grad()
    torch.where(sequences.mask, policy(sequences, temperature=1.0).logprobs, 0.0).sum().backward()
    first = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()
    sequences.prompt_tokens[~sequences.prompt_mask] = 200
    sequences.tokens[~sequences.mask] = 201
    torch.where(sequences.mask, policy(sequences, temperature=1.0).logprobs, 0.0).sum().backward()
    for name, p in policy.named_parameters():
        torch.testing.assert_close(p.grad, first[name], atol=1e-5, rtol=1e-5)
    policy.zero_grad()


def test_lm_head_is_computed_at_response_tokens_only(policy, monkeypatch):
    shapes = []

    def spy(features, *args, **kwargs):
        shapes.append(tuple(features.shape))
        return linear_logprobs(features, *args, **kwargs)

    def spy_on_few(head, states):
        shapes.append(tuple(states.shape))
        return few_logits(head, states)

    monkeypatch.setattr("klqlit.models.policy.linear_logprobs", spy)
    monkeypatch.setattr("klqlit.models.policy.few_logits", spy_on_few)
    head = policy.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda *_: shapes.append("the whole head"))
    sequences = make_sequences(PROMPTS, RESPONSES, left=3, right=1)
    policy(sequences, temperature=1.0, features=True)
    prompt_tokens, mask = sequences.prompt_tokens, sequences.prompt_mask
    _, cache = policy.decode(prompt_tokens, mask, None)
    policy.decode(prompt_tokens[:, :1], torch.cat([mask, mask[:, -1:]], dim=1), cache)
    handle.remove()
    assert shapes == [(10, 16), (4, 16), (4, 16)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_logits_are_those_of_the_head(bias, dtype):
    torch.manual_seed(0)
    head, states = torch.nn.Linear(16, 50, bias=bias, dtype=dtype), torch.randn(3, 16, dtype=dtype)
    logits = few_logits(head, states)
    torch.testing.assert_close(logits, head(states))
    assert logits.is_contiguous()


@pytest.fixture(scope="module")
def capped(tmp_path_factory):
    """Gemma 2: its logits are capped after the LM head, and every second layer sees a window of 4 tokens."""
    tokenizer = tiny_tokenizer()
    size = {"vocab_size": 328, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4, "initializer_range": 0.3}
    tokens = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 0}
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**size, **heads, **tokens, final_logit_softcapping=2.0))
    return LanguagePolicy(save(tmp_path_factory.mktemp("capped"), model, tokenizer))


def test_heads_that_do_more_than_a_product_are_told_apart_and_give_the_models_own_numbers(policy, capped):
    assert has_plain_head(policy.model)
    assert not has_plain_head(capped.model)
    sequences = make_sequences(PROMPTS, RESPONSES, left=1, right=1)
    output = capped(sequences, temperature=0.7, features=True)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected = alone(capped, prompt, response, temperature=0.7)
        torch.testing.assert_close(output.logprobs[row, : len(response)], expected)
    logits = 2 * torch.tanh(capped.model.get_output_embeddings()(output.features) / 2)
    again = (logits / 0.7).log_softmax(dim=-1).gather(-1, sequences.tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(again[sequences.mask], output.logprobs[sequences.mask])


def test_a_head_that_does_more_reads_response_tokens_alone(capped):
    """Not all positions behind the shortest prompt, each of whose logits are as many as the vocabulary."""
    shapes = []
    head = capped.model.get_output_embeddings()
    with head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape))):
        capped(make_sequences(PROMPTS, RESPONSES, left=1, right=1), temperature=1.0)
    assert shapes == [(1, sum(map(len, RESPONSES)), 328)]


def test_the_head_is_tried_in_the_weights_own_type(model_dir):
    assert has_plain_head(LanguagePolicy(model_dir("llama"), dtype="bfloat16").model)


class Adapter(nn.Module):
    """Adds to a head what was learned, and shows the head's own weights, as adapters do."""

    def __init__(self, head):
        super().__init__()
        self.head, self.learned = head, nn.Linear(head.in_features, head.out_features)
        self.weight, self.bias = head.weight, None

    def forward(self, states):
        return self.head(states) + self.learned(states)


def test_an_adapter_around_the_head_is_asked(model_dir):
    policy = LanguagePolicy(model_dir("llama"))
    assert policy.plain_head
    policy.model.set_output_embeddings(Adapter(policy.model.get_output_embeddings()))
    assert not policy.plain_head
    output = policy(make_sequences(PROMPTS, RESPONSES), temperature=1.0)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        torch.testing.assert_close(output.logprobs[row, : len(response)], alone(policy, prompt, response))


def test_other_ends_of_a_response_are_named(model_dir, tmp_path, caplog):
    policy = LanguagePolicy(model_dir("llama"))
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, 70]
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        LanguagePolicy(model_dir("llama"))
        assert "generation settings" not in caplog.text
        LanguagePolicy(str(tmp_path))
    assert f"end a response at {policy.tokenizer.decode([70])!r} too: here it ends at '<eos>' alone" in caplog.text


def test_temperature_divides_the_logits(llama):
    """Two tokens' log-probabilities are half as far apart at temperature 2."""
    pair = make_sequences([[3, 4], [3, 4]], [[20], [21]])

    def gap(temperature):
        one, other = llama(pair, temperature=temperature).logprobs[:, 0].tolist()
        return one - other

    assert gap(2.0) == pytest.approx(gap(1.0) / 2, rel=1e-5)
    assert gap(1.0) != pytest.approx(0.0, abs=1e-3)


def test_train_mode_gives_the_same_numbers(policy):
    sequences = make_sequences(PROMPTS, RESPONSES)
    training = policy.train()(sequences, temperature=1.0).logprobs
    again = policy(sequences, temperature=1.0).logprobs
    evaluating = policy.eval()(sequences, temperature=1.0).logprobs
    policy.train()
    assert torch.equal(training, again)
    assert torch.equal(training, evaluating)


def test_decoding_step_by_step_gives_the_same_logits(policy):
    sequences = make_sequences(PROMPTS, [[20, 21, 22], [23, 24, 25], [26, 27, 28], [29, 30, 31]], left=1)
    step, seen, cache = sequences.prompt_tokens, sequences.prompt_mask, None
    logprobs = []
    with torch.no_grad():
        for t in range(3):
            logits, cache = policy.decode(step, seen, cache)
            step = sequences.tokens[:, t : t + 1]
            logprobs.append(logits.log_softmax(dim=-1).gather(1, step))
            seen = torch.cat([seen, torch.ones(4, 1, dtype=torch.bool)], dim=1)
        forward = policy(sequences, temperature=1.0).logprobs
    torch.testing.assert_close(torch.cat(logprobs, dim=1), forward, atol=1e-5, rtol=1e-5)


def test_features_are_the_last_hidden_states_before_each_token(policy):
    """The LM head of a feature gives the logits of the token at that place."""
    sequences = make_sequences(PROMPTS, RESPONSES, left=1, right=1)
    output = policy(sequences, temperature=1.0, features=True)
    assert output.features.shape == (4, 5, 16)
    logits = policy.model.get_output_embeddings()(output.features)
    again = logits.log_softmax(dim=-1).gather(-1, sequences.tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(again[sequences.mask], output.logprobs[sequences.mask])
    assert policy(sequences, temperature=1.0).features is None


def test_frozen_copy_stays_while_the_policy_learns(llama, model_dir):
    policy = LanguagePolicy(model_dir("llama"))
    copy = policy.frozen_copy()
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1.0)
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in policy.parameters())
    sequences = make_sequences(PROMPTS, RESPONSES)
    torch.testing.assert_close(
        copy(sequences, temperature=1.0).logprobs, llama(sequences, temperature=1.0).logprobs.detach()
    )


def test_saved_policies_load_in_transformers_alone(policy, tmp_path):
    policy.save(str(tmp_path / "model"), "# A card\n", temperature=1.0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    logits = model(input_ids=torch.tensor([[3, 4, 5]])).logits
    torch.testing.assert_close(logits, policy.model(input_ids=torch.tensor([[3, 4, 5]])).logits)
    assert "# A card\n" in (tmp_path / "model" / "README.md").read_text()
    assert model.generation_config.top_k == 0


def test_positions_count_real_tokens():
    mask = torch.tensor([[False, False, True, True], [True, True, True, False]])
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_limits_are_those_of_the_model(policy):
    assert policy.vocab_size == 328
    assert policy.max_positions == 128


def test_prompts_are_encoded_by_the_tokenizer(llama):
    assert llama.encode(["How do", "What"]) == llama.tokenizer(["How do", "What"])["input_ids"]


def test_prompts_open_with_bos_where_the_tokenizer_adds_one_and_never_close_with_eos(tmp_path):
    """As in supervised fine-tuning: the policy must read in training what it was fine-tuned on."""
    tokenizer = tiny_tokenizer()
    plain = tokenizer("How do")["input_ids"]
    tokenizer.add_special_tokens({"bos_token": "<pad>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<pad> $A <eos>", special_tokens=[("<pad>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    )
    policy = LanguagePolicy(save(tmp_path, tiny_language_model("gpt_neox", tokenizer), tokenizer))
    assert policy.encode(["How do"]) == [[tokenizer.bos_token_id, *plain]]


def test_empty_prompts_are_refused(llama):
    with pytest.raises(ValueError, match="the prompt '' has no token"):
        llama.encode(["How", ""])


def test_tokens_outside_the_vocabulary_are_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    policy = LanguagePolicy(save(tmp_path, tiny_language_model("llama", tokenizer), tokenizer))
    policy.tokenizer.add_tokens(["garden"])
    with pytest.raises(ValueError, match="token id 320"):
        policy.encode(["my garden"])

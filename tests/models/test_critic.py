"""Critics: what they start from, what they read, and what they send back."""

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from builders import ARCHITECTURES, save, tiny_reward_model, tiny_tokenizer
from klqlit.models.critic import NoCritic, SeparateCritic, SharedCritic
from klqlit.models.policy import LanguagePolicy
from klqlit.models.tabular import ResponseTree, TabularPolicy
from runs import make_sequences

PROMPTS = [[3, 4, 5], [6], [8, 9, 10, 11, 12]]
RESPONSES = [[20, 21], [22, 23, 24, 25], [26]]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def policy(request, model_dir):
    return LanguagePolicy(model_dir(request.param))


@pytest.fixture(scope="module")
def llama(model_dir):
    return LanguagePolicy(model_dir("llama"))


@pytest.fixture(scope="module")
def reward_dir(tmp_path_factory):
    tokenizer = tiny_tokenizer()
    return save(tmp_path_factory.mktemp("reward"), tiny_reward_model("llama", tokenizer, seed=1), tokenizer)


@pytest.fixture
def sequences():
    return make_sequences(PROMPTS, RESPONSES, left=2, right=2)


def values(critic, policy, sequences):
    return critic(sequences, policy(sequences, temperature=1.0, features=True).features)


@pytest.mark.parametrize("make", [SeparateCritic, SharedCritic, NoCritic])
def test_critics_start_at_zero(policy, sequences, make):
    start = values(make(policy), policy, sequences)
    assert torch.equal(start, torch.zeros(3, 6))


def test_separate_critic_starts_from_the_policys_trunk(policy, sequences):
    critic = SeparateCritic(policy)
    features = policy(sequences, temperature=1.0, features=True).features
    torch.nn.init.ones_(critic.head.weight)
    torch.testing.assert_close(critic(sequences, None)[sequences.mask], features.sum(dim=-1)[sequences.mask])


@pytest.mark.parametrize("make", [SeparateCritic, SharedCritic])
def test_critics_are_as_wide_as_the_states_they_read(tmp_path, sequences, make):
    """OPT-350m projects its states to half of `hidden_size`."""
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2}
    others = {"num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 0}
    tokenizer = tiny_tokenizer()
    config = OPTConfig(vocab_size=len(tokenizer), do_layer_norm_before=False, **sizes, **others)
    policy = LanguagePolicy(save(tmp_path, OPTForCausalLM(config), tokenizer))
    critic = make(policy)
    assert critic.head.in_features == 16
    assert values(critic, policy, sequences).shape == sequences.mask.shape


def test_a_policy_without_a_trunk_of_its_own_needs_another_critic(llama, monkeypatch, sequences):
    monkeypatch.setattr(type(llama.model), "base_model_prefix", "absent")
    monkeypatch.setattr(llama, "_head_alone", False)  # as it is where there is no trunk
    with pytest.raises(ValueError, match=r"start from a LlamaForCausalLM.* give critic\.path, or use SharedCritic"):
        SeparateCritic(llama)
    assert values(SharedCritic(llama), llama, sequences).shape == sequences.mask.shape


def test_separate_critic_shares_no_weight_with_the_policy(llama):
    theirs = {id(p) for p in llama.parameters()}
    critic = SeparateCritic(llama)
    assert not any(id(p) in theirs for p in critic.parameters())
    assert all(p.requires_grad for p in critic.parameters())


def test_value_t_reads_the_prompt_and_the_first_t_tokens(policy, sequences):
    """Changing token 1 changes V from position 2 on; V(s_0) and V(s_1) stay."""
    critic = SeparateCritic(policy)
    torch.nn.init.ones_(critic.head.weight)
    before = critic(sequences, None)
    sequences.tokens[1, 1] = 300
    changed = (critic(sequences, None) - before)[1] != 0
    assert changed.tolist()[:4] == [False, False, True, True]


def test_padding_never_leaks_into_values(policy, sequences):
    critic = SeparateCritic(policy)
    torch.nn.init.ones_(critic.head.weight)
    tight = [critic(make_sequences([p], [r]), None)[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    torch.testing.assert_close(critic(sequences, None)[sequences.mask], torch.cat(tight))
    before = critic(sequences, None)
    sequences.prompt_tokens[~sequences.prompt_mask] = 200
    sequences.tokens[~sequences.mask] = 201
    assert torch.equal(critic(sequences, None)[sequences.mask], before[sequences.mask])


def test_dropout_is_off_in_the_critic(policy, sequences):
    critic = SeparateCritic(policy).train()
    torch.nn.init.ones_(critic.head.weight)
    assert torch.equal(critic(sequences, None), critic(sequences, None))


def test_pretrained_head_gives_the_reward_models_score_at_the_end(llama, reward_dir):
    """V(s_t) is what the reward model says of prompt and first t tokens: both score the last token read."""
    critic = SeparateCritic(llama, path=reward_dir, head="pretrained")
    model = tiny_reward_model("llama", tiny_tokenizer(), seed=1).eval()
    found = critic(make_sequences(PROMPTS, RESPONSES, left=1), None)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        for t in range(len(response)):
            score = model(input_ids=torch.tensor([prompt + response[:t]])).logits.item()
            assert found[row, t].item() == pytest.approx(score, abs=1e-5)


def test_trunk_can_come_from_a_reward_model_under_a_zero_head(llama, reward_dir, sequences):
    critic = SeparateCritic(llama, path=reward_dir)
    assert torch.equal(critic(sequences, None), torch.zeros(3, 6))
    kept = tiny_reward_model("llama", tiny_tokenizer(), seed=1).base_model.state_dict()
    for name, value in critic.trunk.state_dict().items():
        torch.testing.assert_close(value, kept[name])


def test_pretrained_head_needs_a_path(llama):
    with pytest.raises(ValueError, match=r"critic\.head='pretrained' needs critic\.path"):
        SeparateCritic(llama, head="pretrained")


@pytest.mark.usefixtures("unchecked_types")
def test_a_misspelt_head_is_refused(llama, reward_dir):
    with pytest.raises(ValueError, match=r"critic\.head='pretraned' is not one of zero, pretrained"):
        SeparateCritic(llama, path=reward_dir, head="pretraned")


def test_another_tokenizer_is_refused(llama, tmp_path):
    tokenizer = tiny_tokenizer(vocab_size=300)
    path = save(tmp_path, tiny_reward_model("llama", tokenizer), tokenizer)
    with pytest.raises(ValueError, match=r"critic\.path=.* has another tokenizer than the policy"):
        SeparateCritic(llama, path=path)


def test_policies_without_hidden_states_are_refused():
    size = {"prompts": 1, "horizon": 2}
    table = TabularPolicy(torch.zeros(len(ResponseTree(vocab_size=3, **size)), 3), **size)
    with pytest.raises(ValueError, match="SharedCritic needs a LanguagePolicy, got TabularPolicy"):
        SharedCritic(table)
    with pytest.raises(ValueError, match="SeparateCritic needs a LanguagePolicy or a path, got TabularPolicy"):
        SeparateCritic(table)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_trunk_gradient_is_a_share(llama, share):
    with pytest.raises(ValueError, match=r"critic\.trunk_gradient=.* lies outside \[0, 1\]"):
        SharedCritic(llama, trunk_gradient=share)


def trunk_gradient(policy, sequences, share):
    critic = SharedCritic(policy, trunk_gradient=share)
    torch.nn.init.ones_(critic.head.weight)
    policy.zero_grad()
    found = values(critic, policy, sequences)
    if found.requires_grad:
        torch.where(sequences.mask, found, 0.0).square().sum().backward()
    weight = policy.model.get_input_embeddings().weight
    return found.detach(), torch.zeros_like(weight) if weight.grad is None else weight.grad.clone(), critic.head


def test_value_gradient_into_the_trunk_scales_with_its_share(llama, sequences):
    full_values, full, head = trunk_gradient(llama, sequences, 1.0)
    part_values, part, part_head = trunk_gradient(llama, sequences, 0.25)
    none_values, none, none_head = trunk_gradient(llama, sequences, 0.0)
    assert full.abs().max() > 1e-3
    torch.testing.assert_close(part, 0.25 * full)
    assert torch.equal(none, torch.zeros_like(full))
    # The values themselves and the head's own gradient do not depend on the share.
    torch.testing.assert_close(part_values, full_values)
    torch.testing.assert_close(none_values, full_values)
    torch.testing.assert_close(part_head.weight.grad, head.weight.grad)
    torch.testing.assert_close(none_head.weight.grad, head.weight.grad)
    llama.zero_grad()


@pytest.mark.parametrize("make", [SeparateCritic, SharedCritic])
def test_critics_serve_policies_in_bfloat16(model_dir, sequences, make):
    policy = LanguagePolicy(model_dir("llama"), dtype="bfloat16")
    found = values(make(policy), policy, sequences)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.zeros(3, 6))

"""Train mode draws nothing at random, or the model is refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from builders import save, tiny_tokenizer
from klqlit.models.determinism import check_deterministic
from klqlit.models.language_model import LanguageModel
from klqlit.models.policy import LanguagePolicy
from klqlit.rewards.model import RewardModel
from models.test_families import random_model

IDS = torch.arange(40)[None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jitter_of_experts_is_off_in_train_mode(tmp_path, dtype):
    model = random_model(AutoModelForCausalLM, "mixtral", router_jitter_noise=0.3).train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    policy = LanguagePolicy(save(tmp_path, model, tiny_tokenizer()), dtype=dtype)
    assert torch.equal(policy.model(IDS).logits, policy.model(IDS).logits)


def test_a_reward_model_gives_a_text_one_score(tmp_path):
    model = random_model(AutoModelForSequenceClassification, "mixtral", num_labels=1, router_jitter_noise=0.3)
    reward = RewardModel(save(tmp_path, model, tiny_tokenizer()))
    assert torch.equal(reward.model(IDS).logits, reward.model(IDS).logits)


class Noisy(torch.nn.Module):
    """Adds noise in train mode, under a name that nobody knows."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, states):
        return states + self.scale * torch.randn_like(states) * self.training


def noisy(scale, dtype=torch.float32):
    model = random_model(AutoModelForCausalLM, "llama").to(dtype).train()
    model.model.norm = torch.nn.Sequential(model.model.norm, Noisy(scale))
    return model


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e-3), (torch.bfloat16, 0.3)])
def test_other_randomness_is_refused(dtype, scale):
    model, state = noisy(scale, dtype), torch.get_rng_state()
    with pytest.raises(ValueError, match="'here': LlamaForCausalLM draws at random in train mode, besides dropout"):
        LanguageModel.of(model, tiny_tokenizer(), "here")
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_drawn_and_changes_nothing_is_no_matter():
    check_deterministic(noisy(0.0), "here")

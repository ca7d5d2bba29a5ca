"""Models that cannot be decoded token by token are refused when a policy is made of them."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from builders import save, tiny_tokenizer
from klqlit.models.decoding_check import check_decoding
from klqlit.models.policy import LanguagePolicy
from models.test_families import random_model


@pytest.fixture
def saved(tmp_path):
    def build(family, layers=2):
        return save(tmp_path, random_model(AutoModelForCausalLM, family, num_hidden_layers=layers), tiny_tokenizer())

    return build


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("mamba", 2),  # its state stands in an argument of another name
        ("rwkv", 2),
        ("recurrent_gemma", 3),  # some of its state stands in the modules
        ("roberta", 2),  # reads what follows a token, unless told to be a decoder
    ],
)
def test_a_model_that_says_other_things_token_by_token_is_refused(saved, family, layers):
    path = saved(family, layers)
    with pytest.raises(ValueError, match=rf"policy\.path='{path}': \w+ gives other log-probabilities, by \S+ nats"):
        LanguagePolicy(path)


def test_a_model_that_knows_no_such_cache_is_refused_with_its_own_words(saved):
    with pytest.raises(ValueError, match=r"MiniMaxForCausalLM cannot be sampled from token by token \(ValueE"):
        LanguagePolicy(saved("minimax"))


@pytest.mark.parametrize(("family", "layers"), [("gemma2", 2), ("gpt_oss", 2), ("lfm2", 2), ("jamba", 8), ("mpt", 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_kinds_of_state_that_a_cache_holds_are_taken(saved, family, layers, dtype):
    LanguagePolicy(saved(family, layers), dtype=dtype)


def test_tokens_that_a_model_rules_out_are_not_compared(saved):
    policy = LanguagePolicy(saved("gpt_neox"))
    head = torch.nn.Linear(32, 320)
    head.weight = policy.model.get_output_embeddings().weight
    head.bias.data = torch.where(torch.arange(320) < 300, 0.0, -torch.inf)
    policy.model.set_output_embeddings(head)
    assert policy.model(torch.zeros(1, 1, dtype=torch.long)).logits[0, 0, 319] == -torch.inf
    check_decoding(policy.decode, policy.select, policy.model, "here")

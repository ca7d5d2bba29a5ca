"""States before response tokens, of models with all kinds of blocks, are those of each row alone."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from klqlit.models.states import token_states
from runs import make_sequences

FAMILIES = (
    "bloom",  # ALiBi; its MLP adds the residual stream
    "gemma",
    "gemma2",  # windows in every second block
    "gpt_bigcode",
    "gpt_oss",  # experts; attention sinks
    "jamba",  # blocks with states, experts
    "lfm2",
    "mamba",
    "mistral",
    "mixtral",
    "nemotron",  # its attention is not told what the model is told
    "olmo2",
    "opt",
    "phi3",
    "qwen3",
    "qwen3_moe",
    "recurrent_gemma",
    "starcoder2",
)
SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def random_model(auto, family, **options):
    """A model of a family, large enough in weights that its logits differ between tokens."""
    torch.manual_seed(0)
    sizes = SIZES | {"eos_token_id": 0, "initializer_range": 0.3}
    return auto.from_config(AutoConfig.for_model(family, **(sizes | options)))


PROMPTS = [[3, 4, 5], [6], [8, 9, 10, 11, 12], [13, 14]]
RESPONSES = [[20, 21], [22, 23, 24, 25, 26, 27], [28], [29, 30, 31]]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_each_row_alone(family):
    torch.manual_seed(0)
    trunk = AutoModel.from_config(AutoConfig.for_model(family, **SIZES)).eval()
    states = token_states(trunk, make_sequences(PROMPTS, RESPONSES, left=1, right=1))
    alone = [
        trunk(input_ids=torch.tensor([[*prompt, *response][:-1]]), use_cache=False).last_hidden_state[
            0, -len(response) :
        ]
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    torch.testing.assert_close(states, torch.cat(alone), atol=2e-5, rtol=1e-4)
    states.sum().backward()

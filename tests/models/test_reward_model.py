"""A grown reward model scores the last real token, here and in transformers alone."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM

from builders import ARCHITECTURES, tiny_language_model, tiny_tokenizer
from klqlit.data.supervised import pack
from klqlit.models.language_model import LanguageModel
from klqlit.models.loading import export
from klqlit.models.reward_model import grow_reward_model, sequence_scores

TEXTS = [("How do I", " bake bread?"), ("What", " is the sum of two and two?")]


def grown(architecture, pad_token):
    tokenizer = tiny_tokenizer(pad_token=pad_token)
    return grow_reward_model(LanguageModel.of(tiny_language_model(architecture, tokenizer), tokenizer))


def packed(tokenizer, texts):
    ids = [[tokenizer(part)["input_ids"] for part in pair] for pair in texts]
    prompts, completions = [p for p, _ in ids], [[*c, tokenizer.eos_token_id] for _, c in ids]
    return pack(prompts, completions, tokenizer.pad_token_id)


@pytest.mark.parametrize("pad_token", [None, "<eos>", "<pad>"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_alone_scores_the_exported_model_the_same(tmp_path, architecture, pad_token):
    model, tokenizer = grown(architecture, pad_token)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    export(model, tokenizer, str(tmp_path / "rm"), card="")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "rm")
    batch = theirs(
        [p + c + theirs.eos_token for p, c in TEXTS], padding=True, return_tensors="pt", padding_side="right"
    )
    scores = again(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    ours = sequence_scores(model, packed(tokenizer, TEXTS))
    torch.testing.assert_close(ours, scores)
    assert ours[0] != ours[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_score_depends_on_its_own_row_and_on_eos(architecture):
    model, tokenizer = grown(architecture, "<eos>")
    alone = torch.cat([sequence_scores(model, packed(tokenizer, [pair])) for pair in TEXTS])
    together = packed(tokenizer, TEXTS)
    torch.testing.assert_close(sequence_scores(model, together), alone)
    # Without the EOS of the second row, the longest, its score is another.
    together.mask[1, -1] = False
    changed = sequence_scores(model, together)
    torch.testing.assert_close(changed[0], alone[0])
    assert abs(changed[1] - alone[1]) > 1e-3


def test_the_trunk_is_a_copy_and_the_head_is_new():
    tokenizer = tiny_tokenizer()
    language_model = LanguageModel.of(tiny_language_model("gpt_neox", tokenizer), tokenizer)
    model, _ = grow_reward_model(language_model)
    trunk = language_model.model.base_model.state_dict()
    for name, value in model.base_model.state_dict().items():
        assert torch.equal(value, trunk[name])
        assert value.data_ptr() != trunk[name].data_ptr()
    # 16 draws from N(0, 1/17): their root mean square lies within four standard errors.
    assert 0.07 < model.get_submodule("score").weight.square().mean().sqrt() < 0.42


def test_an_architecture_without_a_score_head_is_refused():
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(ValueError, match="no reward model can be grown on 'bert'"):
        grow_reward_model(LanguageModel.of(BertForMaskedLM(config), tokenizer, "bert"))

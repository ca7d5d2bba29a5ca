"""A learned reward model says what transformers alone says of each text, whoever stands beside it."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from builders import save, tiny_language_model, tiny_reward_model, tiny_tokenizer
from klqlit.rewards.model import RewardModel
from runs import make_completions, make_sequences

TEXTS = [
    ("How do I bake bread?", " Mix flour and water, then wait."),
    ("What?", " No."),
    ("\n\nHuman: Can you help me?", ""),
    ("Who rises?", " My bread did, as everybody knows, for an hour."),
]


def completions(ended=None, texts=TEXTS):
    """The policy's own tokens are of another tokenizer, and a reward on text must not care."""
    return make_completions(texts, make_sequences([[319]] * len(texts), [[318, 317]] * len(texts)), ended)


@pytest.fixture(scope="module", params=["gpt_neox", "llama", "gpt2", "qwen2"])
def architecture(request):
    return request.param


@pytest.fixture(scope="module", params=["<pad>", "<eos>", None])
def path(request, architecture, tmp_path_factory):
    """Another vocabulary than the policies' of these tests have."""
    tokenizer = tiny_tokenizer(pad_token=request.param, vocab_size=290)
    model = tiny_reward_model(architecture, tokenizer)
    model.resize_token_embeddings(len(tokenizer) + 2, mean_resizing=False)
    return save(tmp_path_factory.mktemp("reward"), model, tokenizer)


@torch.no_grad()
def alone(path, text):
    """The documented use of a reward model: one text, no padding."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    return model(**AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")).logits.item()


@pytest.mark.parametrize("size", [1, 3, 32])
def test_scores_are_those_of_each_text_alone(path, size):
    reward = RewardModel(path, append_eos=False, batch_size=size)
    expected = [alone(path, prompt + completion) for prompt, completion in TEXTS]
    assert reward(completions()).tolist() == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) == 4


def test_eos_closes_what_ended_by_itself_and_nothing_else(path):
    reward = RewardModel(path)
    found = reward(completions(ended=[True, False, True, False])).tolist()
    closed = ["<eos>", "", "<eos>", ""]
    expected = [alone(path, prompt + text + close) for (prompt, text), close in zip(TEXTS, closed, strict=True)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_model_is_frozen_and_without_dropout(path):
    reward = RewardModel(path).train()
    assert not any(p.requires_grad for p in reward.parameters())
    assert torch.equal(reward(completions()), reward(completions()))


def test_long_texts_lose_their_beginning(path):
    texts = [("word " * 40, "end")]
    reward = RewardModel(path, max_tokens=5, append_eos=False)
    kept = AutoTokenizer.from_pretrained(path)("word " * 40 + "end")["input_ids"][-5:]
    with torch.no_grad():
        expected = reward.model(input_ids=torch.tensor([kept])).logits.item()
    assert reward(completions(texts=texts)).item() == pytest.approx(expected, abs=1e-5)


def test_texts_beyond_the_models_positions_are_scored(path):
    assert RewardModel(path).max_tokens == 128
    assert bool(RewardModel(path)(completions(texts=[("word " * 400, "end")])).isfinite().all())


@pytest.mark.parametrize("value", [0, -8])
@pytest.mark.parametrize("name", ["batch_size", "max_tokens"])
def test_a_number_that_is_not_positive_is_refused_before_anything_is_loaded(name, value):
    with pytest.raises(ValueError, match=f"RewardModel {name} must be a finite number above 0, got {value}"):
        RewardModel("no/model", **{name: value})


def test_a_language_model_is_no_reward_model(tmp_path):
    tokenizer = tiny_tokenizer()
    path = save(tmp_path, tiny_language_model("llama", tokenizer), tokenizer)
    with pytest.raises(ValueError, match="is no reward model"):
        RewardModel(path)


def test_rows_that_leave_no_token_for_padding_are_scored_one_by_one(tmp_path):
    """Without a pad token, one that no row holds stands in for it; here the rows hold all."""
    tokenizer = tiny_tokenizer(pad_token=None)
    model = tiny_reward_model("llama", tokenizer, positions=400).eval()
    reward = RewardModel(save(tmp_path, model, tokenizer))
    rows = [[*range(len(tokenizer))], [5, 6, 7], [7]]
    alone = [model(input_ids=torch.tensor([row])).logits.item() for row in rows]

    def scored(rows):
        return [score for batch in reward._batches(rows) for score in reward._score(*batch).tolist()]

    assert scored(rows) == pytest.approx(alone, abs=1e-5)
    assert scored(rows[1:]) == pytest.approx(alone[1:], abs=1e-5)


def test_rows_of_similar_length_are_read_together(path):
    """Three quarters are short, and are not padded to the length of the rest."""
    reward, read = RewardModel(path, append_eos=False), []
    reward.model.register_forward_pre_hook(
        lambda part, inputs, named: read.append(named["input_ids"].numel()), with_kwargs=True
    )
    texts = [("the cat ", "sat " * (30 if i % 4 == 0 else 3)) for i in range(32)]
    lengths = [len(row) for row in reward.tokenizer([prompt + text for prompt, text in texts])["input_ids"]]
    scores = reward(completions(texts=texts)).tolist()
    assert sum(read) == sum(lengths) < 32 * max(lengths) / 2
    assert scores[:2] == pytest.approx([alone(path, prompt + text) for prompt, text in texts[:2]], abs=1e-5)

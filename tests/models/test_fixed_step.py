"""A step whose shapes do not change gives the logits of one whose shapes do, recorded on a GPU or not."""

import warnings

import pytest
import torch
from transformers import Gemma3Config

from builders import ARCHITECTURES
from klqlit.models.cache import BLOCK, ReservedCache
from klqlit.models.fixed_step import FixedStep, fixed_step
from klqlit.models.policy import LanguagePolicy
from klqlit.rollout.sampling import Sampler
from klqlit.types import Prompts
from runs import make_sequences

PROMPTS = [[3, 4, 5], [6], [8, 9, 10, 11, 12], [13, 14]]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a step is recorded on a GPU only")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def policy(request, model_dir):
    return LanguagePolicy(model_dir(request.param))


def prompts(device="cpu"):
    sequences = make_sequences(PROMPTS, [[1]] * 4, left=2)
    return Prompts(
        texts=["?"] * 4,
        tokens=sequences.prompt_tokens.to(device),
        mask=sequences.prompt_mask.to(device),
        seeds=[7, 8, 9, 10],
        columns={},
    )


def longer(mask):
    return torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)


def read(policy, cache):
    """The prompts, by `policy.decode` and into `cache`."""
    rows = prompts()
    logits, plain = policy.decode(rows.tokens, rows.mask, None)
    positions = (rows.mask.cumsum(dim=1) - 1).clamp(min=0)
    policy.model.base_model(
        input_ids=rows.tokens, attention_mask=rows.mask.long(), position_ids=positions, past_key_values=cache
    )
    return logits, plain, rows.mask


@torch.no_grad()
def test_logits_are_those_of_decoding_until_the_room_is_full_and_after(policy):
    cache = ReservedCache(policy.model.config)
    logits, plain, mask = read(policy, cache)
    step, steps = None, 0
    for _ in range(BLOCK + 20):
        tokens, mask = logits.argmax(dim=-1, keepdim=True), longer(mask)
        if step is None or not step.has_room(mask):
            step, steps = fixed_step(policy.model.base_model, policy._next_logits, cache, len(PROMPTS)), steps + 1
        fixed = step(tokens, mask)
        logits, plain = policy.decode(tokens, mask, plain)
        torch.testing.assert_close(fixed, logits, atol=1e-5, rtol=1e-5)
    assert steps == 2
    # What was read stands in the cache as if it had been read in the usual way.
    for one, other in zip(cache.layers, plain.key_values.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_shapes_and_memory_stay_from_token_to_token(policy):
    cache, shapes, places = ReservedCache(policy.model.config), set(), set()
    logits, _, mask = read(policy, cache)

    def forward(**inputs):
        shapes.add(tuple(tuple(inputs[name].shape) for name in ("input_ids", "position_ids", "attention_mask")))
        places.add(tuple(inputs[name].data_ptr() for name in ("input_ids", "position_ids", "attention_mask")))
        return policy._next_logits(**inputs)

    step = fixed_step(policy.model.base_model, forward, cache, len(PROMPTS))
    for _ in range(5):
        mask = longer(mask)
        logits = step(logits.argmax(dim=-1, keepdim=True), mask)
    assert len(shapes) == len(places) == 1


@torch.no_grad()
@pytest.mark.parametrize("what", ["window", "attention", "model"])
def test_models_that_cannot_be_recorded_are_left_alone(what, model_dir, monkeypatch):
    policy = LanguagePolicy(model_dir("llama"), attn_implementation="eager" if what == "attention" else None)
    cache = ReservedCache(policy.model.config)
    read(policy, cache)
    made = fixed_step(policy.model.base_model, policy._next_logits, cache, len(PROMPTS))
    assert isinstance(made, FixedStep) == (what != "attention")
    if what == "window":
        cache.layers[0] = type("Window", (type(cache.layers[0]).__base__,), {})()
    if what == "model":
        monkeypatch.setattr(type(policy.model.base_model), "_can_compile_fullgraph", False)
    assert fixed_step(policy.model.base_model, policy._next_logits, cache, len(PROMPTS)) is None


@torch.no_grad()
def test_a_model_of_several_parts_is_asked_for_the_heads_of_its_text(policy):
    cache, config = ReservedCache(policy.model.config), policy.model.config
    read(policy, cache)
    trunk = policy.model.base_model
    trunk.config = Gemma3Config(text_config={"num_attention_heads": config.num_attention_heads})
    trunk.config._attn_implementation = "sdpa"
    try:
        assert isinstance(fixed_step(trunk, policy._next_logits, cache, len(PROMPTS)), FixedStep)
    finally:
        trunk.config = config


@torch.no_grad()
def test_what_would_be_repeated_too_often_is_read_in_the_usual_way(policy, monkeypatch):
    cache, config = ReservedCache(policy.model.config), policy.model.config
    read(policy, cache)
    grouped = cache.layers[0].keys.shape[1] < config.num_attention_heads
    assert grouped == (config.model_type in ("llama", "qwen2"))
    # Keys and values of 4 rows, 2 heads of 8 numbers, and 72 positions.
    for limit, made in ((2 * 4 * 2 * 8 * 72 * 4, True), (2 * 4 * 2 * 8 * 72 * 4 - 1, not grouped)):
        monkeypatch.setattr("klqlit.models.fixed_step.REPEATED", limit)
        step = fixed_step(policy.model.base_model, policy._next_logits, cache, len(PROMPTS))
        assert isinstance(step, FixedStep) == made


def sampled(policy, device, **options):
    sampler = Sampler(response_length=BLOCK + 20, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sampler.sample(policy.to(device), prompts(device))


@gpu
def test_a_recorded_step_samples_the_tokens_of_a_cpu(policy):
    """Through a full room, with rows that end."""
    expected = sampled(policy, "cpu", temperature=0.7)
    found = sampled(policy, "cuda", temperature=0.7)
    assert torch.equal(found.tokens.cpu(), expected.tokens)
    torch.testing.assert_close(found.logprobs.cpu(), expected.logprobs, atol=1e-4, rtol=1e-4)


@gpu
def test_a_recorded_step_reads_the_weights_of_its_time(model_dir):
    """Weights cast under autocast are kept for one sampling only."""
    policy = LanguagePolicy(model_dir("llama")).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        first = sampled(policy, "cuda")
        again = sampled(policy, "cuda")
        with torch.no_grad():
            policy.model.get_output_embeddings().weight.mul_(-1)
        other = sampled(policy, "cuda")
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.logprobs, again.logprobs)
    assert not torch.equal(first.tokens, other.tokens)


@gpu
def test_memory_does_not_grow_from_sampling_to_sampling(model_dir):
    policy = LanguagePolicy(model_dir("llama")).cuda()
    for _ in range(3):
        sampled(policy, "cuda")
    before = torch.cuda.memory_reserved()
    for _ in range(5):
        sampled(policy, "cuda")
    assert torch.cuda.memory_reserved() == before


@gpu
def test_a_model_that_asks_for_numbers_is_decoded_all_the_same(model_dir):
    policy = LanguagePolicy(model_dir("llama"))
    expected = sampled(policy, "cpu")
    policy.model.base_model.layers[1].register_forward_hook(lambda part, inputs, output: [output.sum().item()].clear())
    assert torch.equal(sampled(policy, "cuda").tokens.cpu(), expected.tokens)


@gpu
def test_what_cannot_be_recorded_says_what_to_do(model_dir):
    policy = LanguagePolicy(model_dir("llama"))
    policy.model.base_model.layers[1].register_forward_hook(lambda part, inputs, output: [output.nonzero()].clear())
    with pytest.raises(RuntimeError, match=r"(?s)could not be recorded as a CUDA graph.*policy\.attn_implementation"):
        sampled(policy, "cuda")

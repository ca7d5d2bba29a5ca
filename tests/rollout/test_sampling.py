"""Responses are drawn from softmax(logits / temperature), one random stream a row, and end where they should."""

import copy
import math

import pytest
import torch
from hypothesis import settings
from torch import nn

from builders import ARCHITECTURES, tiny_tokenizer
from klqlit.models.policy import LanguagePolicy, Policy, PolicyOutput
from klqlit.models.recomputation import computes_again
from klqlit.rollout import sampling
from klqlit.rollout.sampling import Sampler
from klqlit.types import Prompts, Sequences
from runs import make_prompts

TEXTS = ["How do I bake", "What", "The sum of two and two", "My bread", "Who?"]
examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)


class Scripted(Policy):
    """Says row r's script token by token, with certainty, whatever it is asked."""

    def __init__(self, tokenizer, scripts):
        super().__init__()
        self.tokenizer, self.scripts = tokenizer, scripts

    @property
    def vocab_size(self):
        return len(self.tokenizer)

    @property
    def max_positions(self):
        return None

    def forward(self, sequences, *, temperature, features=False):
        return PolicyOutput(logprobs=torch.zeros(sequences.tokens.shape), features=None)

    def decode(self, tokens, mask, cache):
        t, scripts = (0, self.scripts) if cache is None else cache
        said = [script[min(t, len(script) - 1)] for script in scripts]
        logits = torch.full((len(said), self.vocab_size), -math.inf)
        logits[torch.arange(len(said)), torch.tensor(said)] = 0.0
        return logits, (t + 1, scripts)

    def select(self, cache, rows):
        t, scripts = cache
        return t, [scripts[row] for row in rows.tolist()]

    def save(self, directory, card, *, temperature):
        raise NotImplementedError


class Constant(Policy):
    """The same logits everywhere: what is sampled is known exactly."""

    def __init__(self, logits):
        super().__init__()
        self.tokenizer = tiny_tokenizer()
        self.logits = nn.Parameter(logits)

    @property
    def vocab_size(self):
        return len(self.logits)

    @property
    def max_positions(self):
        return None

    def forward(self, sequences, *, temperature, features=False):
        logprobs = (self.logits / temperature).log_softmax(dim=0)[sequences.tokens]
        return PolicyOutput(logprobs=logprobs, features=None)

    def decode(self, tokens, mask, cache):
        return self.logits.expand(len(tokens), -1), ()

    def select(self, cache, rows):
        return cache

    def save(self, directory, card, *, temperature):
        raise NotImplementedError


def blank(rows, first_seed=0):
    """Prompts of one token, another in each row."""
    return Prompts(
        texts=["x"] * rows,
        tokens=torch.arange(rows)[:, None],
        mask=torch.ones(rows, 1, dtype=torch.bool),
        seeds=list(range(first_seed, first_seed + rows)),
        columns={},
    )


@pytest.fixture(scope="module", params=ARCHITECTURES)
def policy(request, model_dir):
    return LanguagePolicy(model_dir(request.param))


@pytest.fixture(scope="module")
def ending(quitter_dir):
    """A policy whose responses end at different lengths."""
    return LanguagePolicy(quitter_dir)


# The draw -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature):
    """Pearson's statistic of 20,000 draws over 8 tokens stays under its 99.9 % point, 24.3 at 7 degrees of freedom."""
    logits = torch.full((320,), -math.inf)
    logits[20:28] = torch.tensor([0.0, 0.5, 1.0, -1.0, 2.0, -0.5, 0.3, 1.5])
    sample = Sampler(response_length=4, temperature=temperature).sample(Constant(logits), blank(5000))
    counts = torch.bincount(sample.tokens.flatten() - 20, minlength=8)
    expected = 20_000 * (logits[20:28] / temperature).softmax(dim=0)
    assert len(counts) == 8
    assert float(((counts - expected).square() / expected).sum()) < 24.3

    # And it tells another temperature apart.
    wrong = 20_000 * (logits[20:28] / (1.2 * temperature)).softmax(dim=0)
    assert float(((counts - wrong).square() / wrong).sum()) > 24.3


def test_tokens_of_a_response_are_independent():
    """Pairs of neighbours are as frequent as the product says."""
    logits = torch.full((320,), -math.inf)
    logits[20:22] = torch.tensor([0.0, math.log(3.0)])
    tokens = Sampler(response_length=2).sample(Constant(logits), blank(8000)).tokens - 20
    share = float(tokens.all(dim=1).float().mean())
    assert share == pytest.approx(0.75**2, abs=4 * math.sqrt(0.5625 * 0.4375 / 8000))


# The policy that sampled --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_while_sampling_are_those_of_forward(policy, temperature):
    prompts = make_prompts(policy.tokenizer, TEXTS)
    sample = Sampler(response_length=8, temperature=temperature).sample(policy, prompts)
    sequences = Sequences(
        prompt_tokens=prompts.tokens, prompt_mask=prompts.mask, tokens=sample.tokens, mask=sample.mask
    )
    with torch.no_grad():
        forward = policy(sequences, temperature=temperature).logprobs
    torch.testing.assert_close(sample.logprobs[sample.mask], forward[sample.mask], atol=1e-5, rtol=1e-5)
    assert float(sample.logprobs[sample.mask].max()) < 0


def test_gradient_checkpointing_takes_no_cache_away(policy):
    """transformers gives a block that is computed again no cache in train mode: each token would be read alone."""
    sampler = Sampler(response_length=12)
    expected = sampler.sample(policy, blank(4))
    policy.model.gradient_checkpointing_enable()
    try:
        found = sampler.sample(policy, blank(4))
        assert computes_again(policy.model)
        assert policy.model.training
    finally:
        policy.model.gradient_checkpointing_disable()
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.logprobs, expected.logprobs)


def test_entropy_is_that_of_the_sampling_distribution():
    """Two tokens at odds 1 to 3 and temperature 1: H = ln 4 - 3/4 ln 3 = 0.5623; impossible tokens add nothing."""
    logits = torch.full((320,), -math.inf)
    logits[20:22] = torch.tensor([0.0, math.log(3.0)])
    sample = Sampler(response_length=3).sample(Constant(logits), blank(2))
    torch.testing.assert_close(sample.entropy, torch.full((2, 3), 0.5623351446))
    cold = Sampler(response_length=3, temperature=0.5).sample(Constant(logits), blank(2))
    # Odds 1 to 9: H = ln 10 - 9/10 ln 9.
    torch.testing.assert_close(cold.entropy, torch.full((2, 3), math.log(10) - 0.9 * math.log(9)))


# Independence of the batch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 50])
def test_chunks_do_not_change_a_response(ending, size):
    prompts = make_prompts(ending.tokenizer, TEXTS)
    whole = Sampler(response_length=12).sample(ending, prompts)
    parts = Sampler(response_length=12, batch_size=size).sample(ending, prompts)
    assert torch.equal(parts.mask, whole.mask)
    assert torch.equal(parts.tokens[parts.mask], whole.tokens[whole.mask])
    assert torch.equal(parts.ended, whole.ended)
    torch.testing.assert_close(parts.logprobs, whole.logprobs)
    torch.testing.assert_close(parts.entropy, whole.entropy)


def test_a_response_depends_neither_on_order_nor_on_company(ending):
    sampler = Sampler(response_length=12)
    together = sampler.sample(ending, make_prompts(ending.tokenizer, TEXTS))
    backwards = sampler.sample(ending, make_prompts(ending.tokenizer, TEXTS[::-1], seeds=[4, 3, 2, 1, 0]))
    for i, text in enumerate(TEXTS):
        alone = sampler.sample(ending, make_prompts(ending.tokenizer, [text], seeds=[i]))
        expected = together.tokens[i][together.mask[i]].tolist()
        assert alone.tokens[0][alone.mask[0]].tolist() == expected
        assert backwards.tokens[4 - i][backwards.mask[4 - i]].tolist() == expected


def test_seeds_make_the_difference(ending):
    prompts = make_prompts(ending.tokenizer, ["What"] * 6, seeds=[0, 1, 2, 3, 4, 0])
    rows = Sampler(response_length=12).sample(ending, prompts).tokens.tolist()
    assert rows[0] == rows[5]
    assert len({tuple(row) for row in rows}) == 5


def test_global_random_state_is_neither_read_nor_moved(ending):
    prompts = make_prompts(ending.tokenizer, TEXTS)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = Sampler(response_length=5).sample(ending, prompts)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(Sampler(response_length=5).sample(ending, prompts).tokens, first.tokens)


# Where a response ends ----------------------------------------------------------------------------------------------


def says(*texts, **options):
    """What becomes of scripted responses."""
    tokenizer = tiny_tokenizer()
    policy = Scripted(tokenizer, [tokenizer(text)["input_ids"] for text in texts])
    sampler = Sampler(**options)
    sample = sampler.sample(policy, blank(len(texts)))
    return sample, sampler.texts(policy, sample), policy


def test_eos_ends_a_response_and_is_part_of_it():
    sample, texts, policy = says("yes<eos>", "no<eos>and more", response_length=8)
    lengths = [len(policy.tokenizer(text)["input_ids"]) for text in ("yes<eos>", "no<eos>")]
    assert sample.mask.sum(dim=1).tolist() == lengths
    assert [row[mask].tolist()[-1] for row, mask in zip(sample.tokens, sample.mask, strict=True)] == [0, 0]
    assert texts == ["yes", "no"]
    assert sample.ended.tolist() == [True, True]


def test_eos_at_once_leaves_one_token_and_no_text():
    sample, texts, _ = says("<eos>", response_length=3)
    assert (sample.mask.tolist(), texts, sample.ended.tolist()) == ([[True, False, False]], [""], [True])


def test_length_limit_cuts_and_does_not_count_as_an_end():
    sample, texts, policy = says("abcdefgh", "ab<eos>", response_length=3)
    assert texts[0] == policy.tokenizer.decode(policy.tokenizer("abcdefgh")["input_ids"][:3])
    assert sample.ended.tolist() == [False, True]
    assert sample.mask[0].tolist() == [True] * 3


def test_eos_on_the_last_allowed_token_counts_as_an_end():
    sample, texts, _ = says("ab<eos>", "abc", response_length=3)
    assert sample.ended.tolist() == [True, False]
    assert texts == ["ab", "abc"]


def test_stop_string_ends_a_response_and_is_cut_from_the_text():
    sample, texts, policy = says("one\ntwo", "three<eos>", response_length=12, stop_strings=["\n"])
    assert texts == ["one", "three"]
    assert sample.ended.tolist() == [True, True]
    assert policy.tokenizer.decode(sample.tokens[0][sample.mask[0]]) == "one\n"


def test_stop_string_may_span_tokens():
    stop = "#@#"
    sample, texts, policy = says("ab#@cd#@#ef", response_length=12, stop_strings=[stop])
    assert len(policy.tokenizer(stop)["input_ids"]) == 3
    assert texts == ["ab#@cd"]
    assert policy.tokenizer.decode(sample.tokens[0][sample.mask[0]]) == "ab#@cd#@#"


def test_stop_string_may_stand_inside_a_token():
    """The token that holds it is chosen whole; the text ends before the stop string."""
    tokenizer = tiny_tokenizer()
    word = max(tokenizer.get_vocab(), key=lambda token: len(token) if token.isalpha() and token.isascii() else 0)
    assert len(word) > 2
    sample, texts, _ = says(f"{word}zz", response_length=5, stop_strings=[word[1]])
    assert texts == [word[0]]
    assert sample.mask.sum().item() == 1


def test_the_earliest_of_several_stop_strings_ends_a_response():
    _, texts, _ = says("a;b.c", "a.b;c", response_length=8, stop_strings=[".", ";"])
    assert texts == ["a", "a"]


def test_stop_strings_are_looked_up_in_the_vocabulary_once(ending, monkeypatch):
    """However many samples and chunks there are, and whoever copies the sampler; other strings are looked up anew."""
    built, build = [], sampling.StopStringCriteria
    monkeypatch.setattr(sampling, "StopStringCriteria", lambda *given: built.append(given) or build(*given))
    sampling._stopping.cache_clear()
    prompts = make_prompts(ending.tokenizer, TEXTS)
    sampler = Sampler(response_length=12, stop_strings=["e", "a"], batch_size=2)
    first = sampler.sample(ending, prompts)
    again = [found.sample(ending, prompts) for found in (sampler, copy.deepcopy(sampler))]
    assert built == [(ending.tokenizer, ["e", "a"])]
    assert all(torch.equal(first.tokens, sample.tokens) and torch.equal(first.mask, sample.mask) for sample in again)
    other = Sampler(response_length=12, stop_strings=["o"]).sample(ending, prompts)
    assert len(built) == 2
    assert not torch.equal(first.mask, other.mask)


def test_stop_strings_in_the_prompt_do_not_count(ending):
    prompts = make_prompts(ending.tokenizer, ["a\n\n", "b\n\n"])
    with_stop = Sampler(response_length=6, stop_strings=["\n\n"]).sample(ending, prompts)
    assert torch.equal(with_stop.mask, Sampler(response_length=6).sample(ending, prompts).mask)


def test_nothing_is_recorded_after_the_end(ending):
    sample = Sampler(response_length=20).sample(ending, make_prompts(ending.tokenizer, TEXTS * 4))
    lengths = sample.mask.sum(dim=1)
    assert len(set(lengths.tolist())) > 3
    assert bool((sample.logprobs[~sample.mask] == 0).all())
    assert bool((sample.entropy[~sample.mask] == 0).all())
    # The mask is True from the start and has no holes.
    assert torch.equal(sample.mask, torch.arange(20) < lengths[:, None])
    assert torch.equal(sample.ended, (lengths < 20) | (sample.tokens[:, -1] == 0))


# Work that is spared -------------------------------------------------------------------------------------------------


class Counting(Policy):
    """Another policy, with the number of rows that each call decodes."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.tokenizer, self.decoded = inner, inner.tokenizer, []

    @property
    def vocab_size(self):
        return self.inner.vocab_size

    @property
    def max_positions(self):
        return self.inner.max_positions

    def forward(self, sequences, *, temperature, features=False):
        return self.inner(sequences, temperature=temperature, features=features)

    def decode(self, tokens, mask, cache):
        self.decoded.append(len(tokens))
        return self.inner.decode(tokens, mask, cache)

    def select(self, cache, rows):
        return self.inner.select(cache, rows)

    def save(self, directory, card, *, temperature):
        raise NotImplementedError


def test_rows_that_have_ended_are_soon_dropped_and_change_nothing(ending):
    """Each row alone gives the same response; of the rows decoded, at most one in eight has ended."""
    counting, prompts = Counting(ending), make_prompts(ending.tokenizer, TEXTS * 8)
    sample = Sampler(response_length=20).sample(counting, prompts)
    for t, rows in enumerate(counting.decoded):
        going = int(sample.mask[:, t].sum())
        assert going <= rows <= 8 / 7 * going + 1
    alone = Sampler(response_length=20, batch_size=1).sample(ending, prompts)
    assert torch.equal(sample.tokens, alone.tokens)
    assert torch.equal(sample.mask, alone.mask)
    assert torch.equal(sample.ended, alone.ended)
    torch.testing.assert_close(sample.logprobs, alone.logprobs)
    torch.testing.assert_close(sample.entropy, alone.entropy)


def test_neighbours_with_the_same_prompt_read_it_once(policy):
    texts = [text for text in TEXTS for _ in range(3)]
    counting, prompts = Counting(policy), make_prompts(policy.tokenizer, texts)
    sample = Sampler(response_length=4).sample(counting, prompts)
    assert counting.decoded[:2] == [len(TEXTS), len(texts)]
    alone = Sampler(response_length=4, batch_size=1).sample(policy, prompts)
    assert torch.equal(sample.tokens, alone.tokens)
    torch.testing.assert_close(sample.logprobs, alone.logprobs)


def test_prompts_that_differ_in_length_only_are_told_apart(policy):
    """What stands in the padding of the second is the token that the first repeats."""
    prompts = blank(2)
    prompts.tokens, prompts.mask = torch.full((2, 2), 7), torch.tensor([[True, True], [False, True]])
    counting = Counting(policy)
    Sampler(response_length=1).sample(counting, prompts)
    assert counting.decoded == [2]


# Arguments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"response_length": 0}, r"sampler\.response_length=0 must be at least 1"),
        ({"temperature": 0.0}, r"sampler\.temperature must be a finite number above 0, got 0\.0"),
        ({"temperature": math.nan}, r"sampler\.temperature must be a finite number above 0, got nan"),
        ({"stop_strings": "END"}, r"sampler\.stop_strings='END' is a text, not a list: give \['END'\]"),
        ({"stop_strings": ["\n", ""]}, r"sampler\.stop_strings=\['\\n', ''\] has an empty one.*leave it out"),
        ({"top_k": -1}, r"sampler\.top_k=-1"),
        ({"top_p": 0.0}, r"sampler\.top_p=0\.0"),
        ({"top_p": 1.5}, r"sampler\.top_p=1\.5"),
        ({"batch_size": 0}, r"sampler\.batch_size=0"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_arguments_out_of_range_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**option)


@pytest.mark.parametrize("option", [{"top_k": 5}, {"top_p": 0.9}])
def test_truncated_sampling_is_refused_in_training_only(option):
    sampler = Sampler(**option)
    with pytest.raises(ValueError, match="truncated sampling draws from another distribution"):
        sampler.refuse_truncation()
    Sampler().refuse_truncation()


@pytest.mark.parametrize(
    ("option", "kept"), [({"top_k": 2}, {21, 22}), ({"top_p": 0.6}, {21, 22}), ({"top_k": 1}, {22})]
)
def test_truncation_keeps_the_likeliest(option, kept):
    """Probabilities 0.1, 0.3, 0.4, 0.2."""
    logits = torch.full((320,), -math.inf)
    logits[20:24] = torch.tensor([0.1, 0.3, 0.4, 0.2]).log()
    sample = Sampler(response_length=4, **option).sample(Constant(logits), blank(50))
    assert set(sample.tokens.flatten().tolist()) == kept

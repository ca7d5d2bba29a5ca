"""Policies: what samples responses and is trained to sample better ones."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from klqlit.functional import linear_logprobs, token_logprobs
from klqlit.models.cache import ReservedCache
from klqlit.models.decoding_check import check_decoding
from klqlit.models.determinism import make_deterministic
from klqlit.models.fixed_step import FixedStep, fixed_step
from klqlit.models.loading import (
    check_vocabulary,
    embedding_rows,
    export,
    independent_positions,
    load_causal_lm,
    load_tokenizer,
    say_other_ends,
)
from klqlit.models.positions import padding_inputs
from klqlit.models.recomputation import computed_once, parts_computed_again
from klqlit.models.states import few_logits, has_plain_head, spread, token_logits, token_states
from klqlit.tokenising import encode_prompts
from klqlit.types import Sequences


@dataclass(kw_only=True, slots=True)
class PolicyOutput:
    """A policy's view of given responses.

    Attributes:
        logprobs: log pi(a_t|s_t), nats.
        features: the trunk's last hidden state at s_t, for a critic that reads it; None where none was asked for.
    """

    logprobs: Float[Tensor, "B T"]
    features: Float[Tensor, "B T H"] | None


class Policy(nn.Module, ABC):
    """A distribution over responses: pi(a|s) = softmax(logits / temperature)."""

    tokenizer: PreTrainedTokenizerBase

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids the policy can read."""

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """Longest prompt and response together, in tokens; None where there is no limit."""

    @abstractmethod
    def forward(self, sequences: Sequences, *, temperature: float, features: bool = False) -> PolicyOutput:
        """Log-probabilities of the response tokens."""

    @abstractmethod
    def decode(self, tokens: Int[Tensor, "B n"], mask: Bool[Tensor, "B S"], cache: Any) -> tuple[Tensor, Any]:
        """Logits ``[B, V]`` of the token that follows.

        Args:
            tokens: the tokens not yet in the cache: the prompts at first, then one token a row.
            mask: True at real tokens, over everything read so far and `tokens`.
            cache: None at first, then what the last call returned.
        """

    @abstractmethod
    def select(self, cache: Any, rows: Int[Tensor, " N"]) -> Any:
        """The cache of the given rows; a row may be left out, or stand there several times."""

    @abstractmethod
    def save(self, directory: str, card: str, *, temperature: float) -> None:
        """Write the policy as a directory that can be loaded again by path."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt.

        Raises:
            ValueError: a prompt has no token, or one outside the policy's vocabulary.
        """
        rows = encode_prompts(self.tokenizer, texts)
        for text, row in zip(texts, rows, strict=True):
            if max(row) >= self.vocab_size:
                raise ValueError(
                    f"the prompt {text[:60]!r} holds token id {max(row)}, but the policy's vocabulary ends at "
                    f"{self.vocab_size - 1}: the tokenizer does not belong to this model"
                )
        return rows

    def frozen_copy(self) -> "Policy":
        """A copy that is never trained."""
        return copy.deepcopy(self).requires_grad_(False)


@final
class LanguagePolicy(Policy):
    """Any Hugging Face causal language model.

    Dropout is off, so that one set of weights is one policy. The LM head is computed at response positions only.
    The model's own generation settings (top-k, temperature) are not read: the `Sampler` decides.

    Args:
        path: local directory or hub name.
        dtype: of the weights: "float32" to be trained; else also "bfloat16", "float16", or "auto" for the
            checkpoint's own.
        attn_implementation: as in transformers; None for its default.
        trust_remote_code: run code that comes with the model. Off unless you trust its author.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: the model cannot be loaded, has no EOS token, or cannot compute logits at chosen positions or
            decode token by token.
    """

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "float32",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        self.path = path
        self.tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code, revision=revision)
        self.model = load_causal_lm(
            path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            revision=revision,
        )
        check_vocabulary(self.tokenizer, self.model, path)
        head = self.model.get_output_embeddings()
        if head is None or "logits_to_keep" not in signature(self.model.forward).parameters:
            raise ValueError(
                f"policy.path={path!r}: {type(self.model).__name__} cannot compute logits at chosen positions "
                "(its forward has no `logits_to_keep`, or it has no LM head); choose a causal language model that can"
            )
        make_deterministic(self.model, path)
        self._head_alone = has_plain_head(self.model)
        check_decoding(self.decode, self.select, self.model, path)
        say_other_ends(self.model, self.tokenizer, path)

    @property
    def plain_head(self) -> bool:
        """Whether the LM head alone makes the logits of the trunk's last hidden state, so that log-probabilities can be
        had without holding all logits. Adapters take its place, and then the model itself makes them."""
        return self._head_alone and isinstance(self.model.get_output_embeddings(), nn.Linear)

    @property
    def vocab_size(self) -> int:
        return embedding_rows(self.model)

    @property
    def max_positions(self) -> int | None:
        return independent_positions(self.model.config)

    def forward(self, sequences: Sequences, *, temperature: float, features: bool = False) -> PolicyOutput:
        if self.plain_head:
            return self.read_out(self.states(sequences), sequences, temperature=temperature, features=features)
        logits, states = token_logits(self.model, sequences)
        tokens = sequences.tokens[sequences.places]
        logprobs = token_logprobs(logits[None].float(), tokens[None], temperature=temperature)[0]
        return _output(logprobs, states, sequences, features)

    def states(self, sequences: Sequences) -> Float[Tensor, "N H"]:
        """The trunk's last hidden state before each real response token: the first half of `forward`."""
        return token_states(self.model.base_model, sequences)

    def read_out(
        self, states: Float[Tensor, "N H"], sequences: Sequences, *, temperature: float, features: bool = False
    ) -> PolicyOutput:
        """The LM head on what `states` gave: the second half of `forward`, where the head is plain."""
        head, tokens = self.model.get_output_embeddings(), sequences.tokens[sequences.places]
        logprobs = linear_logprobs(states, head.weight, tokens, bias=head.bias, temperature=temperature)
        return _output(logprobs, states, sequences, features)

    def decode(self, tokens: Int[Tensor, "B n"], mask: Bool[Tensor, "B S"], cache: Any) -> tuple[Tensor, Any]:
        state = cache or _Decoding(ReservedCache(self.model.config), parts_computed_again(self.model))
        # Each token finds another length, for which compiled blocks would be compiled anew.
        with torch.compiler.set_stance("force_eager"), computed_once(state.again):
            if step := self._fixed_step(state, tokens, mask):
                return step(tokens, mask).clone(), state
            inputs = padding_inputs(self._reader, mask, tokens.shape[1])
            logits = self._next_logits(input_ids=tokens, past_key_values=state.key_values, use_cache=True, **inputs)
        return logits, state

    @property
    def _reader(self) -> PreTrainedModel:
        """What reads tokens in `decode`."""
        return self.model.base_model if self.plain_head else self.model  # type: ignore[return-value]

    def _next_logits(self, **inputs: Any) -> Float[Tensor, "B V"]:
        if self.plain_head:
            hidden = self._reader(**inputs).last_hidden_state[:, -1]
            return few_logits(self.model.get_output_embeddings(), hidden).float()
        return self._reader(**inputs, logits_to_keep=1).logits[:, -1].float()

    def _fixed_step(self, state: "_Decoding", tokens: Tensor, mask: Tensor) -> FixedStep | None:
        """On a GPU, for one token a row."""
        if not tokens.is_cuda or tokens.shape[1] > 1 or torch.is_grad_enabled():
            return None
        if state.step is None or not state.step.has_room(mask):
            state.step = None  # before the next takes its room
            state.step = fixed_step(self._reader, self._next_logits, state.key_values, len(tokens))
        return state.step

    def select(self, cache: Any, rows: Int[Tensor, " N"]) -> Any:
        cache.step = None
        cache.key_values.reorder_cache(rows)
        return cache

    def save(self, directory: str, card: str, *, temperature: float) -> None:
        export(self.model, self.tokenizer, directory, card=card, temperature=temperature)


def _output(
    logprobs: Float[Tensor, " N"], states: Float[Tensor, "N H"], sequences: Sequences, features: bool
) -> PolicyOutput:
    return PolicyOutput(logprobs=spread(logprobs, sequences), features=spread(states, sequences) if features else None)


@dataclass(slots=True)
class _Decoding:
    """What `LanguagePolicy.decode` has read so far, and how it reads on."""

    key_values: ReservedCache
    again: list[nn.Module]
    step: FixedStep | None = None

"""The glossary: every record that passes between the parts, and the axes of its tensors.

Axes: B rollouts, P prompt positions (padded on the left), T response positions (padded on the right),
S = P + T, V vocabulary, H hidden size. Response index ``t`` runs over 0..T-1; entry ``t`` of any ``[B, T]``
tensor belongs to state ``s_t = (x, y_1..y_t)`` and action ``a_t = y_{t+1}``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class Prompts:
    """Prompts as text and as left-padded tokens, one row a rollout.

    Attributes:
        texts: the prompts as the policy sees them.
        tokens: token ids; what stands where ``mask`` is False is never read.
        mask: True at real tokens.
        seeds: one random seed a row. A row's completion depends on its seed and on nothing else of the batch,
            so that the split over ranks and chunks cannot change it.
        columns: further columns of the rows, for reward functions and sample tables.
    """

    texts: list[str]
    tokens: Int[Tensor, "B P"]
    mask: Bool[Tensor, "B P"]
    seeds: list[int]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(kw_only=True)
class Sequences:
    """Prompts with their responses as tokens: what a model is evaluated on.

    Attributes:
        prompt_tokens: token ids, padded on the left.
        prompt_mask: True from some column of each row on.
        tokens: token ids, padded on the right.
        mask: True up to some column of each row. Neither mask may change once `lengths` has been read.
    """

    prompt_tokens: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    tokens: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @cached_property
    def lengths(self) -> "Lengths":
        """How long the rows are: found once, since a GPU must be waited for; parts of the rows need not ask again."""
        prompts, responses = torch.stack([self.prompt_mask.sum(dim=1), self.mask.sum(dim=1)]).cpu()
        return Lengths(prompts, responses)

    @cached_property
    def places(self) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
        """Row and step of each real response token, in the order of the mask."""
        lengths = self.lengths.responses
        rows = torch.arange(len(self)).repeat_interleave(lengths)
        steps = torch.arange(len(rows)) - starts(lengths)[rows]
        return self.beside(rows), self.beside(steps)

    @property
    def input_ids(self) -> Int[Tensor, "B S"]:
        return torch.cat([self.prompt_tokens, self.tokens], dim=1)

    @property
    def attention_mask(self) -> Bool[Tensor, "B S"]:
        return torch.cat([self.prompt_mask, self.mask], dim=1)

    def aligned(self) -> "AlignedRows":
        """Each row's prompt and response from column 0 on, but for the last token, which predicts nothing."""
        sources, columns = self._alignment
        return AlignedRows(tokens=self.input_ids.gather(1, sources), rows=self.places[0], columns=columns)

    @cached_property
    def _alignment(self) -> tuple[Int[Tensor, "B L"], Int[Tensor, " N"]]:
        """Where aligned tokens stand in `input_ids`, and the columns before response tokens."""
        lengths, room = self.beside(self.lengths.prompts), self.prompt_tokens.shape[1]
        width = int(self.lengths.total.max()) - 1
        sources = torch.arange(width, device=lengths.device) + (room - lengths)[:, None]
        rows, steps = self.places
        return sources.clamp(max=room + self.tokens.shape[1] - 1), lengths[rows] - 1 + steps

    def select(self, rows: Int[Tensor, " N"]) -> "Sequences":
        """The given rows, without the columns that are padding in all of them.

        Args:
            rows: on the CPU.
        """
        lengths = Lengths(self.lengths.prompts[rows], self.lengths.responses[rows])
        left, right = self.prompt_tokens.shape[1] - int(lengths.prompts.max()), int(lengths.responses.max())
        rows = self.beside(rows)
        chosen = Sequences(
            prompt_tokens=self.prompt_tokens[rows, left:],
            prompt_mask=self.prompt_mask[rows, left:],
            tokens=self.tokens[rows, :right],
            mask=self.mask[rows, :right],
        )
        chosen.lengths = lengths
        return chosen

    def beside(self, numbers: Tensor) -> Tensor:
        """Numbers of the CPU on the device of the tokens; the CPU does not wait until a CUDA GPU has them."""
        device = self.mask.device
        return numbers.to(device, non_blocking=device.type == "cuda")


@final
class Lengths(NamedTuple):
    """Real tokens of each row, on the CPU.

    Attributes:
        prompts: of the prompt.
        responses: of the response.
    """

    prompts: Int[Tensor, " B"]
    responses: Int[Tensor, " B"]

    @property
    def total(self) -> Int[Tensor, " B"]:
        """Prompt and response together."""
        return self.prompts + self.responses


def starts(lengths: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Where each row begins when all stand in one line."""
    return lengths.cumsum(dim=0) - lengths


@dataclass(kw_only=True, slots=True)
class AlignedRows:
    """Sequences without padding on the left: a causal model reads them without a mask and counts positions by itself.

    What stands behind a row's end is read by nothing before it.

    Attributes:
        tokens: token ids, valid ones behind the end of a row too.
        rows: row of each response token, in the order of the sequences' mask; N real response tokens.
        columns: column of the state before it, whose features predict it.
    """

    tokens: Int[Tensor, "B L"]
    rows: Int[Tensor, " N"]
    columns: Int[Tensor, " N"]


@dataclass(kw_only=True, slots=True)
class Sample:
    """What the sampler returns: responses, and the log-probability of each token as it was drawn.

    Attributes:
        tokens: response tokens.
        mask: True up to and including the token that ended the response.
        logprobs: log-probability of each token under the sampling policy, nats; 0 where masked.
        entropy: entropy of the sampling distribution at each position, nats; 0 where masked.
        ended: True where EOS or a stop string ended the response, False where the length limit did.
    """

    tokens: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    ended: Bool[Tensor, " B"]


@dataclass(kw_only=True, slots=True)
class Completions:
    """Prompts and completions as text and as tokens: what a reward scores.

    Attributes:
        prompts: prompt texts.
        completions: completion texts, without EOS and without the stop string that ended them.
        sequences: the same as tokens (here EOS and stop string are included: the policy chose them).
        ended: True where EOS or a stop string ended the response, False where the length limit did.
        columns: further columns of the rows.
    """

    prompts: list[str]
    completions: list[str]
    sequences: Sequences
    ended: Bool[Tensor, " B"]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.prompts)

    def columns_of(self, row: int) -> dict[str, Any]:
        """The further columns of one row."""
        return {name: values[row] for name, values in self.columns.items()}


@dataclass(kw_only=True, slots=True)
class Rollout:
    """Scored completions of one phase, all of them drawn by one version of the weights.

    Attributes:
        completions: prompts and completions.
        logprobs: log-probabilities under the policy that sampled, nats.
        ref_logprobs: log-probabilities under the reference policy, nats.
        values: the critic's V(s_t).
        entropy: entropy of the sampling distribution, nats.
        rewards: r_{t+1}: the shaped score on the last real token, 0 elsewhere, or a reward per token.
        scores: the reward as it came, before shaping (the sum over tokens where it is given per token).
        version: number of optimizer steps the weights had seen when they sampled.
    """

    completions: Completions
    logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    rewards: Float[Tensor, "B T"]
    scores: Float[Tensor, " B"]
    version: int

    @property
    def sequences(self) -> Sequences:
        return self.completions.sequences

    @property
    def mask(self) -> Bool[Tensor, "B T"]:
        return self.completions.sequences.mask


@dataclass(kw_only=True, slots=True)
class Experience:
    """Responses with their targets: what a loss reads. Tensors only, so that a checkpoint can hold it.

    Attributes:
        sequences: prompts and responses as tokens.
        logprobs: log-probabilities under the policy that sampled ("old"), nats.
        ref_logprobs: log-probabilities under the reference policy, nats.
        values: the critic's values when the rollout was sampled ("old").
        advantages: what the algorithm's `targets` made of them.
        returns: the regression target, likewise.
    """

    sequences: Sequences
    logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"]

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def mask(self) -> Bool[Tensor, "B T"]:
        return self.sequences.mask

    def select(self, rows: Int[Tensor, " N"]) -> "Experience":
        """The given rows, without the columns that are padding in all of them.

        Args:
            rows: on the CPU.
        """
        sequences = self.sequences.select(rows)
        rows, width = self.sequences.beside(rows), sequences.tokens.shape[1]
        per_token = [field.name for field in fields(self) if field.name != "sequences"]
        return replace(self, sequences=sequences, **{name: getattr(self, name)[rows, :width] for name in per_token})


@dataclass(kw_only=True, slots=True)
class Minibatch:
    """One micro-batch of an optimizer step.

    Attributes:
        experience: the rows.
        rows: which rows of the phase they are.
        tokens: response tokens of the whole optimizer step, over all micro-batches and ranks. Every per-token
            loss is divided by it, so that the gradient does not depend on how the step is split.
        version: version of the weights that sampled the rows.
        step: optimizer steps taken since; ``version + step`` must equal the trainer's global step.
    """

    experience: Experience
    rows: Int[Tensor, " B"]
    tokens: int
    version: int
    step: int


@runtime_checkable
class Collector(Protocol):
    """What the online data module asks of the algorithm."""

    @property
    def prompt_limit(self) -> int | None:
        """Longest prompt, in tokens, that leaves room for a response; None where there is no limit."""

    def check_phase(self, rollouts: int) -> None:
        """Raise ValueError where it cannot learn from so many rollouts a phase."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt."""

    def collect(self, prompts: Prompts) -> Experience:
        """Sample, score and attach targets. `prompts` are this rank's; the result holds every rank's rows."""

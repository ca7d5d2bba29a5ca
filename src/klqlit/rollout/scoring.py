"""What models and rewards say of completions, a chunk of rows at a time."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from klqlit.models.critic import Critic
from klqlit.models.policy import Policy
from klqlit.types import Completions, Sequences

PerToken = Callable[[Sequences], Float[Tensor, "B T"]]


def by_chunks(per_token: PerToken, sequences: Sequences, size: int) -> Float[Tensor, "B T"]:
    """`per_token` of all rows, `size` rows of similar length at a time without their padding; 0 where masked."""
    result = torch.zeros(sequences.tokens.shape, dtype=torch.float32, device=sequences.tokens.device)
    for rows in sequences.attention_mask.sum(dim=1).argsort(stable=True).split(size):
        part = sequences.select(rows)
        width = part.tokens.shape[1]
        result[rows, :width] = torch.where(part.mask, per_token(part).float(), 0.0)
    return result


def reference_logprobs(reference: Policy, sequences: Sequences, *, temperature: float, size: int) -> Tensor:
    """Log-probabilities of the response tokens under the reference, ``[B, T]``."""
    return by_chunks(lambda part: reference(part, temperature=temperature).logprobs, sequences, size)


def critic_values(critic: Critic, policy: Policy, sequences: Sequences, *, temperature: float, size: int) -> Tensor:
    """V(s_t) at every response position, ``[B, T]``."""

    def values(part: Sequences) -> Tensor:
        features = policy(part, temperature=temperature, features=True).features if critic.reads_features else None
        return critic(part, features)

    return by_chunks(values, sequences, size)


def checked_scores(
    reward: Callable[[Completions], Tensor], completions: Completions, name: str = "reward"
) -> Float[Tensor, " B"] | Float[Tensor, "B T"]:
    """The reward's scores.

    Raises:
        ValueError: a score is not finite, or their shape fits neither completions nor tokens.
    """
    scores = reward(completions)
    mask = completions.sequences.mask
    if scores.shape not in (mask.shape, mask.shape[:1]):
        raise ValueError(
            f"{name} returned scores of shape {tuple(scores.shape)} for {mask.shape[0]} completions of "
            f"{mask.shape[1]} positions; return one a completion or one a position"
        )
    read = torch.where(mask, scores, 0.0) if scores.ndim == 2 else scores[:, None]
    bad = (~read.isfinite()).any(dim=1).nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"{name} gave a score that is not finite to {len(bad)} of {len(completions)} completions. The first: "
            f"prompt {completions.prompts[row][-200:]!r}, completion {completions.completions[row][:200]!r}"
        )
    return scores.float()

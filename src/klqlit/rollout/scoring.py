"""What models and rewards say of completions, a chunk of rows at a time."""

import math
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from klqlit.models.critic import Critic
from klqlit.models.policy import Policy
from klqlit.ranks import everywhere
from klqlit.types import Completions, Sequences


@final
class BadScores(ValueError):
    """A reward gave scores that are not finite.

    Args:
        message: for the user.
        report: what was scored, as plain data.
    """

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self.report = report


PerToken = Callable[[Sequences], Float[Tensor, "B T"]]


def by_chunks(per_token: PerToken, sequences: Sequences, size: int) -> Float[Tensor, "B T"]:
    """`per_token` of all rows, `size` rows of similar length at a time without their padding; 0 where masked."""
    result = torch.zeros(sequences.tokens.shape, dtype=torch.float32, device=sequences.tokens.device)
    for rows in sequences.lengths.total.argsort(stable=True).split(size):
        part = sequences.select(rows)
        width = part.tokens.shape[1]
        result[sequences.beside(rows), :width] = torch.where(part.mask, per_token(part).float(), 0.0)
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
        BadScores: a score is not finite.
        ValueError: their shape fits neither completions nor tokens.
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
        raise BadScores(
            f"{name} gave a score that is not finite to {len(bad)} of {len(completions)} completions. The first: "
            f"prompt {completions.prompts[row][-200:]!r}, completion {completions.completions[row][:200]!r}",
            _described(completions, read, name),
        )
    return scores.float()


def agreed_scores(
    reward: Callable[[Completions], Tensor], completions: Completions, name: str = "reward"
) -> Float[Tensor, " B"] | Float[Tensor, "B T"]:
    """`checked_scores` of this rank's completions. All ranks must call it, and stop together where one must.

    Raises:
        BadScores: a score is not finite, on this rank or another; the report holds the rows of all of them.
        ValueError: as `checked_scores`.
    """
    bad: tuple[str, dict[str, Any]] | None = None
    try:
        scores = checked_scores(reward, completions, name)
    except BadScores as error:
        bad = str(error), error.report
    found = [(rank, *problem) for rank, problem in enumerate(everywhere(bad)) if problem is not None]
    if found:
        rows = [{"rank": rank} | row for rank, _, report in found for row in report["rows"]]
        raise BadScores(found[0][1], found[0][2] | {"rows": rows})
    return scores


def _described(completions: Completions, scores: Float[Tensor, "B N"], name: str) -> dict[str, Any]:
    """All rows that were scored, those at fault first."""
    totals = scores.sum(dim=1).tolist()
    rows = [
        {
            "score": totals[i],
            "tokens": int(completions.sequences.mask[i].sum()),
            "ended": bool(completions.ended[i]),
            "prompt": completions.prompts[i],
            "completion": completions.completions[i],
        }
        for i in sorted(range(len(completions)), key=lambda i: math.isfinite(totals[i]))
    ]
    return {"what": f"a score of the {name}", "rows": rows}

"""The rollouts of all ranks, on every rank.

Rollouts are small (tokens and a few numbers each), so one exchange a phase gives every rank the whole phase. Targets,
whitening, metrics and token counts are then those of the global batch, minibatches are drawn from all rows, and a
checkpoint of one rank holds the phase of all, whatever the number of ranks it is resumed with.
"""

import torch
from torch import Tensor

from klqlit.ranks import everywhere
from klqlit.types import Completions, Rollout, Sequences


def gather(rollout: Rollout) -> Rollout:
    """Every rank's rows in rank order, on the CPU."""
    rollout = to_cpu(rollout)
    parts = everywhere(rollout)
    return rollout if len(parts) == 1 else concatenate(parts)


def concatenate(parts: list[Rollout]) -> Rollout:
    """Rows of several rollouts of one version as one."""
    assert len({part.version for part in parts}) == 1, "rollouts of several versions cannot be mixed"
    width = max(part.sequences.prompt_tokens.shape[1] for part in parts)
    completions = Completions(
        prompts=[text for part in parts for text in part.completions.prompts],
        completions=[text for part in parts for text in part.completions.completions],
        sequences=Sequences(
            prompt_tokens=torch.cat([_pad_left(part.sequences.prompt_tokens, width) for part in parts]),
            prompt_mask=torch.cat([_pad_left(part.sequences.prompt_mask, width) for part in parts]),
            tokens=torch.cat([part.sequences.tokens for part in parts]),
            mask=torch.cat([part.sequences.mask for part in parts]),
        ),
        ended=torch.cat([part.completions.ended for part in parts]),
        columns={
            name: [value for part in parts for value in part.completions.columns[name]]
            for name in parts[0].completions.columns
        },
    )
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
    return Rollout(completions=completions, version=parts[0].version, **tensors)


def to_cpu(rollout: Rollout) -> Rollout:
    """The rollout with its tensors in main memory."""
    sequences, completions = rollout.sequences, rollout.completions
    return Rollout(
        completions=Completions(
            prompts=completions.prompts,
            completions=completions.completions,
            sequences=Sequences(
                prompt_tokens=sequences.prompt_tokens.cpu(),
                prompt_mask=sequences.prompt_mask.cpu(),
                tokens=sequences.tokens.cpu(),
                mask=sequences.mask.cpu(),
            ),
            ended=completions.ended.cpu(),
            columns=completions.columns,
        ),
        version=rollout.version,
        **{name: getattr(rollout, name).cpu() for name in _TENSORS},
    )


_TENSORS = ("logprobs", "ref_logprobs", "values", "entropy", "rewards", "scores")


def _pad_left(x: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x, (width - x.shape[1], 0))

"""What the critic knows: its predictions beside what came of them, at each validation."""

from pathlib import Path
from typing import Any, final

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from klqlit.algorithms.base import RLHFModule
from klqlit.algorithms.comparison import Comparison
from klqlit.callbacks.fast_dev_run import is_fast_dev_run
from klqlit.functional import q_values
from klqlit.loggers import StepRows
from klqlit.rollout.gathering import concatenate, gather, to_cpu
from klqlit.types import Experience, Rollout


@final
class CriticRecord(L.Callback):
    r"""Writes ``critic.jsonl`` and ``tokens.jsonl`` into the run's folder.

    ``critic.jsonl`` holds a line a validation: how V(s_t) and Q(s_t, a_t) compare with what was realised after them, on
    the response tokens of all held-out prompts and all ranks. V should predict
    :math:`G_t = \sum_{k \ge t} ( r_{k+1} - \tau \ell_k )` with the shaped reward and
    :math:`\ell = \log(\pi/\pi_b)`, and Q the same without the penalty on its own action, :math:`G_t + \tau \ell_t`.

    ``tokens.jsonl`` holds a line for each of the first prompts: all of it token by token. Prompts are the first rank's.

    The validation's own samples, values and scores are used; no model runs again.

    Args:
        bins: calibration bins, with about equally many tokens in each.
        rows: prompts whose tokens are kept, always the same ones.

    Raises:
        ValueError: `bins` or `rows` is not positive.
    """

    def __init__(self, bins: int = 10, rows: int = 4) -> None:
        for name, value in (("bins", bins), ("rows", rows)):
            if value < 1:
                raise ValueError(f"CriticRecord {name}={value} must be at least 1")
        self.bins = bins
        self.rows = rows
        self._parts: list[Rollout] = []
        self._files: dict[str, StepRows] = {}

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._parts = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and isinstance(outputs, Comparison):
            self._parts.append(to_cpu(outputs.rollout))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._parts:
            return
        assert isinstance(pl_module, RLHFModule)
        rollout = gather(concatenate(self._parts))
        self._parts = []
        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            rollout, experience = pl_module.as_collected(rollout)
            returns = pl_module.realised_returns(rollout)
            tau = pl_module.kl_coefficient
            row = critic_row(rollout, returns, tau=tau, bins=self.bins)
            rows = token_rows(rollout, experience, returns, pl_module.tokenizer, tau=tau, count=self.rows)
            self._append(trainer, "critic.jsonl", [row])
            self._append(trainer, "tokens.jsonl", rows)

    def _append(self, trainer: L.Trainer, name: str, rows: list[dict[str, Any]]) -> None:
        if name not in self._files:
            self._files[name] = StepRows(Path(trainer.default_root_dir) / name)
        self._files[name].append(trainer.global_step, [{"epoch": trainer.current_epoch} | row for row in rows])


def critic_row(rollout: Rollout, returns: Float[Tensor, "B T"], *, tau: float, bins: int) -> dict[str, Any]:
    """Calibration of V against the realised returns, and of Q against those of the action, over all tokens."""
    mask = rollout.mask
    q = q_values(rollout.logprobs, rollout.ref_logprobs, rollout.values, tau=tau)
    after_action = returns + tau * (rollout.logprobs - rollout.ref_logprobs)
    return {
        "tokens": int(mask.sum()),
        "V": calibration(rollout.values[mask], returns[mask], bins=bins),
        "Q": calibration(q[mask], after_action[mask], bins=bins),
    }


def calibration(predicted: Float[Tensor, " N"], realised: Float[Tensor, " N"], *, bins: int) -> dict[str, Any]:
    """Mean prediction and mean outcome in bins of the prediction, and the explained variance.

    Edges are quantiles, so bins are equally full up to ties: equal predictions share a bin.

    Returns:
        ``explained_variance`` 1 - var(realised - predicted) / var(realised), None where nothing varies; and ``bins``
        in rising order, each with ``predicted``, ``realised`` and ``count``.
    """
    predicted, realised = predicted.double(), realised.double()
    edges = predicted.sort().values[[len(predicted) * i // bins for i in range(1, bins)]].unique()
    index = torch.bucketize(predicted, edges, right=True)
    parts = [(predicted[chosen], realised[chosen]) for chosen in (index == i for i in index.unique())]
    return {
        "explained_variance": explained_variance(predicted, realised),
        "bins": [{"predicted": float(p.mean()), "realised": float(r.mean()), "count": len(p)} for p, r in parts],
    }


def explained_variance(predicted: Float[Tensor, " N"], realised: Float[Tensor, " N"]) -> float | None:
    """1 - var(realised - predicted) / var(realised)."""
    total = realised.var(correction=0)
    return float(1 - (realised - predicted).var(correction=0) / total) if total > 0 else None


def token_rows(
    rollout: Rollout,
    experience: Experience,
    returns: Float[Tensor, "B T"],
    tokenizer: PreTrainedTokenizerBase,
    *,
    tau: float,
    count: int,
) -> list[dict[str, Any]]:
    """One dict a completion: its tokens as text, and for each of them what the algorithm saw."""
    logratio = rollout.logprobs - rollout.ref_logprobs
    columns = {
        "logratio": logratio,
        "value": rollout.values,
        "q": tau * logratio + rollout.values,
        "return": returns,
        "advantage": experience.advantages,
    }
    rows = []
    for i, prompt in enumerate(rollout.completions.prompts[:count]):
        mask = rollout.mask[i]
        numbers = {name: [float(f"{x:.6g}") for x in column[i][mask].tolist()] for name, column in columns.items()}
        row = {"prompt": prompt, "completion": rollout.completions.completions[i], "score": float(rollout.scores[i])}
        rows.append(row | {"tokens": pieces(tokenizer, rollout.sequences.tokens[i][mask].tolist())} | numbers)
    return rows


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text that each token adds; a character that takes several tokens is the last one's."""
    texts, shown = [], ""
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False))
        unfinished = text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids)
        texts.append("" if unfinished else text.removeprefix(shown))
        shown = shown if unfinished else text
    return texts

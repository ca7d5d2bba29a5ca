"""A reward as a judge: the higher score is better."""

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, final

import torch

from klqlit.functional.checks import check_not_negative
from klqlit.judges.base import Estimate, Judge, Judgment, Question
from klqlit.judges.describing import described
from klqlit.judges.local import chosen_device, higher, until_stopped
from klqlit.rewards.base import Reward
from klqlit.rewards.table import TableReward
from klqlit.rollout.scoring import checked_scores
from klqlit.types import Completions, Sequences


@final
class RewardJudge(Judge):
    """Compares the scores of a reward on texts: a reward model, a miniature's gold reward, a function of your own.

    Args:
        reward: scores prompts and completions as texts. One that reads the policy's own tokens, or scores each of
            them, cannot judge.
        margin: a tie is a difference of scores up to this.
        batch_size: questions at once.
        device: where the reward is moved when it is first asked; None for the GPU where there is one.

    Raises:
        ValueError: an argument is out of range, or the reward reads tokens.
    """

    def __init__(self, reward: Reward, *, margin: float = 0.0, batch_size: int = 64, device: str | None = None) -> None:
        check_not_negative("margin", margin, "choose 0 for ties of equal scores alone")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        if isinstance(reward, TableReward):
            raise ValueError("a TableReward scores tokens and cannot judge texts: give a reward that reads texts")
        self.margin = margin
        self.batch_size = batch_size
        self.device = chosen_device(device)
        self.reward = reward.eval()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The reward by its class, code, attributes and weights, since others may come to stand under its name."""
        return {"class": "RewardJudge", "reward": described(self.reward), "margin": self.margin}

    @property
    def sees_order(self) -> bool:
        return False

    def judge(
        self, questions: Sequence[Question], stopping: threading.Event | None = None
    ) -> Iterator[tuple[int, Judgment]]:
        """As in `Judge`.

        Raises:
            ValueError: the reward needs a column that the questions lack, or gives scores that are not finite.
        """
        # Not before: in a training on several devices, one rank asks, and the others need no memory for this.
        self.reward.to(self.device)
        for start in until_stopped(range(0, len(questions), self.batch_size), stopping):
            batch = questions[start : start + self.batch_size]
            scores = self._scores(batch)
            pairs = zip(scores[: len(batch)], scores[len(batch) :], strict=True)
            for index, (first, second) in enumerate(pairs, start):
                answer = f"scores {first:.6g} and {second:.6g}"
                yield index, Judgment(verdict=higher(first, second, self.margin), answer=answer)

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        """Each response is scored once. A reward may read with any tokenizer or none, so no tokens are counted."""
        return Estimate(requests=2 * len(questions), input_tokens=0, output_tokens=0, cost=None)

    @torch.no_grad()
    def _scores(self, batch: Sequence[Question]) -> list[float]:
        """Scores of all first responses, then of all second ones."""
        shared = set.intersection(*(set(question.columns) for question in batch))
        none = torch.empty(2 * len(batch), 0, dtype=torch.long, device=self.device)
        ended = [question.first_ended for question in batch] + [question.second_ended for question in batch]
        completions = Completions(
            prompts=[question.prompt for question in batch] * 2,
            completions=[question.first for question in batch] + [question.second for question in batch],
            sequences=Sequences(prompt_tokens=none, prompt_mask=none.bool(), tokens=none, mask=none.bool()),
            ended=torch.tensor(ended, device=self.device),
            columns={name: [question.columns[name] for question in batch] * 2 for name in sorted(shared)},
        )
        scores = checked_scores(self.reward, completions, "the judging reward")
        if scores.ndim == 2:
            raise ValueError(f"{type(self.reward).__name__} scores tokens and cannot judge texts: give one that does")
        return scores.tolist()

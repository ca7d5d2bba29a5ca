r"""A local language model as a judge, by the likelihood of the two verdicts.

.. math:: p = \frac{\pi(\text{A} \mid x)}{\pi(\text{A} \mid x) + \pi(\text{B} \mid x)}

where :math:`x` is the filled template, closed by ``Verdict:``.
"""

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from klqlit.judges.base import Estimate, Judge, Judgment, Question
from klqlit.judges.local import chosen_device, higher, tokenizer_digest, until_stopped, weights_digest
from klqlit.judges.templates import Template
from klqlit.models.language_model import LanguageModel, model_inputs
from klqlit.models.loading import max_positions
from klqlit.tokenising import encode_prompts
from klqlit.types import Sequences

ANSWERS = ("Verdict: A", "Verdict: B")

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True, frozen=True)
class _Encoded:
    """A question as tokens: what both answers begin with, and the rest of each."""

    index: int
    prefix: list[int]
    endings: tuple[list[int], list[int]]

    @property
    def rows(self) -> list[tuple[int, ...]]:
        """What the model reads to score each ending: its last token is scored, not read."""
        return [(*self.prefix, *ending[:-1]) for ending in self.endings]

    def __len__(self) -> int:
        return max(map(len, self.rows))


@final
class LikelihoodJudge(Judge):
    """Compares how likely a local Hugging Face model finds ``Verdict: A`` and ``Verdict: B``. No network.

    The template goes through the tokenizer's chat template where it has one. The model gives no reasons before its
    verdict, and a tie is no answer of its own: it is a probability of A within `tie_margin` of one half.

    A question with more tokens than the model has positions is unreadable; nothing is cut. Special tokens that are
    spelt out in a prompt or a response get a space in their name, so that no response can end its turn.

    Args:
        path: local directory or hub name.
        template: "summary", "helpful" or "harmless", or the path of an edited copy.
        tie_margin: from 0 to below 0.5; 0 leaves a tie to equal probabilities.
        dtype: of the weights. "bfloat16" saves memory, and its probabilities depend a little on the batch.
        batch_size: questions at once.
        device: where the model is moved when it is first asked; None for the GPU where there is one.
        trust_remote_code: run code that comes with the model. Off unless you trust its author.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: an argument is out of range, or the template or the model cannot be read.
    """

    def __init__(
        self,
        path: str,
        *,
        template: str = "summary",
        tie_margin: float = 0.0,
        dtype: str = "float32",
        batch_size: int = 8,
        device: str | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        if not 0 <= tie_margin < 0.5:
            raise ValueError(f"tie_margin={tie_margin} must be at least 0 and less than 0.5: it is a probability's")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.template = Template(template)
        self.tie_margin = tie_margin
        self.batch_size = batch_size
        self.path = path
        language_model = LanguageModel(path, dtype=dtype, trust_remote_code=trust_remote_code, revision=revision)
        self.tokenizer = language_model.tokenizer
        self._special = sorted(str(t) for t in self.tokenizer.added_tokens_decoder.values() if t.special)
        self.device = chosen_device(device)
        self.model = language_model.model.eval().requires_grad_(False)
        if self._tokens("", ANSWERS[0]) == self._tokens("", ANSWERS[1]):
            raise ValueError(f"the tokenizer of {path!r} has the same tokens for 'A' and for 'B': take another model")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What may change a verdict; the model by its weights, since a training may put others under its name."""
        return {
            "class": "LikelihoodJudge",
            "model": self.path,
            "weights": weights_digest(self.model),
            "tokenizer": tokenizer_digest(self.tokenizer),
            "template": self.template.name,
            "template_hash": self.template.hash,
            "tie_margin": self.tie_margin,
        }

    @property
    def sees_order(self) -> bool:
        return True

    def judge(
        self, questions: Sequence[Question], stopping: threading.Event | None = None
    ) -> Iterator[tuple[int, Judgment]]:
        # Not before: in a training on several devices, one rank asks, and the others need no memory for this.
        self.model.to(self.device)
        encoded = [self._encode(index, question) for index, question in enumerate(questions)]
        limit = max_positions(self.model.config)
        too_long = [item for item in encoded if limit is not None and len(item) > limit]
        if too_long:
            _log.warning(
                "%d of %d questions are unreadable: the longest has %d tokens and %r has positions for %s",
                *(len(too_long), len(encoded), max(map(len, too_long)), self.path, limit),
            )
        for item in too_long:
            answer = f"[{len(item)} tokens, and the model has positions for {limit}]"
            yield item.index, Judgment(verdict="unreadable", answer=answer)
        # Similar lengths together, for little padding, and the longest first: if memory is short, it shows at once.
        rest = sorted((item for item in encoded if limit is None or len(item) <= limit), key=len, reverse=True)
        batches = [rest[i : i + self.batch_size] for i in range(0, len(rest), self.batch_size)]
        for batch in until_stopped(batches, stopping):
            for item, probability in zip(batch, self._probabilities(batch), strict=True):
                yield item.index, self._judgment(probability)

    def _judgment(self, probability: float) -> Judgment:
        # In half precision the states of some models grow beyond all numbers: that is no verdict for either side.
        readable = not math.isnan(probability)
        verdict = higher(probability, 1 - probability, 2 * self.tie_margin) if readable else "unreadable"
        return Judgment(verdict=verdict, answer=f"p(A) = {probability:.6f}")

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        read = sum(len(self._encode(0, question)) for question in questions)
        return Estimate(requests=len(questions), input_tokens=read, output_tokens=0, cost=None)

    def _encode(self, index: int, question: Question) -> _Encoded:
        plain = replace(
            question,
            prompt=self._plain(question.prompt),
            first=self._plain(question.first),
            second=self._plain(question.second),
        )
        text = self.template.fill(plain)
        first, second = (self._tokens(text, answer) for answer in ANSWERS)
        common = next(i for i, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
        return _Encoded(index=index, prefix=first[:common], endings=(first[common:], second[common:]))

    def _plain(self, text: str) -> str:
        """The text with a space in the name of each special token: none of its words ends or opens a turn."""
        for token in self._special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _tokens(self, text: str, answer: str) -> list[int]:
        if self.tokenizer.chat_template is None:
            return encode_prompts(self.tokenizer, [f"{text.rstrip()}\n\n{answer}"])[0]
        messages = [{"role": "user", "content": text}]
        opened = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert isinstance(opened, str)
        # The chat template has written the special tokens itself.
        return self.tokenizer(opened + answer, add_special_tokens=False, verbose=False)["input_ids"]

    def _probabilities(self, batch: Sequence[_Encoded]) -> list[float]:
        """p for each question. Where A and B are a token each, both are scored in one row."""
        rows = list(dict.fromkeys(row for item in batch for row in item.rows))
        place = {row: i for i, row in enumerate(rows)}
        kept = max(len(ending) for item in batch for ending in item.endings)
        logprobs = self._last_logprobs(rows, kept)
        odds = [
            self._total(logprobs[place[one]], item.endings[0]) - self._total(logprobs[place[other]], item.endings[1])
            for item in batch
            for one, other in [item.rows]
        ]
        return torch.stack(odds).double().sigmoid().tolist()

    @torch.no_grad()
    def _last_logprobs(self, rows: Sequence[Sequence[int]], kept: int) -> Float[Tensor, "B K V"]:
        """Log-probabilities of what follows each of the last `kept` tokens. Rows are padded on the left."""
        width, device = max(map(len, rows)), self.model.device
        tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(width, device=device)[None] >= width - lengths[:, None]
        sequences = Sequences(prompt_tokens=tokens, prompt_mask=mask, tokens=tokens[:, :0], mask=mask[:, :0])
        logits = self.model(**model_inputs(self.model, sequences), logits_to_keep=kept).logits
        return logits.float().log_softmax(dim=-1)

    @staticmethod
    def _total(logprobs: Float[Tensor, "K V"], ending: Sequence[int]) -> Float[Tensor, ""]:
        """Log-probability of an ending, whose last token the last entry scores."""
        return logprobs[-len(ending) :].gather(1, torch.tensor(ending, device=logprobs.device)[:, None]).sum()

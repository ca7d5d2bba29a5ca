"""Supervised fine-tuning: imitating completions."""

from typing import Any, final

import torch
from torch import Tensor, nn

from klqlit.data.supervised import LabelledSequences
from klqlit.finetuning.base import Decay, Finetuning
from klqlit.functional.logprobs import token_logprobs
from klqlit.functional.masking import masked_sum
from klqlit.metrics.means import Means
from klqlit.models.language_model import LanguageModel, completion_logits


@final
class SupervisedFinetuning(Finetuning):
    r"""Maximum likelihood of the completion tokens, EOS included; the prompt is read and not imitated.

    .. math:: L = -\frac{1}{N} \sum_{i} \sum_{t} \log \pi(y^i_{t+1} | x^i, y^i_1 .. y^i_t)

    in nats, with N the completion tokens of the whole optimizer step.

    Args:
        model: the model to start from.
        lr: learning rate.
        weight_decay: decoupled weight decay.
        warmup_steps: optimizer steps over which the learning rate rises from 0.
        decay: "cosine" takes the learning rate to 0 at the end of the run, "constant" leaves it.
    """

    def __init__(
        self,
        model: LanguageModel,
        lr: float = 3e-6,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay: Decay = "cosine",
    ) -> None:
        options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        super().__init__(model.model, model.tokenizer, model.path, decay=decay, **options)
        self.validation_metrics = Means()

    @property
    def kind(self) -> str:
        return "Supervised fine-tuned language model"

    @property
    def called(self) -> list[nn.Module]:
        return [self.model]

    def training_step(self, batch: LabelledSequences, batch_idx: int) -> Tensor:
        sequences = batch.sequences
        nll = -token_logprobs(completion_logits(self.model, sequences), sequences.tokens)
        self.training_metrics.update({"train/loss": nll}, sequences.mask)
        return self.step_share(masked_sum(nll, sequences.mask), batch.tokens)

    def validation_step(self, batch: LabelledSequences, batch_idx: int) -> None:
        sequences = batch.sequences
        logits = completion_logits(self.model, sequences)
        right = logits.argmax(dim=-1) == sequences.tokens
        nll = -token_logprobs(logits, sequences.tokens)
        self.validation_metrics.update({"loss": nll, "accuracy": right}, sequences.mask)

    def on_validation_epoch_end(self) -> None:
        self._log_measured("val")

    def test_step(self, batch: LabelledSequences, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_measured("test")

    def _log_measured(self, group: str) -> None:
        means = self.validation_metrics.compute()
        # As tensors: Lightning would round numbers to the precision of a half-precision run.
        loss, accuracy = (torch.tensor(means[name], dtype=torch.float32) for name in ("loss", "accuracy"))
        measured = {"loss": loss, "perplexity": loss.exp(), "accuracy": accuracy}
        self.log_dict({f"{group}/{name}": value for name, value in measured.items()}, prog_bar=True)
        self.validation_metrics.reset()

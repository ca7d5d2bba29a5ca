"""Reward modelling: learning a score from preferences."""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import CatMetric

from klqlit.data.supervised import PreferencePairs
from klqlit.finetuning.base import Decay, Finetuning
from klqlit.functional.preference import bradley_terry_loss, expected_calibration_error, preference_accuracy
from klqlit.models.language_model import LanguageModel
from klqlit.models.reward_model import grow_reward_model, sequence_scores


@final
class RewardModelling(Finetuning):
    r"""Maximum likelihood of the preferences under the Bradley-Terry model.

    .. math:: L = -\frac{1}{N} \sum_{i} \log \sigma(R(x^i, y^i_{chosen}) - R(x^i, y^i_{rejected}))

    in nats, with N the pairs of the whole optimizer step. R is a new scalar head on the model's trunk, read at the
    completion's last token.

    Args:
        model: the language model to start from, as a rule the fine-tuned one.
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
        super().__init__(*grow_reward_model(model), model.path, decay=decay, **options)
        # By default it would leave out what is not a number, and nobody would miss it.
        self.validation_margins = CatMetric(nan_strategy="disable")

    @property
    def kind(self) -> str:
        return "Reward model"

    @property
    def called(self) -> list[nn.Module]:
        return [self.model.base_model, self.model.get_submodule("score")]

    def training_step(self, batch: PreferencePairs, batch_idx: int) -> Tensor:
        chosen, rejected = sequence_scores(self.model, batch.chosen), sequence_scores(self.model, batch.rejected)
        losses = bradley_terry_loss(chosen, rejected)
        self.training_metrics.update({"train/loss": losses, "train/accuracy": preference_accuracy(chosen, rejected)})
        return self.step_share(losses.sum(), batch.pairs)

    def validation_step(self, batch: PreferencePairs, batch_idx: int) -> None:
        self.validation_margins.update(
            sequence_scores(self.model, batch.chosen) - sequence_scores(self.model, batch.rejected)
        )

    def on_validation_epoch_end(self) -> None:
        self._log_measured("val")

    def test_step(self, batch: PreferencePairs, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_measured("test")

    def _log_measured(self, group: str) -> None:
        # A single pair would come without an axis.
        margins = self.validation_margins.compute().reshape(-1)
        self.log_dict({f"{group}/{name}": value for name, value in measures(margins).items()}, prog_bar=True)
        self.validation_margins.reset()


def measures(margins: Float[Tensor, " N"]) -> dict[str, Float[Tensor, ""]]:
    """Loss (nats), accuracy, mean margin and calibration error of a set of pairs.

    Every pair is put as the model sees it: how sure it is of the completion it prefers, and whether that was the chosen
    one. A model that is right 80 % of the times it says 80 % has calibration error 0.

    Args:
        margins: R(x, y_chosen) - R(x, y_rejected) of each pair. Where one is not a number, no measure is.
    """
    if bool(margins.isnan().any()):
        return dict.fromkeys(("loss", "accuracy", "margin", "calibration_error"), margins.new_tensor(float("nan")))
    zero = torch.zeros_like(margins)
    right = preference_accuracy(margins, zero)
    return {
        "loss": bradley_terry_loss(margins, zero).mean(),
        "accuracy": right.mean(),
        "margin": margins.mean(),
        "calibration_error": expected_calibration_error(margins.abs().sigmoid(), right),
    }

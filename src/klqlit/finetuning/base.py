"""What the two supervised stages share."""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from klqlit.algorithms.checks import check_trained_dtypes
from klqlit.algorithms.divergence import ClipsByKnownNorm, Divergence, broken_parts, first_trouble, total_norm
from klqlit.algorithms.optimization import OwnSchedule, use_present_options
from klqlit.data.batching import shard
from klqlit.functional.checks import check_choice, check_not_negative, check_positive
from klqlit.metrics.means import Means
from klqlit.models.loading import export, max_positions
from klqlit.models.restoring import check_fits, check_vocabulary, vocabulary
from klqlit.ranks import everywhere
from klqlit.strategies.fully_sharded import shard_models
from klqlit.version import __version__

Decay = Literal["constant", "cosine"]


class Finetuning(ClipsByKnownNorm, ABC):
    """A Hugging Face model trained by AdamW on a loss that is a mean over an optimizer step.

    Args:
        model: what is trained, all of it.
        tokenizer: saved beside it.
        origin: where the weights came from, for the model card.
        lr: learning rate.
        weight_decay: decoupled weight decay.
        warmup_steps: optimizer steps over which the learning rate rises from 0.
        decay: "cosine" takes the learning rate to 0 at the end of the run, "constant" leaves it.

    Raises:
        ValueError: `lr` is not positive, another number is negative, or `decay` is none of these.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        origin: str,
        *,
        lr: float,
        weight_decay: float,
        warmup_steps: int,
        decay: Decay,
    ) -> None:
        super().__init__()
        check_positive("lr", lr, "the TL;DR reproduction's is 3e-6")
        check_not_negative("weight_decay", weight_decay, "choose 0 for none")
        check_not_negative("warmup_steps", float(warmup_steps), "choose 0 for none")
        check_choice("decay", decay, get_args(Decay))
        self.model = model
        self._tokenizer = tokenizer
        self._origin = origin
        self._lr, self._weight_decay = lr, weight_decay
        self._warmup_steps, self._decay = warmup_steps, decay
        self.training_metrics = Means()
        self._totals: list[Tensor] = []

    @property
    @abstractmethod
    def kind(self) -> str:
        """What comes out, for the title of the model card."""

    @property
    @abstractmethod
    def called(self) -> list[nn.Module]:
        """The modules that training calls: they hold all parameters, and a strategy that shards splits each of them."""

    def configure_model(self) -> None:
        shard_models(self, self.called)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the model."""
        return self._tokenizer

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the model can read, in tokens; None where nothing limits it."""
        return max_positions(self.model.config)

    def step_share(self, total: Tensor, count: int) -> Tensor:
        """This micro-batch's part of a mean over the whole optimizer step, in the form that Lightning must be given.

        Lightning divides the loss by the micro-batches of a step and averages gradients over ranks. Both are undone
        here, so that what remains is `total / count` summed over them.

        Args:
            total: sum of the losses of this micro-batch.
            count: terms of the whole step.
        """
        self._totals.append(total.detach())
        return total * (self.trainer.accumulate_grad_batches * shard(self.trainer)[1] / count)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        totals, self._totals = self._totals, []
        numbers = [("the loss", float(total)) for total in totals]
        self.gradient_norm = total_norm([p.grad for p in self.parameters() if p.grad is not None])
        numbers.append(("the gradient", self.gradient_norm))
        trouble = first_trouble(numbers)
        # On all ranks at once: one that stopped alone would leave the others waiting for it.
        if self.trainer.strategy.reduce_boolean_decision(trouble is not None, all=False):
            what = next(found for found in everywhere(trouble) if found is not None)
            raise Divergence(
                f"{what} at optimizer step {self.global_step}, and the run stops; the last good checkpoint is kept. "
                "Try a lower lr, or gradient clipping (trainer.gradient_clip_val: 1.0)",
                {"what": what} | broken_parts(self),
            )
        # Of all that the step saw: its micro-batches and ranks hold different numbers of tokens.
        self.log_dict(self.training_metrics.compute(), prog_bar=True, batch_size=1)
        self.training_metrics.reset()

    def configure_optimizers(self) -> Any:
        # A fused optimizer takes gradients as 16-mixed scales them, which a norm must not see.
        fused = str(self.trainer.precision) != "16-mixed"
        optimizer = AdamW(self.parameters(), lr=self._lr, weight_decay=self._weight_decay, fused=fused)
        total = float(self.trainer.estimated_stepping_batches)
        if self._decay == "cosine" and math.isinf(total):
            raise ValueError("decay='cosine' needs an end: set trainer.max_epochs or trainer.max_steps")
        scheduler = OwnSchedule(optimizer, lambda step: self._factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        check_trained_dtypes(self)
        self._totals = []  # an interrupted step may have left some

    def on_train_start(self) -> None:
        use_present_options(self.trainer, {"model": {"lr": self._lr, "weight_decay": self._weight_decay}})

    def _factor(self, step: int, total: float) -> float:
        warmup = min((step + 1) / (self._warmup_steps + 1), 1.0)
        if self._decay == "constant":
            return warmup
        return warmup * (1 + math.cos(math.pi * min(step / total, 1.0))) / 2

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vocabulary"] = vocabulary(self.tokenizer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_fits(checkpoint["state_dict"], self.state_dict())
        check_vocabulary(checkpoint, self.tokenizer)

    def export(self, directory: str) -> None:
        """Write the model as a Hugging Face directory. All ranks must call it; the first one writes."""
        export(self.model, self.tokenizer, directory, card=self._model_card())

    def _model_card(self) -> str:
        measured = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in sorted(measured.items()))
        return (
            f"# {self.kind}\n\nTrained with klqlit {__version__}, starting from "
            f"{self._origin}: {self.global_step} optimizer steps of AdamW at a learning rate of {self._lr:g} "
            f"({self._decay}).\n\n| metric | last value |\n|---|---|\n{rows}\n"
        )

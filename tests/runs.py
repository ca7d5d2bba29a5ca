"""Small online runs: a policy, prompts, a reward and a trainer, each with one line to change."""

from pathlib import Path
from typing import Any, final

import lightning as L
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from builders import tiny_language_model
from klqlit.algorithms.base import RLHFModule
from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.optimization import Optimization
from klqlit.data.online import OnlineDataModule
from klqlit.data.source import Row, Source, Split, TokenCounter
from klqlit.models.policy import LanguagePolicy
from klqlit.rewards.function import FunctionReward
from klqlit.rollout.sampling import Sampler
from klqlit.types import Completions, Minibatch, Prompts, Rollout, Sequences

# AdamW with this epsilon moves by about lr times the gradient, so that rounding is not blown up to a full step.
GENTLE = {"lr": 0.3, "critic_lr": 0.3, "eps": 1.0}


def quitter(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A language model that gives EOS about 15 % at each position."""
    model = tiny_language_model("gpt_neox", tokenizer)
    with torch.no_grad():
        # The first hidden coordinate is made constant, and only EOS reads it.
        model.gpt_neox.final_layer_norm.weight[0], model.gpt_neox.final_layer_norm.bias[0] = 0.0, 1.0
        model.get_output_embeddings().weight[:, 0] = 0.0
        model.get_output_embeddings().weight[tokenizer.eos_token_id, 0] = 4.0
    return model


@final
class ListSource(Source):
    """Prompts from memory; `number` is a further column."""

    def __init__(self, train: list[str], validation: list[str] | None = None) -> None:
        self.texts = {"train": train, "validation": validation or ["Why?", "How much is it?", "Who?"]}

    def rows(self, split: Split) -> list[Row]:
        return [{"prompt": text, "number": i} for i, text in enumerate(self.texts[split])]

    def shorten(self, prompt: str, count: TokenCounter, limit: int) -> str:
        while count(prompt) > limit:
            prompt = prompt[1:]
        return prompt


def questions(count: int) -> list[str]:
    """Prompts of several lengths, all of them different."""
    return [f"{'What is ' * (i % 3)}{i}?" for i in range(count)]


def vowels(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
    """A reward: vowels in the completion, and a little for its length."""
    return [sum(letter in "aeiou" for letter in text) + 0.01 * len(text) for text in completions]


def nothing(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
    """A reward: none."""
    return [0.0] * len(completions)


def make_module(path: str, algorithm: type[RLHFModule] = KLQ, **options: Any) -> RLHFModule:
    """An algorithm on the model at `path`; every argument can be changed."""
    defaults = {
        "policy": LanguagePolicy(path),
        "reward": FunctionReward(vowels),
        "sampler": Sampler(response_length=6),
        "optimization": Optimization(**GENTLE),
    }
    return algorithm(**(defaults | options))


def make_data(**options: Any) -> OnlineDataModule:
    """8 rollouts a phase in 2 minibatches, 2 epochs: 4 optimizer steps a phase."""
    defaults = {
        "source": ListSource(questions(20)),
        "rollouts": 8,
        "minibatches": 2,
        "epochs": 2,
        "max_prompt_tokens": 32,
        "validation_prompts": 3,
        "validation_batch_size": 2,
    }
    return OnlineDataModule(**(defaults | options))


def make_trainer(root: Any, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    """A silent trainer on the CPU: 2 phases, no validation."""
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "default_root_dir": root,
    }
    return L.Trainer(callbacks=list(callbacks), **(defaults | options))


@final
class Watch(L.Callback):
    """Keeps what a run did: batches, gradients before each step, weights after it, metrics of each phase."""

    def __init__(self) -> None:
        self.batches: list[Minibatch] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.rates: list[list[float]] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Minibatch, i: int) -> None:
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        named = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        self.gradients.append(named)
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Minibatch, i: int
    ) -> None:
        if len(self.weights) < len(self.gradients):
            self.weights.append(weights(module))

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.metrics.append(module.phase_metrics | module.training_metrics.compute())


def memory_of_file(tensor: torch.Tensor) -> int | None:
    """Bytes in main memory of the nameless file that a tensor lies in; None where it lies in none. Only Linux tells."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(address, 16) for address in first.split("-"))
            inside = start <= tensor.data_ptr() < end and line.endswith("(deleted)")
        elif inside and first == "Rss:":
            return int(rest[0]) * 1024
    return None


def weights(module: L.LightningModule) -> dict[str, torch.Tensor]:
    """A copy of all that a checkpoint would hold."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def make_prompts(tokenizer: PreTrainedTokenizerBase, texts: list[str], seeds: list[int] | None = None) -> Prompts:
    """Left-padded prompts; what stands in the padding is rubbish within the vocabulary."""
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(len(row) for row in rows)
    return Prompts(
        texts=texts,
        tokens=torch.tensor([[7 + i] * (width - len(row)) + row for i, row in enumerate(rows)]),
        mask=torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows]),
        seeds=list(range(len(texts))) if seeds is None else seeds,
        columns={},
    )


def make_sequences(prompts: list[list[int]], responses: list[list[int]], *, left: int = 0, right: int = 0) -> Sequences:
    """Rows of tokens, padded with rubbish on both sides, and `left` and `right` columns more than they need."""
    p, t = max(map(len, prompts)) + left, max(map(len, responses)) + right
    return Sequences(
        prompt_tokens=torch.tensor([[5] * (p - len(row)) + row for row in prompts]),
        prompt_mask=torch.tensor([[False] * (p - len(row)) + [True] * len(row) for row in prompts]),
        tokens=torch.tensor([row + [9] * (t - len(row)) for row in responses]),
        mask=torch.tensor([[True] * len(row) + [False] * (t - len(row)) for row in responses]),
    )


def make_completions(
    texts: list[tuple[str, str]], sequences: Sequences, ended: list[bool] | None = None
) -> Completions:
    """Completions with given texts on given tokens."""
    return Completions(
        prompts=[prompt for prompt, _ in texts],
        completions=[completion for _, completion in texts],
        sequences=sequences,
        ended=torch.tensor([True] * len(texts) if ended is None else ended),
        columns={},
    )


def two_rows() -> Rollout:
    """Two completions, of 2 and of 1 tokens; numbers chosen for calculation by hand.

    Log-ratios 0.5, -0.25 and 0.25; scores 1 and 3; padding holds NaN.
    """
    nan = float("nan")
    sequences = make_sequences([[1], [1]], [[2, 3], [4]])
    return Rollout(
        completions=make_completions([("a", "bc"), ("a", "d")], sequences, ended=[True, False]),
        logprobs=torch.tensor([[-0.5, -1.25], [-0.75, nan]]),
        ref_logprobs=torch.tensor([[-1.0, -1.0], [-1.0, nan]]),
        values=torch.tensor([[0.2, 0.4], [0.6, nan]]),
        entropy=torch.tensor([[1.0, 2.0], [6.0, nan]]),
        rewards=torch.tensor([[0.0, 1.0], [3.0, 0.0]]),
        scores=torch.tensor([1.0, 3.0]),
        version=0,
    )

"""Runs to be started as a program, on one or more processes: `python program.py PART OUT MODEL TIED REWARD DEVICES`.

Each run leaves what its rank saw in ``OUT/NAME-RANK.pt``.
"""

import sys
from pathlib import Path
from typing import Any, final

import lightning as L
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

# The program is started from anywhere, and Lightning starts it once more for each further rank.
sys.path.insert(0, str(Path(__file__).parents[1]))

from finetuning.runs import STAGES, fit, new_module, source
from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.optimization import Optimization
from klqlit.algorithms.ppo import PPO, AdaptiveKL
from klqlit.models.critic import SharedCritic
from klqlit.rewards.base import Reward
from klqlit.rewards.model import RewardModel
from klqlit.rewards.shaping import RewardShaping
from klqlit.strategies.fully_sharded import FullySharded, at_hand
from klqlit.strategies.sharded_model import whole
from klqlit.types import Completions, Prompts
from runs import GENTLE, ListSource, make_data, make_module, make_prompts, make_trainer, questions, vowels

PROMPTS = [f"{'How much is ' * (i % 3)}{i}?" for i in range(6)]
IDS = torch.arange(1, 25).reshape(2, 12)
CLIP = 0.5


@final
class Record(L.Callback):
    """Losses, gradients and advantages of a run."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.advantages: list[torch.Tensor] = []
        self.metrics: list[dict[str, float]] = []

    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        collect = module.collect

        def seen(prompts: Prompts) -> Any:
            experience = collect(prompts)
            self.advantages.append(experience.advantages.masked_fill(~experience.mask, 0.0))
            return experience

        module.collect = seen

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        named = named_parameters(module)
        self.gradients.append({name: whole(p.grad).clone() for name, p in named.items() if p.grad is not None})

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"])

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self.metrics.append(module.phase_metrics | module.training_metrics.compute())


@final
class Save(L.Callback):
    """Saves the run at some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        path = Path(f"{trainer.default_root_dir}-{trainer.global_step}.ckpt")
        if trainer.global_step in self.steps and not path.exists():
            trainer.save_checkpoint(path)


@final
class Collectives(TorchDispatchMode):
    """Counts what ranks say to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).startswith("c10d")
        return func(*args, **(kwargs or {}))


@final
class Uneven(L.Callback):
    """Rolls out five prompts on the first rank and one on the other, a row at a time, in both ways of sampling."""

    def __init__(self) -> None:
        self.found: dict[bool, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        every = make_prompts(module.tokenizer, PROMPTS)
        mine = slice(None) if trainer.world_size == 1 else [slice(0, 5), slice(5, 6)][trainer.global_rank]
        prompts = Prompts(
            texts=every.texts[mine],
            tokens=every.tokens[mine],
            mask=every.mask[mine],
            seeds=every.seeds[mine],
            columns={},
        )
        module.sampler.batch_size, size, module.scoring_batch_size = 1, module.scoring_batch_size, 1
        sharded = isinstance(trainer.strategy, FullySharded)
        for unshard in (False, True) if sharded else (True,):
            if sharded:
                trainer.strategy.unshard_for_rollouts = unshard
            self.found[unshard] = look(module, prompts)
        module.sampler.batch_size, module.scoring_batch_size = None, size


@torch.no_grad()
def look(module: Any, prompts: Prompts) -> dict[str, Any]:
    """A rollout, and how often the ranks spoke to each other while they sampled."""
    rollout, scored = module.roll_out(prompts), module.predict_step(prompts, 0)
    with at_hand(module, module.policy), Collectives() as seen:
        module.sampler.sample(module.policy, prompts)
    return {
        "tokens": rollout.sequences.tokens.masked_fill(~rollout.mask, -1),
        "numbers": torch.stack([rollout.logprobs, rollout.ref_logprobs, rollout.values, rollout.rewards]),
        "gold": scored.gold,
        "collectives": seen.count,
    }


@final
class ScaledVowels(Reward):
    """A reward with a weight of its own, which is no transformer's and stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, completions: Completions) -> torch.Tensor:
        return self.scale * torch.tensor(vowels(completions.prompts, completions.completions))


def named_parameters(module: L.LightningModule) -> dict[str, torch.Tensor]:
    """Parameters by the names that a checkpoint gives them."""
    return {name.replace("_checkpoint_wrapped_module.", ""): p for name, p in module.named_parameters()}


def build(kind: str, model: str, reward: str) -> Any:
    """KLQ with a critic of its own, or PPO with a head on the policy; both with a reward model to shard."""
    shared: dict[str, Any] = {"gold": RewardModel(reward, batch_size=1), "shaping": RewardShaping(normalise=True)}
    shared["reward"] = ScaledVowels()
    if kind == "klq":
        return make_module(model, KLQ, optimization=Optimization(**GENTLE), **shared)
    rates = Optimization(lr=1e-3, critic_lr=1e-2, eps=1e-3)
    critic = SharedCritic
    return make_module(
        model, PPO, critic=critic, adaptive_kl=AdaptiveKL(0.01, horizon=50), optimization=rates, **shared
    )


def run(
    out: Path,
    name: str,
    kind: str,
    models: list[str],
    *callbacks: L.Callback,
    checkpoint: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Five phases of four steps, as one line to change; returns and leaves what it gave."""
    model, tied, reward = models
    record, module = Record(), build(kind, model if kind == "klq" else tied, reward)
    data = make_data(source=ListSource(questions(20)), rollouts=16, validation_prompts=3, validation_batch_size=1)
    defaults = {"max_epochs": 5, "gradient_clip_val": CLIP, "check_val_every_n_epoch": 2, "limit_val_batches": 1.0}
    trainer = make_trainer(out / name, record, *callbacks, **(defaults | options))
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    with torch.no_grad(), at_hand(module, module.policy):
        logits = module.policy.model(IDS).logits
    parameters = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
    module.export(str(out / name / "model"))
    result = {
        "losses": torch.stack(record.losses),
        "gradients": record.gradients,
        "advantages": record.advantages,
        "metrics": record.metrics,
        "weights": {key: whole(value) for key, value in module.state_dict().items()},
        "dtypes": {key: str(value.dtype) for key, value in named_parameters(module).items()},
        "blocks": sum(isinstance(block, CheckpointWrapper) for block in module.modules()),
        "held": sum(p.numel() for p in parameters),
        "validated": {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")},
        "uneven": [callback.found for callback in callbacks if isinstance(callback, Uneven)],
        "logits": logits,
    }
    torch.save(result, out / f"{name}-{trainer.global_rank}.pt")
    return result


def tune(out: Path, stage: str, **options: Any) -> None:
    """An epoch of supervised fine-tuning or reward modelling."""
    record, module = Gradients(), new_module(stage, lr=1e-3)
    data = STAGES[stage][1](source(out / f"rows-{torch.distributed.get_rank()}"), 2)
    trainer = fit(module, data, out / stage, callbacks=[record], **options)
    module.export(str(out / stage / "model"))
    result = {"gradients": record.steps, "measured": dict(trainer.callback_metrics)}
    torch.save(result, out / f"{stage}-{trainer.global_rank}.pt")


@final
class Gradients(L.Callback):
    """Keeps the gradients of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[list[torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps.append([whole(p.grad).clone() for p in pl_module.parameters() if p.grad is not None])


LEAN: dict[str, Any] = {
    "unshard_for_rollouts": False,
    "activation_checkpointing": True,
    "offload_frozen": True,
    "reshard_after_forward": False,
}


def main(part: str, out: Path, models: list[str], devices: int) -> None:
    """The runs of one part, one after the other in the same processes."""
    torch.set_num_threads(1)
    two: dict[str, Any] = {"devices": devices}
    kinds = {"klq": True, "ppo": False}
    if part == "first":
        for kind, sharded in kinds.items():
            strategy = FullySharded(save_distributed_checkpoint=sharded)
            run(out, kind, kind, models, Save(6), Uneven(), strategy=strategy, **two)
        run(out, "lean", "klq", models, strategy=FullySharded(**LEAN), accumulate_grad_batches=2, **two)
        low = FullySharded(frozen_dtype="bfloat16", **LEAN)
        run(out, "bf16", "klq", models, strategy=low, precision="bf16-mixed", max_epochs=2, **two)
        for kind in kinds:
            run(out, f"{kind}-ddp", kind, models, strategy="ddp", accumulate_grad_batches=2, max_epochs=2, **two)
        for stage in STAGES:
            tune(out, stage, strategy=FullySharded(), **two)
    elif part == "second":
        for kind, sharded in kinds.items():
            strategy = FullySharded(save_distributed_checkpoint=sharded)
            steps = {"max_epochs": -1, "max_steps": 14}
            middle = out / f"{kind}-6.ckpt"
            run(out, f"{kind}-one", kind, models, Save(14), checkpoint=middle, strategy=strategy, **two, **steps)
    else:
        for kind in kinds:
            middle = out / f"{kind}-one-14.ckpt"
            run(out, f"{kind}-again", kind, models, checkpoint=middle, strategy=FullySharded(), **two)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:6], int(sys.argv[6]))

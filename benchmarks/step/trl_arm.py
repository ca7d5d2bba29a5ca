"""The peer: the PPO trainer of TRL, with clocks around its parts and nothing changed.

An optimizer step a minibatch needs `gradient_accumulation_steps=1` with the whole rollout as the "device's batch": with
more, TRL steps less often than its `num_mini_batches` say.
"""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import transformers
import trl
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from step.arguments import parse
from step.measuring import Updates
from step.workloads import Workload, read_prompts


class Clock(TrainerCallback):
    """Marks the ends of updates."""

    def __init__(self, updates: Updates) -> None:
        self.updates = updates
        self.length = 0.0

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.updates.begin()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.updates.end(length=self.length)


def main() -> None:
    """Train, and write the rows."""
    arguments = parse()
    workload = Workload.load(arguments.directory / "workload.json")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(workload, arguments.directory, scratch, arguments.updates)
        updates = Updates(count=arguments.count)
        clock = Clock(updates)
        trainer.add_callback(clock)
        watch(trainer, workload, clock)
        trainer.train()
    kinds = trainer.optimizer.optimizer
    updates.write(
        arguments.out,
        arm="TRL PPO",
        versions={"trl": trl.__version__, "transformers": transformers.__version__},
        optimizer=f"{type(kinds).__name__}, fused={kinds.defaults.get('fused')}",
    )


def make_trainer(workload: Workload, directory: Path, scratch: str, updates: int) -> PPOTrainer:
    """The trainer as its documentation builds it."""
    tokenizer = AutoTokenizer.from_pretrained(directory / "policy")
    policy, reference = (AutoModelForCausalLM.from_pretrained(directory / "policy") for _ in range(2))
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(directory / name) for name in ("value", "reward")
    )
    policy.generation_config.pad_token_id = workload.pad
    options = PPOConfig(
        output_dir=scratch,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=workload.rollouts,
        gradient_accumulation_steps=1,
        num_mini_batches=workload.minibatches,
        num_ppo_epochs=workload.epochs,
        local_rollout_forward_batch_size=64,
        total_episodes=workload.rollouts * updates,
        response_length=workload.response_tokens,
        stop_token="eos" if workload.hazard else None,
        temperature=1.0,
        learning_rate=1e-6,
        num_sample_generations=0,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
    )
    trainer = PPOTrainer(
        args=options,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": read_prompts(directory)[: workload.rollouts * updates]}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def watch(trainer: PPOTrainer, workload: Workload, clock: Clock) -> None:
    """Clocks: generation is `batch_generation`; optimization lies between the first and the last `accumulate`."""
    generate, accumulate = ppo_trainer.batch_generation, trainer.accelerator.accumulate
    taken = 0

    def timed_generation(*args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        clock.updates.stage("generation")
        result = generate(*args, **kwargs)
        clock.updates.stage("scoring")
        ended = result[0][:, workload.prompt_tokens :] == 0
        clock.length = float(((ended.cumsum(1) - ended.long()) == 0).sum(1).float().mean())
        return result

    @contextmanager
    def timed_accumulation(*models: object):
        nonlocal taken
        clock.updates.stage("optimization")
        with accumulate(*models):
            yield
        taken += 1
        if taken % workload.steps == 0:
            clock.updates.stage(None)

    ppo_trainer.batch_generation = timed_generation
    trainer.accelerator.accumulate = timed_accumulation


if __name__ == "__main__":
    main()

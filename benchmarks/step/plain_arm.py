"""The floor: the same PPO update in plain PyTorch and transformers, as one would write it first.

`generate`, one forward pass each of policy, reference, critic and reward model, then epochs of minibatches with AdamW.
No logging, no metrics, no checks.
"""

from dataclasses import dataclass

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
)

from step.arguments import parse
from step.measuring import Updates
from step.workloads import EOS, Workload, read_prompts

TAU, LAMBDA, CLIP, VALUE = 0.05, 0.95, 0.2, 0.1


@dataclass(kw_only=True, slots=True)
class Models:
    """All four."""

    policy: PreTrainedModel
    reference: PreTrainedModel
    critic: PreTrainedModel
    reward: PreTrainedModel


@dataclass(kw_only=True, slots=True)
class Batch:
    """A rollout with its targets; `tokens` are whole sequences, the rest belongs to their response tokens."""

    tokens: Tensor
    mask: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> "Batch":
        """Some of the rows."""
        return Batch(**{name: getattr(self, name)[index] for name in self.__slots__})


def main() -> None:
    """Train, and write the rows."""
    arguments = parse()
    workload = Workload.load(arguments.directory / "workload.json")
    load = {"policy": AutoModelForCausalLM, "reference": AutoModelForCausalLM}
    load |= {"critic": AutoModelForSequenceClassification, "reward": AutoModelForSequenceClassification}
    names = {"reference": "policy", "critic": "value"}
    models = Models(**{k: auto.from_pretrained(arguments.directory / names.get(k, k)) for k, auto in load.items()})
    weights = [*models.policy.parameters(), *models.critic.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, weight_decay=0.0, fused=True)
    prompts = torch.tensor(read_prompts(arguments.directory)).split(workload.rollouts)
    updates = Updates(count=arguments.count)
    updates.begin()
    for rows in prompts[: arguments.updates]:
        updates.stage("generation")
        tokens = sample(models.policy, rows, workload)
        updates.stage("scoring")
        batch = score(models, tokens, workload)
        updates.stage("optimization")
        learn(models, optimizer, batch, workload)
        updates.end(length=float(batch.mask.sum(1).mean()))
    updates.write(
        arguments.out,
        arm="plain PyTorch",
        versions={"transformers": transformers.__version__},
        optimizer="AdamW, fused=True",
    )


@torch.no_grad()
def sample(policy: PreTrainedModel, prompts: Tensor, workload: Workload) -> Tensor:
    """Prompts with responses."""
    how = GenerationConfig(
        max_new_tokens=workload.response_tokens,
        do_sample=True,
        top_k=0,
        eos_token_id=EOS if workload.hazard else None,
        pad_token_id=workload.pad,
    )
    return policy.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), generation_config=how)


def response_logprobs(model: PreTrainedModel, tokens: Tensor, workload: Workload) -> Tensor:
    """Log-probability of each response token."""
    start = workload.prompt_tokens
    logits = model(input_ids=tokens, use_cache=False).logits[:, start - 1 : -1]
    return logits.log_softmax(-1).gather(-1, tokens[:, start:, None]).squeeze(-1)


def token_scores(model: PreTrainedModel, tokens: Tensor, workload: Workload) -> Tensor:
    """The scalar head at every response token and at the last prompt token."""
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    return model.score(hidden)[:, workload.prompt_tokens - 1 :, 0]


@torch.no_grad()
def score(models: Models, tokens: Tensor, workload: Workload) -> Batch:
    """Old log-probabilities and values, rewards, advantages."""
    ended = (tokens[:, workload.prompt_tokens :] == EOS).long()
    mask = (ended.cumsum(1) - ended == 0).float()
    logprobs = response_logprobs(models.policy, tokens, workload)
    reference = response_logprobs(models.reference, tokens, workload)
    values = token_scores(models.critic, tokens, workload)[:, :-1] * mask
    last = mask.sum(1, keepdim=True).long()
    rewards = -TAU * (logprobs - reference) * mask
    rewards.scatter_add_(1, last - 1, token_scores(models.reward, tokens, workload).gather(1, last))
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    errors = rewards + following - values
    advantages, running = torch.zeros_like(values), torch.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        running = advantages[:, t] = errors[:, t] + LAMBDA * running
    returns = advantages + values
    mean = (advantages * mask).sum() / mask.sum()
    spread = (((advantages - mean) * mask) ** 2).sum() / mask.sum()
    return Batch(
        tokens=tokens,
        mask=mask,
        logprobs=logprobs,
        values=values,
        advantages=(advantages - mean) / (spread + 1e-8).sqrt(),
        returns=returns,
    )


def learn(models: Models, optimizer: torch.optim.Optimizer, batch: Batch, workload: Workload) -> None:
    """Epochs of minibatches."""
    for _ in range(workload.epochs):
        for index in torch.randperm(workload.rollouts).chunk(workload.minibatches):
            part = batch.rows(index)
            ratio = ((response_logprobs(models.policy, part.tokens, workload) - part.logprobs) * part.mask).exp()
            values = token_scores(models.critic, part.tokens, workload)[:, :-1]
            clipped = part.values + (values - part.values).clamp(-CLIP, CLIP)
            surrogate = torch.minimum(ratio * part.advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * part.advantages)
            error = torch.maximum((values - part.returns) ** 2, (clipped - part.returns) ** 2)
            loss = ((VALUE * error / 2 - surrogate) * part.mask).sum() / part.mask.sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    main()

"""The stages of a phase, run for their memory alone."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from klqlit.algorithms.base import RLHFModule
from klqlit.functional import masked_sum
from klqlit.models.precision import casts_kept
from klqlit.planning.tracker import Tracker
from klqlit.rewards.base import Reward
from klqlit.rewards.model import RewardModel
from klqlit.rollout.drawing import draw_next
from klqlit.rollout.scoring import critic_values, reference_logprobs
from klqlit.types import Experience, Sequences


@dataclass(kw_only=True, slots=True)
class Sizes:
    """What one device works on at once.

    Attributes:
        prompt: tokens of the longest prompt.
        response: tokens of the longest response.
        sampled: rows that are decoded together.
        scored: rows of a rollout, or of a validation batch, on the device.
        micro: rows of a micro-batch.
        accumulated: whether several micro-batches make a step.
    """

    prompt: int
    response: int
    sampled: int
    scored: int
    micro: int
    accumulated: bool


@dataclass(kw_only=True, slots=True)
class Stage:
    """Bytes at the peak of a stage, beside trained weights and optimizer state.

    Attributes:
        name: of the stage.
        frozen: weights of reference and reward models.
        gradients: of the weights that learn.
        casts: weights in the precision they are computed with, where that is another.
        cache: keys and values.
        activations: what the forward pass keeps for the backward pass.
        scratch: logits, and whatever else stands there.
    """

    name: str
    frozen: float | int = 0
    gradients: float | int = 0
    casts: float | int = 0
    cache: float | int = 0
    activations: float | int = 0
    scratch: float | int = 0


def measure(
    module: RLHFModule,
    sizes: Sizes,
    tracker: Tracker,
    precision: Callable[[], AbstractContextManager[Any]],
    dtype: torch.dtype | None = None,
) -> list[Stage]:
    """The stages' memory, of a module that was built within `building`.

    Args:
        module: the algorithm with its models.
        sizes: of the batches.
        tracker: counts.
        precision: the context in which the trainer runs forward passes.
        dtype: in which weights are computed with, where they are gathered in another than they are kept in.
    """
    with tracker:
        tracker.materialise(module, dtype)
        optimizer = module.optimization.build(module.policy, module.critic, total_steps=1)["optimizer"]
        _make_state(optimizer)
        update = _update(module, optimizer, sizes, tracker, precision)
        with torch.no_grad(), precision(), casts_kept():
            sampling = _sample(module, sizes, tracker)
        with torch.no_grad(), precision():
            return [sampling, _score(module, sizes, tracker), update]


def _make_state(optimizer: Optimizer) -> None:
    """What any step but the first finds."""
    for parameter in _parameters(optimizer):
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _update(module: RLHFModule, optimizer: Optimizer, sizes: Sizes, tracker: Tracker, precision: Any) -> Stage:
    before, activations, made = _settled(tracker), 0, set()

    def count(parameter: Tensor) -> None:
        if id(parameter) not in made:
            made.add(id(parameter))
            tracker.gradients += parameter.numel() * parameter.element_size()

    hooks = [p.register_post_accumulate_grad_hook(count) for p in _parameters(optimizer)]
    # Of several micro-batches the second is like all that follow.
    for _ in range(2 if sizes.accumulated else 1):
        sequences, gradients = _sequences(sizes.micro, sizes), tracker.gradients
        with precision():
            logprobs, values = module.evaluate(sequences)
            losses, _ = module.loss(_experience(sequences), logprobs, values)
            loss = masked_sum(losses, sequences.mask)
        del logprobs, values, losses
        activations = max(activations, tracker.now - before - gradients)
        loss.backward()
        del loss
    optimizer.step()
    stage = _stage("update", tracker, before, activations=activations)
    for hook in hooks:
        hook.remove()
    optimizer.zero_grad()
    tracker.gradients = 0
    return stage


def _sample(module: RLHFModule, sizes: Sizes, tracker: Tracker) -> Stage:
    """The first and the last token: the prompts are longest at one, the cache at the other."""
    before = _settled(tracker)
    policy, uniforms = module.policy, torch.zeros(sizes.sampled)
    draw: dict[str, Any] = {"temperature": module.sampler.temperature, "truncate": lambda logits: logits}
    tokens, mask = _rows(sizes.sampled, sizes.prompt)
    logits, cache = policy.decode(tokens, mask, None)
    draw_next(logits, uniforms, **draw)
    peak = tracker.peak
    del logits, cache
    casts = tracker.now - before
    tokens, mask = _rows(sizes.sampled, sizes.prompt + sizes.response - 1)
    _, cache = policy.decode(tokens, mask, None)
    size = tracker.now - before - casts
    tracker.restart()
    logits, cache = policy.decode(tokens[:, :1], torch.cat([mask, mask[:, :1]], dim=1), cache)
    draw_next(logits, uniforms, **draw)
    tracker.peak = max(tracker.peak, peak)
    return _stage("sampling", tracker, before, casts=casts, cache=size)


def _score(module: RLHFModule, sizes: Sizes, tracker: Tracker) -> Stage:
    before = _settled(tracker)
    sequences = _sequences(sizes.scored, sizes)
    how: dict[str, Any] = {"temperature": module.sampler.temperature, "size": module.scoring_batch_size}
    for reward in (module.reward, module.gold):
        _read(reward, sizes)
    reference_logprobs(module.reference, sequences, **how)
    critic_values(module.critic, module.policy, sequences, **how)
    return _stage("scoring", tracker, before)


def _read(reward: Reward | None, sizes: Sizes) -> None:
    """Run a reward model; other rewards hold no tensors that count."""
    if isinstance(reward, RewardModel):
        length = sizes.prompt + sizes.response
        tokens, mask = _rows(min(reward.batch_size, sizes.scored), min(length, reward.max_tokens or length))
        reward.model(input_ids=tokens, attention_mask=mask.long())


def _settled(tracker: Tracker) -> int:
    """Bytes in use before a stage."""
    gc.collect()
    return tracker.restart()


def _stage(name: str, tracker: Tracker, before: int, **parts: int) -> Stage:
    """A stage with those of its parts that are known by name; what remains is scratch."""
    gradients = tracker.gradients_at_peak
    rest = tracker.peak - before - gradients
    known = {}
    for part, size in parts.items():
        known[part] = min(size, rest)
        rest -= known[part]
    return Stage(name=name, gradients=gradients, scratch=rest, **known)


def _rows(rows: int, length: int) -> tuple[Tensor, Tensor]:
    # Different prompts, since equal ones are read once.
    tokens = torch.arange(1, rows + 1)[:, None].expand(rows, length).contiguous()
    return tokens, torch.ones(rows, length, dtype=torch.bool)


def _sequences(rows: int, sizes: Sizes) -> Sequences:
    (prompts, prompt_mask), (tokens, mask) = _rows(rows, sizes.prompt), _rows(rows, sizes.response)
    return Sequences(prompt_tokens=prompts, prompt_mask=prompt_mask, tokens=tokens, mask=mask)


def _experience(sequences: Sequences) -> Experience:
    names = ("logprobs", "ref_logprobs", "values", "advantages", "returns")
    return Experience(
        sequences=sequences, **{name: torch.zeros(sequences.mask.shape, dtype=torch.float32) for name in names}
    )


def bytes_of_parameters(*modules: nn.Module | None) -> int:
    """Bytes of their parameters, shared ones once."""
    parameters = {p for module in modules if module is not None for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in parameters)

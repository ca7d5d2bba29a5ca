"""The stages of a phase, run for their memory alone."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from klqlit.algorithms.base import RLHFModule
from klqlit.functional import masked_sum
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
    """Bytes that a stage takes beside weights, gradients and optimizer state.

    Attributes:
        name: of the stage.
        cache: keys and values.
        activations: what the forward pass keeps for the backward pass.
        scratch: logits, and whatever else stands at the peak.
        kept: freed before, and kept by the allocator.
    """

    name: str
    cache: int = 0
    activations: int = 0
    scratch: int = 0
    kept: int = 0

    @property
    def total(self) -> int:
        return self.cache + self.activations + self.scratch + self.kept


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
        optimizer = module.optimization.build(module.policy, module.critic, total_steps=1, fused=True)["optimizer"]
        # As any step but the first finds it: with the optimizer's state, and the gradients of the step before.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        update = _update(module, optimizer, sizes, tracker, precision)
        with torch.no_grad(), precision():
            return [_sample(module, sizes, tracker), _score(module, sizes, tracker), update]


def _update(module: RLHFModule, optimizer: Any, sizes: Sizes, tracker: Tracker, precision: Any) -> Stage:
    before, kept = _settled(tracker)
    activations = 0
    for micro in range(2 if sizes.accumulated else 1):
        sequences = _sequences(sizes.micro, sizes)
        with precision():
            logprobs, values = module.evaluate(sequences)
            losses, _ = module.loss(_experience(sequences), logprobs, values)
            loss = masked_sum(losses, sequences.mask)
        del logprobs, values, losses
        activations = max(activations, tracker.now - before)
        if micro == 0:
            # In Lightning's order: the last step's gradients are there until the next forward pass is done.
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        del loss
    optimizer.step()
    return _stage("update", tracker, before, kept, activations=activations)


def _sample(module: RLHFModule, sizes: Sizes, tracker: Tracker) -> Stage:
    """The first and the last token: the prompts are longest at one, the cache at the other."""
    before, kept = _settled(tracker)
    policy, uniforms = module.policy, torch.zeros(sizes.sampled)
    draw: dict[str, Any] = {"temperature": module.sampler.temperature, "truncate": lambda logits: logits}
    tokens, mask = _rows(sizes.sampled, sizes.prompt)
    logits, cache = policy.decode(tokens, mask, None)
    draw_next(logits, uniforms, **draw)
    peak = tracker.peak
    del logits, cache
    tokens, mask = _rows(sizes.sampled, sizes.prompt + sizes.response - 1)
    _, cache = policy.decode(tokens, mask, None)
    size = tracker.now - before
    tracker.restart()
    logits, cache = policy.decode(tokens[:, :1], torch.cat([mask, mask[:, :1]], dim=1), cache)
    draw_next(logits, uniforms, **draw)
    tracker.peak = max(tracker.peak, peak)
    return _stage("sampling", tracker, before, kept, cache=size)


def _score(module: RLHFModule, sizes: Sizes, tracker: Tracker) -> Stage:
    before, kept = _settled(tracker)
    sequences = _sequences(sizes.scored, sizes)
    how: dict[str, Any] = {"temperature": module.sampler.temperature, "size": module.scoring_batch_size}
    for reward in (module.reward, module.gold):
        _read(reward, sizes)
    reference_logprobs(module.reference, sequences, **how)
    critic_values(module.critic, module.policy, sequences, **how)
    return _stage("scoring", tracker, before, kept)


def _read(reward: Reward | None, sizes: Sizes) -> None:
    """Run a reward model; other rewards hold no tensors that count."""
    if isinstance(reward, RewardModel):
        length = sizes.prompt + sizes.response
        tokens, mask = _rows(min(reward.batch_size, sizes.scored), min(length, reward.max_tokens or length))
        reward.model(input_ids=tokens, attention_mask=mask.long())


def _settled(tracker: Tracker) -> tuple[int, int]:
    """Bytes in use and bytes kept, before a stage."""
    gc.collect()
    before = tracker.restart()
    return before, tracker.held - before


def _stage(name: str, tracker: Tracker, before: int, kept: int, *, cache: int = 0, activations: int = 0) -> Stage:
    total = tracker.peak - before
    # What was kept serves the stage first; the rest of it stands beside.
    idle = max(0, min(kept, total - cache - activations))
    return Stage(
        name=name,
        cache=cache,
        activations=activations,
        scratch=max(0, total - cache - activations - idle),
        kept=idle,
    )


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

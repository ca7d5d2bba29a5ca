"""The memory of one device in each stage of a phase."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from klqlit.algorithms.base import RLHFModule
from klqlit.planning.stages import Stage, bytes_of_parameters

Sharding = Literal["none", "fsdp"]

STAGES = ("sampling", "scoring", "update")


@dataclass(kw_only=True, slots=True)
class States:
    """Bytes that stay from stage to stage.

    Attributes:
        trained: weights of policy and critic.
        optimizer: its state.
    """

    trained: float | int
    optimizer: float | int

    @property
    def total(self) -> float | int:
        return self.trained + self.optimizer

    def over(self, devices: int) -> "States":
        """One device's share."""
        return States(trained=self.trained / devices, optimizer=self.optimizer / devices)


@dataclass(kw_only=True, slots=True)
class Plan:
    """What one device needs.

    Attributes:
        states: on the device.
        stages: sampling, scoring, update; where weights are sharded, with one device's share of gradients and frozen
            weights.
        exchange: bytes by stage for what devices exchange: gradient buckets, or weights gathered from all shards.
        libraries: bytes of the program itself.
        gaps: share of all tensors' bytes, but those of frozen weights, that the allocator leaves unused between them.
    """

    states: States
    stages: list[Stage]
    exchange: dict[str, float | int]
    libraries: float | int
    gaps: float | int

    def total(self, stage: Stage) -> float | int:
        """Peak of a stage."""
        return (1 + self.gaps) * self._changing(stage) + stage.frozen + self.libraries

    def between(self, stage: Stage) -> float | int:
        """What is unused between tensors at the peak of a stage."""
        return self.gaps * self._changing(stage)

    def _changing(self, stage: Stage) -> float | int:
        own = stage.gradients + stage.casts + stage.cache + stage.activations + stage.scratch
        return self.states.total + self.exchange[stage.name] + own

    @property
    def peak(self) -> float | int:
        """Of all stages."""
        return max(self.total(stage) for stage in self.stages)


@dataclass(kw_only=True, slots=True)
class Remedy:
    """A setting to turn.

    Attributes:
        what: the setting, as the user writes it.
        peak: about what the peak would be.
    """

    what: str
    peak: float | int


def states_of(module: RLHFModule) -> States:
    """Of one device that holds everything; AdamW keeps two numbers a weight."""
    trained = bytes_of_parameters(module.policy, module.critic)
    return States(trained=trained, optimizer=2 * trained)


def frozen_of(module: RLHFModule, *, in_file: bool, validates: bool) -> dict[str, float | int]:
    """Bytes of the weights of reference and reward models in each stage.

    Args:
        module: the algorithm with its models.
        in_file: they lie in a file, and only those in use are in memory, one model after the other.
        validates: the reference is sampled from too.
    """
    models = (module.reference, module.reward, module.gold)
    if not in_file:
        return dict.fromkeys(STAGES, bytes_of_parameters(*models))
    return {
        "sampling": bytes_of_parameters(module.reference) if validates else 0,
        "scoring": max(bytes_of_parameters(model) for model in models),
        "update": 0,
    }


def exchange_of(
    module: RLHFModule, states: States, devices: int, sharding: Sharding, half: bool
) -> dict[str, float | int]:
    """What one device holds of others in each stage, in bytes.

    Args:
        module: the algorithm with its models.
        states: of one device that holds everything.
        devices: how many share the work.
        sharding: "none": each holds all weights; "fsdp": each holds a share, and gathers what it computes with.
        half: weights are gathered in bfloat16.
    """
    if devices == 1:
        return dict.fromkeys(STAGES, 0.0)
    if sharding == "none":
        # DistributedDataParallel copies gradients into buckets that it exchanges, and these stay.
        return dict.fromkeys(STAGES, states.trained)
    share = 0.5 if half else 1.0
    scored = max(bytes_of_parameters(part) for part in (module.reference, module.critic, module.reward, module.gold))
    return {
        "sampling": share * bytes_of_parameters(module.policy),
        "scoring": share * scored,
        "update": _gathered_in_update(module, share),
    }


def _gathered_in_update(module: RLHFModule, share: float | int) -> float | int:
    """What is in no block stays gathered; of blocks there are two, one of them on its way, and one whole gradient."""
    blocks = [block for model in (module.policy, module.critic) for block in blocks_of(model)]
    rest = bytes_of_parameters(module.policy, module.critic) - bytes_of_parameters(*blocks)
    largest = max((bytes_of_parameters(block) for block in blocks), default=0)
    return share * (rest + 2 * largest) + max(largest, rest)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Its transformer blocks: the children of its largest list of modules."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    sizes = [bytes_of_parameters(*blocks) for blocks in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


def remedies(
    found: Plan, *, devices: int, sharding: Sharding, own_critic: float | int, frozen: float | int
) -> list[Remedy]:
    """What lowers the peak, the strongest first; each is judged alone, and roughly.

    Args:
        found: the plan.
        devices: how many share the work.
        sharding: as planned.
        own_critic: bytes of the critic's own trunk, with gradient and optimizer state, on this device.
        frozen: bytes of all frozen weights.
    """
    changes = {
        "trainer.accumulate_grad_batches: twice as many": _smaller(found, "update"),
        "sampler.batch_size: half as many rows": _smaller(found, "sampling"),
        "scoring_batch_size, reward.batch_size: half as many rows": _smaller(found, "scoring"),
    }
    if own_critic:
        trained = replace(found.states, optimizer=found.states.optimizer - own_critic)
        changes["critic: klqlit.SharedCritic (see docs/theory.md first)"] = replace(found, states=trained)
    if devices > 1 and sharding == "none":
        exchange = dict.fromkeys(found.exchange, found.states.trained / devices)
        whole = [replace(stage, frozen=frozen) for stage in found.stages]  # what is split lies in no file
        split = replace(found, states=found.states.over(devices), exchange=exchange, stages=shared(whole, devices))
        changes["--sharding fsdp: weights and optimizer split over devices"] = split
    if sharding == "fsdp":
        changes["twice as many devices"] = replace(found, states=found.states.over(2), stages=shared(found.stages, 2))
    better = [Remedy(what=what, peak=changed.peak) for what, changed in changes.items() if changed.peak < found.peak]
    return sorted(better, key=lambda remedy: remedy.peak)


def shared(stages: list[Stage], devices: int) -> list[Stage]:
    """With one device's share of gradients and frozen weights."""
    return [replace(stage, gradients=stage.gradients / devices, frozen=stage.frozen / devices) for stage in stages]


def _smaller(found: Plan, name: str) -> Plan:
    """With half the rows in one stage."""
    stages = [
        stage
        if stage.name != name
        else replace(stage, cache=stage.cache / 2, activations=stage.activations / 2, scratch=stage.scratch / 2)
        for stage in found.stages
    ]
    return replace(found, stages=stages)

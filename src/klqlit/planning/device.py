"""A plan of the run that a command line describes."""

import os
import resource
from dataclasses import dataclass, replace
from typing import Any

import torch

from klqlit.algorithms.base import RLHFModule
from klqlit.command_line import quieten, read
from klqlit.data.online import OnlineDataModule
from klqlit.launching.devices import count
from klqlit.models.weight_file import SUPPORTED
from klqlit.planning.plan import Plan, Remedy, Sharding, exchange_of, frozen_of, remedies, shared, states_of
from klqlit.planning.stages import Sizes, bytes_of_parameters, measure
from klqlit.planning.tracker import Tracker, building

GIB = 2**30
CONTEXT = 0.6 * GIB
"""What a process takes on a GPU before its first tensor, about."""

GAPS = 0.3
"""What the C library's heap leaves unused between tensors, as a share of theirs: 0.23, 0.26 and 0.38 in three runs on a
CPU (a large vocabulary, accumulation, long rows)."""


@dataclass(kw_only=True, slots=True)
class Planned:
    """A plan with what it is measured by.

    Attributes:
        plan: what one device needs.
        sizes: what one device works on at once.
        devices: how many share the work.
        sharding: how weights lie on them.
        kind: of the device, for people.
        memory: bytes that each has.
        remedies: what lowers the peak.
    """

    plan: Plan
    sizes: Sizes
    devices: int
    sharding: Sharding
    kind: str
    memory: float | int
    remedies: list[Remedy]

    @property
    def fits(self) -> bool:
        return self.plan.peak <= self.memory


def planned(
    options: list[str],
    *,
    devices: int | None = None,
    sharding: Sharding | None = None,
    memory: float | int | None = None,
) -> Planned:
    """Plan the run that `fit` would make of the options; no weights are read.

    Args:
        options: of `fit`.
        devices: how many share the work; None for the configuration's.
        sharding: how weights lie on them; None for the configuration's.
        memory: GiB of each device; None for what this machine has.

    Raises:
        ValueError: an option is unusable, the configuration is not that of an online run, or its numbers do not divide.
    """
    quieten()
    with building():
        cli = read("plan", options)
    module, data, settings = cli.model, cli.datamodule, cli.config["trainer"]
    if not isinstance(module, RLHFModule) or not isinstance(data, OnlineDataModule):
        raise ValueError(f"plan is for online runs, KLQ or PPO, and {type(module).__name__} is none")
    devices = devices or _devices(settings)
    sharding = sharding or ("fsdp" if "FullySharded" in str(settings["strategy"]) else "none")
    sizes = _sizes(module, data, devices, settings)
    on_cpu = settings["accelerator"] == "cpu" or (settings["accelerator"] == "auto" and not torch.cuda.is_available())
    # The filler is any token that is not the end.
    tracker = Tracker(filler=int(module.tokenizer.eos_token_id == 0))
    half, split = "bf16" in str(settings["precision"]), sharding == "fsdp" and devices > 1
    states, own = states_of(module), 0 if module.critic.reads_features else 4 * bytes_of_parameters(module.critic)
    exchange = exchange_of(module, states, devices, sharding, half)
    dtype = torch.bfloat16 if half and split else None
    in_file, validates = on_cpu and sharding == "none" and SUPPORTED, settings["limit_val_batches"] != 0
    frozen = frozen_of(module, in_file=in_file, validates=validates)
    stages = [
        replace(stage, frozen=frozen[stage.name])
        for stage in measure(module, sizes, tracker, cli.trainer.precision_plugin.forward_context, dtype)
    ]
    found = Plan(
        states=states.over(devices) if split else states,
        stages=shared(stages, devices) if split else stages,
        exchange=exchange,
        libraries=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if on_cpu else CONTEXT,
        gaps=GAPS if on_cpu else 0,
    )
    return Planned(
        plan=found,
        sizes=sizes,
        devices=devices,
        sharding=sharding,
        kind="CPU process" if on_cpu else "GPU",
        memory=memory * GIB if memory else _memory(on_cpu, devices),
        remedies=remedies(
            found,
            devices=devices,
            sharding=sharding,
            own_critic=own / (devices if split else 1),
            frozen=bytes_of_parameters(module.reference, module.reward, module.gold),
        ),
    )


def _devices(settings: Any) -> int:
    """As the configuration has them; "auto" and -1 are all that are here."""
    given = settings["devices"]
    on_a_node = max(1, torch.cuda.device_count()) if given in ("auto", "-1", -1) else count(given)
    return on_a_node * (settings["num_nodes"] or 1)


def _sizes(module: RLHFModule, data: OnlineDataModule, devices: int, settings: Any) -> Sizes:
    accumulate = settings["accumulate_grad_batches"]
    size, shares = data.rollouts // data.minibatches, devices * accumulate
    if size % shares:
        raise ValueError(
            f"a minibatch of {size} rows (data.rollouts / data.minibatches) cannot be split evenly over {devices} "
            f"devices times trainer.accumulate_grad_batches={accumulate}: choose rollouts so that it is a multiple of "
            f"{shares}"
        )
    validated = min(data.validation_batch_size, -(-data.validation_prompts // devices))
    rows = max(data.rollouts // devices, validated if settings["limit_val_batches"] != 0 else 0)
    limit = module.prompt_limit
    return Sizes(
        prompt=data.max_prompt_tokens if limit is None else min(data.max_prompt_tokens, limit),
        response=module.sampler.response_length,
        sampled=min(rows, module.sampler.batch_size or rows),
        scored=rows,
        micro=size // shares,
        accumulated=accumulate > 1,
    )


def _memory(on_cpu: bool, devices: int) -> float | int:
    """Bytes that each device has: the processes on a CPU share it."""
    if on_cpu:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / devices
    if not torch.cuda.is_available():
        raise ValueError("there is no GPU here whose memory could be asked for: give it in GiB, such as --memory 80")
    return torch.cuda.get_device_properties(0).total_memory

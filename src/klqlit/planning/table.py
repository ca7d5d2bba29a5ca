"""A plan for people."""

from rich.console import Console
from rich.table import Table

from klqlit.disk import size
from klqlit.planning.device import Planned
from klqlit.planning.stages import Stage


def show(found: Planned) -> bool:
    """Print the plan. Returns whether the run fits."""
    console = Console(soft_wrap=True, highlight=False)
    sizes, plan = found.sizes, found.plan
    console.print(
        f"{sizes.prompt} prompt and {sizes.response} response tokens; rows at once: {sizes.sampled} in sampling, "
        f"{sizes.micro} in an update"
    )
    console.print(as_table(found))
    verdict = f"peak {size(plan.peak)} of {size(found.memory)} a {found.kind}"
    console.print(f"it fits: {verdict}" if found.fits else f"it does not fit: {verdict}")
    if not found.fits:
        console.print("what lowers the peak, each alone, the strongest first:")
        for remedy in found.remedies:
            console.print(f"  {remedy.what}: about {size(remedy.peak)}", markup=False)
    return found.fits


def as_table(found: Planned) -> Table:
    """One row a kind of memory, one column a stage."""
    plan = found.plan
    table = Table(title=f"memory of each of {found.devices} device(s), sharding: {found.sharding}")
    table.add_column("")
    for stage in plan.stages:
        table.add_column(stage.name, justify="right")
    for name, value in (("policy and critic", plan.states.trained), ("optimizer", plan.states.optimizer)):
        table.add_row(name, *[size(value)] * len(plan.stages))
    table.add_row("reference and reward", *[size(stage.frozen) for stage in plan.stages])
    if any(plan.exchange.values()):
        name = "gathered weights" if found.sharding == "fsdp" else "gradient buckets"
        table.add_row(name, *[size(plan.exchange[stage.name]) for stage in plan.stages])
    for name in ("gradients", "weights in 16 bits", "KV cache", "activations", "logits, scratch"):
        if any(part(stage, name) for stage in plan.stages):
            table.add_row(name, *[size(part(stage, name)) for stage in plan.stages])
    if plan.gaps:
        table.add_row("gaps in the heap", *[size(plan.between(stage)) for stage in plan.stages])
    table.add_row("program", *[size(plan.libraries)] * len(plan.stages), end_section=True)
    table.add_row("peak", *[size(plan.total(stage)) for stage in plan.stages], style="bold")
    return table


def part(stage: Stage, name: str) -> float | int:
    """A part of a stage by its row's name."""
    return {
        "gradients": stage.gradients,
        "weights in 16 bits": stage.casts,
        "KV cache": stage.cache,
        "activations": stage.activations,
        "logits, scratch": stage.scratch,
    }[name]

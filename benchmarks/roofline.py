"""How far each stage of an update is from what the machine could do at best.

    python benchmarks/roofline.py [--workloads W1 W2] [--out runs/roofline]

Counts every matrix product of one KLQ update, times products of the same shapes back to back with nothing in between,
measures the machine's best rate of multiplication and of copying memory, and sets the stages' seconds beside these.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from step import arms, summary, workloads
from step.arguments import positive_int
from step.counting import Shape, flops
from step.measuring import STAGES
from step.page import fill, origin, provenance, table
from step.workloads import Workload
from step_time import WORKLOADS

BYTES = 4
"""Of a float32."""
ADAMW_PASSES = 7
"""Weight, gradient and two moments are read, weight and moments written."""


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["W1", "W2"])
    parser.add_argument("--updates", type=positive_int, default=4, help="timed updates, after one to warm up")
    parser.add_argument("--threads", type=positive_int, default=2, help="of torch")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a quiet machine")
    parser.add_argument("--out", type=Path, default=Path("runs/roofline"), help="folder of roofline.json")
    parser.add_argument("--page", type=Path, help="page that holds the generated section")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"provenance": provenance(), "workloads": {}}
    for name in arguments.workloads:
        result["workloads"][name] = measure(WORKLOADS[name], arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "roofline.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = markdown(result)
    print(text)
    if arguments.page:
        fill(arguments.page, "roofline", text)


def measure(workload: Workload, arguments: argparse.Namespace) -> dict[str, Any]:
    """Limits and seconds of each stage of one workload."""
    updates = arguments.updates + 1
    with tempfile.TemporaryDirectory() as scratch:
        directory = workloads.write(workload, Path(scratch), prompts=workload.rollouts * updates)
        work = arms.KLQ.run(directory, updates=1, threads=arguments.threads, count=True)["rows"][0]["work"]
        arms.wait_for_quiet(arguments.patience, summary.CLEAN)
        run = arms.KLQ.run(directory, updates=updates, threads=arguments.threads)
    seconds = summary.summarise([run], workload.rollouts)["seconds"]
    rate, bandwidth = best_rate(), copy_bandwidth()
    stages = {
        stage: {
            "seconds": seconds and seconds[stage],
            "flops": work["flops"][stage],
            "at_best_rate": work["flops"][stage] / rate,
            "back_to_back": products_alone(work["products"][stage]),
            "moving": least_bytes(workload)[stage] / bandwidth,
        }
        for stage in STAGES
    }
    return {"rate": rate, "bandwidth": bandwidth, "stages": stages}


def products_alone(products: list[list[Any]]) -> float:
    """Seconds of all these products, each timed by itself."""
    return sum(quickest(alone((kind, tuple(sizes)))) * n for kind, sizes, n in products)


def alone(shape: Shape) -> Callable[[], Any]:
    """A product of this shape and nothing else."""
    kind, sizes = shape
    if kind == "mm":
        rows, inner, columns = sizes
        a, b = torch.rand(rows, inner), torch.rand(inner, columns)
        return lambda: a @ b
    if kind == "bmm":
        batch, rows, inner, columns = sizes
        x, y = torch.rand(batch, rows, inner), torch.rand(batch, inner, columns)
        return lambda: x @ y
    batch, heads, queries, width, keys = sizes
    backward = kind == "attention_backward"
    q = torch.rand(batch, heads, queries, width, requires_grad=backward)
    k, v = (torch.rand(batch, heads, keys, width, requires_grad=backward) for _ in range(2))
    if not backward:
        return lambda: scaled_dot_product_attention(q, k, v)
    output = scaled_dot_product_attention(q, k, v)
    gradient = torch.rand_like(output)
    return lambda: torch.autograd.grad(output, (q, k, v), gradient, retain_graph=True)


def quickest(work: Callable[[], Any], *, least: float = 0.02, repeats: int = 3) -> float:
    """The shortest of at least `repeats` calls over at least `least` seconds: what disturbs only makes it longer."""
    work()
    times: list[float] = []
    while len(times) < repeats or sum(times) < least:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def best_rate(size: int = 2048) -> float:
    """Floating-point operations a second in a large square product."""
    shape = ("mm", (size, size, size))
    return flops(shape) / quickest(alone(shape), least=1.0)


def copy_bandwidth(size: int = 2**28) -> float:
    """Bytes a second, read and written, of a copy too large for any cache."""
    source = torch.ones(size // BYTES)
    target = torch.empty_like(source)
    return 2 * size / quickest(lambda: target.copy_(source), least=1.0)


def least_bytes(workload: Workload) -> dict[str, float]:
    """What must pass through memory: weights once a forward pass, keys and values once a token, AdamW's tensors.

    Activations are left out: whether they fit the caches depends on the machine.
    """
    trunk = workload.layers * 12 * workload.hidden**2
    head = workload.vocab * workload.hidden
    cached = 2 * workload.layers * workload.hidden * workload.rollouts
    lengths = range(workload.prompt_tokens, workload.prompt_tokens + workload.response_tokens)
    trained = 2 * trunk + 3 * head  # both embeddings and the policy's head
    return {
        "generation": BYTES * (workload.response_tokens * (trunk + head) + cached * sum(lengths)),
        "scoring": BYTES * (3 * trunk + head),
        "optimization": BYTES * workload.steps * (ADAMW_PASSES * trained + 3 * (2 * trunk + head)),
    }


def markdown(result: dict[str, Any]) -> str:
    """The section of docs/performance.md."""
    parts = [
        f"{origin(result['provenance'])} "
        "*At best rate*: the stage's multiplications at the rate of a large square product. *Back to back*: products "
        "of the stage's own shapes with nothing between them. *Memory*: the least that must be read and written."
    ]
    for name, found in result["workloads"].items():
        head = ["", "s", "GFLOP", "at best rate, s", "back to back, s", "memory, s", "back to back / s"]
        rows = [
            [
                stage,
                summary.number(part["seconds"]),
                f"{part['flops'] / 1e9:,.1f}",
                summary.number(part["at_best_rate"]),
                summary.number(part["back_to_back"]),
                summary.number(part["moving"]),
                f"{part['back_to_back'] / part['seconds']:.0%}" if part["seconds"] else "—",
            ]
            for stage, part in found["stages"].items()
        ]
        parts += [
            f"### Limits of {name}",
            f"Large products run at {found['rate'] / 1e9:,.0f} GFLOP/s, copies at "
            f"{found['bandwidth'] / 1e9:,.1f} GB/s.",
            table([head, *rows]),
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()

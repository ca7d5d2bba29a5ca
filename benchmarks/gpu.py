"""One GPU on the TL;DR workload of arXiv 2508.17000 at the shape of Pythia-1B: speed, and its distance from the limit.

    python benchmarks/gpu.py [--compile] [--accumulate 2] [--profile runs/gpu/trace.json] [--out runs/gpu]

Random weights serve: policy and critic in single precision under bf16-mixed, reference and reward model of the same
shape. Every response has its full length. Reports episodes per second, model-FLOPs utilisation (multiplications that
the mathematics asks for, by what the GPU could do), and the share of decoding that moving weights and cache explains.
`--device cpu --tiny` runs the same at a size that shows nothing.
"""

import argparse
import gc
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, final

import lightning as L
import torch

from klqlit.callbacks.compiled_blocks import CompiledBlocks
from roofline import quickest
from step import workloads
from step.arguments import positive_int
from step.klqlit_arm import ALGORITHMS, Clock, make_data, make_module, make_trainer, quieten
from step.measuring import STAGES, Updates
from step.page import fill, origin, provenance, table
from step.summary import number
from step.workloads import Workload

PYTHIA_1B = Workload(
    name="TL;DR at Pythia-1B",
    hidden=2048,
    layers=16,
    heads=8,
    vocab=50304,
    prompt_tokens=512,
    response_tokens=53,
    rollouts=192,
)
PAPER = 75_000 / (5 * 3600) / 4
"""Episodes per second and GPU in the paper: 75,000 in 5 hours on 4 A100."""
BF16 = 2
"""Bytes of a weight or a cached number while sampling under bf16-mixed."""


def main() -> None:
    """Train, measure the machine, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=[*ALGORITHMS])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a size that shows nothing, to see that it runs")
    parser.add_argument("--updates", type=positive_int, default=3, help="timed updates, after one to warm up")
    parser.add_argument("--rollouts", type=positive_int, help="episodes an update; the paper's 192 by default")
    parser.add_argument("--accumulate", type=positive_int, default=2, help="micro-batches an optimizer step")
    parser.add_argument("--compile", action="store_true", help="compile the transformer blocks")
    parser.add_argument(
        "--scoring_batch_size", type=positive_int, default=64, help="rows per pass of reference and critic"
    )
    parser.add_argument("--profile", type=Path, help="file for a torch trace of one more update of each")
    parser.add_argument("--peak_tflops", type=float, help="of the data sheet, dense bf16; measured where not given")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of gpu.json")
    parser.add_argument("--page", type=Path, help="page that holds the generated section")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda needs a CUDA GPU and torch finds none; --device=cpu --tiny tries the script out")
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = {"provenance": provenance(), **measure(arguments)}
    (arguments.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = markdown(result)
    print(text)
    if arguments.page:
        fill(arguments.page, "gpu", text)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows of the updates, limits of the device, and what follows from both."""
    workload = sized(workloads.TINY if arguments.tiny else PYTHIA_1B, arguments.rollouts)
    runs = {name: train(name, workload, arguments) for name in arguments.algorithms}
    rate = arguments.peak_tflops * 1e12 if arguments.peak_tflops else product_rate(arguments.device, arguments.tiny)
    bandwidth = copy_bandwidth(arguments.device, arguments.tiny)
    work = model_flops(workload)
    return {
        "workload": asdict(workload),
        "peak_flops": rate,
        "bandwidth": bandwidth,
        "flops": work,
        "generation_floor": decode_bytes(workload) / bandwidth + prefill_flops(workload) / rate,
        "algorithms": {
            name: summary(rows, memory, workload.rollouts, work, rate) for name, (rows, memory) in runs.items()
        },
    }


def summary(
    rows: list[dict[str, Any]], memory: float, rollouts: int, work: dict[str, float], rate: float
) -> dict[str, Any]:
    """Medians, and what they make of the device."""
    seconds = {name: median(row[name] for row in rows) for name in ("total", *STAGES, "rest")}
    return {
        "rows": rows,
        "seconds": seconds,
        "memory_gb": memory,
        "episodes_per_second": rollouts / seconds["total"],
        "utilisation": {name: work[name] / seconds[name] / rate for name in STAGES}
        | {"total": sum(work.values()) / seconds["total"] / rate},
    }


def sized(workload: Workload, rollouts: int | None) -> Workload:
    """With another number of rollouts."""
    return workload if rollouts is None else Workload(**asdict(workload) | {"rollouts": rollouts})


def train(algorithm: str, workload: Workload, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], float]:
    """Rows of the updates after the first, and peak memory of the device in GB."""
    quieten()
    count = arguments.updates + 1 + (arguments.profile is not None)
    with tempfile.TemporaryDirectory() as scratch:
        directory = workloads.write(
            workload, Path(scratch), prompts=workload.rollouts * count, models=("policy", "reward")
        )
        options = {"frozen_dtype": "bfloat16", "scoring_batch_size": arguments.scoring_batch_size}
        module = make_module(ALGORITHMS[algorithm], workload, directory, **options)
        updates = Updates()
        trainer = make_trainer(
            scratch,
            count,
            Clock(updates, None),
            accelerator=arguments.device,
            devices=1,
            precision="bf16-mixed",
            accumulate_grad_batches=arguments.accumulate,
        )
        if arguments.compile:
            trainer.callbacks.append(CompiledBlocks())
        if arguments.profile:
            file = arguments.profile
            trainer.callbacks.append(LastUpdate(file.with_stem(f"{file.stem}-{algorithm}")))
        trainer.fit(module, make_data(workload, directory))
    memory = 0.0
    if arguments.device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 1e9
        del module, trainer
        gc.collect()  # the next algorithm needs the room
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return updates.rows[1 : arguments.updates + 1], memory


@final
class LastUpdate(L.Callback):
    """Profiles the last update, and writes its trace and a table of its operators beside it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._profiler = torch.profiler.profile()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.current_epoch == trainer.max_epochs - 1:
            self._profiler.start()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._profiler.stop()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.file))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        operators = self._profiler.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=40)
        self.file.with_suffix(".txt").write_text(operators, encoding="utf-8")


# What the mathematics asks for -------------------------------------------------------------------------------------


def token_flops(workload: Workload) -> int:
    """Multiplications and additions of a token in the trunk's matrices."""
    return 2 * workload.layers * 12 * workload.hidden**2


def head_flops(workload: Workload) -> int:
    """Of a token in the LM head."""
    return 2 * workload.hidden * workload.vocab


def attention_flops(workload: Workload, first: int, last: int) -> int:
    """Of the positions `first` to `last`, each attending to itself and all before it."""
    pairs = last * (last + 1) // 2 - first * (first + 1) // 2
    return 4 * workload.layers * workload.hidden * pairs


def prefill_flops(workload: Workload) -> int:
    """Prompts read once."""
    prompt = workload.prompt_tokens
    return workload.rollouts * (prompt * token_flops(workload) + attention_flops(workload, 0, prompt))


def model_flops(workload: Workload) -> dict[str, float]:
    """By stage: no position twice, the LM head at response positions only, backward passes twice their forward."""
    prompt, response = workload.prompt_tokens, workload.response_tokens
    whole = prompt + response
    trunk = whole * token_flops(workload) + attention_flops(workload, 0, whole)
    head = response * head_flops(workload)
    decoded = response * (token_flops(workload) + head_flops(workload)) + attention_flops(workload, prompt, whole)
    return {
        "generation": float(prefill_flops(workload) + workload.rollouts * decoded),
        # Reference, critic and reward model.
        "scoring": float(workload.rollouts * (3 * trunk + head)),
        # Policy and critic, forward and backward.
        "optimization": float(workload.epochs * workload.rollouts * 3 * (2 * trunk + head)),
    }


def decode_bytes(workload: Workload) -> float:
    """Read while decoding: all weights once a token of the batch, and the keys and values so far."""
    weights = workload.layers * 12 * workload.hidden**2 + workload.hidden * workload.vocab
    lengths = range(workload.prompt_tokens, workload.prompt_tokens + workload.response_tokens)
    cache = 2 * workload.layers * workload.hidden * workload.rollouts * sum(lengths)
    return float(BF16 * (workload.response_tokens * weights + cache))


# What the device can do ----------------------------------------------------------------------------------------------


def product_rate(device: str, tiny: bool) -> float:
    """Operations a second in a large square bf16 product."""
    size = 256 if tiny else 8192
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)  # products of ones are faster
    return 2 * size**3 / quickest(lambda: waited(a @ a), least=0.1 if tiny else 2.0)


def copy_bandwidth(device: str, tiny: bool) -> float:
    """Bytes a second, read and written, of a large copy."""
    size = 2**22 if tiny else 2**32
    source = torch.ones(size, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * size / quickest(lambda: waited(target.copy_(source)), least=0.1 if tiny else 2.0)


def waited(result: torch.Tensor) -> torch.Tensor:
    """The result, when the device has it."""
    if result.is_cuda:
        torch.cuda.synchronize()
    return result


# Report --------------------------------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The section of docs/performance.md."""
    runs, total = result["algorithms"], sum(result["flops"].values())
    speeds = ", ".join(f"{name} **{run['episodes_per_second']:.3g} episodes per second**" for name, run in runs.items())
    rows = [
        [
            "whole update" if name == "total" else name,
            f"{flops / 1e12:,.3g}",
            *(cell for run in runs.values() for cell in _cells(run, name)),
        ]
        for name, flops in (result["flops"] | {"total": total}).items()
    ]
    heads = [head for name in runs for head in (f"{name}, s", "model-FLOPs utilisation")]
    floor, memory = result["generation_floor"], max(run["memory_gb"] for run in runs.values())
    shares = ", ".join(f"{floor / run['seconds']['generation']:.0%}" for run in runs.values())
    return "\n\n".join(
        [
            origin(result["provenance"]),
            f"{result['workload']['name']}: {speeds} (the paper: {PAPER:.2g} on an A100). Peak memory {memory:.1f} GB. "
            f"The device multiplies at {result['peak_flops'] / 1e12:.3g} TFLOP/s and copies at "
            f"{result['bandwidth'] / 1e9:.4g} GB/s.",
            table([["", "TFLOP", *heads], *rows]),
            f"Reading the prompts at that rate and moving weights and cache at that bandwidth takes {number(floor)} s: "
            f"{shares} of what generation took.",
        ]
    )


def _cells(run: dict[str, Any], stage: str) -> list[str]:
    return [number(run["seconds"][stage]), f"{run['utilisation'][stage]:.1%}"]


if __name__ == "__main__":
    main()

"""Trains with real models and prints the peak of the memory they took.

`python training_peak.py SETTINGS`, with SETTINGS as JSON: see `run`.
"""

import ctypes
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from klqlit.algorithms.klq import KLQ
from klqlit.rewards.function import FunctionReward
from klqlit.rollout.sampling import Sampler
from runs import ListSource, make_data, make_module, make_trainer, nothing


def run(model: str, *, prompt: int, response: int, rollouts: int, minibatches: int, accumulate: int) -> None:
    """Two phases of KLQ: only the second finds gradients and optimizer state."""
    module = make_module(model, KLQ, reward=FunctionReward(nothing), sampler=Sampler(response_length=response))
    prompts = [f"{i} {'flour and salt ' * prompt}" for i in range(rollouts)]
    data = make_data(
        source=ListSource(prompts), rollouts=rollouts, minibatches=minibatches, epochs=1, max_prompt_tokens=prompt
    )
    trainer = make_trainer(tempfile.mkdtemp(), max_epochs=2, accumulate_grad_batches=accumulate)
    trainer.fit(module, data)


def resident(key: str) -> int:
    """VmRSS, or VmHWM, the most there was: in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    # What a first run imports and sets up once is no model's memory.
    run(settings.pop("tiny"), prompt=8, response=4, rollouts=4, minibatches=2, accumulate=1)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident("VmRSS")
    run(**settings)
    print(json.dumps({"used": resident("VmHWM") - before}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

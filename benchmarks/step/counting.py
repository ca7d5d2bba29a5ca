"""What an arm computes, seen at the operators of torch: matrix products by stage and shape, and optimizer steps."""

from collections import Counter, defaultdict
from typing import Any, final

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

Shape = tuple[str, tuple[int, ...]]
"""Kind of operator and its sizes."""


@final
class Work(TorchDispatchMode):
    """Counts while it is entered; `stage` says for whom."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = "rest"
        self._products: dict[str, Counter[Shape]] = defaultdict(Counter)
        self._counts: Counter[str] = Counter()
        register_optimizer_step_post_hook(self._stepped)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if shape := product(func, args):
            self._products[self.stage][shape] += 1
        if func.overloadpacket is aten.embedding:
            self._counts[f"tokens_{self.stage}"] += args[1].numel()
        if func.overloadpacket is aten.embedding_dense_backward:
            self._counts["tokens_backward"] += args[1].numel()
        return func(*args, **(kwargs or {}))

    def lap(self) -> dict[str, Any]:
        """Since the last lap: optimizer steps; tokens read in each stage and in backward passes, summed over models;
        by stage, floating-point operations and the products they were in.
        """
        products, self._products = self._products, defaultdict(Counter)
        counts, self._counts = dict(self._counts), Counter()
        return {
            **counts,
            "flops": {stage: sum(flops(shape) * n for shape, n in found.items()) for stage, found in products.items()},
            "products": {stage: [[*shape, n] for shape, n in found.items()] for stage, found in products.items()},
        }

    def _stepped(self, *_: Any) -> None:
        self._counts["optimizer_steps"] += 1


def product(func: Any, args: Any) -> Shape | None:
    """Kind and sizes of a matrix product or an attention; None for any other operator."""
    packet = func.overloadpacket
    if packet is aten.mm:
        return "mm", (*args[0].shape, args[1].shape[1])
    if packet is aten.addmm:
        return "mm", (*args[1].shape, args[2].shape[1])
    if packet is aten.bmm:
        return "bmm", (*args[0].shape, args[1].shape[2])
    if packet is aten.baddbmm:
        return "bmm", (*args[1].shape, args[2].shape[2])
    if packet in (aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_attention_math):
        return "attention", (*args[0].shape, args[1].shape[2])
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return "attention_backward", (*args[1].shape, args[2].shape[2])
    return None


def flops(shape: Shape) -> int:
    """Multiplications and additions; in an attention those of every pair of positions, also what the mask hides."""
    kind, sizes = shape
    number = 2
    for size in sizes:
        number *= size
    # Attention: scores and weighted sum. Backward: the scores again, and two products for each of the two.
    return number * {"mm": 1, "bmm": 1, "attention": 2, "attention_backward": 5}[kind]

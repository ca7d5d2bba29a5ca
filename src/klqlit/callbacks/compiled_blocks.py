"""Transformer blocks compiled with `torch.compile`."""

from typing import Any, final

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from klqlit.models.blocks import transformer_blocks
from klqlit.models.last_mlp import last_mlp
from klqlit.strategies.fully_sharded import FullySharded
from klqlit.strategies.sharded_model import transformers_in

ROTARY = "rotary_emb"
"""What transformers calls the part of a model that gives the angles of its positions to all blocks."""

RECOMPILATIONS = 64
"""Of all parts together: for training or not, each type of weights, one row or several, with a mask or without."""


@final
class CompiledBlocks(L.Callback):
    """Compiles the blocks of all models for scoring and training: what stands between products becomes one kernel.

    A block is compiled, not a whole model, so that it takes a minute however many there are. The MLP of the last block,
    which is computed before response tokens only, stays as it is, and so does decoding, where each token finds another
    length. Numbers change by rounding, so that log-probabilities of sampling and of the update differ by that much.

    Raises:
        ValueError: under `FullySharded`, whose blocks gather their weights as they go.
    """

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FullySharded):
            raise ValueError("CompiledBlocks does not work under FullySharded: leave one of the two out")
        # One kernel for all sizes, and none left out because there were many before it: numbers should not depend on
        # what this process has seen, or a run that is continued would differ from one that was not stopped.
        torch._dynamo.config.recompile_limit = RECOMPILATIONS
        # Under DDP a block would be cut in pieces so that gradients can be sent earlier: blocks are small enough.
        torch._dynamo.config.optimize_ddp = False
        for model in transformers_in(pl_module):
            if rotary := dict(model.base_model.named_children()).get(ROTARY):
                self._hooks.append(rotary.register_forward_hook(_fix_width))
            for part in _compiled_parts(model):
                part.compile(dynamic=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _fix_width(part: nn.Module, inputs: tuple[Any, ...], angles: tuple[Tensor, ...]) -> None:
    """Rows and positions may be of any number; the width of a head that is rotated stays what it is.

    A kernel that left it open would ask of each element where it stands, and take three times as long on a GPU.
    """
    for tensor in angles:
        torch._dynamo.mark_static(tensor, tensor.ndim - 1)


def _compiled_parts(model: PreTrainedModel) -> list[nn.Module]:
    blocks = transformer_blocks(model)
    mlp = last_mlp(model.base_model)
    if mlp is None:
        return blocks
    # That MLP reads other states each time, which what surrounds it must not be compiled for.
    return [*blocks[:-1], *(part for part in blocks[-1].children() if part is not mlp and list(part.children()))]

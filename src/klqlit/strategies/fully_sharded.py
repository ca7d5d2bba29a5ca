"""Online RLHF with every model split over all devices (FSDP2)."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, Literal, final

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from klqlit.functional.checks import check_choice
from klqlit.models.policy import Policy
from klqlit.strategies.checkpoints import (
    check_complete,
    gather_on_first,
    is_sharded,
    load_sharded,
    save_sharded,
    split_like,
)
from klqlit.strategies.sharded_model import Layout, ShardedModel, in_step, set_aside, transformers_in


@final
class FullySharded(ModelParallelStrategy):
    """Splits parameters, gradients and optimizer state over all ranks, with torch's `fully_shard`.

    Each model (policy, critic, reference, reward model) is split on its own, and a transformer block at a time. With
    `precision: bf16-mixed` parameters are gathered in bfloat16; slices and gradients stay in single precision.

    Args:
        reshard_after_forward: free a block's gathered parameters after its forward pass and gather them again for the
            backward pass. False gathers once and holds the whole model in between.
        unshard_for_rollouts: gather a model once before it samples or scores, so that ranks decode on their own. False
            where the whole model does not fit: each token then gathers the model anew, and ranks decode in step.
        activation_checkpointing: keep the input of each block of a trained model only and compute the rest again in
            the backward pass.
        offload_frozen: keep the slices of models that are not trained in main memory.
        frozen_dtype: of the slices of models that are not trained; None for what they were loaded in.
        save_distributed_checkpoint: each rank writes its part into a folder; False gathers all on the first rank, which
            writes one file that runs under other strategies can continue from.

    Raises:
        ValueError: `frozen_dtype` is none of these.
    """

    def __init__(
        self,
        *,
        reshard_after_forward: bool = True,
        unshard_for_rollouts: bool = True,
        activation_checkpointing: bool = False,
        offload_frozen: bool = False,
        frozen_dtype: Literal["float32", "bfloat16"] | None = None,
        save_distributed_checkpoint: bool = True,
    ) -> None:
        if frozen_dtype is not None:
            check_choice("strategy.frozen_dtype", frozen_dtype, [*_DTYPES])
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)
        self.reshard_after_forward = reshard_after_forward
        self.unshard_for_rollouts = unshard_for_rollouts
        self.activation_checkpointing = activation_checkpointing
        self.offload_frozen = offload_frozen
        self.frozen_dtype = None if frozen_dtype is None else _DTYPES[frozen_dtype]
        self._models: list[ShardedModel] = []

    # Models --------------------------------------------------------------------------------------------------------

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        # What is gathered in inference mode could not be trained afterwards.
        evaluations = (trainer.validate_loop, trainer.test_loop, trainer.fit_loop.epoch_loop.val_loop)
        for loop in (*evaluations, trainer.predict_loop):
            loop.inference_mode = False
        super().setup(trainer)

    def model_to_device(self) -> None:
        assert self.model is not None
        kept = [model.module for model in self._models if model.layout.offload]
        with set_aside(self.model, kept):
            super().model_to_device()
        for module in kept:
            for buffer in module.buffers():
                torch.utils.swap_tensors(buffer, buffer.to(self.root_device))

    def shard(self, models: Iterable[nn.Module]) -> None:
        """Split each of the models; what has no parameters is left alone."""
        chosen = dict.fromkeys(model for model in models if list(model.parameters()))
        methods = {model: ["decode"] if isinstance(model, Policy) else [] for model in chosen}
        self._models = [ShardedModel(model, self._layout(model), methods[model]) for model in chosen]

    def at_hand(self, parts: Iterable[nn.Module]) -> AbstractContextManager[object]:
        """See the function of this name."""
        inside = {module for part in parts for module in part.modules()}
        models = [model for model in self._models if model.module in inside]
        if not self.unshard_for_rollouts:
            return in_step(models, self.root_device)
        stack = ExitStack()
        for model in models:
            stack.enter_context(model.gathered())
        return stack

    def _layout(self, model: nn.Module) -> Layout:
        layout = Layout(
            mesh=self.device_mesh["data_parallel"],
            reshard_after_forward=self.reshard_after_forward,
            compute_dtype=torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None,
        )
        if any(parameter.requires_grad for parameter in model.parameters()):
            layout.activation_checkpointing = self.activation_checkpointing
        else:
            layout.offload, layout.stored_dtype = self.offload_frozen, self.frozen_dtype
        return layout

    # Checkpoints ---------------------------------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        state = self._trained_state()
        return state if self._save_distributed_checkpoint else gather_on_first(state)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        state = optimizer.state_dict()
        if not self._save_distributed_checkpoint:
            state["state"] = {number: gather_on_first(values) for number, values in state["state"].items()}
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            save_sharded(checkpoint, path)
        else:
            super().save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if is_sharded(path):
            return load_sharded(path, self._trained_state(), [_parameters(optimizer) for optimizer in self.optimizers])
        # Not Lightning's for model-parallel strategies, which also puts the states in place.
        return super(ModelParallelStrategy, self).load_checkpoint(path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        own, saved = self._trained_state(), checkpoint["state_dict"]
        check_complete(own, saved)
        self.model.load_state_dict({name: split_like(saved[name], own[name]) for name in own}, strict=False)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = _parameters(optimizer)
            state = {
                number: {kind: split_like(value, parameters[number]) for kind, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})

    def _trained_state(self) -> dict[str, Tensor]:
        """The module's state without the frozen models, which are rebuilt from their own paths."""
        assert self.model is not None
        frozen = {model.module for model in self._models if model.frozen}
        prefixes = tuple(f"{name}." for name, module in self.model.named_modules() if module in frozen)
        return {name: value for name, value in self.model.state_dict().items() if not name.startswith(prefixes)}


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def shard_models(module: L.LightningModule, models: Iterable[nn.Module]) -> None:
    """Split a module's models where the trainer's strategy is `FullySharded`: for `configure_model`.

    Args:
        module: within a trainer; without one, as `load_from_checkpoint` makes it, it stays whole.
        models: all that is trained is in them. Each is called, a policy also decodes; nothing else is used of them.

    Raises:
        ValueError: the strategy would leave models whole that it expects to be split, or a policy is no transformer.
    """
    try:
        strategy = module.trainer.strategy
    except RuntimeError:  # Lightning's way to say that there is no trainer
        return
    models = list(models)
    if isinstance(strategy, FullySharded):
        for model in models:
            if isinstance(model, Policy) and not transformers_in(model):
                raise ValueError(
                    f"FullySharded splits transformers models, and {type(model).__name__} holds none: use "
                    "trainer.strategy=ddp"
                )
        strategy.shard(models)
    elif isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise ValueError(
            f"trainer.strategy={type(strategy).__name__} does not know which models to split: use "
            "klqlit.FullySharded, as configs/fsdp.yaml does"
        )


def at_hand(module: L.LightningModule, *parts: nn.Module) -> AbstractContextManager[object]:
    """Within it, this rank may use `parts` as often as it likes, whatever the other ranks do.

    All ranks enter and leave it; in between, they speak to each other in no other way.
    """
    strategy = module.trainer.strategy
    return strategy.at_hand(parts) if isinstance(strategy, FullySharded) else nullcontext()


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]

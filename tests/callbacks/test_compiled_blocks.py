"""Compiled blocks give the numbers of plain ones, up to rounding."""

import shutil

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from builders import save, tiny_reward_model, tiny_tokenizer
from klqlit.algorithms.klq import KLQ
from klqlit.callbacks.compiled_blocks import CompiledBlocks
from klqlit.models.blocks import transformer_blocks
from klqlit.rewards.model import RewardModel
from klqlit.strategies.fully_sharded import FullySharded
from runs import Watch, make_data, make_module, make_trainer

compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


def fit(path, root, *callbacks, reward, **options):
    watch, module = Watch(), make_module(path, KLQ, reward=RewardModel(reward))
    trainer = make_trainer(root, watch, *callbacks, max_epochs=1, limit_val_batches=1, **options)
    trainer.fit(module, make_data())
    trainer.validate(module, make_data(), verbose=False)
    return watch


@compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "precision", "off", "threads"),
    [("gpt_neox", "32-true", 1e-5, 1), ("gpt_neox", "32-true", 1e-5, 2), ("llama", "bf16-mixed", 0.05, 1)],
)
def test_gradients_are_those_of_plain_blocks(architecture, precision, off, threads, model_dir, tmp_path, set_threads):
    """Training, scoring by a reward model, validation, and validation once more, which compiles anew.

    On two threads policy and critic are compiled and computed at the same time.
    """
    set_threads(threads)
    tokenizer = tiny_tokenizer()
    options = {
        "reward": save(tmp_path / "reward", tiny_reward_model(architecture, tokenizer), tokenizer),
        "precision": precision,
        "accumulate_grad_batches": 2,
    }
    plain = fit(model_dir(architecture), tmp_path, **options)
    before = counters["stats"]["unique_graphs"]
    compiled = fit(model_dir(architecture), tmp_path, CompiledBlocks(), **options)
    assert counters["stats"]["unique_graphs"] > before
    # Sampling is as it was, bit for bit.
    assert torch.equal(compiled.batches[0].experience.sequences.tokens, plain.batches[0].experience.sequences.tokens)
    assert torch.equal(compiled.batches[0].experience.logprobs, plain.batches[0].experience.logprobs)
    torch.testing.assert_close(
        compiled.batches[0].experience.values, plain.batches[0].experience.values, atol=off, rtol=off
    )
    for name, gradient in plain.gradients[0].items():
        assert float((compiled.gradients[0][name] - gradient).norm()) <= off * float(gradient.norm()) + 1e-7, name


class Compiled(Exception):
    """Something asked for a compilation."""


def marked(part):
    """`part` with a compilation that fails, so that it is known when one is asked for."""

    def refuse(*args):
        raise Compiled

    part.compile(backend=refuse)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2", "qwen2"])
def test_decoding_compiles_nothing(architecture, model_dir):
    policy = make_module(model_dir(architecture)).policy
    for block in transformer_blocks(policy.model):
        marked(block)
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    _, cache = policy.decode(tokens, mask, None)
    policy.decode(tokens[:, :1], torch.ones(2, 4, dtype=torch.bool), cache)
    with pytest.raises(Exception, match="Compiled"):
        policy.model(input_ids=tokens, use_cache=False)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2", "qwen2"])
def test_all_is_compiled_but_what_the_last_mlp_needs(architecture, model_dir, tmp_path, monkeypatch):
    module, parts = make_module(model_dir(architecture)), []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part, **options: parts.append((part, options)))
    trainer = make_trainer(tmp_path)
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    CompiledBlocks().setup(trainer, module, "fit")
    models = [m for m in module.modules() if isinstance(m, PreTrainedModel) and transformer_blocks(m)]
    # Policy, critic and reference: a first block and the last one's attention, of two blocks.
    trunks = {id(m.base_model) for m in models}
    assert len(trunks) == 3
    assert len(parts) == 6
    assert all(options == {"dynamic": True} for _, options in parts)
    names = [type(part).__name__ for part, _ in parts]
    assert sum(name.endswith(("Layer", "Block")) for name in names) == 3
    assert sum("Attention" in name for name in names) == 3


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "qwen2"])
def test_one_kernel_for_all_sizes_but_the_width_of_the_angles(architecture, model_dir, tmp_path, monkeypatch):
    module, inputs, compile_part = make_module(model_dir(architecture)), [], torch.nn.Module.compile

    def note(graph, _):
        inputs.append([n.meta["example_value"] for n in graph.graph.nodes if n.op == "placeholder"])
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda part, **how: compile_part(part, backend=note, **how))
    CompiledBlocks().setup(make_trainer(tmp_path), module, "fit")
    for rows, width in [(2, 5), (3, 7), (4, 6)]:
        module.policy.model(input_ids=torch.ones((rows, width), dtype=torch.long), use_cache=False)
    tensors = [value for value in max(inputs, key=len) if isinstance(value, torch.Tensor)]
    # All rows share them.
    angles = [t.shape for t in tensors if t.ndim == 3 and isinstance(t.shape[0], int)]
    assert len(angles) == 2
    assert all(isinstance(shape[1], torch.SymInt) and isinstance(shape[2], int) for shape in angles)
    assert len(inputs) == 2  # a block, and the attention of the last


def test_sharded_blocks_are_refused(quitter_dir, tmp_path):
    trainer = make_trainer(tmp_path, strategy=FullySharded())
    with pytest.raises(ValueError, match="CompiledBlocks does not work under FullySharded"):
        CompiledBlocks().setup(trainer, make_module(quitter_dir), "fit")


def test_it_leaves_nothing_on_the_rotary_positions(quitter_dir, tmp_path):
    module, trainer, callback = make_module(quitter_dir), make_trainer(tmp_path), CompiledBlocks()
    rotary = module.policy.model.base_model.get_submodule("rotary_emb")
    for _ in range(2):
        callback.setup(trainer, module, "fit")
        assert len(rotary._forward_hooks) == 1
        callback.teardown(trainer, module, "fit")
        assert not rotary._forward_hooks

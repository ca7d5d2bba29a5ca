"""Hugging Face models and tokenizers: read by local path or hub name, checked at once; and written.

Weights are read from safetensors where the checkpoint has them, else by `torch.load(weights_only=True)`: no pickled
object is ever built. Code that comes with a model runs only where `trust_remote_code` asks for it.
"""

import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.utilities import rank_zero_info
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from klqlit.functional.checks import check_choice
from klqlit.hub import can_only_be_a_path, go_offline_without_network

_SHAPES_ONLY: ContextVar[bool] = ContextVar("shapes_only", default=False)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within it, models are built by their configurations, and their weights are not read."""
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


def load_tokenizer(
    path: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`.

    Raises:
        ValueError: it cannot be read, or has no EOS token: responses could never end.
    """
    check_model_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:  # whatever missing, broken or foreign files make of transformers
        raise ValueError(_unreadable("tokenizer", path, error)) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {path!r} has no EOS token, so a response could never end: "
            "set `eos_token` in its tokenizer_config.json"
        )
    return tokenizer


def load_causal_lm(
    path: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> PreTrainedModel:
    """The causal language model at `path`, in train mode.

    Args:
        path: local directory or hub name.
        dtype: of the weights: "float32", "bfloat16", "float16", or "auto" for the checkpoint's own.
        attn_implementation: as in transformers; None for its default.
        trust_remote_code: run code that comes with the model. Off unless you trust its author.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: the model cannot be read, or the checkpoint lacks some of its weights.
    """
    options = {"attn_implementation": attn_implementation, "revision": revision}
    return _load(AutoModelForCausalLM, path, dtype, trust_remote_code, **options)


def load_trunk(
    path: str, *, dtype: str = "float32", trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedModel:
    """The transformer at `path` without any head, in train mode.

    Raises:
        ValueError: as in `load_causal_lm`.
    """
    return _load(AutoModel, path, dtype, trust_remote_code, revision=revision)


def load_reward_model(
    path: str, *, dtype: str = "float32", trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedModel:
    """The sequence-classification model with one output at `path`, in train mode.

    Raises:
        ValueError: as in `load_causal_lm`; or the model has not exactly one output, or its head was never trained.
    """
    config = _load_config(path, trust_remote_code, revision)
    if config.num_labels != 1:
        raise ValueError(
            f"{path!r} is no reward model: it has {config.num_labels} outputs, and a reward is one number; give a "
            "sequence-classification model with num_labels=1, such as the reward-modelling stage exports"
        )
    return _load(AutoModelForSequenceClassification, path, dtype, trust_remote_code, revision=revision)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, path: str) -> None:
    """Every token id must have an embedding.

    Raises:
        ValueError: the tokenizer knows ids beyond the model's embedding rows.
    """
    highest, rows = max(tokenizer.get_vocab().values()), embedding_rows(model)
    if highest >= rows:
        raise ValueError(
            f"the tokenizer of {path!r} gives token ids up to {highest}, but the model has {rows} embedding rows "
            f"(ids 0 to {rows - 1}): they do not belong together; give the tokenizer the model was trained with, or "
            "resize the model's embeddings"
        )


def embedding_rows(model: PreTrainedModel) -> int:
    """Number of token ids the model can read."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings.num_embeddings


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """True where both give the same ids to the same tokens (an added pad token aside)."""
    ours, theirs = one.get_vocab(), other.get_vocab()
    pads = {one.pad_token, other.pad_token}
    return all(ours.get(token) == theirs.get(token) for token in (ours.keys() | theirs.keys()) - pads)


def max_positions(config: PretrainedConfig) -> int | None:
    """Longest sequence the model has positions for, in tokens; None where nothing limits it."""
    config, name = config.get_text_config(), "max_position_embeddings"
    return config.to_dict().get(config.attribute_map.get(name, name))


def independent_positions(config: PretrainedConfig) -> int | None:
    """As `max_positions`, but for rows that are read alike whatever else is in their batch.

    "longrope" turns all positions by other angles once the longest row passes the length of pre-training: of a row that
    is read token by token too, in the middle of it.
    """
    rope = config.get_text_config().to_dict().get("rope_parameters") or {}
    ropes = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # some have one for each kind of layer
    limits = [each.get("original_max_position_embeddings") for each in ropes if each.get("rope_type") == "longrope"]
    known = [limit for limit in [*limits, max_positions(config)] if limit is not None]
    return min(known) if known else None


def say_other_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Say which tokens end a response by the model's generation settings, and do not here."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if others := [tokenizer.decode([token]) for token in ids if token != tokenizer.eos_token_id]:
        rank_zero_info(
            f"the generation settings of {path!r} end a response at {', '.join(map(repr, others))} too: here it ends "
            f"at {tokenizer.eos_token!r} alone, and at what sampler.stop_strings names"
        )


def check_model_path(path: str) -> None:
    """Tell a mistyped local path from a hub name before the hub is asked, and do not ask a hub that cannot answer.

    Raises:
        ValueError: `path` can only be a local path, and there is nothing.
    """
    if not path:
        raise ValueError(
            "the model path is empty: give a local directory or a hub name such as 'EleutherAI/pythia-14m'"
        )
    if Path(path).is_dir():
        return
    if can_only_be_a_path(path):
        raise ValueError(
            f"there is no model directory {path!r}: check the path (current directory: {os.getcwd()}), or run the "
            "stage that makes it first"
        )
    go_offline_without_network()


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str,
    *,
    card: str,
    temperature: float = 1.0,
) -> None:
    """Write weights (safetensors), tokenizer, generation settings and model card.

    All ranks must call it, since gathering sharded weights takes part of each; the first one writes. The directory
    appears, or replaces an older one, complete: a reader never meets a half-written model.

    Args:
        model: what to save.
        tokenizer: saved beside it.
        directory: the directory to make; its parents are made too.
        card: text of README.md.
        temperature: at which the model is meant to be sampled.
    """
    several = distributed.is_initialized()
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not several or distributed.get_rank() == 0:
        target = Path(directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            fresh = Path(scratch) / "new"
            if model.can_generate():
                model.generation_config = _generation_config(tokenizer, temperature)
            model.save_pretrained(fresh, state_dict=weights)
            tokenizer.save_pretrained(fresh)
            (fresh / "README.md").write_text(f"---\nlibrary_name: transformers\n---\n{card}", encoding="utf-8")
            # safetensors makes files that their owner alone can read, but models are shared.
            for file in fresh.glob("*.safetensors"):
                file.chmod(0o644)
            if target.exists():
                target.rename(Path(scratch) / "old")
            fresh.rename(target)
    if several:
        distributed.barrier()


def _load_config(path: str, trust_remote_code: bool, revision: str | None) -> PretrainedConfig:
    check_model_path(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except Exception as error:  # whatever missing, broken or foreign files make of transformers
        raise ValueError(_unreadable("model", path, error)) from error


def _load(auto: Any, path: str, dtype: str, trust_remote_code: bool, **options: Any) -> PreTrainedModel:
    check_model_path(path)
    check_choice("dtype", dtype, get_args(Dtype))
    if _SHAPES_ONLY.get():
        config = _load_config(path, trust_remote_code, options["revision"])
        attention = options.get("attn_implementation")
        kind = {} if dtype == "auto" else {"dtype": dtype}
        return auto.from_config(
            config, attn_implementation=attention, trust_remote_code=trust_remote_code, **kind
        ).train()
    try:
        model, info = auto.from_pretrained(
            path, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True, **options
        )
    except Exception as error:  # whatever missing, broken or foreign files make of transformers
        raise ValueError(_unreadable("model", path, error)) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"the checkpoint {path!r} lacks {len(missing)} weights of a {type(model).__name__} ({named}), so "
            "they would be random: give a model that was trained and saved in this form"
        )
    return model.train()


def _unreadable(what: str, path: str, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        # torch's own message advises to load it all the same.
        return (
            f"the {what} in {path!r} holds objects other than tensors, which are not loaded: they could run code. Have "
            "its author save it as safetensors"
        )
    if "trust_remote_code" in str(error):
        return (
            f"the {what} in {path!r} needs Python code that comes with it, which runs only where you allow it: set "
            "trust_remote_code: true beside this path (trust_remote_code=True in Python) if you have read that code "
            "and trust its author"
        )
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:600]
    if Path(path).is_dir():
        return f"the {what} in {path!r} cannot be read: {reason}"
    return (
        f"{path!r} is neither a directory here nor a {what} the hub could give (no network, HF_HUB_OFFLINE set, or no "
        f"such name): give the path of a local copy, for instance one made by `hf download {path}`. ({reason})"
    )


def _generation_config(tokenizer: PreTrainedTokenizerBase, temperature: float) -> GenerationConfig:
    """Sampling from the model as it is: transformers cuts to the 50 likeliest tokens unless told otherwise."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
    )

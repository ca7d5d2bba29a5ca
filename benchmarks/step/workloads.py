"""What is timed: the sizes of two workloads, and their models, tokenizer and prompts as files that every arm reads.

Needs torch, transformers and tokenizers alone, since the peer runs in an environment of its own.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

EOS = 0
NEVER = -60.0
"""Logit of a token that is not to be sampled."""
BIAS = 0.1
"""Of the final layer norm: what a constant logit is made of."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Workload:
    """Sizes of one update: sample `rollouts` responses, score them, take `epochs * minibatches` optimizer steps.

    Attributes:
        hazard: probability of EOS at every token, whatever came before; 0 for responses of full length.
        prompt_tokens: of every prompt.
        response_tokens: of a response at most.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    vocab: int
    prompt_tokens: int
    response_tokens: int
    rollouts: int
    minibatches: int = 4
    epochs: int = 4
    hazard: float = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps an update."""
        return self.epochs * self.minibatches

    @property
    def pad(self) -> int:
        """Id of the padding token: the last of the vocabulary."""
        return self.vocab - 1

    def save(self, file: Path) -> None:
        """Write the sizes."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> "Workload":
        """Read what `save` wrote."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


W1 = Workload(name="W1", hidden=128, layers=4, heads=4, vocab=512, prompt_tokens=32, response_tokens=48, rollouts=48)
W2 = Workload(name="W2", hidden=256, layers=6, heads=8, vocab=50304, prompt_tokens=64, response_tokens=53, rollouts=32)
TINY = Workload(
    name="tiny", hidden=16, layers=2, heads=2, vocab=64, prompt_tokens=6, response_tokens=5, rollouts=8, epochs=2
)


def write(
    workload: Workload,
    directory: Path,
    *,
    prompts: int,
    models: Sequence[str] = ("policy", "reward", "value"),
    seed: int = 1,
) -> Path:
    """Models, tokenizer and prompts of a workload as files below `directory`, which is returned.

    Each model is a Hugging Face directory of random weights: `policy`, which is the reference too, and the
    sequence classifiers `reward` and `value`. `prompts.json` holds rows of token ids.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(workload)
    for name in models:
        if name == "policy":
            model = GPTNeoXForCausalLM(config(workload))
            set_hazard(model, workload)
        else:
            model = GPTNeoXForSequenceClassification(config(workload, num_labels=1))
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    ids = torch.randint(1, workload.pad, (prompts, workload.prompt_tokens))
    (directory / "prompts.json").write_text(json.dumps(ids.tolist()), encoding="utf-8")
    workload.save(directory / "workload.json")
    return directory


def config(workload: Workload, **more: object) -> GPTNeoXConfig:
    """A GPT-NeoX without dropout."""
    return GPTNeoXConfig(
        vocab_size=workload.vocab,
        hidden_size=workload.hidden,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.heads,
        intermediate_size=4 * workload.hidden,
        max_position_embeddings=2048,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=workload.pad,
        **more,
    )


def set_hazard(policy: GPTNeoXForCausalLM, workload: Workload) -> None:
    """Give EOS and padding logits that no hidden state changes, and EOS the workload's probability.

    What a layer norm of unit weight and bias b puts out sums to b H. A row c (1, ..., 1) of the LM head therefore has
    the logit c b H at every position. The other logits are normal with the same variance at every position, so that
    their exponentials sum to about the same number.
    """
    others = workload.vocab - 2
    variance = policy.config.initializer_range**2 * workload.hidden * (1 + BIAS**2)
    mass = math.log(others) + variance / 2
    eos = NEVER if workload.hazard == 0 else mass + math.log(workload.hazard / (1 - workload.hazard))
    with torch.no_grad():
        policy.gpt_neox.final_layer_norm.bias.fill_(BIAS)
        for token, logit in ((EOS, eos), (workload.pad, NEVER)):
            policy.get_output_embeddings().weight[token].fill_(logit / (BIAS * workload.hidden))


def make_tokenizer(workload: Workload) -> PreTrainedTokenizerBase:
    """One word a token: `t17` is token 17."""
    words = {f"t{i}": i for i in range(1, workload.pad)}
    vocabulary = {"<eos>": EOS, **words, "<pad>": workload.pad}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )


def read_prompts(directory: Path) -> list[list[int]]:
    """Rows of token ids that `write` made."""
    return json.loads((directory / "prompts.json").read_text(encoding="utf-8"))


def as_text(prompt: list[int]) -> str:
    """A prompt as text; the blank at its end keeps its last word apart from the response's first."""
    return "".join(f"t{token} " for token in prompt)

"""A policy and a critic that are tables: one row of logits and one value a state, for problems that can be listed."""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from klqlit.functional.logprobs import token_logprobs
from klqlit.functional.tabular import state_tree, walk
from klqlit.models.critic import Critic
from klqlit.models.policy import Policy, PolicyOutput
from klqlit.types import Sequences

EOS = "<eos>"
_FILE = "table.safetensors"


@final
class ResponseTree(nn.Module):
    """The states of a problem whose responses can be listed (`functional.tabular.state_tree`).

    A prompt is a single token, one of the first `prompts` letters.

    Args:
        prompts: number of prompts.
        vocab_size: letters and EOS.
        horizon: the longest response in tokens.

    Raises:
        ValueError: a number is too small, or there are more prompts than letters.
    """

    next_states: Tensor

    def __init__(self, *, prompts: int, vocab_size: int, horizon: int) -> None:
        super().__init__()
        if prompts >= vocab_size:
            raise ValueError(f"{prompts} prompts need as many letters: give vocab_size at least {prompts + 1}")
        self.prompts = prompts
        self.horizon = horizon
        next_states = state_tree(prompts=prompts, vocab_size=vocab_size, horizon=horizon)
        self.register_buffer("next_states", next_states, persistent=False)

    def __len__(self) -> int:
        return len(self.next_states)

    def start(self, tokens: Int[Tensor, "B P"], mask: Bool[Tensor, "B P"]) -> Int[Tensor, " B"]:
        """The state s_0 of left-padded prompts.

        Raises:
            ValueError: a prompt is not one of the problem's.
        """
        last = tokens[:, -1]
        if bool((mask.sum(dim=1) != 1).any()) or not bool(((last >= 0) & (last < self.prompts)).all()):
            raise ValueError(
                f"a prompt of this table is one of the letters {ascii_lowercase[: self.prompts]!r} and nothing else"
            )
        return last

    def forward(self, sequences: Sequences) -> Int[Tensor, "B T"]:
        """The states s_t of given responses; any state where masked."""
        if sequences.tokens.shape[1] > self.horizon:
            raise ValueError(
                f"a response of {sequences.tokens.shape[1]} tokens is longer than the table's horizon {self.horizon}: "
                f"set sampler.response_length={self.horizon}"
            )
        tokens = torch.where(sequences.mask, sequences.tokens, 0)
        return walk(self.next_states, self.start(sequences.prompt_tokens, sequences.prompt_mask), tokens)


@final
class TabularPolicy(Policy):
    """pi(a|s) = softmax(logits[s] / temperature).

    Args:
        logits: one row a state, in the order of `functional.tabular.state_tree`; the start of training.
        prompts: number of prompts.
        horizon: the longest response in tokens.

    Raises:
        ValueError: `logits` has not one row a state.
    """

    def __init__(self, logits: Float[Tensor, "N V"], *, prompts: int, horizon: int) -> None:
        super().__init__()
        self.tree = ResponseTree(prompts=prompts, vocab_size=logits.shape[1], horizon=horizon)
        if len(logits) != len(self.tree):
            raise ValueError(
                f"logits has {len(logits)} rows, but {prompts} prompts, {logits.shape[1]} tokens and horizon {horizon} "
                f"make {len(self.tree)} states"
            )
        self.tokenizer = letter_tokenizer(logits.shape[1] - 1)
        self.logits = nn.Parameter(logits.detach().float().clone())

    @classmethod
    def load(cls, directory: str) -> "TabularPolicy":
        """The policy that `save` wrote."""
        with safe_open(Path(directory) / _FILE, framework="pt") as file:
            shape = {name: int(value) for name, value in file.metadata().items()}
            return cls(file.get_tensor("logits"), **shape)

    @property
    def vocab_size(self) -> int:
        return self.logits.shape[1]

    @property
    def max_positions(self) -> int | None:
        return 1 + self.tree.horizon

    def forward(self, sequences: Sequences, *, temperature: float, features: bool = False) -> PolicyOutput:
        if features:
            raise ValueError("a table has no hidden states for a critic to read: use TabularCritic")
        tokens = torch.where(sequences.mask, sequences.tokens, 0)
        logits = self.logits[self.tree(sequences)]
        return PolicyOutput(logprobs=token_logprobs(logits, tokens, temperature=temperature), features=None)

    def decode(self, tokens: Int[Tensor, "B n"], mask: Bool[Tensor, "B S"], cache: Any) -> tuple[Tensor, Any]:
        # The cache is the state. A row that has ended goes on to some state or other, and nobody reads it.
        state = self.tree.start(tokens, mask) if cache is None else self.tree.next_states[cache, tokens[:, 0]]
        return self.logits[state], state

    def select(self, cache: Any, rows: Int[Tensor, " N"]) -> Any:
        return cache[rows]

    def save(self, directory: str, card: str, *, temperature: float) -> None:
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        shape = {"prompts": str(self.tree.prompts), "horizon": str(self.tree.horizon)}
        save_file({"logits": self.logits.detach().cpu()}, target / _FILE, metadata=shape)
        self.tokenizer.save_pretrained(target)
        (target / "README.md").write_text(card, encoding="utf-8")


@final
class TabularCritic(Critic):
    """V(s) as a table that starts at 0.

    Args:
        policy: the `TabularPolicy` whose states it values.

    Raises:
        ValueError: the policy is no table.
    """

    reads_features: ClassVar[bool] = False

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        if not isinstance(policy, TabularPolicy):
            raise ValueError(f"TabularCritic needs a TabularPolicy, got {type(policy).__name__}: use SeparateCritic")
        self.tree = policy.tree
        self.table = nn.Parameter(torch.zeros(len(policy.tree)))

    def forward(self, sequences: Sequences, features: Float[Tensor, "B T H"] | None) -> Float[Tensor, "B T"]:
        return self.table[self.tree(sequences)]


def letter_tokenizer(letters: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose tokens are the first letters of the alphabet, then EOS.

    Raises:
        ValueError: the alphabet is too short.
    """
    if not 1 <= letters <= len(ascii_lowercase):
        raise ValueError(
            f"letters={letters} must lie between 1 and {len(ascii_lowercase)}, the letters of the alphabet"
        )
    tokens: Sequence[str] = [*ascii_lowercase[:letters], EOS]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=EOS))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, clean_up_tokenization_spaces=False)

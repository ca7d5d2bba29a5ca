"""Critics: V(s_t), the expected return from a prompt and the first t response tokens."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from klqlit.functional.checks import check_choice
from klqlit.models.determinism import make_deterministic
from klqlit.models.loading import (
    load_reward_model,
    load_tokenizer,
    load_trunk,
    max_positions,
    same_tokenizer,
)
from klqlit.models.policy import LanguagePolicy, Policy
from klqlit.models.states import spread, token_states
from klqlit.types import Sequences


class Critic(nn.Module, ABC):
    """Estimates V(s_t) at every response position."""

    reads_features: ClassVar[bool]
    """True where the critic reads the policy's hidden states instead of the tokens."""

    @property
    def max_positions(self) -> int | None:
        """Longest prompt and response that the critic itself reads, in tokens; None where there is no limit."""
        return None

    @abstractmethod
    def forward(self, sequences: Sequences, features: Float[Tensor, "B T H"] | None) -> Float[Tensor, "B T"]:
        """Values, in units of reward; entry t is the value before token t is chosen."""


CriticFactory = Callable[[Policy], Critic]


@final
class SeparateCritic(Critic):
    """A transformer of its own with a scalar head (the default).

    Args:
        policy: the policy it belongs to; gives the weights to start from where `path` is None.
        path: a model to start from instead, say the reward model: local directory or hub name.
        head: "zero" starts with V = 0 everywhere; "pretrained" takes the scalar head of the sequence-classification
            model at `path`, which must share the policy's tokenizer.
        trust_remote_code: run code that comes with the model at `path`.

    Raises:
        ValueError: `head="pretrained"` without a path, a tokenizer that is not the policy's, or a model without a trunk
            of its own.
    """

    reads_features: ClassVar[bool] = False

    def __init__(
        self,
        policy: Policy,
        *,
        path: str | None = None,
        head: Literal["zero", "pretrained"] = "zero",
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        check_choice("critic.head", head, ("zero", "pretrained"))
        if path is None and head == "pretrained":
            raise ValueError("critic.head='pretrained' needs critic.path: the reward model whose head to start from")
        if path is not None and not same_tokenizer(
            load_tokenizer(path, trust_remote_code=trust_remote_code), policy.tokenizer
        ):
            raise ValueError(
                f"critic.path={path!r} has another tokenizer than the policy, so it cannot read the policy's tokens; "
                "leave critic.path out to start from the policy"
            )
        self.trunk, self.head = _trunk_and_head(policy, path, head, trust_remote_code)
        make_deterministic(self.trunk, path or "the policy's trunk")

    @property
    def max_positions(self) -> int | None:
        return max_positions(self.trunk.config)

    def forward(self, sequences: Sequences, features: Float[Tensor, "B T H"] | None) -> Float[Tensor, "B T"]:
        states = token_states(self.trunk, sequences)
        values = self.head(states.to(self.head.weight.dtype)).squeeze(-1).float()
        return spread(values, sequences)


@final
class SharedCritic(Critic):
    r"""A scalar head on the policy's trunk.

    At the rollout's parameters :math:`\nabla L_{KLQ} = \alpha(\tau \nabla L_{PG} + \nabla L_{VF})`: the value error
    pulls on the trunk 1/tau times as hard as the policy does, and drags the policy along. `trunk_gradient` scales what
    the value error sends into the trunk; docs/theory.md shows what happens at 1 and at 0.

    Args:
        policy: the policy whose hidden states it reads.
        trunk_gradient: factor on the gradient that flows from the value into the trunk, in [0, 1].

    Raises:
        ValueError: the policy has no hidden states, or `trunk_gradient` lies outside [0, 1].
    """

    reads_features: ClassVar[bool] = True

    def __init__(self, policy: Policy, *, trunk_gradient: float = 0.0) -> None:
        super().__init__()
        if not isinstance(policy, LanguagePolicy):
            raise ValueError(f"SharedCritic needs a LanguagePolicy, got {type(policy).__name__}: use its own critic")
        if not 0 <= trunk_gradient <= 1:
            raise ValueError(f"critic.trunk_gradient={trunk_gradient} lies outside [0, 1]")
        self.trunk_gradient = trunk_gradient
        self.head = _zero_head(policy.model.get_output_embeddings().in_features)  # which reads these states

    def forward(self, sequences: Sequences, features: Float[Tensor, "B T H"] | None) -> Float[Tensor, "B T"]:
        assert features is not None, "SharedCritic reads the policy's features"
        fixed = features.detach()
        scaled = fixed + self.trunk_gradient * (features - fixed)
        return self.head(scaled.to(self.head.weight.dtype)).squeeze(-1).float()


@final
class NoCritic(Critic):
    """V = 0: for objectives without a critic, such as RLOO."""

    reads_features: ClassVar[bool] = False

    def __init__(self, policy: Policy) -> None:
        super().__init__()

    def forward(self, sequences: Sequences, features: Float[Tensor, "B T H"] | None) -> Float[Tensor, "B T"]:
        return torch.zeros_like(sequences.tokens, dtype=torch.float32)


def _zero_head(hidden_size: int) -> nn.Linear:
    head = nn.Linear(hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _trunk_and_head(
    policy: Policy, path: str | None, head: Literal["zero", "pretrained"], trust_remote_code: bool
) -> tuple[PreTrainedModel, nn.Linear]:
    if head == "pretrained":
        assert path is not None
        model = load_reward_model(path, trust_remote_code=trust_remote_code)
        score = dict(model.named_children()).get("score")
        if not isinstance(score, nn.Linear):
            raise ValueError(f"critic.path={path!r} has no linear `score` head to start from; use critic.head='zero'")
        return model.base_model, score  # type: ignore[return-value]
    if path is not None:
        model = load_trunk(path, trust_remote_code=trust_remote_code)
    elif isinstance(policy, LanguagePolicy):
        model = copy.deepcopy(policy.model)
        if model.base_model is model:
            raise ValueError(
                f"SeparateCritic cannot start from a {type(model).__name__}, which has no trunk of its own (its "
                "`base_model` is itself): give critic.path, or use SharedCritic"
            )
    else:
        raise ValueError(f"SeparateCritic needs a LanguagePolicy or a path, got {type(policy).__name__} and no path")
    trunk: PreTrainedModel = model.base_model  # type: ignore[assignment]
    return trunk, _zero_head(_width(trunk))


@torch.no_grad()
def _width(trunk: PreTrainedModel) -> int:
    """Numbers in a hidden state, which some models project to fewer than `hidden_size`: one token is tried."""
    token = torch.zeros((1, 1), dtype=torch.long, device=trunk.device)
    return trunk(input_ids=token, use_cache=False).last_hidden_state.shape[-1]

"""A problem small enough to list, with its optimum computed exactly."""

from string import ascii_lowercase
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from klqlit.data.source import Row, Source, Split, TokenCounter
from klqlit.functional.tabular import optimal_logprobs, optimal_values, policy_values, state_tree


@final
class ExactProblem(Source):
    """Prompts of one letter, responses of at most `horizon` tokens, a reward of its own for every response.

    Reference logits and rewards R(x, y) are standard normal draws, so nothing about one response tells of another.

    Args:
        prompts: number of prompts, all equally frequent.
        vocab_size: letters and EOS.
        horizon: the longest response in tokens.
        seed: of the reference and the rewards.

    Attributes:
        next_states: the states, as `functional.tabular.state_tree` numbers them.
        ref_logits: of the reference policy pi_b.
        rewards: r(s, a): R(x, y) at the token that ends the response, 0 before.
    """

    def __init__(self, *, prompts: int = 3, vocab_size: int = 6, horizon: int = 4, seed: int = 0) -> None:
        self.prompts = prompts
        self.horizon = horizon
        self.next_states = state_tree(prompts=prompts, vocab_size=vocab_size, horizon=horizon)
        generator = torch.Generator().manual_seed(seed)
        self.ref_logits = torch.randn(self.next_states.shape, generator=generator, dtype=torch.float64)
        end = len(self.next_states) - 1
        self.rewards = torch.randn(self.next_states.shape, generator=generator, dtype=torch.float64)
        self.rewards[self.next_states != end] = 0
        self.rewards[end] = 0

    def rows(self, split: Split) -> list[Row]:
        """Every prompt, in both splits: where all can be listed, nothing is held out."""
        return [{"prompt": letter} for letter in ascii_lowercase[: self.prompts]]

    def shorten(self, prompt: str, count: TokenCounter, limit: int) -> str:
        """The prompt itself: one token is never too long."""
        return prompt

    def objective(self, logits: Float[Tensor, "N V"], *, tau: float) -> float:
        """J(pi) = E_x V(s_0) of the policy softmax(logits), without any sampling."""
        logprobs = logits.detach().cpu().double().log_softmax(dim=-1)
        values = policy_values(
            logprobs, self._ref_logprobs, self.rewards, self.next_states, tau=tau, horizon=self.horizon
        )
        return float(values[: self.prompts].mean())

    def optimum(self, *, tau: float) -> float:
        """J* = E_x V*(s_0), the largest objective of any policy."""
        return float(self.best_values(tau=tau)[: self.prompts].mean())

    def best_values(self, *, tau: float) -> Float[Tensor, " N"]:
        """V*(s)."""
        return optimal_values(self._ref_logprobs, self.rewards, self.next_states, tau=tau, horizon=self.horizon)

    def best_logits(self, *, tau: float) -> Float[Tensor, "N V"]:
        """log pi*(a|s)."""
        return optimal_logprobs(self.best_values(tau=tau), self._ref_logprobs, self.rewards, self.next_states, tau=tau)

    @property
    def _ref_logprobs(self) -> Float[Tensor, "N V"]:
        return self.ref_logits.log_softmax(dim=-1)

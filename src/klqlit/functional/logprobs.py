"""Log-probabilities and entropy of the policy softmax(logits / T_s), in nats and at least float32."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from klqlit.functional.checks import check_temperature


def tempered(logits: Float[Tensor, "B T V"], temperature: float) -> Float[Tensor, "B T V"]:
    """logits / T_s in at least float32; at T_s = 1 and float32 the tensor itself, since [B, T, V] copies are dear."""
    check_temperature(temperature)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1 else logits / temperature


def token_logprobs(
    logits: Float[Tensor, "B T V"], tokens: Int[Tensor, "B T"], *, temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """log pi(a_t | s_t) = z_t[a_t] - log sum_v exp z_t[v], with z = logits / T_s.

    Gather minus log-sum-exp: the log-softmax, a second [B, T, V] tensor, is never formed.

    Args:
        logits: entry t scores the token at t (already shifted).
        tokens: token ids; those in padding must lie in the vocabulary too.
        temperature: the sampling temperature T_s.

    Raises:
        ValueError: `temperature` is not positive.
    """
    z = tempered(logits, temperature)
    return z.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - z.logsumexp(dim=-1)


def entropy(logits: Float[Tensor, "B T V"], *, temperature: float = 1.0) -> Float[Tensor, "B T"]:
    """H(pi(. | s_t)) = -sum_v pi(v | s_t) log pi(v | s_t), between 0 and log V.

    Tokens of probability 0 (logit -inf, or underflow) count 0.

    Raises:
        ValueError: `temperature` is not positive.
    """
    logprobs = tempered(logits, temperature).log_softmax(dim=-1)
    probs = logprobs.exp()
    return -(probs * torch.where(probs > 0, logprobs, 0.0)).sum(dim=-1)

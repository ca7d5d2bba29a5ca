"""The divergence KL(pi || pi_ref): three estimators from samples of pi (Schulman, 2020), and the exact sum.

Throughout, `logratio` is log pi(a|s) - log pi_ref(a|s) for actions drawn from pi.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from klqlit.functional.logprobs import tempered


def kl_k1(logratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k1 = log(pi / pi_ref): unbiased, of either sign; the form inside the objective J, eq. (2)."""
    return logratio


def kl_k2(logratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k2 = (log(pi / pi_ref))^2 / 2: not negative, biased at second order in the distance."""
    return 0.5 * logratio.square()


def kl_k3(logratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """k3 = pi_ref/pi - 1 + log(pi / pi_ref): unbiased where pi covers pi_ref, and not negative."""
    return torch.expm1(-logratio) + logratio


def full_kl(
    logits: Float[Tensor, "B T V"], ref_logits: Float[Tensor, "B T V"], *, temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """KL(pi(.|s_t) || pi_ref(.|s_t)) = sum_v pi(v|s_t) (log pi(v|s_t) - log pi_ref(v|s_t)), in nats.

    Both policies are taken at the same sampling temperature. Tokens to which pi gives probability 0 count 0.

    Raises:
        ValueError: `temperature` is not positive.
    """
    logprobs = tempered(logits, temperature).log_softmax(dim=-1)
    ref_logprobs = tempered(ref_logits, temperature).log_softmax(dim=-1)
    probs = logprobs.exp()
    return (probs * torch.where(probs > 0, logprobs - ref_logprobs, 0.0)).sum(dim=-1)

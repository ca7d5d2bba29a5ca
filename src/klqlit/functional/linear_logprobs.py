"""Log-probabilities straight from the features under the LM head: the logits of all tokens never stand in memory."""

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from klqlit.functional.checks import check_temperature

CHUNK = 2**25
"""Logits held at once: 128 MiB in float32."""

CHUNK_WITHOUT_GRADIENT = 2**23
"""The same where no gradient is asked for: more chunks cost next to nothing then, since nothing is computed twice."""


def linear_logprobs(
    features: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    tokens: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    rows: int | None = None,
) -> Float[Tensor, " N"]:
    r"""log pi(a_n | s_n) = z_n[a_n] - log sum_v exp z_n[v], with z_n = (W h_n + b) / T_s.

    The same number as `token_logprobs` of the logits, in at least float32, from `rows` tokens at a time. The way back
    computes the probabilities p_n of each chunk anew, but for the last, which are kept: where all tokens fit into one
    chunk nothing is computed twice.

    .. math:: \frac{\partial \log \pi(a_n | s_n)}{\partial z_n[v]} = 1[v = a_n] - p_n[v]

    Under autocast the products are taken in its type; everything else stays in float32. It cannot be differentiated
    twice.

    Args:
        features: h_n, what the head reads.
        weight: W of the head.
        tokens: a_n; ids of the vocabulary.
        bias: b of the head, if it has one.
        temperature: the sampling temperature T_s.
        rows: tokens a chunk; None for as many as `CHUNK` logits allow, `CHUNK_WITHOUT_GRADIENT` where none is recorded.

    Raises:
        ValueError: `temperature` is not positive.
    """
    check_temperature(temperature)
    held = CHUNK if torch.is_grad_enabled() else CHUNK_WITHOUT_GRADIENT
    size = rows or max(1, held // weight.shape[0])
    return _LinearLogprobs.apply(features, weight, bias, tokens, temperature, size)


@final
class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float, rows: int
    ) -> Tensor:
        ctx.temperature, ctx.rows, ctx.dtype = temperature, rows, _product_dtype(features)
        h, w = features.to(ctx.dtype), weight.to(ctx.dtype)
        logprobs = torch.empty(len(tokens), dtype=_at_least_float32(h.dtype), device=h.device)
        probs = None
        for chunk in _chunks(len(tokens), rows):
            del probs  # before the next chunk's take their place
            probs, logprobs[chunk] = _evaluate(h[chunk], w, bias, tokens[chunk], temperature)
        ctx.save_for_backward(features, weight, bias, tokens)
        ctx.last_probs = probs
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        features, weight, bias, tokens = ctx.saved_tensors
        kept, ctx.last_probs = ctx.last_probs, None  # overwritten below; a second way back computes them anew
        h, w = features.to(ctx.dtype), weight.to(ctx.dtype)
        d_features, d_weight, d_bias = torch.empty_like(features), None, None
        for chunk in reversed(_chunks(len(tokens), ctx.rows)):
            probs = kept if kept is not None else _evaluate(h[chunk], w, bias, tokens[chunk], ctx.temperature)[0]
            kept = None
            d_logits = _logit_gradient(probs, tokens[chunk], grad[chunk] / ctx.temperature)
            del probs
            factor = d_logits.to(ctx.dtype)
            d_features[chunk] = (factor @ w).to(features.dtype)
            if ctx.needs_input_grad[1]:
                d_weight = _sum(d_weight, (factor.T @ h[chunk]).to(weight.dtype))
            if ctx.needs_input_grad[2]:
                d_bias = _sum(d_bias, d_logits.sum(dim=0).to(bias.dtype))
        return d_features, d_weight, d_bias, None, None, None


def _evaluate(
    h: Tensor, w: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float
) -> tuple[Float[Tensor, "N V"], Float[Tensor, " N"]]:
    """Probabilities of all tokens, and log-probabilities of the given ones."""
    z = (h @ w.T).to(_at_least_float32(h.dtype))
    if bias is not None:
        z += bias
    if temperature != 1:
        z /= temperature
    highest, chosen = z.amax(dim=1), z.gather(1, tokens[:, None]).squeeze(1)
    probs = torch.softmax(z, dim=1, out=z)
    # The likeliest token has at least 1/V, so that its logarithm is exact where that of the chosen one may not be.
    return probs, chosen - highest + probs.amax(dim=1).log()


def _logit_gradient(probs: Tensor, tokens: Tensor, grad: Tensor) -> Float[Tensor, "N V"]:
    """grad_n (1[v = a_n] - p_n[v]), in the memory of `probs`."""
    d_logits = probs.mul_(-grad[:, None])
    return d_logits.scatter_add_(1, tokens[:, None], grad[:, None])


def _sum(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _chunks(count: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, count, rows)]


def _product_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

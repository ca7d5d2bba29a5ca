"""Drawing responses from a policy."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import StopStringCriteria, TopKLogitsWarper, TopPLogitsWarper

from klqlit.models.policy import Policy
from klqlit.types import Prompts, Sample


@final
class Sampler:
    """Samples responses token by token at one temperature.

    Every row has a random stream of its own (inverse-transform sampling from one uniform number a token), so a row's
    response depends on its seed and the weights, not on the other rows, the rank or the chunk it is computed in.

    Args:
        response_length: tokens of a response at most.
        temperature: the policy *is* softmax(logits / temperature), here and in every loss.
        stop_strings: texts that end a response as EOS does.
        top_k: keep the k likeliest tokens; 0 keeps all. For `predict` only: in training it is refused, since the
            sampled tokens would come from another distribution than the log-probabilities.
        top_p: likewise; 1 keeps all.
        batch_size: rows decoded at once; None for all.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        response_length: int = 53,
        temperature: float = 1.0,
        stop_strings: list[str] | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        batch_size: int | None = None,
    ) -> None:
        if response_length < 1:
            raise ValueError(f"sampler.response_length={response_length} must be at least 1")
        if temperature <= 0:
            raise ValueError(f"sampler.temperature={temperature} must be positive; 1.0 samples from the model as it is")
        if top_k < 0 or not 0 < top_p <= 1:
            raise ValueError(f"sampler.top_k={top_k}, sampler.top_p={top_p}: need top_k >= 0 and 0 < top_p <= 1")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"sampler.batch_size={batch_size} must be at least 1, or null for all rows at once")
        self.response_length = response_length
        self.temperature = temperature
        self.stop_strings = list(stop_strings or [])
        self.top_k = top_k
        self.top_p = top_p
        self.batch_size = batch_size

    def refuse_truncation(self) -> None:
        """Raise where responses would not come from the policy that is trained."""
        if self.top_k or self.top_p < 1:
            raise ValueError(
                f"sampler.top_k={self.top_k}, sampler.top_p={self.top_p}: truncated sampling draws from another "
                "distribution than the policy that is trained; set top_k: 0 and top_p: 1.0 (predict may use them)"
            )

    @torch.no_grad()
    def sample(self, policy: Policy, prompts: Prompts) -> Sample:
        """One response for each prompt."""
        size = self.batch_size or len(prompts)
        parts = [self._sample_rows(policy, prompts, slice(i, i + size)) for i in range(0, len(prompts), size)]
        return Sample(
            tokens=torch.cat([part.tokens for part in parts]),
            mask=torch.cat([part.mask for part in parts]),
            logprobs=torch.cat([part.logprobs for part in parts]),
            entropy=torch.cat([part.entropy for part in parts]),
            ended=torch.cat([part.ended for part in parts]),
        )

    def texts(self, policy: Policy, sample: Sample) -> list[str]:
        """The responses as text, without EOS and from the first stop string on cut away."""
        rows = [tokens[mask].tolist() for tokens, mask in zip(sample.tokens, sample.mask, strict=True)]
        texts = policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
        for stop in self.stop_strings:
            texts = [text.split(stop, 1)[0] for text in texts]
        return texts

    def _sample_rows(self, policy: Policy, prompts: Prompts, rows: slice) -> Sample:
        step, seen, cache = prompts.tokens[rows], prompts.mask[rows], None
        device, size = step.device, (step.shape[0], self.response_length)
        # Every token id written is a valid one, whether the tokenizer has a pad token or not: masks say what is read.
        eos = policy.tokenizer.eos_token_id
        tokens = torch.full(size, eos, device=device)
        mask = torch.zeros(size, dtype=torch.bool, device=device)
        # Single precision whatever the trainer makes the default: half as many bits would round the ratio off.
        logprobs, entropy = torch.zeros((2, *size), dtype=torch.float32, device=device)
        ended = torch.zeros(size[0], dtype=torch.bool, device=device)
        uniforms = uniform_streams(prompts.seeds[rows], self.response_length).to(device)
        stop = StopStringCriteria(policy.tokenizer, self.stop_strings) if self.stop_strings else None

        for t in range(self.response_length):
            logits, cache = policy.decode(step, seen, cache)
            log_p = torch.log_softmax(logits / self.temperature, dim=-1)
            chosen = draw(self._truncate(log_p), uniforms[:, t])
            alive = ~ended
            tokens[:, t] = torch.where(alive, chosen, eos)
            mask[:, t] = alive
            logprobs[:, t] = torch.where(alive, log_p.gather(-1, chosen[:, None]).squeeze(-1), 0.0)
            entropy[:, t] = torch.where(alive, torch.special.entr(log_p.exp()).sum(dim=-1), 0.0)
            ended = ended | (chosen == eos)
            if stop is not None:
                ended = ended | stop(tokens[:, : t + 1], None).to(device)
            if bool(ended.all()):
                break
            step, seen = tokens[:, t : t + 1], torch.cat([seen, alive[:, None]], dim=1)
        return Sample(tokens=tokens, mask=mask, logprobs=logprobs, entropy=entropy, ended=ended)

    def _truncate(self, log_p: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        if self.top_k:
            log_p = TopKLogitsWarper(self.top_k)(None, log_p)
        if self.top_p < 1:
            log_p = TopPLogitsWarper(self.top_p)(None, log_p)
        return log_p


def uniform_streams(seeds: list[int], length: int) -> Float[Tensor, "B T"]:
    """Uniform numbers in [0, 1), one stream a row."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(length, generator=g, dtype=torch.float32) for g in generators])


def draw(log_p: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Inverse-transform sampling: the first token at which the cumulative probability passes `uniform`.

    Log-probabilities need not be normalised; a token of probability 0 is never drawn.
    """
    cumulative = log_p.softmax(dim=-1).cumsum(dim=-1)
    target = uniform * cumulative[:, -1]
    tokens = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1)
    return tokens.clamp(max=log_p.shape[-1] - 1)

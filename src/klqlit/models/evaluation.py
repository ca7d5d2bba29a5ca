"""What an update asks of the models that it trains."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from klqlit.models.critic import Critic, SeparateCritic
from klqlit.models.policy import LanguagePolicy, Policy
from klqlit.models.recomputation import computes_again
from klqlit.models.side_by_side import side_by_side
from klqlit.types import Sequences


def evaluate(
    policy: Policy, critic: Critic, sequences: Sequences, *, temperature: float
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Log-probabilities and values of given responses.

    On a CPU the trunk of the policy and a `SeparateCritic` are computed at the same time (see `side_by_side`).
    """
    if isinstance(policy, LanguagePolicy) and _go_side_by_side(policy, critic, sequences):
        states, values = side_by_side(lambda: policy.states(sequences), lambda: critic(sequences, None))
        return policy.read_out(states, sequences, temperature=temperature).logprobs, values
    output = policy(sequences, temperature=temperature, features=critic.reads_features)
    return output.logprobs, critic(sequences, output.features)


def _go_side_by_side(policy: LanguagePolicy, critic: Critic, sequences: Sequences) -> bool:
    """On the threads of a CPU, in a single process: ranks send gradients while the way back is under way."""
    return (
        policy.plain_head
        and isinstance(critic, SeparateCritic)
        and sequences.mask.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.get_num_threads() > 1
        # What watches operators, as the planning of memory does, sees those of its own thread only.
        and not is_in_torch_dispatch_mode()
        and not dist.is_initialized()
        # Blocks that are computed again put the random state back, which the threads share.
        and not any(computes_again(model) for model in (policy, critic))
    )

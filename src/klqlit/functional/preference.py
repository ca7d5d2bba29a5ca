"""Learning from pairs: the Bradley-Terry model and how well its probabilities fit."""

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from klqlit.functional.checks import check_positive


def bradley_terry_loss(chosen: Float[Tensor, " N"], rejected: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """-log sigma(R(x, y_chosen) - R(x, y_rejected)) of each pair, nats; log 2 for equal scores."""
    return -logsigmoid(chosen - rejected)


def preference_accuracy(chosen: Float[Tensor, " N"], rejected: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """1 for each pair ordered rightly, 0 for one ordered wrongly, 1/2 for a tie."""
    return (chosen > rejected).to(chosen.dtype) + 0.5 * (chosen == rejected).to(chosen.dtype)


def expected_calibration_error(
    probabilities: Float[Tensor, " N"], outcomes: Float[Tensor, " N"] | Bool[Tensor, " N"], *, bins: int = 10
) -> Float[Tensor, ""]:
    """sum_b (n_b / N) |mean_b p - mean_b o| over equal-width bins [b/bins, (b+1)/bins), the last one closed.

    Args:
        probabilities: predicted probabilities of the outcome.
        outcomes: 1 (or True) where it came about, else 0.
        bins: number of bins.

    Raises:
        ValueError: there is no pair, a probability lies outside [0, 1], or `bins` is not positive.
    """
    check_positive("bins", bins, "choose a number of bins such as 10")
    if len(probabilities) == 0:
        raise ValueError("probabilities is empty, so there is nothing to calibrate: give at least one prediction")
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError(f"probabilities must lie in [0, 1], got {probabilities.tolist()}: pass logits through sigmoid")
    index = (probabilities * bins).long().clamp(max=bins - 1)
    gaps = probabilities.new_zeros(bins).index_add(0, index, probabilities - outcomes.to(probabilities.dtype))
    return gaps.abs().sum() / len(probabilities)

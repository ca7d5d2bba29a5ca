"""A run that leaves the numbers says in a file what the batch was."""

import json
import math

import lightning as L
import pytest

from klqlit.algorithms.divergence import Divergence
from klqlit.callbacks.divergence_report import DivergenceReport
from klqlit.rewards.function import FunctionReward
from klqlit.rollout.scoring import BadScores
from runs import make_data, make_module, make_trainer, vowels


class Spoil(L.Callback):
    """Makes one target of one row infinite."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step and batch_idx % 2 == 0:
            batch.experience.returns[1, 0] = math.inf
            self.row = int(batch.rows[1])


def strict(path):
    """JSON that holds no NaN and no Infinity."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_report_tells_what_the_loss_was_made_of(quitter_dir, tmp_path):
    spoil, data = Spoil(step=5), make_data()
    with pytest.raises(Divergence):
        make_trainer(tmp_path, spoil, DivergenceReport(), accumulate_grad_batches=2).fit(make_module(quitter_dir), data)
    report = strict(tmp_path / "divergence-step-5.json")
    assert report["what"] == "the loss became inf"
    assert (report["algorithm"], report["step"], report["phase"], report["ranks"]) == ("KLQ", 5, 1, 1)
    assert report["parameters_not_finite"] == []
    assert set(report["gradient_norms"]) == {"policy", "critic"}
    assert len(report["rows"]) == 4
    assert {row["micro_batch"] for row in report["rows"]} == {0, 1}
    bad, *good = report["rows"]
    assert not bad["finite"]
    assert all(row["finite"] for row in good)
    assert bad["returns"]["not_finite"] == 1
    assert bad["returns"]["first_not_finite"] == 0
    # Texts, score and KL are the row's own.
    assert bad["prompt"].endswith("?")
    assert bad["score"] == pytest.approx(vowels([], [bad["completion"].removesuffix("<eos>")])[0])
    assert math.isfinite(bad["kl"])


def test_weights_that_are_not_finite_are_named(quitter_dir, tmp_path):
    class Break(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 2:
                module.critic.head.weight.data[0, 0] = math.nan

    with pytest.raises(Divergence, match="the loss became nan at optimizer step 2"):
        make_trainer(tmp_path, Break(), DivergenceReport()).fit(make_module(quitter_dir), make_data())
    report = strict(tmp_path / "divergence-step-2.json")
    assert report["parameters_not_finite"] == ["critic.head.weight"]
    assert report["rows"][0]["values"]["not_finite"] > 0


def test_scores_that_are_not_finite_are_reported_with_their_texts(quitter_dir, tmp_path):
    def bad(prompts, completions, **columns):
        return [math.nan if i == 3 else 1.0 for i in range(len(prompts))]

    module = make_module(quitter_dir, reward=FunctionReward(bad))
    with pytest.raises(BadScores):
        make_trainer(tmp_path, DivergenceReport()).fit(module, make_data())
    report = strict(tmp_path / "divergence-step-0.json")
    assert report["what"] == "a score of the reward"
    assert [row["score"] for row in report["rows"]] == ["nan"] + [1.0] * 7
    assert report["rows"][0]["prompt"].endswith("?")


def test_other_errors_leave_no_report(quitter_dir, tmp_path):
    class Fail(L.Callback):
        def on_train_batch_end(self, *args):
            raise KeyError("something else")

    with pytest.raises(KeyError):
        make_trainer(tmp_path, Fail(), DivergenceReport()).fit(make_module(quitter_dir), make_data())
    assert not list(tmp_path.glob("divergence*"))

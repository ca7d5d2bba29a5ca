"""What the critic knows, on record: by hand, against the metric of the same name, and in real runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchmetrics.functional import explained_variance as explained_variance_of_torchmetrics

from builders import tiny_tokenizer
from klqlit.algorithms.klq import KLQ
from klqlit.algorithms.ppo import PPO, AdaptiveKL
from klqlit.callbacks.critic_record import CriticRecord, calibration, critic_row, explained_variance, pieces
from klqlit.rewards.shaping import RewardShaping
from runs import ListSource, make_data, make_module, make_trainer, two_rows


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# By hand -------------------------------------------------------------------------------------------------------------


def test_bins_by_hand():
    """Six tokens in three bins of two, in the order of their predictions."""
    found = calibration(
        torch.tensor([5.0, 0.0, 1.0, 4.0, 2.0, 3.0]), torch.tensor([9.0, 1.0, 3.0, 7.0, 4.0, 6.0]), bins=3
    )
    assert found["bins"] == [
        {"predicted": 0.5, "realised": 2.0, "count": 2},
        {"predicted": 2.5, "realised": 5.0, "count": 2},
        {"predicted": 4.5, "realised": 8.0, "count": 2},
    ]


def test_equal_predictions_share_a_bin():
    """Whatever the order of the rows: a critic that says the same of everything has one point."""
    found = calibration(torch.zeros(7), torch.arange(7.0), bins=10)
    assert found["bins"] == [{"predicted": 0.0, "realised": 3.0, "count": 7}]
    found = calibration(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([2.0, 1.0, 2.0, 3.0]), bins=4)
    assert found["bins"] == [
        {"predicted": 0.0, "realised": 2.0, "count": 3},
        {"predicted": 1.0, "realised": 2.0, "count": 1},
    ]


def test_bins_hold_every_token_once_and_rise():
    predicted, realised = torch.randn(2, 1003, generator=torch.Generator().manual_seed(0))
    bins = calibration(predicted, realised, bins=10)["bins"]
    assert [part["count"] for part in bins] == [100, 100, 100, 101, 100, 100, 101, 100, 100, 101]
    assert sorted(bins, key=lambda part: part["predicted"]) == bins
    total = sum(part["count"] * part["realised"] for part in bins)
    assert total == pytest.approx(float(realised.double().sum()))


def test_explained_variance_by_hand():
    """Errors 1, 0, 0, -1 around outcomes of variance 1.25: 1 - 0.5 / 1.25. A constant shift costs nothing."""
    outcome = torch.tensor([0.0, 1.0, 2.0, 3.0])
    predicted = outcome - torch.tensor([1.0, 0.0, 0.0, -1.0])
    assert explained_variance(predicted, outcome) == pytest.approx(0.6)
    assert explained_variance(predicted + 7, outcome) == pytest.approx(0.6)
    assert explained_variance(predicted, torch.ones(4)) is None


def test_v_and_q_by_hand():
    """Two rows with log-ratios 0.5, -0.25 | 0.25, scores 1 | 3, tau 0.1.

    Returns to go: 1 - 0.05 + 0.025 = 0.975, 1 + 0.025 = 1.025 | 3 - 0.025 = 2.975; an action's own penalty added back:
    1.025, 1 | 3. Q: 0.2 + 0.05, 0.4 - 0.025 | 0.6 + 0.025.
    """
    rollout = two_rows()
    returns = torch.tensor([[0.975, 1.025], [2.975, float("nan")]])
    found = critic_row(rollout, returns, tau=0.1, bins=3)
    assert found["tokens"] == 3
    points = {name: [(b["predicted"], b["realised"], b["count"]) for b in found[name]["bins"]] for name in ("V", "Q")}
    for name, expected in {
        "V": [(0.2, 0.975, 1), (0.4, 1.025, 1), (0.6, 2.975, 1)],
        "Q": [(0.25, 1.025, 1), (0.375, 1.0, 1), (0.625, 3.0, 1)],
    }.items():
        assert torch.tensor(points[name]).flatten().tolist() == pytest.approx(torch.tensor(expected).flatten().tolist())
    # Token by token Q misses its outcome by what V misses its own.
    for name in ("V", "Q"):
        assert [r - p for p, r, _ in points[name]] == pytest.approx([0.775, 0.625, 2.375])


def test_realised_returns_by_hand(model_dir):
    module = make_module(model_dir("llama"), tau=0.1)
    found = module.realised_returns(two_rows())
    torch.testing.assert_close(found, torch.tensor([[0.975, 1.025], [2.975, 0.0]]))


@pytest.mark.parametrize("algorithm", [KLQ, PPO])
def test_realised_returns_are_discounted_as_the_critic_learns_them(model_dir, algorithm):
    """-0.05 + 0.5 * 1.025 = 0.4625."""
    module = make_module(model_dir("llama"), algorithm, tau=0.1, gamma=0.5)
    torch.testing.assert_close(module.realised_returns(two_rows()), torch.tensor([[0.4625, 1.025], [2.975, 0.0]]))


@pytest.mark.parametrize("text", ["What is 1?", "Ünïcödé – ✓ 漢字 🎉", "", "a\n\nb  c"])
def test_pieces_join_to_the_text(text):
    tokenizer = tiny_tokenizer()
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert found[-1] == tokenizer.eos_token
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


@pytest.mark.parametrize("option", [{"bins": 0}, {"rows": -1}])
def test_sizes_are_positive(option):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=f"CriticRecord {name}={value} must be at least 1"):
        CriticRecord(**option)


# In runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [KLQ, PPO])
def test_each_validation_is_recorded(algorithm, quitter_dir, tmp_path):
    module = make_module(quitter_dir, algorithm)
    trainer = make_trainer(tmp_path, CriticRecord(bins=4, rows=2), max_epochs=3, limit_val_batches=1.0)
    trainer.fit(module, make_data())
    critic, tokens = rows(tmp_path / "critic.jsonl"), rows(tmp_path / "tokens.jsonl")
    assert [(row["step"], row["epoch"]) for row in critic] == [(4, 0), (8, 1), (12, 2)]
    assert [row["prompt"] for row in tokens] == ["Why?", "How much is it?"] * 3
    for row in tokens:
        assert "".join(row["tokens"]).removesuffix("<eos>").startswith(row["completion"])
        lengths = {len(row[name]) for name in ("tokens", "logratio", "value", "q", "return", "advantage")}
        assert lengths == {len(row["tokens"])}
        # The return at the last token is the score less the last penalty; Q = V + tau log-ratio.
        assert row["return"][-1] == pytest.approx(row["score"] - module.tau * row["logratio"][-1], abs=1e-4)
        q = [v + module.tau * x for v, x in zip(row["value"], row["logratio"], strict=True)]
        assert row["q"] == pytest.approx(q, abs=1e-4)
    for row in critic:
        assert sum(part["count"] for part in row["V"]["bins"]) == row["tokens"]
        assert sum(part["count"] for part in row["Q"]["bins"]) == row["tokens"]


def test_explained_variance_is_that_of_the_metric(quitter_dir, tmp_path):
    """The same definition as `critic/explained_variance` of a phase, on the same rollout."""
    module = make_module(quitter_dir, shaping=RewardShaping(scale=2.0))
    seen = []
    measure = module._measure
    module._measure = lambda rollout: (seen.append(rollout), measure(rollout))
    make_trainer(tmp_path).fit(module, make_data())
    rollout = seen[-1]
    row = critic_row(rollout, module.realised_returns(rollout), tau=module.tau, bins=10)
    assert row["V"]["explained_variance"] == pytest.approx(module.phase_metrics["critic/explained_variance"], abs=1e-5)
    returns = module.realised_returns(rollout)[rollout.mask]
    expected = explained_variance_of_torchmetrics(rollout.values[rollout.mask], returns)
    assert row["V"]["explained_variance"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_recording_leaves_training_as_it_is(inference_mode, quitter_dir, tmp_path):
    """Running statistics of shaping and of the adaptive coefficient would show it in the weights."""
    found = {}
    for name, callbacks in {"plain": [], "recorded": [CriticRecord()]}.items():
        module = make_module(
            quitter_dir, PPO, shaping=RewardShaping(normalise=True), adaptive_kl=AdaptiveKL(0.01, horizon=50)
        )
        trainer = make_trainer(
            tmp_path / name, *callbacks, max_epochs=3, limit_val_batches=1.0, inference_mode=inference_mode
        )
        trainer.fit(module, make_data())
        found[name] = module.state_dict() | {"kl_coefficient": torch.tensor(module.kl_coefficient)}
        assert module.kl_coefficient != module.tau
    for name, value in found["plain"].items():
        assert torch.equal(value, found["recorded"][name]), name
    assert len(rows(tmp_path / "recorded" / "critic.jsonl")) == 3


def test_a_validation_of_its_own_writes_nothing(quitter_dir, tmp_path):
    trainer = make_trainer(tmp_path, CriticRecord(), limit_val_batches=1.0)
    trainer.validate(make_module(quitter_dir), make_data(), verbose=False)
    assert not (tmp_path / "critic.jsonl").exists()


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from callbacks.test_critic_record import start
if __name__ == "__main__":
    start(sys.argv[2], sys.argv[3], int(sys.argv[4]))
"""


def start(model, out, devices):
    """Two phases, a validation after each."""
    torch.set_num_threads(1)
    data = make_data(source=ListSource(["Where?"] * 8, [f"held out {i}?" for i in range(7)]), validation_prompts=7)
    strategy = "ddp" if devices > 1 else "auto"
    trainer = make_trainer(
        out, CriticRecord(bins=5), devices=devices, strategy=strategy, limit_val_batches=1.0, max_epochs=1
    )
    trainer.fit(make_module(model), data)


@pytest.mark.slow
def test_two_ranks_record_what_one_records(quitter_dir, tmp_path):
    """The bins are of all ranks' tokens; the tokens shown are those of the first rank's prompts."""
    (tmp_path / "program.py").write_text(PROGRAM)
    start(quitter_dir, str(tmp_path / "one"), 1)
    command = [sys.executable, tmp_path / "program.py", Path(__file__).parents[1], quitter_dir, tmp_path / "two", "2"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (one,), (two,) = (rows(tmp_path / name / "critic.jsonl") for name in ("one", "two"))
    assert one["tokens"] == two["tokens"]
    for name in ("V", "Q"):
        assert two[name]["explained_variance"] == pytest.approx(one[name]["explained_variance"], abs=1e-3)
        for mine, other in zip(one[name]["bins"], two[name]["bins"], strict=True):
            assert mine["count"] == other["count"]
            assert [mine["predicted"], mine["realised"]] == pytest.approx(
                [other["predicted"], other["realised"]], abs=1e-3
            )
    alone = {row["prompt"]: row for row in rows(tmp_path / "one" / "tokens.jsonl")}
    shown = rows(tmp_path / "two" / "tokens.jsonl")
    assert [row["prompt"] for row in shown] == ["held out 0?", "held out 2?", "held out 4?", "held out 6?"]
    for row in shown:
        if row["prompt"] in alone:
            assert row["tokens"] == alone[row["prompt"]]["tokens"]
            assert row["return"] == pytest.approx(alone[row["prompt"]]["return"], abs=1e-3)

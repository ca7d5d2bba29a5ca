"""Folders as runs and comparisons leave them, with numbers chosen for calculation by hand."""

import json
from pathlib import Path
from typing import Any

import yaml

PROMPTS = ("What is love?", "Say <b>hi</b>.", "Why?")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def config(algorithm: str, tau: float, seed: int, **options: Any) -> dict[str, Any]:
    """As `fit` writes it, in short; `options` go to the algorithm."""
    return {
        "seed_everything": seed,
        "trainer": {"max_epochs": 4, "callbacks": [{"class_path": "klqlit.SampleTable", "init_args": {"rows": 4}}]},
        "model": {
            "class_path": f"klqlit.{algorithm}",
            "init_args": {"tau": tau, "policy": {"init_args": {"path": "runs/sft/model"}}, **options},
        },
        "data": {
            "class_path": "klqlit.OnlineDataModule",
            "init_args": {"seed": seed, "source": {"class_path": "klqlit.data.miniature.MiniHH"}},
        },
        "run_dir": f"runs/{algorithm}-{tau}-{seed}",
    }


def phase_rows(tau: float, *, score: float, kl: float, gold: bool = True, phases: int = 4) -> list[dict[str, Any]]:
    """Score and KL rise linearly to their ends in the last phase; a validation after every second phase."""
    rows: list[dict[str, Any]] = []
    for phase in range(phases):
        share = phase / (phases - 1)
        measured = {"reward/score": score * share, "kl/sequence": kl * share}
        measured["objective/J"] = measured["reward/score"] - tau * measured["kl/sequence"]
        measured |= {"reward/gold": 0.5 * score * share} if gold else {}
        times = {"time/generation": 1.0, "time/scoring": 0.5, "time/optimization": 2.0 + phase}
        step, variance = 8 * phase + 7, {"critic/explained_variance": share - 0.5}
        if phase % 2:
            reference = {"reference/score": 0.0, "reference/score_std": 2.0, "win_rate/score": 0.5 + 0.4 * share}
            reference |= {"reference/gold": 0.0, "reference/gold_std": 1.0, "win_rate/gold": 0.5} if gold else {}
            held_out = {f"val/{name}": value for name, value in (measured | reference).items()}
            rows.append({"step": step, "epoch": phase, **held_out})
        rows.append({"step": step, "epoch": phase, **measured, **times, **variance})
    return rows


def sample_rows(text: str, score: float, step: int = 32) -> list[dict[str, Any]]:
    """What the sample table keeps."""
    return [
        {
            "step": step,
            "prompt": prompt,
            "reference": f"reference {i}",
            "policy": f"{text} {i}",
            "reference_score": 0.0,
            "policy_score": score + i,
            "reference_gold": 0.25,
            "policy_gold": 0.5,
        }
        for i, prompt in enumerate(PROMPTS)
    ]


def critic_rows(step: int = 32) -> list[dict[str, Any]]:
    """One validation, three bins."""
    bins = [{"predicted": x, "realised": 2 * x, "count": 10} for x in (-1.0, 0.0, 1.5)]
    part = {"explained_variance": 0.5, "bins": bins}
    return [{"step": step, "epoch": 3, "tokens": 30, "V": part, "Q": part}]


def token_rows(step: int = 32) -> list[dict[str, Any]]:
    """One completion of three tokens."""
    return [
        {
            "step": step,
            "epoch": 3,
            "prompt": PROMPTS[0],
            "completion": " baby\n",
            "score": 1.5,
            "tokens": [" baby", "\n", "<eos>"],
            "logratio": [2.0, -1.0, 0.0],
            "value": [0.0, 1.0, 0.5],
            "q": [0.2, 0.9, 0.5],
            "return": [1.4, 1.5, 1.5],
            "advantage": [0.5, -1.0, 0.0],
        }
    ]


def write_run(
    folder: Path,
    algorithm: str = "KLQ",
    tau: float = 0.1,
    seed: int = 1,
    *,
    score: float = 3.0,
    kl: float = 6.0,
    gold: bool = True,
    **options: Any,
) -> Path:
    """A finished run with everything in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(algorithm, tau, seed, **options)), encoding="utf-8")
    write_rows(folder / "metrics.jsonl", phase_rows(tau, score=score, kl=kl, gold=gold))
    write_rows(folder / "samples.jsonl", [*sample_rows("early", 0.0, 16), *sample_rows(f"{algorithm} says", score)])
    write_rows(folder / "critic.jsonl", critic_rows())
    write_rows(folder / "tokens.jsonl", token_rows())
    record = {
        "state": "finished",
        "step": 32,
        "reason": None,
        "starts": [{"time": "2025-01-01", "step": 0, "steps": 32, "versions": {"torch": "2.9"}, "device": "abacus"}],
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def write_supervised(folder: Path) -> Path:
    """A finished reward model."""
    folder.mkdir(parents=True)
    source = {"class_path": "klqlit.data.miniature.MiniHH"}
    text = yaml.safe_dump(
        {
            "seed_everything": 1,
            "model": {"class_path": "klqlit.RewardModelling", "init_args": {}},
            "data": {"class_path": "klqlit.PreferenceDataModule", "init_args": {"source": source}},
        }
    )
    (folder / "config.yaml").write_text(text)
    write_rows(folder / "metrics.jsonl", [{"step": 9, "epoch": 0, "val/loss": 0.375, "val/accuracy": 0.8125}])
    (folder / "model").mkdir()
    return folder


def write_comparison(
    folder: Path,
    a: Path | None,
    b: Path | None,
    outcomes: list[str | None],
    *,
    judge: dict[str, Any] | None = None,
    texts: tuple[str, str] = ("KLQ says", "PPO says"),
) -> Path:
    """What `judge` writes; `outcomes` are A's on the prompts in turn."""
    folder.mkdir(parents=True)
    decided = [{"win": 1.0, "tie": 0.5, "loss": 0.0}[outcome] for outcome in outcomes if outcome]
    rate = sum(decided) / len(decided) if decided else None
    summary = {
        "a": {"name": "side <A>", "source": str(a), "run": a and str(a)},
        "b": {"name": "B", "source": str(b), "run": b and str(b)},
        "judge": judge or {"class": "LengthJudge", "template": "summary", "template_hash": "0123456789abcdef"},
        "counts": {"pairs": len(outcomes), "judged": len(decided), "unreadable": 1, "failed": 2, "inconsistent": 3},
        "statistics": {
            "win_rate": None if rate is None else {"rate": rate, "low": rate - 0.125, "high": rate + 0.0625},
            "sign_test": 0.04,
            "length_controlled": None if rate is None else {"rate": rate / 2, "low": rate / 4, "high": rate},
            "by_position": {"first": 0.75, "second": 0.5},
            "by_length": {"a_longer": {"rate": 0.875, "pairs": 4}, "b_longer": {"rate": None, "pairs": 0}},
        },
        "level": 0.95,
    }
    (folder / "judged.json").write_text(json.dumps(summary))
    rows = [
        {
            "id": f"p{i}",
            "prompt": PROMPTS[i % 3] if i < 3 else f"prompt {i}?",
            "a": f"{texts[0]} {i}",
            "b": f"{texts[1]} {i}",
            "outcome": outcome,
            "inconsistent": outcome == "tie",
        }
        for i, outcome in enumerate(outcomes)
    ]
    write_rows(folder / "judgments.jsonl", rows)
    return folder


def write_everything(root: Path) -> Path:
    """KLQ and PPO at two taus with three seeds each, judged; a reward model; 13 runs and 6 comparisons."""
    for tau in (0.1, 0.4):
        for seed in (1, 2, 3):
            klq = write_run(root / f"klq-{tau}-{seed}", "KLQ", tau, seed, score=3.0 + 0.1 * seed, kl=1 / tau)
            ppo = write_run(root / f"ppo-{tau}-{seed}", "PPO", tau, seed, score=2.5 + 0.1 * seed, kl=1.2 / tau)
            outcomes = [["win", "tie", "loss", "win"], ["win", "win", "loss", None], ["loss", "tie", "win", "win"]]
            write_comparison(root / "judged" / f"{tau}-{seed}", klq, ppo, list(outcomes[seed - 1]))
    write_supervised(root / "reward")
    return root

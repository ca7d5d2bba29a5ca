"""`benchmarks/roofline.py`, `scaling.py` and `gpu.py`: their arithmetic, and that they run at tiny size."""

import json
import sys

import pytest
import torch
from transformers import GPTNeoXForCausalLM

import gpu
import roofline
import scaling
from step import arms
from step.counting import Work, flops
from step.workloads import TINY, config, write

MADE = {"commit": "abc", "machine": "m", "torch": "2", "date": "d", "command": "c"}


def products(workload, tokens):
    """Products of one forward pass over a batch, by kind."""
    model = GPTNeoXForCausalLM(config(workload))
    with torch.no_grad(), Work() as work:
        model(torch.ones(tokens, dtype=torch.long), use_cache=False)
    return work.lap()["products"]["rest"]


# Roofline ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [("mm", (4, 5, 6)), ("bmm", (2, 4, 5, 6)), ("attention", (2, 3, 4, 8, 5))])
def test_a_shape_alone_is_counted_as_itself(shape) -> None:
    call = roofline.alone(shape)
    with torch.no_grad(), Work() as work:
        call()
    assert [tuple(found[:2]) for found in work.lap()["products"]["rest"]] == [shape]


def test_the_backward_pass_of_an_attention_alone_is_counted_as_itself() -> None:
    shape = ("attention_backward", (2, 3, 4, 8, 5))
    call = roofline.alone(shape)
    with Work() as work:
        call()
    assert [tuple(found[:2]) for found in work.lap()["products"]["rest"]] == [shape]


def test_products_alone_take_time_and_add_up() -> None:
    once = roofline.products_alone([["mm", [256, 256, 256], 1]])
    many = roofline.products_alone([["mm", [256, 256, 256], 1000]])
    assert 0 < once < many


def test_the_table_sets_limits_beside_seconds() -> None:
    stage = {"seconds": 2.0, "flops": 3e9, "at_best_rate": 0.5, "back_to_back": 1.0, "moving": 0.25}
    found = {"rate": 6e9, "bandwidth": 1e9, "stages": dict.fromkeys(("generation", "optimization"), stage)}
    text = roofline.markdown({"provenance": MADE, "workloads": {"W": found}})
    assert "| generation | 2 | 3.0 | 0.5 | 1 | 0.25 | 50% |" in text


# Scaling -------------------------------------------------------------------------------------------------------------


def points(exponent, memory=1.0, operations=1.0):
    """An entry of the result whose quantities grow as these powers of the size."""
    sizes = [1, 2, 4, 8]
    seconds = [dict.fromkeys(("total", "generation", "scoring", "optimization"), 3.0 * n**exponent) for n in sizes]
    return {
        "sizes": sizes,
        "points": [
            {"seconds": s, "memory_mb": 50.0 * n**memory, "flops": 7 * n**operations}
            for n, s in zip(sizes, seconds, strict=True)
        ],
    }


def test_the_exponent_of_a_power_is_found() -> None:
    fitted = scaling.exponents(points(1.5, memory=0.5, operations=2.0))
    assert fitted["total"].value == pytest.approx(1.5)
    assert fitted["total"].error == pytest.approx(0, abs=1e-6)
    assert fitted["memory"].value == pytest.approx(0.5)
    assert fitted["operations"].value == pytest.approx(2.0)


def test_growth_beyond_the_work_is_a_warning() -> None:
    assert scaling.warnings("rollouts", scaling.exponents(points(1.05))) == []
    assert "total grows with rollouts" in scaling.warnings("rollouts", scaling.exponents(points(1.5)))[0]
    # Less than the size is more than the work where operations grow slowly.
    assert "where 0.50 is due" in scaling.warnings("vocabulary", scaling.exponents(points(0.8, operations=0.5)))[0]
    assert scaling.warnings("vocabulary", scaling.exponents(points(0.5, operations=0.5))) == []
    # Attention makes the work itself grow faster than the length.
    assert scaling.warnings("prompt", scaling.exponents(points(1.5, operations=1.5))) == []
    assert "memory grows" in scaling.warnings("prompt", scaling.exponents(points(1.0, memory=2.0)))[0]


def test_an_uncertain_exponent_is_no_warning() -> None:
    assert scaling.Exponent(value=1.5, error=0.05).exceeds(1.0)
    assert not scaling.Exponent(value=1.5, error=0.3).exceeds(1.0)


def test_table_and_plot(tmp_path) -> None:
    factors = {"rollouts": points(1.5), "layers": points(1.0)}
    scaling.draw(factors, tmp_path / "images" / "scaling.png")
    assert (tmp_path / "images" / "scaling.png").stat().st_size > 10_000
    text = scaling.markdown({"provenance": MADE, "factors": factors})
    assert "| rollouts, 1 to 8 | 1.00 ± 0.00 | 1.50 ± 0.00 |" in text
    assert "- Warning: total grows with rollouts" in text
    assert scaling.NO_WARNING not in text
    assert scaling.NO_WARNING in scaling.markdown({"provenance": MADE, "factors": {"layers": points(1.0)}})


@pytest.mark.slow
def test_two_processes_share_an_update(tmp_path) -> None:
    directory = write(TINY, tmp_path, prompts=2 * TINY.rollouts, models=["policy", "reward"])
    run = arms.KLQ.run(directory, updates=2, threads=1, processes=2)
    assert len(run["rows"]) == 2
    assert run["ranks"] == 2


# GPU -----------------------------------------------------------------------------------------------------------------


def test_the_mathematics_is_what_a_forward_pass_multiplies() -> None:
    shape = (TINY.rollouts, TINY.prompt_tokens)
    found = products(TINY, shape)
    matrices = sum(flops((kind, sizes)) * n for kind, sizes, n in found if kind == "mm")
    assert matrices == TINY.rollouts * TINY.prompt_tokens * (gpu.token_flops(TINY) + gpu.head_flops(TINY))
    # An attention without a mask multiplies all pairs, and a causal one needs those before: P (P + 1) / 2 of P^2.
    pairs = sum(flops((kind, sizes)) * n for kind, sizes, n in found if kind == "attention")
    needed = TINY.rollouts * gpu.attention_flops(TINY, 0, TINY.prompt_tokens)
    assert needed / pairs == pytest.approx((TINY.prompt_tokens + 1) / (2 * TINY.prompt_tokens))


def test_decoding_moves_all_weights_for_each_token() -> None:
    model = GPTNeoXForCausalLM(config(TINY))
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2) - model.get_input_embeddings().weight.numel()
    lengths = sum(range(TINY.prompt_tokens, TINY.prompt_tokens + TINY.response_tokens))
    cache = TINY.rollouts * lengths * TINY.layers * 2 * TINY.hidden
    assert gpu.decode_bytes(TINY) == 2 * (TINY.response_tokens * matrices + cache)


def test_the_stages_of_the_paper_s_workload() -> None:
    work = gpu.model_flops(gpu.PYTHIA_1B)
    weights = 16 * 12 * 2048**2
    # Four epochs of policy and critic, three forward passes of 2 operations a weight and token, and a little more.
    least = 4 * 192 * 2 * 3 * 2 * weights * (512 + 53)
    assert least < work["optimization"] < 1.15 * least


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path, monkeypatch, capsys) -> None:
    options = ["--device", "cpu", "--tiny", "--updates", "1", "--accumulate", "2", "--rollouts", "16"]
    monkeypatch.setattr(
        sys, "argv", [gpu.__file__, *options, "--out", str(tmp_path), "--profile", str(tmp_path / "t.json")]
    )
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [len(run["rows"]) for run in found["algorithms"].values()] == [1, 1]
    assert found["workload"]["rollouts"] == 16
    assert all(0 < run["utilisation"]["total"] < 1 for run in found["algorithms"].values())
    for name in ("KLQ", "PPO"):
        assert json.loads((tmp_path / f"t-{name}.json").read_text(encoding="utf-8"))["traceEvents"]
    assert "| whole update |" in capsys.readouterr().out


@pytest.mark.parametrize("script", [gpu, roofline, scaling])
def test_no_updates_are_refused_before_any_is_run(script, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [script.__file__, "--updates", "0"])
    with pytest.raises(SystemExit):
        script.main()
    assert "argument --updates: 0 must be at least 1" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [gpu.__file__])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--device=cpu --tiny" in capsys.readouterr().err

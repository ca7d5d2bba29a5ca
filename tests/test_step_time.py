"""The harness of `benchmarks/step_time.py`: arms do the same work, clocks and counts add up. No timing is judged."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer, GPTNeoXForCausalLM

import step_time
from step import arms, summary
from step.counting import Work
from step.measuring import STAGES, Machine, Updates
from step.page import fill
from step.workloads import EOS, TINY, as_text, read_prompts, write


def row(total, others=0.0, **more):
    stages = dict.fromkeys(STAGES, total / 4)
    return {"total": total, **stages, "rest": total / 4, "others": others, "cpu": 2 * total, "length": 5.0, **more}


def run(*rows):
    return {"rows": [row(99.0), *rows], "peak_memory_mb": 100.0, "memory_before_mb": 50.0}


# Workloads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hazard", [0.0, 0.05, 0.5])
def test_eos_has_the_same_probability_at_every_token(hazard, tmp_path) -> None:
    workload = replace(TINY, hidden=256, vocab=4096, hazard=hazard)
    policy = GPTNeoXForCausalLM.from_pretrained(write(workload, tmp_path, prompts=4, models=["policy"]) / "policy")
    with torch.no_grad():
        logits = policy(torch.tensor(read_prompts(tmp_path))).logits
    probability = logits.softmax(-1)
    assert_close(logits[..., EOS], torch.full_like(logits[..., EOS], logits[0, 0, EOS].item()))
    assert_close(probability[..., EOS], torch.full_like(probability[..., EOS], hazard), rtol=0.02, atol=1e-8)
    assert probability[..., workload.pad].max() < 1e-8


def test_text_gives_back_the_prompt_and_does_not_run_into_the_response(tmp_path) -> None:
    write(TINY, tmp_path, prompts=3, models=["policy"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    for prompt in read_prompts(tmp_path):
        assert tokenizer(as_text(prompt))["input_ids"] == prompt
        assert tokenizer(as_text(prompt) + tokenizer.decode([7, 8]))["input_ids"] == [*prompt, 7, 8]


# Clocks --------------------------------------------------------------------------------------------------------------


def test_stages_and_rest_add_up_to_the_update() -> None:
    updates = Updates()
    updates.begin()
    for _ in range(2):
        for stage in STAGES:
            updates.stage(stage)
        updates.end()
    for found in updates.rows:
        assert found["total"] == pytest.approx(sum(found[name] for name in (*STAGES, "rest")))
        assert 0 <= found["others"] <= 1


def test_another_process_shows_in_the_machine_s_load() -> None:
    machine = Machine()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"], check=True)
    found = machine.lap()
    assert found["others"] > 0.5 / (os.cpu_count() or 1)
    assert found["cpu"] < 0.5


def test_peak_memory_sees_what_was_allocated() -> None:
    """268 MB, in a program of its own, whose heap holds no room for them yet."""
    program = (
        "import torch\nfrom step.measuring import peak_memory\nbefore = peak_memory()\n"
        "ballast = torch.ones(2**26)\nprint(peak_memory() - before)"
    )
    paths = os.pathsep.join(map(str, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) == pytest.approx(268, abs=30)


def test_products_are_counted_with_their_sizes() -> None:
    with Work() as work:
        work.stage = "generation"
        layer = torch.nn.Linear(3, 5)
        layer(torch.ones(2, 3)).sum().backward()
    found = work.lap()
    # The output and the weights' gradient; the input needs none.
    assert found["flops"] == {"generation": 2 * 2 * 3 * 5 * 2}
    assert sorted(found["products"]["generation"]) == [["mm", (2, 3, 5), 1], ["mm", (5, 2, 3), 1]]


# Summary -------------------------------------------------------------------------------------------------------------


def test_disturbed_updates_and_the_first_do_not_count() -> None:
    found = summary.summarise([run(row(2.0), row(7.0, others=0.5)), run(row(4.0))], rollouts=6)
    assert found["seconds"]["total"] == 3.0
    assert found["episodes_per_second"] == 2.0
    assert (found["clean_updates"], found["updates"]) == (2, 3)
    # CPU seconds grow little when others disturb: all updates count.
    assert found["cpu"] == 8.0


def test_ratios_are_those_of_one_round() -> None:
    slow, fast = [run(row(4.0)), run(row(9.0))], [run(row(2.0)), run(row(3.0))]
    assert summary.ratios(slow, fast) == [2.0, 3.0]
    assert summary.ratios([run(row(4.0, others=1.0)), slow[1]], fast) == [3.0]


def test_overhead_is_what_is_no_model_work() -> None:
    parts = {"sampling": 1.0, "forward passes": 2.0, "backward passes": 5.0, "optimizer": 1.0, "logging": 1.0}
    found = summary.overhead([run(row(10.0, parts=parts))])
    assert found["share"] == pytest.approx(0.1)
    assert found["pieces"]["logging"] == pytest.approx(0.1)


def test_a_page_without_its_place_is_refused(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n", encoding="utf-8")
    fill(page, "x", "new")
    fill(page, "x", "new")
    assert page.read_text(encoding="utf-8") == "a\n<!-- begin x -->\nnew\n<!-- end x -->\nb\n"
    with pytest.raises(ValueError, match="no place for y"):
        fill(page, "y", "new")


# All of it -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared():
    """One round at tiny size: the plain loop, KLQ, and KLQ with clocks."""
    arguments = argparse.Namespace(rounds=1, updates=1, threads=1, patience=0.0)
    return step_time.compare(TINY, [arms.PLAIN, arms.KLQ], arguments)


@pytest.mark.slow
def test_arms_take_the_same_steps_on_the_same_tokens(compared) -> None:
    plain, klq = compared["work"]["plain PyTorch"], compared["work"]["klqlit KLQ"]
    sequence = TINY.prompt_tokens + TINY.response_tokens
    assert plain["optimizer_steps"] == klq["optimizer_steps"] == TINY.steps
    # Policy and critic read every sequence in each epoch.
    assert plain["tokens_backward"] == 2 * TINY.epochs * TINY.rollouts * sequence
    assert 0 < klq["tokens_backward"] <= plain["tokens_backward"]
    # The last token is never read while sampling.
    assert plain["tokens_generation"] == klq["tokens_generation"] == TINY.rollouts * (sequence - 1)


@pytest.mark.slow
def test_the_table_tells_all_arms(compared) -> None:
    assert [len(runs) for runs in compared["runs"].values()] == [1, 1, 1]
    made = {"commit": "abc", "machine": "m", "torch": "2", "date": "d", "command": "c"}
    text = summary.markdown({"tiny": {"provenance": made, **compared}})
    assert "| plain PyTorch |" in text
    assert "| klqlit KLQ |" in text
    assert "plain PyTorch / klqlit KLQ" in text


@pytest.mark.slow
def test_a_further_run_keeps_other_workloads(compared, tmp_path, monkeypatch, capsys) -> None:
    made = {"commit": "abc", "machine": "m", "torch": "2", "date": "d", "command": "c"}
    (tmp_path / "step_time.json").write_text(json.dumps({"W1": {"provenance": made, **compared}}), encoding="utf-8")
    options = ["--workloads", "tiny", "--rounds", "1", "--updates", "1", "--threads", "1", "--patience", "0"]
    monkeypatch.setattr("sys.argv", [step_time.__file__, *options, "--skip_peer", "--out", str(tmp_path)])
    step_time.main()
    assert [*json.loads((tmp_path / "step_time.json").read_text(encoding="utf-8"))] == ["W1", "tiny"]
    assert "### W1" in (printed := capsys.readouterr().out)
    assert "### tiny" in printed


@pytest.mark.slow
def test_pieces_add_up_to_the_update(compared) -> None:
    found = compared["runs"]["klqlit KLQ with clocks"][0]["rows"][1]
    assert sum(found["parts"].values()) == pytest.approx(found["total"], rel=0.05)
    assert set(found["parts"]) >= set(summary.MODEL_WORK)
    assert all(found["parts"][name] > 0 for name in ("prompts", "dealing minibatches", "metrics of the rollout"))


@pytest.mark.slow
def test_an_arm_that_fails_says_why(tmp_path) -> None:
    with pytest.raises(RuntimeError, match=r"plain PyTorch failed(.|\n)*workload\.json"):
        arms.PLAIN.run(tmp_path, updates=1)

"""A real server of a real, tiny model: `transformers serve` on loopback."""

import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from builders import save, tiny_config, tiny_tokenizer
from klqlit.judges.base import JudgeStopped, Question
from klqlit.judges.endpoint import EndpointJudge

NEEDED = ("fastapi", "uvicorn", "pydantic", "accelerate")
MISSING = [name for name in NEEDED if find_spec(name) is None]
COMMAND = Path(sys.executable).with_name("transformers")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {', '.join(MISSING)}"),
    pytest.mark.skipif(not COMMAND.exists(), reason=f"there is no {COMMAND}"),
]

THOUGHT = "<think>Verdict: B</think>"
QUESTIONS = [
    Question(prompt="SUBREDDIT: r/cooking\n\nTL;DR:", first=" No yeast.", second=" Verdict: B"),
    Question(prompt="", first="", second="{first}"),
    Question(prompt="Why?", first="Ü 😀", second="no"),
]


def talker(directory):
    """A model that says two tokens whatever it reads, a thought and "Verdict: A", and then ends.

    Its layers add nothing, so that the last token alone chooses the next one: a coordinate of the embedding is 1 at the
    thought, another at the verdict, a third at every other token; each is read by the head's row of what comes next.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (THOUGHT, "Verdict: A")])
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}\n\nAnswer:"
    thought, verdict = (tokenizer.convert_tokens_to_ids(text) for text in (THOUGHT, "Verdict: A"))
    model = AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer), positions=8192))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "o_proj" in name or "down_proj" in name or "embed_tokens" in name or "lm_head" in name:
                weights.zero_()
        read, said = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        read[:, 0] = 1.0
        read[[thought, verdict], 0] = 0.0
        read[thought, 1] = read[verdict, 2] = 1.0
        said[thought, 0] = said[verdict, 1] = said[tokenizer.eos_token_id, 2] = 10.0
    return save(directory, model, tokenizer)


class Serve:
    """`transformers serve` of a model, in a process of its own."""

    def __init__(self, path, log):
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self.port = held.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self.path, self.log = path, log

    def __enter__(self):
        command = [COMMAND, "serve", self.path, "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=os.environ | offline, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        return self

    def __exit__(self, *error):
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answers(self):
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    with Serve(talker(folder / "model"), folder / "log.txt") as server:
        yield server


@pytest.mark.parametrize("template", ["summary", "helpful", "harmless"])
def test_the_verdict_is_the_models_own(served, template):
    judge = EndpointJudge(served.path, base_url=served.base_url, template=template, max_tokens=16, concurrency=2)
    both = [order for question in QUESTIONS for order in (question, question.swapped())]
    found = dict(judge.judge(both))
    assert sorted(found) == list(range(6))
    # The model knows no order: it names the one shown first.
    assert {judgment.verdict for judgment in found.values()} == {"first"}
    assert {judgment.answer for judgment in found.values()} == {f"{THOUGHT}Verdict: A"}


def test_sampling_settings_and_seeds_are_taken(served):
    judge = EndpointJudge(served.path, base_url=served.base_url, temperature=1.0, seed=1, max_tokens=16)
    [(_, judgment)] = judge.judge(QUESTIONS[:1])
    assert judgment.verdict in ("first", "unreadable")


def test_an_answer_that_is_cut_is_unreadable(served):
    [(_, judgment)] = EndpointJudge(served.path, base_url=served.base_url, max_tokens=1).judge(QUESTIONS[:1])
    assert judgment.verdict == "unreadable"
    assert judgment.answer.startswith("[cut at max_tokens=1: raise max_tokens]")


def test_a_wrong_address_is_named(served):
    judge = EndpointJudge(served.path, base_url=f"http://127.0.0.1:{served.port}/v2")
    with pytest.raises(JudgeStopped, match=r"status 404.*base_url, which ends in /v1"):
        list(judge.judge(QUESTIONS))

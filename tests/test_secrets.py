"""Keys and passwords stand in nothing that is written or shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from builders import save, tiny_language_model, tiny_tokenizer
from judges.servers import Answer, JudgeServer, refuse, say
from klqlit.cli import main
from klqlit.judges.connection import Connection
from klqlit.judges.endpoint import EndpointJudge

KEY = "correct-horse/battery+staple"
"""Of no form that one could know a key by."""
PASSWORD = "hunter2hunter2"
TOKEN = "hf_" + "a1B2" * 8
SECRETS = (KEY, PASSWORD, TOKEN)


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)


def assert_clean(folder, *texts):
    """No secret in any file below a folder, whatever the file is, nor in a text."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert files
    for secret in SECRETS:
        assert [str(path) for path in files if secret.encode() in path.read_bytes()] == []
        assert [text for text in texts if secret in text] == []


def test_a_search_finds_what_is_there(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0\1" + KEY.encode())
    with pytest.raises(AssertionError):
        assert_clean(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"\0")
    with pytest.raises(AssertionError):
        assert_clean(tmp_path, f"it is {PASSWORD}")


FAULTS = {
    "an error that quotes the key": refuse(500, f"bad key {KEY}"),
    "a refusal that quotes the key": refuse(401, f"bad key {KEY}"),
    "no chat completion": Answer(f"<html>{KEY}</html>"),
    "a verdict that quotes the key": say(f"You are {KEY}. The better one is: A"),
    "headers that quote the key": refuse(400, "no", **{"x-key": KEY}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_judge_with_a_server_that_shows_the_key(tmp_path, capfd, caplog, fault):
    for name in "ab":
        rows = [{"prompt": f"p{i}", "completion": name * (i + 1)} for i in range(3)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with JudgeServer(lambda text, i: FAULTS[fault]) as server:
        options = ["--a=a.jsonl", "--b=b.jsonl", "--judge=EndpointJudge", "--judge.model=m", "--judge.max_retries=0"]
        options += [f"--judge.base_url={server.base_url}", "--judge.api_key_variable=JUDGE_API_KEY"]
        status = main(["judge", *options])
        assert any(KEY in str(headers) for headers in server.headers)  # it was sent
    out, err = capfd.readouterr()
    assert status in ((2,) if fault == "a refusal that quotes the key" else (0, 2)), err
    assert_clean(tmp_path, out, err, caplog.text)


REWARD = '''
import torch
from klqlit.rewards.base import Reward

class Keyed(Reward):
    """Scores by a service that wants a key and a password."""

    def __init__(self, api_key: str, address: str, fails: bool = False) -> None:
        super().__init__()
        self.api_key, self.address, self.fails = api_key, address, fails

    def forward(self, completions):
        assert self.api_key == "correct-horse/battery+staple" and "hunter2hunter2" in self.address
        if self.fails:
            raise ValueError(f"{self.address} refuses the key {self.api_key}")
        return torch.arange(len(completions)).float()
'''


@pytest.fixture
def config(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    policy = save(tmp_path / "policy", tiny_language_model("llama", tokenizer), tokenizer)
    code = tmp_path / "code"
    code.mkdir()
    (code / "keyed_reward.py").write_text(REWARD)
    monkeypatch.syspath_prepend(code)
    (tmp_path / "prompts.json").write_text(json.dumps([f"What is {i}?" for i in range(12)]))
    return f"""
run_dir: {tmp_path}/runs/run
trainer: {{max_epochs: 1, accelerator: cpu, callbacks: [{{class_path: klqlit.JudgedWinRate, init_args: {{judge:
  {{class_path: klqlit.EndpointJudge, init_args:
    {{model: m, api_key_variable: JUDGE_API_KEY, max_retries: 0, base_url: URL}}}}
  }}}}]}}
model:
  class_path: klqlit.KLQ
  init_args:
    policy: {{class_path: klqlit.LanguagePolicy, init_args: {{path: {policy}}}}}
    reward: {{class_path: keyed_reward.Keyed, init_args: {{api_key: {KEY}, address: "https://me:{PASSWORD}@host/v1"}}}}
    sampler: {{response_length: 4}}
    optimization: {{lr: 0.1}}
data:
  class_path: klqlit.OnlineDataModule
  init_args:
    rollouts: 4
    minibatches: 1
    epochs: 1
    max_prompt_tokens: 32
    source: {{class_path: klqlit.TableSource, init_args: {{path: prompts.json, validation_rows: 4}}}}
"""


def without_judge(config):
    return config[: config.index("callbacks:")] + "limit_val_batches: 0}\n" + config[config.index("model:\n") :]


def test_fit_with_secrets_in_its_options(config, tmp_path, capfd, caplog):
    """They reach what needs them, and neither config.yaml, checkpoints, logs nor run.json; nor does a second start."""
    file = tmp_path / "given" / "config.yaml"
    file.parent.mkdir()
    with JudgeServer(lambda text, i: refuse(500, f"bad key {KEY}")) as server:
        file.write_text(config.replace("URL", server.base_url))
        with pytest.warns(UserWarning, match=r"config\.yaml has \[hidden\] in its place"):
            assert main(["fit", f"--config={file}"]) == 0
        assert main(["fit", f"--config={file}", "--trainer.max_epochs=2"]) == 0
        assert server.headers
    assert list((tmp_path / "runs" / "run" / "checkpoints").iterdir())
    saved = (tmp_path / "runs" / "run" / "config.yaml").read_text()
    assert "api_key: '[hidden]'" in saved
    assert "https://[hidden]@host/v1" in saved
    assert_clean(tmp_path / "runs", caplog.text, *capfd.readouterr())


@pytest.mark.parametrize("trace", ["", "1"])
def test_fit_that_fails_with_secrets_in_its_error(config, tmp_path, trace):
    file = tmp_path / "given.yaml"
    failing = config.replace("address: ", "fails: true, address: ").replace(
        "callbacks:", "limit_val_batches: 0, callbacks:"
    )
    file.write_text(failing[: failing.index("callbacks:")].rstrip(", ") + "}\n" + failing[failing.index("model:\n") :])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "KLQLIT_TRACEBACK": trace}
    command = [sys.executable, "-m", "klqlit", "fit", f"--config={file}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 2
    assert "https://[hidden]@host/v1 refuses the key [hidden]" in done.stderr
    assert ("Traceback" in done.stderr) == bool(trace)
    assert_clean(tmp_path / "runs", done.stdout, done.stderr)


def test_predict_for_judge_keeps_no_secret(config, tmp_path, capfd):
    """`judge` writes down what it had generated, and the policy's reward needs its key all the same."""
    file = tmp_path / "given" / "config.yaml"
    file.parent.mkdir()
    file.write_text(without_judge(config))
    policy = str(tmp_path / "policy")
    options = [f"--config={file}", "--judge=LengthJudge", "--max_prompts=2", "--draws=100"]
    assert main(["judge", f"--a={policy}", "--b=reference", *options]) == 0
    written = list((tmp_path / "runs").rglob("predict.yaml"))
    assert len(written) == 2
    assert all("api_key: '[hidden]'" in path.read_text() for path in written)
    assert_clean(tmp_path / "runs", *capfd.readouterr())


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{PASSWORD}@127.0.0.1:1/v1",
        f"http://{PASSWORD}@127.0.0.1:1/v1",
        f"me:{PASSWORD}@127.0.0.1/v1",
        f"http://127.0.0.1:1/v1?api_key={PASSWORD}",
        f"http://me:{PASSWORD}@[::1/v1",
    ],
)
def test_an_address_with_a_password_is_refused_without_showing_it(url, capfd):
    with pytest.raises(ValueError, match="holds a user, a password or a query") as refusal:
        Connection("m", base_url=url, api_key_variable=None, max_retries=0, timeout=1.0)
    assert PASSWORD not in str(refusal.value)
    options = ["--a=a.jsonl", "--b=b.jsonl", "--judge=EndpointJudge", "--judge.model=m", f"--judge.base_url={url}"]
    for name in "ab":
        Path(f"{name}.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    assert main(["judge", *options]) == 2
    assert PASSWORD not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "extra", [{"api_key": PASSWORD}, {"a": {"authorization": PASSWORD}}, {"a": [TOKEN]}, {"a": KEY}]
)
def test_a_key_in_a_judges_fields_is_refused(extra):
    with pytest.raises(ValueError, match="extra_body holds what looks like a key") as refusal:
        EndpointJudge("m", base_url="http://127.0.0.1:1/v1", extra_body=extra)
    assert not [secret for secret in SECRETS if secret in str(refusal.value)]


@pytest.mark.parametrize("option", ["--model.api_key=", "--api_key=", "--trainer.max_epochs=", "--run_dirr="])
@pytest.mark.parametrize("secret", [KEY, TOKEN, f"https://me:{PASSWORD}@host"])
def test_a_mistaken_option_does_not_show_what_it_holds(config, tmp_path, capfd, option, secret):
    (tmp_path / "given.yaml").write_text(config)
    assert main(["fit", f"--config={tmp_path / 'given.yaml'}", option + secret]) == 2
    out, err = capfd.readouterr()
    assert "klqlit: error: " in err
    assert not [one for one in SECRETS if one in out + err]


@pytest.mark.parametrize("command", ["fit", "plan"])
@pytest.mark.parametrize("name", ["JUDGE_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "PLAIN", "ADDRESS"])
def test_a_configuration_cannot_take_a_secret_from_the_environment(config, tmp_path, monkeypatch, capfd, name, command):
    """By the variable's name, or by what it holds."""
    values = {"OPENAI_API_KEY": "short", "PLAIN": "sk-" + "x" * 20, "ADDRESS": f"https://me:{PASSWORD}@host"}
    if name in values:
        monkeypatch.setenv(name, values[name])
    (tmp_path / "given.yaml").write_text(config.replace("model: m,", f"model: '${{oc.env:{name}}}',"))
    assert main([command, f"--config={tmp_path / 'given.yaml'}"]) == 2
    error = capfd.readouterr().err
    assert f"the environment variable {name} holds a secret" in error
    assert os.environ[name] not in error.replace(name, "")


def test_other_variables_can_be_read(config, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WORKPLACE", "runs/here")
    text = config.replace(f"{tmp_path}/runs/run", "${oc.env:WORKPLACE}").replace(
        "model: m,", "model: '${oc.env:NO_SUCH,m}',"
    )
    (tmp_path / "given.yaml").write_text(text.replace("URL", "http://127.0.0.1:1/v1"))
    with pytest.raises(SystemExit):
        main(["fit", f"--config={tmp_path / 'given.yaml'}", "--print_config"])
    capfd.readouterr()
    assert main(["fit", f"--config={tmp_path / 'given.yaml'}", "--trainer.max_epochs=0", "--model.tau=-1"]) == 2
    assert "tau must be" in capfd.readouterr().err


def test_outside_slurm_its_overlay_means_one_rank(monkeypatch, capfd):
    """The number that stands for a variable that is not set is read as the variable would be."""
    for name in ("SLURM_NNODES", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    configs = Path(__file__).parents[1] / "configs"
    with pytest.raises(SystemExit):
        main(["fit", f"--config={configs}/mini_sums_klq.yaml", f"--config={configs}/slurm.yaml", "--print_config"])
    out = capfd.readouterr().out
    assert "  devices: 1\n" in out
    assert "  num_nodes: 1\n" in out

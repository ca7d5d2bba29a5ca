"""Keys and passwords are known by their names, by their looks, and by what the environment holds."""

import pytest

from klqlit.redaction import HIDDEN, hide, redacted


@pytest.mark.parametrize(
    "name", ["api_key", "hf_token", "token", "OPENAI_API_KEY", "password", "client_secret", "key", "authorization"]
)
def test_secrets_are_known_by_their_names(name):
    assert redacted({"judge": {name: "abc", "other": "abc"}}) == {"judge": {name: HIDDEN, "other": "abc"}}


@pytest.mark.parametrize(
    "name",
    ["max_tokens", "max_prompt_tokens", "tokenizer", "api_key_env", "monkey", "append_eos", "eos_token", "pad_token"],
)
def test_other_names_are_not_taken_for_secrets(name):
    assert redacted({name: "abc"}) == {name: "abc"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("sk-abcdefghijklmnopqrst", HIDDEN),
        ("use hf_abcdefghijklmnopqrst now", f"use {HIDDEN} now"),
        ("https://me:secret@host/v1", f"https://{HIDDEN}@host/v1"),
        ("https://host/v1?api_key=abc&x=1", f"https://host/v1?api_key={HIDDEN}&x=1"),
        ("https://a-token-alone@host/v1", f"https://{HIDDEN}@host/v1"),
        ("Authorization: Bearer abcdefghijklmnop", f"Authorization: Bearer {HIDDEN}"),
        ("{'Authorization': 'Basic bWU6c2VjcmV0LXdvcmQ='}", f"{{'Authorization': 'Basic {HIDDEN}'}}"),
        ("the bearer of bad news", "the bearer of bad news"),
        ("runs/mini_hh/klq", "runs/mini_hh/klq"),
        ("EleutherAI/pythia-1b-deduped", "EleutherAI/pythia-1b-deduped"),
    ],
)
def test_secrets_are_known_by_their_looks(value, shown):
    assert redacted({"base_url": [value]}) == {"base_url": [shown]}


RANDOM = "Zq7Rk2Wm9Tx4Lp8Vb3Nc6Yd1Hs5Jf0Ga7Ue2Ko4Xi9Mt6Bw3"
PARTED = "aB3dE-fG7hI9jK_mN2pQ-5sT8vW"
"""As drawn from letters, digits, hyphen and underscore: no part of it is long."""


@pytest.mark.parametrize(
    "key",
    [
        f"sk-{RANDOM}",
        f"sk-{RANDOM[:20]}T3BlbkFJ{RANDOM[20:40]}",
        "sk-0123456789abcdef0123456789abcdef",
        f"sk-proj-{PARTED}-T3BlbkFJ{PARTED}_{PARTED}",
        f"sk-svcacct-{PARTED}_{PARTED}",
        f"sk-ant-api03-{PARTED}-{PARTED}_{PARTED}AA",
        f"sk-or-v1-{'0123456789abcdef' * 4}",
        f"sk-{PARTED}",
        "hf_" + "abcdefghijKLMNOPQRSTuvwxyzABCDEFGH",
        *[f"{prefix}_{RANDOM[:36]}" for prefix in ("ghp", "gho", "ghu", "ghs", "ghr")],
        f"github_pat_{RANDOM[:22]}_{RANDOM}{RANDOM[:11]}",
        "glpat-aB3d-fG7hI_jKmN2pQ5s",
        f"glpat-{PARTED}.01.0a1b2c3d4",
        f"xoxb-123456789012-1234567890123-{RANDOM[:24]}",
        "xoxp-123456789012-123456789012-123456789012-0123456789abcdef0123456789abcdef",
        "AKIAIOSFODNN7EXAMPLE",
        f"AIzaSy{RANDOM[:20]}-_{RANDOM[20:31]}",
    ],
)
def test_keys_of_services_are_hidden(key):
    assert redacted({"a": key}) == {"a": HIDDEN}
    assert hide(f"the key '{key}', is refused") == f"the key '{HIDDEN}', is refused"


@pytest.mark.parametrize(
    "name",
    [
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "/models/skywork-reward-llama-3.1-8b",
        "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
        "runs/ghost_writer_dataset_v1",
        "/data/sketch-understanding-v2/train.jsonl",
        "sk-learn-dataset-prompts.jsonl",
        "/data/sk-Prompts-Llama3-2026-11-27-cleaned.jsonl",
        "hf_rlhf_prompts_dataset_v2",
        "runs/AKIAKI-2026-11-27-second-seed",
        "AIzawa-dialogues-of-the-second-season",
    ],
)
def test_paths_and_names_are_no_keys(name):
    assert redacted({"path": name}) == {"path": name}


def test_what_is_not_set_is_not_hidden():
    assert redacted({"token": None, "key": False}) == {"token": None, "key": False}


def test_a_number_is_no_secret():
    assert redacted({"token": 17, "key": [0.5, "abc"]}) == {"token": 17, "key": [0.5, HIDDEN]}


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MY_SECRET"])
def test_what_the_environment_holds_is_hidden_whatever_it_looks_like(monkeypatch, name):
    monkeypatch.setenv(name, "correct horse battery")
    assert hide("it said: correct horse battery!") == f"it said: {HIDDEN}!"
    assert redacted({"a": ["correct horse battery"]}) == {"a": [HIDDEN]}


def test_short_values_paths_and_other_variables_are_no_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    monkeypatch.setenv("PAD_TOKEN", "<pad>")
    monkeypatch.setenv("MONKEY", "a chimpanzee")
    text = f"{tmp_path}/x <pad> a chimpanzee"
    assert hide(text) == text


def test_the_longer_of_two_secrets_goes_first(monkeypatch):
    monkeypatch.setenv("A_KEY", "abcdefgh")
    monkeypatch.setenv("B_KEY", "abcdefgh-ijklmnop")
    assert hide("abcdefgh-ijklmnop abcdefgh") == f"{HIDDEN} {HIDDEN}"

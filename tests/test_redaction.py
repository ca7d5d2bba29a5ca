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


def test_what_is_not_set_is_not_hidden():
    assert redacted({"token": None, "key": False}) == {"token": None, "key": False}


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

"""The hub is asked only where it answers."""

import pytest
from huggingface_hub import constants

from klqlit import hub
from klqlit.data.reading import read_rows
from klqlit.models.loading import load_tokenizer


@pytest.fixture
def asked(monkeypatch):
    """`asked(error)` sets what becomes of a request; the list it returns grows with each one."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub._ask.cache_clear()

    def answer(error=None):
        requests = []

        class Session:
            def head(self, url, *, timeout):
                requests.append(url)
                if error is not None:
                    raise error

        monkeypatch.setattr(hub, "get_session", Session)
        return requests

    yield answer
    hub._ask.cache_clear()


def test_without_network_it_is_asked_once_and_the_caches_are_left(asked, caplog):
    requests = asked(OSError("no route"))
    for _ in range(3):
        hub.go_offline_without_network()
    assert requests == [constants.ENDPOINT]
    assert constants.HF_HUB_OFFLINE
    assert "does not answer (no route): of its models and data, only copies in the cache" in caplog.text


def test_where_it_answers_it_stays_in_use(asked):
    requests = asked()
    for _ in range(3):
        hub.go_offline_without_network()
    assert requests == [constants.ENDPOINT]
    assert not constants.HF_HUB_OFFLINE


def test_who_has_chosen_to_be_offline_asks_nothing(asked, monkeypatch):
    requests = asked()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.go_offline_without_network()
    assert requests == []


@pytest.mark.parametrize(("load", "what"), [(load_tokenizer, "a tokenizer"), (read_rows, "a data set")])
def test_a_name_that_cannot_be_had_is_refused_without_a_round_of_requests(asked, load, what):
    requests = asked(OSError("no route"))
    with pytest.raises(ValueError, match=f"'owner/name' is neither a .* here nor {what} the hub could give"):
        load("owner/name")
    assert requests == [constants.ENDPOINT]

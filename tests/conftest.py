"""Fixtures that several folders share."""

import logging
from collections import Counter
from functools import cache

import jaxtyping
import pytest
import torch

from builders import save, tiny_language_model, tiny_tokenizer
from runs import quitter

MALFORMED = "malformed"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny tensors are slower on several threads, and rounding is then the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture
def set_threads():
    """`set_threads(count)`: for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def unchecked_types():
    """Annotations are not enforced, as outside of the tests: what a user mistypes arrives."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """`model_dir(architecture, pad_token=...)`: the directory of a tiny language model, made once."""

    @cache
    def make(architecture, pad_token="<pad>", seed=0):
        tokenizer = tiny_tokenizer(pad_token=pad_token)
        model = tiny_language_model(architecture, tokenizer, seed=seed)
        # Real models have more rows than their tokenizer has tokens, and Qwen2's tokenizer adds one when it is loaded.
        model.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
        return save(tmp_path_factory.mktemp(architecture), model, tokenizer)

    return make


@pytest.fixture(autouse=True)
def _lightning_speaks():
    """Programs that tests call silence it for their process."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def quitter_dir(tmp_path_factory):
    """A tiny model that ends about one response in six at each token, so that lengths differ."""
    tokenizer = tiny_tokenizer()
    return save(tmp_path_factory.mktemp("quitter"), quitter(tokenizer), tokenizer)


@pytest.fixture
def malformed(record_property):
    """Malformed inputs by kind that a test tried, each refused or repaired as it should be. Reported at the end."""
    tally = Counter()
    record_property(MALFORMED, tally)
    return tally


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Workers send plain dicts alone to the process that sums them up."""
    report = yield
    report.user_properties = [
        (name, dict(value) if name == MALFORMED else value) for name, value in report.user_properties
    ]
    return report


def pytest_terminal_summary(terminalreporter):
    """Sums over the tests of all workers: what a test records travels with its report."""
    total = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                for name, tally in report.user_properties:
                    total.update(tally if name == MALFORMED else {})
    if total:
        terminalreporter.section("malformed inputs", sep="-")
        for kind, count in sorted(total.items()):
            terminalreporter.write_line(f"{count:6,} {kind}")
        terminalreporter.write_line(f"{total.total():6,} malformed inputs in all, each refused in one line or repaired")

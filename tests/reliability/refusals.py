"""What must become of a malformed input: one clear line of ours, in bounded time."""

import signal
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings

SECONDS = 10
LONGEST = 1000
"""Characters of a message."""

fuzz = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
"""The same inputs each time; `settings(fuzz, max_examples=..)` says how many."""


@contextmanager
def bounded(seconds: int = SECONDS):
    """Fail where the body takes longer."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusal(call: Callable[[], Any]) -> str | None:
    """The message with which a call refuses its input; None where it takes it. Any other end fails."""
    with bounded():
        try:
            call()
        except ValueError as error:
            refused = error
        else:
            return None
    assert type(refused) is ValueError, f"{type(refused).__name__} of a library: {refused}"
    assert_clear(str(refused))
    return str(refused)


def assert_clear(message: str) -> None:
    """One line, short enough to read, that is no trace of a program."""
    assert message.strip(), "no message"
    assert len(message) < LONGEST, message
    assert "\n" not in message, message
    assert "Traceback" not in message
    assert "object at 0x" not in message

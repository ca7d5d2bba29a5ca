"""Whose code raised an error."""

import json

from klqlit.algorithms.optimization import Optimization
from klqlit.user_code import place_in_user_code


def raised(call):
    try:
        call()
    except ValueError as error:
        return error
    raise AssertionError("nothing was raised")


def line(function):
    """Where a function's body stands, beneath its first line."""
    return f"{__file__}:{function.__code__.co_firstlineno + 1}"


def test_the_users_line_is_named_also_where_a_library_raised():
    def reading():
        return int("Of")

    def parsing():
        return json.loads("{")

    def refusing():
        raise ValueError("never")

    for function in (reading, parsing, refusing):
        assert place_in_user_code(raised(function)) == line(function)


def test_what_this_package_refuses_needs_no_line():
    def building():
        return Optimization(lr=-1.0)

    assert place_in_user_code(raised(building)) is None


def test_of_an_error_made_from_another_the_first_counts():
    def reading():
        return int("Of")

    def wrapping():
        try:
            reading()
        except ValueError as error:
            raise ValueError("cannot be built") from error

    assert place_in_user_code(raised(wrapping)) == line(reading)


def test_an_error_that_was_never_raised_has_no_line():
    assert place_in_user_code(ValueError("new")) is None

"""Runs that were left in peace, each made once, to compare the others with."""

from functools import cache

import pytest

from reliability.programs import MODES, Program, write_config


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """The configuration of all runs."""
    return write_config(tmp_path_factory.mktemp("reliability"))


@pytest.fixture(scope="session")
def whole(config, tmp_path_factory):
    """`whole(mode)`: the ended program of one of `MODES`."""

    @cache
    def make(mode):
        program = Program(config, tmp_path_factory.mktemp(mode) / "whole", **MODES[mode])
        statuses, output = program.run()
        assert set(statuses) == {0}, output[-3000:]
        return program

    return make

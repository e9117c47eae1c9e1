"""Compilers that these tests call: the real ones, opened once."""

import shutil
import sys

import pytest

from pathmoe_eval.programs.compilers import open_compiler


def _named(name):
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    return name


@pytest.fixture(scope="session")
def c_compiler():
    return open_compiler(_named("gcc"), "c")


@pytest.fixture(scope="session")
def cpp_compiler():
    return open_compiler(_named("g++"), "c++")


@pytest.fixture(scope="session")
def python_compiler():
    return open_compiler(sys.executable, "python")

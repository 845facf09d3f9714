"""Fixtures of the fault tests."""

import io

import pytest
from rich.console import Console


@pytest.fixture
def loud():
    """A console whose output is `loud.file.getvalue()`."""
    return Console(file=io.StringIO(), force_terminal=False, width=400)

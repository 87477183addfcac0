"""Fixtures of the tests that boot guests."""

from __future__ import annotations

import pytest
from vm_session_tools import Session


@pytest.fixture
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(tmp_path_factory.mktemp("user", numbered=True))

"""Tests of server.py, whose port is hard-coded; they run in parallel as well.

pytest examples/pytest          # or, with pytest-xdist: pytest -n 4 examples/pytest
"""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

import pytest

SERVER = [sys.executable, str(Path(__file__).with_name("server.py"))]


def get(url: str) -> str:
    """Fetch a page."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


@pytest.fixture
def server(guarded_server):
    """One fresh server for each test; it listens already."""
    return guarded_server(SERVER)


def test_first_visitor(server):
    """The server counts from one."""
    assert get(server.url) == "hello, visitor 1\n"


def test_second_visitor(server):
    """The server counts its visitors."""
    get(server.url)
    assert get(server.url) == "hello, visitor 2\n"


def test_two_servers(guarded_server):
    """Two servers with one hard-coded port run side by side, each for itself."""
    one, other = guarded_server(SERVER), guarded_server(SERVER)
    assert one.event.requested_port == other.event.requested_port == 8080
    assert one.port != other.port
    assert get(one.url) == get(other.url) == "hello, visitor 1\n"


def test_not_reachable_from_outside(server):
    """The server asks for every address, and gets the loopback one."""
    assert server.event.requested_host == "0.0.0.0"
    assert server.event.host == "127.0.0.1"


def test_output(server):
    """What the server has written is at hand; a failed test shows it."""
    assert "serving on port 8080" in server.output()

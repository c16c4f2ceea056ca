"""Test a real server on a port that nobody knows yet, without sleep or polling.

    python examples/wait_for_server.py      # or: pytest examples/wait_for_server.py

The test goes on at the instant at which the server listens.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import portseccomp


@contextmanager
def running(command: list[str], **options: object) -> Iterator[portseccomp.Event]:
    """Run a server; say where it listens as soon as it does."""
    with portseccomp.Guard() as guard, guard.popen(command, **options) as process:
        try:
            yield guard.wait_listening("tcp:any", timeout=10)
        finally:
            process.terminate()


def test_directory_listing() -> None:
    """http.server lists the directory where it runs."""
    # Port 0: the kernel chooses one.
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with tempfile.TemporaryDirectory() as directory:
        with open(f"{directory}/some-file", "w"):
            pass
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with running(command, cwd=directory, **quiet) as server:
            place = f"{server.host}:{server.port}"
            print(f"listens: {place}")
            client = http.client.HTTPConnection(place, timeout=10)
            client.request("GET", "/")
            page = client.getresponse().read().decode()
            client.close()
    assert "some-file" in page


if __name__ == "__main__":
    test_directory_listing()
    print("ok")

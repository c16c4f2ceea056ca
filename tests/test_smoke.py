"""The shortest way through everything: does a guard guard at all?"""

import socket

import pytest

import portseccomp


def listen_on(port: int) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind(("127.0.0.1", port))
        one.listen()
    except OSError:
        one.close()
        raise
    return one


def test_denied_port_stays_closed(free_port):
    """A denied `listen` fails with the policy's errno; an allowed one works."""
    denied, allowed = free_port(), free_port()
    with portseccomp.Guard(f"deny {denied} with EPERM") as guard:
        with pytest.raises(PermissionError):
            guard.call(listen_on, denied)
        with guard.call(listen_on, allowed):
            assert [one.port for one in guard.listeners()] == [allowed]

"""What a hook can answer."""

from __future__ import annotations

import errno as _errno
from typing import Final, NamedTuple


class Verdict(NamedTuple):
    """A hook's answer: use ALLOW, DENY, `deny(errno)` or `move(...)`.

    `kind`: "allow", "deny" or "move". `errno`: of a denial; None for the
    policy's own. `host`, `port`: where a move goes; None leaves that part as
    it is, and port 0 is ephemeral.
    """

    kind: str
    errno: int | None = None
    host: str | None = None
    port: int | None = None

    def __repr__(self) -> str:
        if self.kind == "move":
            return f"move(host={self.host!r}, port={self.port!r})"
        if self.errno is not None:
            return f"deny({errno_name(self.errno)!r})"
        return self.kind.upper()


ALLOW: Final = Verdict("allow")
DENY: Final = Verdict("deny")


# Of two names for one number, the one that listen(2) and bind(2) use.
_USUAL_NAMES = {
    _errno.EAGAIN: "EAGAIN",
    _errno.EDEADLK: "EDEADLK",
    _errno.EOPNOTSUPP: "EOPNOTSUPP",
}


def errno_name(number: int) -> str:
    """Return the name of an errno, EACCES for example."""
    if number in _USUAL_NAMES:
        return _USUAL_NAMES[number]
    return _errno.errorcode.get(number, str(number))


def errno_number(name: str) -> int:
    """Return the number of an errno's name; ValueError for no such name."""
    number = getattr(_errno, name, None) if name.isupper() else None
    if not isinstance(number, int):
        import difflib

        close = difflib.get_close_matches(name.upper(), _errno.errorcode.values(), 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{name!r} is no errno name such as EACCES{hint}")
    return number


def deny(errno: int | str) -> Verdict:
    """Deny a call with an errno of your choice.

    `errno` is a number (errno.EPERM) or a name ("EPERM").
    Raises ValueError for what is no errno of Linux, TypeError for other things.
    """
    number = errno_number(errno) if isinstance(errno, str) else errno
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"an errno is a number or a name, not {errno!r}")
    if number not in _errno.errorcode:
        raise ValueError(f"{errno!r} is no errno such as errno.EPERM or 'EPERM'")
    return Verdict("deny", number)


def move(host: str | None = None, port: int | None = None) -> Verdict:
    """Move a call to another address, another port, or both.

    `port` 0 means ephemeral: the kernel chooses. Raises ValueError when neither
    is given, the host is no IP address, or the port is outside 0 to 65535.
    """
    if host is None and port is None:
        raise ValueError("move() needs a host, a port, or both")
    if port is not None:
        if not isinstance(port, int) or isinstance(port, bool):
            raise TypeError(f"a port is a number, not {port!r}")
        if not 0 <= port <= 65535:
            raise ValueError(f"port {port} is outside 0 to 65535")
    if host is not None:
        import ipaddress

        if not isinstance(host, str):
            raise TypeError(f"a host is a string such as '127.0.0.1', not {host!r}")
        ipaddress.ip_address(host)
    return Verdict("move", None, host, port)

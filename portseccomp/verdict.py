"""What a hook can answer."""

from __future__ import annotations

import errno as _errno
import os
from typing import Final, final


@final
class Verdict:
    """A hook's answer: use ALLOW, DENY, `deny(errno)` or `move(...)`."""

    __slots__ = ("_fields",)

    _fields: tuple[str, int | None, str | None, int | None]

    def __init__(
        self,
        kind: str,
        errno: int | None = None,
        host: str | None = None,
        port: int | None = None,
    ) -> None:
        object.__setattr__(self, "_fields", (kind, errno, host, port))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a verdict can't be changed")

    @property
    def kind(self) -> str:
        """ "allow", "deny" or "move"."""
        return self._fields[0]

    @property
    def errno(self) -> int | None:
        """The errno of a denial; None for the policy's own."""
        return self._fields[1]

    @property
    def host(self) -> str | None:
        """Where a move goes; None leaves the address as it is."""
        return self._fields[2]

    @property
    def port(self) -> int | None:
        """The port that a move goes to, 0 for ephemeral; None leaves it."""
        return self._fields[3]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Verdict) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash(self._fields)

    def __repr__(self) -> str:
        kind, errno, host, port = self._fields
        if kind == "move":
            return f"move(host={host!r}, port={port!r})"
        if errno is not None:
            return f"deny({errno_name(errno)!r})"
        return kind.upper()


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
    Raises ValueError for what is no errno of Linux.
    """
    number = errno_number(errno) if isinstance(errno, str) else errno
    if number not in _errno.errorcode:
        raise ValueError(f"{number!r} is no errno: {os.strerror(number)}")
    return Verdict("deny", number)


def move(host: str | None = None, port: int | None = None) -> Verdict:
    """Move a call to another address, another port, or both.

    `port` 0 means ephemeral: the kernel chooses. Raises ValueError when neither
    is given, or the port is outside 0 to 65535.
    """
    if host is None and port is None:
        raise ValueError("move() needs a host, a port, or both")
    if port is not None and not 0 <= port <= 65535:
        raise ValueError(f"port {port} is outside 0 to 65535")
    return Verdict("move", None, host, port)

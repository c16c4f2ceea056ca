"""What a hook can answer."""

from __future__ import annotations

import errno as _errno
from typing import Final


class Verdict:
    """A hook's answer: use ALLOW, DENY, `deny(errno)` or `move(...)`.

    `kind`: "allow", "deny" or "move". `errno`: of a denial; None for the
    policy's own. `host`, `port`: where a move goes; None leaves that part as
    it is, and port 0 is ephemeral.

    Immutable. ALLOW and DENY are one object each, copied and unpickled ones
    too, so that `is` tells them. Raises ValueError for another kind, and for
    an errno or a place that its kind does not have.
    """

    __slots__ = ("kind", "errno", "host", "port")
    __match_args__ = ("kind", "errno", "host", "port")

    kind: str
    errno: int | None
    host: str | None
    port: int | None

    def __new__(
        cls,
        kind: str,
        errno: int | None = None,
        host: str | None = None,
        port: int | None = None,
    ) -> Verdict:
        if kind not in ("allow", "deny", "move"):
            raise ValueError(f"{kind!r} is no verdict; right are allow, deny, move")
        if errno is not None and kind != "deny":
            raise ValueError(f"{kind!r} has no errno")
        if (host, port) != (None, None) and kind != "move":
            raise ValueError(f"{kind!r} has no host and no port")
        if errno is None and kind in _PLAIN:
            return _PLAIN[kind]
        self = super().__new__(cls)
        for name, value in zip(cls.__slots__, (kind, errno, host, port), strict=True):
            object.__setattr__(self, name, value)
        return self

    def _fields(self) -> tuple[str, int | None, str | None, int | None]:
        return self.kind, self.errno, self.host, self.port

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a verdict can't be changed: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a verdict can't be changed: {name}")

    def __bool__(self) -> bool:
        raise TypeError(
            f"a verdict is neither true nor false; compare it: `is ALLOW` ({self!r})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Verdict):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __reduce__(self) -> tuple[object, ...]:
        return Verdict, self._fields()

    def __repr__(self) -> str:
        if self.kind == "move":
            return f"move(host={self.host!r}, port={self.port!r})"
        if self.errno is not None:
            return f"deny({errno_name(self.errno)!r})"
        return self.kind.upper()


_PLAIN: dict[str, Verdict] = {}  # ALLOW and DENY
ALLOW: Final = Verdict("allow")
DENY: Final = Verdict("deny")
_PLAIN.update(allow=ALLOW, deny=DENY)


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
        if "%" in host:
            raise ValueError(f"host {host!r} names an interface; give the address")
        ipaddress.ip_address(host)
    return Verdict("move", None, host, port)

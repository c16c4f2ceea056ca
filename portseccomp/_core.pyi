from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, final

from portseccomp._types import EndpointFields, EventFields, TargetFields

VERDICT_ALLOW: Final[int]
VERDICT_MOVE: Final[int]
VERDICT_ASK: Final[int]
VERDICT_DENY: Final[int]
FAMILY_ANY: Final[int]
FAMILY_IPV4: Final[int]
FAMILY_IPV6: Final[int]
FAMILY_UNIX: Final[int]
FAMILY_VSOCK: Final[int]
FAMILY_OTHER: Final[int]
ADDRESS_ANY: Final[int]
ADDRESS_PREFIX: Final[int]
ADDRESS_LOOPBACK: Final[int]
ADDRESS_WILDCARD: Final[int]
PORTS_ANY: Final[int]
PORTS_RANGE: Final[int]
PORTS_EPHEMERAL: Final[int]
MOVE_HOST_KEEP: Final[int]
MOVE_HOST_IPV4: Final[int]
MOVE_HOST_IPV6: Final[int]
MOVE_HOST_LOOPBACK: Final[int]
PROTOCOL_ANY: Final[int]
PROTOCOL_TCP: Final[int]
PROTOCOL_UDP: Final[int]
RULE_DEFAULT: Final[int]
RULE_HOOK: Final[int]
RULE_FAILURE: Final[int]
WAIT_KILLABLE: Final[int]
SYNC_WAKE_UP: Final[int]
INSTALL_BUILD: Final[int]
INSTALL_SIZES: Final[int]
INSTALL_NO_NEW_PRIVS: Final[int]
INSTALL_SECCOMP: Final[int]
INSTALL_SERVE: Final[int]

class InstallError(OSError):
    stage: int

def confine_version() -> int: ...
def confine_thread() -> None: ...

@final
class Table:
    def __new__(
        cls,
        rules: Sequence[tuple[Any, ...]],
        default: int,
        error: int,
        unix_continue: bool = False,
        quiet_binds: bool = False,
    ) -> Table: ...
    @property
    def can_deny(self) -> bool: ...
    def decide(self, endpoint: EndpointFields) -> tuple[int, int, int]: ...
    def matches(self, index: int, endpoint: EndpointFields) -> bool: ...

@final
class Request:
    @property
    def call(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def tid(self) -> int: ...
    @property
    def family(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    @property
    def host(self) -> str | None: ...
    @property
    def port(self) -> int | None: ...
    @property
    def backlog(self) -> int | None: ...
    @property
    def comm(self) -> str: ...
    @property
    def exe(self) -> str: ...
    @property
    def cmdline(self) -> list[str]: ...
    @property
    def cwd(self) -> str: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def cgroup(self) -> str: ...
    def _decide(
        self, verdict: int, error: int, target: TargetFields | None = None
    ) -> bool: ...

class _Owner(Protocol):
    def need_standby(self) -> None: ...
    def settle(self, request: Request, answer: object) -> None: ...
    def hook_raised(self, request: Request, error: BaseException) -> None: ...

@final
class Supervisor:
    def __new__(
        cls, *, capacity: int, hook_timeout: float, max_hooks: int
    ) -> Supervisor: ...
    def install(
        self,
        table: Table,
        *,
        listen: bool,
        bind: bool,
        no_io_uring: bool,
        no_listener: bool,
        no_prlimit: bool,
        wanted: int,
    ) -> int: ...
    def trust_sockets(self) -> None: ...
    def run(
        self,
        hook: Callable[[Request], Any | Awaitable[Any]] | None,
        owner: _Owner,
    ) -> bool: ...
    def next_events(self, most: int) -> list[EventFields]: ...
    def wait_events(self, timeout: float) -> None: ...
    def ring(self) -> None: ...
    def set_threshold(self, events: int) -> None: ...
    @property
    def standbys(self) -> int: ...
    @property
    def live(self) -> int: ...
    @property
    def pushed(self) -> int: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> tuple[dict[str, int], list[tuple[int, int]]]: ...

"""The tuples that pass between the core and the modules above it."""

from typing import Any, TypeAlias

# What Supervisor.next_events gives of each request; events.make_event reads it.
EventFields: TypeAlias = tuple[Any, ...]
# Family, IPPROTO_ number, packed address, port, dual stack.
EndpointFields: TypeAlias = tuple[int, int, bytes, int, bool]
# How the host moves (MOVE_HOST_...), packed address, port or None.
TargetFields: TypeAlias = tuple[int, bytes, int | None]

"""The text of rules, selectors and endpoints: parsing and printing.

A selector is `any`, or family, protocol, address and ports, each optional, in
this order, joined by `:`. Every rule that systemd's SocketBindAllow= accepts
means the same here (systemd.resource-control(5)).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from portseccomp import _core
from portseccomp._types import EndpointFields
from portseccomp.errors import PolicyError
from portseccomp.verdict import errno_name, errno_number

FAMILIES = {
    "ipv4": _core.FAMILY_IPV4,
    "ipv6": _core.FAMILY_IPV6,
    "unix": _core.FAMILY_UNIX,
    "vsock": _core.FAMILY_VSOCK,
}
PROTOCOLS = {"tcp": _core.PROTOCOL_TCP, "udp": _core.PROTOCOL_UDP}
VERBS = {
    "allow": _core.VERDICT_ALLOW,
    "deny": _core.VERDICT_DENY,
    "ask": _core.VERDICT_ASK,
    "move": _core.VERDICT_MOVE,
}
_WORDS = (*FAMILIES, *PROTOCOLS, "loopback", "wildcard", "ephemeral", "any")

# IPPROTO_ numbers that stand for a selector's protocol in an endpoint.
_PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17, "mptcp": 262, "sctp": 132}

EPHEMERAL = 0


class Selector(NamedTuple):
    """What a rule selects, as the core's table has it."""

    family: int = _core.FAMILY_ANY
    protocol: int = _core.PROTOCOL_ANY
    match_address: int = _core.ADDRESS_ANY
    address: bytes = b""
    prefix_length: int = 0
    match_ports: int = _core.PORTS_ANY
    port_first: int = 0
    port_last: int = 0


class Target(NamedTuple):
    """Where a `move` rule moves to; None leaves that part as it is."""

    host: str | None
    port: int | None


class Rule(NamedTuple):
    """One rule: its text, and what it means."""

    text: str
    verdict: int
    selector: Selector
    errno: int | None = None
    target: Target | None = None

    def __str__(self) -> str:
        return self.text

    def row(self, errno: int) -> tuple[object, ...]:
        """Return the rule for the core's table; `errno` is the policy's own."""
        one = self.selector
        return (
            self.verdict,
            one.family,
            one.protocol,
            one.match_address,
            one.address,
            one.prefix_length,
            one.match_ports,
            one.port_first,
            one.port_last,
            self.errno or errno,
        )


class Endpoint(NamedTuple):
    """An endpoint in words: what `explain` is asked about."""

    text: str
    family: int
    protocol: int
    address: bytes
    port: int
    dual_stack: bool

    def __str__(self) -> str:
        return self.text

    def fields(self) -> EndpointFields:
        """Return it as the core wants it."""
        return self[1:]


class _Text:
    """A text being parsed, for errors that quote it and point at a part."""

    def __init__(self, what: str, text: str) -> None:
        self.what = what
        self.text = text

    def error(self, part: str, why: str, start: int = 0) -> PolicyError:
        place = self.text.find(part, start) if part else -1
        where = f"'{part}' (column {place + 1}) " if place >= 0 else ""
        return PolicyError(f"{self.what} {self.text!r}: {where}{why}")


def _split(text: str) -> list[str]:
    """Split at each colon that stands outside brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == ":" and depth <= 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def _suggest(word: str, words: Iterable[str] = _WORDS) -> str:
    import difflib

    if word.lower() == "localhost":
        return "; did you mean 'loopback'?"
    close = difflib.get_close_matches(word.lower(), words, 1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _pack(host: str) -> tuple[int, bytes] | None:
    """Return (family, packed address); a v4-mapped one is IPv4."""
    import ipaddress

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return _core.FAMILY_IPV6, address.packed
        address = address.ipv4_mapped
    return _core.FAMILY_IPV4, address.packed


def _looks_like_address(part: str) -> bool:
    return part.startswith("[") or part.count(".") >= 1


def _parse_address(part: str, whole: _Text) -> tuple[int, bytes, int]:
    """Parse ADDRESS or ADDRESS/LENGTH; return (family, packed, length)."""
    host, slash, length_text = part.partition("/")
    if "]" in length_text:
        raise whole.error(part, "is written [ADDRESS]/LENGTH")
    bracketed = host.startswith("[") and host.endswith("]")
    inner = host[1:-1] if bracketed else host
    packed = _pack(inner)
    if packed is None or bracketed != (":" in inner):
        raise whole.error(
            part, "is no address; right are 127.0.0.1, 10.0.0.0/8, [::1], [fd00::]/8"
        )
    family, address = packed
    bits = 8 * len(address)
    length = bits
    if slash:
        mapped = bracketed and family == _core.FAMILY_IPV4
        longest = 128 if mapped else bits
        if not _is_number(length_text) or int(length_text) > longest:
            raise whole.error(part, f"needs a prefix length of 0 to {longest}")
        length = int(length_text)
        if mapped:
            length -= 96
            if length < 0:
                raise whole.error(
                    part, "covers more than IPv4; write the IPv4 prefix itself"
                )
        value = int.from_bytes(address, "big")
        if value & ((1 << (bits - length)) - 1):
            raise whole.error(
                part, f"has bits set behind its prefix length of {length_text}"
            )
    return family, address, length


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _parse_port(text: str, part: str, whole: _Text, most: int) -> int:
    if not _is_number(text):
        raise whole.error(part, "is no port; right are 8080, 8000-8999, ephemeral, any")
    port = int(text)
    if port == EPHEMERAL:
        raise whole.error(part, "has port 0; the kernel's choice is called 'ephemeral'")
    if port > most:
        raise whole.error(part, f"is above {most}, the highest port")
    return port


def _parse_ports(part: str, whole: _Text, most: int) -> tuple[int, int, int]:
    """Parse the ports of a selector; return (match_ports, first, last)."""
    if part == "any":
        return _core.PORTS_ANY, 0, 0
    if part == "ephemeral":
        return _core.PORTS_EPHEMERAL, 0, 0
    first_text, dash, last_text = part.partition("-")
    first = _parse_port(first_text, part, whole, most)
    last = _parse_port(last_text, part, whole, most) if dash else first
    if last < first:
        raise whole.error(part, f"ends before it starts; right is {last}-{first}")
    return _core.PORTS_RANGE, first, last


def _parse_selector(text: str, whole: _Text) -> Selector:
    if text == "any":
        return Selector()
    if not text:
        raise whole.error("", "needs a selector such as 8080, tcp:8000-8999 or any")
    if text.count(":") > 1 and "[" not in text and _pack(text) is not None:
        raise whole.error(text, f"is written in brackets: [{text}]")

    parts = _split(text)
    found = Selector()
    named_family = ""
    step = 0  # 1: family seen, 2: protocol, 3: address, 4: ports

    def once(part: str, now: int) -> None:
        nonlocal step
        if step >= now:
            raise whole.error(
                part,
                "comes too late; the order is family, protocol, address, ports",
                len(whole.text) - len(text),
            )
        step = now

    for part in parts:
        if part in FAMILIES:
            once(part, 1)
            named_family = part
            found = found._replace(family=FAMILIES[part])
        elif part in PROTOCOLS:
            once(part, 2)
            found = found._replace(protocol=PROTOCOLS[part])
        elif part in ("loopback", "wildcard"):
            once(part, 3)
            match = (
                _core.ADDRESS_LOOPBACK if part == "loopback" else _core.ADDRESS_WILDCARD
            )
            found = found._replace(match_address=match)
        elif _looks_like_address(part):
            once(part, 3)
            family, address, length = _parse_address(part, whole)
            if named_family and FAMILIES[named_family] != family:
                raise whole.error(part, f"is no address of {named_family}")
            found = found._replace(
                family=family,
                match_address=_core.ADDRESS_PREFIX,
                address=address,
                prefix_length=length,
            )
        elif part in ("any", "ephemeral") or part[:1].isdigit():
            once(part, 4)
            most = 0xFFFFFFFF if named_family == "vsock" else 65535
            match, first, last = _parse_ports(part, whole, most)
            found = found._replace(match_ports=match, port_first=first, port_last=last)
        elif not part:
            hint = " (an IPv6 address is written in brackets)" * ("::" in text)
            raise whole.error("", f"has an empty part{hint}")
        else:
            raise whole.error(
                part, f"is no family, protocol, address or port{_suggest(part)}"
            )

    if named_family in ("unix", "vsock"):
        has_port = found.match_ports != _core.PORTS_ANY
        if (
            found.protocol
            or found.match_address
            or (has_port and named_family == "unix")
        ):
            right = "'unix'" if named_family == "unix" else "'vsock' or 'vsock:PORT'"
            raise whole.error(named_family, f"has no such part; right is {right}")
    return found


def parse_selector(text: str) -> Selector:
    """Parse a selector such as "tcp:loopback:8000-8999"; raises PolicyError."""
    text = text.strip()
    return _parse_selector(text, _Text("selector", text))


def _parse_target(text: str, whole: _Text) -> Target:
    parts = _split(text)
    host: str | None = None
    port: int | None = None
    if not text:
        raise whole.error("", "needs a target behind '->': ADDRESS, PORT or both")
    if parts[0] == "loopback":
        host = parts.pop(0)
    elif _looks_like_address(parts[0]):
        part = parts.pop(0)
        if "/" in part:
            raise whole.error(part, "is a network; a target is one address")
        _parse_address(part, whole)
        host = part.strip("[]")
    if parts:
        part = parts.pop(0)
        if part == "ephemeral":
            port = EPHEMERAL
        elif part[:1].isdigit():
            port = _parse_port(part, part, whole, 65535)
        else:
            raise whole.error(
                part, "is no target; right are ADDRESS, PORT, ADDRESS:PORT"
            )
    if parts:
        raise whole.error(
            parts[0], "is too much; right are ADDRESS, PORT, ADDRESS:PORT"
        )
    return Target(host, port)


def parse_rule(text: str) -> Rule:
    """Parse one rule such as "deny 8080 with EPERM"; raises PolicyError."""
    if not isinstance(text, str):
        raise PolicyError(f"a rule is a string such as 'deny 8080', not {text!r}")
    text = " ".join(text.split())
    whole = _Text("rule", text)
    verb, _, rest = text.partition(" ")
    if verb not in VERBS:
        raise whole.error(
            verb, f"is no verb: allow, deny, ask or move{_suggest(verb, VERBS)}"
        )

    errno: int | None = None
    target: Target | None = None
    if verb == "move":
        rest, arrow, target_text = rest.partition("->")
        if not arrow:
            raise whole.error("", "needs a target: move SELECTOR -> TARGET")
        rest = rest.strip()
        target = _parse_target(target_text.strip(), whole)
    elif verb == "deny" and " " in rest:
        rest, word, name = (
            rest.split(" ", 2) if rest.count(" ") >= 2 else (rest, "", "")
        )
        if word != "with":
            raise whole.error("", "is too long; right is: deny SELECTOR with ERRNO")
        try:
            errno = errno_number(name)
        except ValueError as error:
            raise PolicyError(f"rule {text!r}: {error}") from None
    elif " " in rest:
        raise whole.error(
            rest.split(" ", 1)[1], f"is too much; right is: {verb} SELECTOR"
        )

    selector = _parse_selector(rest, whole)
    if target is not None:
        _check_move(selector, target, whole)
    return Rule(text, VERBS[verb], selector, errno, target)


def _check_move(selector: Selector, target: Target, whole: _Text) -> None:
    """A moved socket stays of its family."""
    if selector.family in (_core.FAMILY_UNIX, _core.FAMILY_VSOCK):
        raise whole.error("", "can't move: only IPv4 and IPv6 ports move")
    packed = None
    if target.host not in (None, "loopback"):
        packed = _pack(target.host or "")
    if packed and selector.family not in (_core.FAMILY_ANY, packed[0]):
        raise whole.error(target.host or "", "is of another family than what moves")


_FORMS = {
    (_core.ADDRESS_LOOPBACK): "loopback",
    (_core.ADDRESS_WILDCARD): "wildcard",
}


def format_selector(selector: Selector) -> str:
    """Print a selector in its shortest form; it parses to the same again."""
    import ipaddress

    parts = [word for word, code in FAMILIES.items() if code == selector.family]
    if selector.protocol:
        parts += [w for w, code in PROTOCOLS.items() if code == selector.protocol]
    if selector.match_address == _core.ADDRESS_PREFIX:
        address = ipaddress.ip_address(selector.address)
        text = f"[{address}]" if address.version == 6 else str(address)
        if selector.prefix_length < address.max_prefixlen:
            text += f"/{selector.prefix_length}"
        parts = [*parts[1:], text]  # the address says the family
    elif selector.match_address:
        parts.append(_FORMS[selector.match_address])
    if selector.match_ports == _core.PORTS_EPHEMERAL:
        parts.append("ephemeral")
    elif selector.match_ports == _core.PORTS_RANGE:
        first, last = selector.port_first, selector.port_last
        parts.append(str(first) if first == last else f"{first}-{last}")
    return ":".join(parts) or "any"


def format_rule(rule: Rule) -> str:
    """Print a rule in its shortest form; it parses to the same again."""
    verb = next(word for word, code in VERBS.items() if code == rule.verdict)
    text = f"{verb} {format_selector(rule.selector)}"
    if rule.errno is not None:
        text += f" with {errno_name(rule.errno)}"
    if rule.target is not None:
        host, port = rule.target
        places = []
        if host is not None:
            places.append(f"[{host}]" if ":" in host else host)
        if port is not None:
            places.append(str(port) if port else "ephemeral")
        text += f" -> {':'.join(places)}"
    return text


def parse_endpoint(text: str) -> Endpoint:
    """Parse an endpoint: [PROTOCOL:]ADDRESS:PORT, unix:PATH or vsock:PORT.

    Without a protocol it is TCP; without an address, or with `wildcard`, the
    IPv4 wildcard. An IPv6 wildcard is open on IPv4 too, unless `ipv6:` stands
    first. PORT may be `ephemeral` or 0. Raises PolicyError.
    """
    text = text.strip()
    whole = _Text("endpoint", text)
    parts = _split(text)
    head = parts[0]
    if head == "unix":
        return Endpoint(text, _core.FAMILY_UNIX, 0, b"", 0, False)
    family = FAMILIES[parts.pop(0)] if head in FAMILIES else _core.FAMILY_ANY
    most = 0xFFFFFFFF if head == "vsock" else 65535
    protocol = "tcp"
    if parts and parts[0] in _PROTOCOL_NUMBERS:
        protocol = parts.pop(0)
    number = 0 if head == "vsock" else _PROTOCOL_NUMBERS[protocol]
    if not parts or not parts[-1]:
        raise whole.error("", "needs a port: tcp:127.0.0.1:8080")

    port_text = parts.pop()
    if port_text in ("ephemeral", "0"):
        port = EPHEMERAL
    elif port_text[:1].isdigit() and not _looks_like_address(port_text):
        port = _parse_port(port_text, port_text, whole, most)
    elif _looks_like_address(port_text):
        raise whole.error(port_text, "needs a port behind it: tcp:127.0.0.1:8080")
    else:
        raise whole.error(port_text, f"is no port{_suggest(port_text)}")
    if head == "vsock" and not parts:
        return Endpoint(text, family, 0, b"", port, False)

    host = parts.pop() if parts else "wildcard"
    if parts:
        raise whole.error(parts[0], "is not expected; right is tcp:127.0.0.1:8080")
    if host in ("wildcard", "loopback"):
        six = family == _core.FAMILY_IPV6
        four_text = "127.0.0.1" if host == "loopback" else "0.0.0.0"
        six_text = "::1" if host == "loopback" else "::"
        found, address = _pack(six_text if six else four_text) or (0, b"")
    else:
        if "/" in host:
            raise whole.error(host, "is a network; an endpoint is one address")
        found, address, _ = _parse_address(host, whole)
        if family not in (_core.FAMILY_ANY, found):
            raise whole.error(host, f"is no address of {head}")
    dual_stack = (
        found == _core.FAMILY_IPV6 and not any(address) and family == _core.FAMILY_ANY
    )
    return Endpoint(text, found, number, address, port, dual_stack)

"""The text of rules, selectors and endpoints: parsing and printing.

A selector is `any`, or family, protocol, address and ports, each optional, in
this order, joined by `:`. Every rule that systemd's SocketBindAllow= accepts
means the same here (systemd.resource-control(5)).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NamedTuple

from portseccomp import _core
from portseccomp._types import EndpointFields, TargetFields
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
_ADDRESS_WORDS = {
    "loopback": _core.ADDRESS_LOOPBACK,
    "wildcard": _core.ADDRESS_WILDCARD,
}
_WORDS = (*FAMILIES, *PROTOCOLS, *_ADDRESS_WORDS, "ephemeral", "any")

_NEEDS_SELECTOR = "needs a selector such as 8080, tcp:8000-8999 or any"

# IPPROTO_ numbers that stand for a selector's protocol in an endpoint.
_PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17, "mptcp": 262, "sctp": 132}

EPHEMERAL = 0

_HIGHEST_PORT = 65535
_VSOCK_PORT_ANY = 0xFFFFFFFF  # VMADDR_PORT_ANY of vsock(7)
_HIGHEST_VSOCK_PORT = _VSOCK_PORT_ANY - 1
_VSOCK_CHOICE = (
    "is the kernel's choice, which vsock makes before it listens; right is the "
    "port itself, or 'vsock' for all of them"
)


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
        if self.target is not None and one.family == _core.FAMILY_ANY:
            # An address of one family is no place for a socket of the other.
            family = move_family(self.target.host)
            one = one._replace(family=family)
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
            move_fields(*self.target) if self.target else None,
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


class _Part(str):
    """A piece of a text, which knows in which column (from 1) it stands."""

    column: int

    def __new__(cls, text: str, column: int) -> _Part:
        part = super().__new__(cls, text)
        part.column = column
        return part

    def words(self) -> list[_Part]:
        """Split at spaces."""
        found = []
        column = self.column
        for word in self.split(" "):
            found.append(_Part(word, column))
            column += len(word) + 1
        return [one for one in found if one]

    def fields(self) -> list[_Part]:
        """Split at each colon that stands outside brackets."""
        parts, depth, start = [], 0, 0
        for place, letter in enumerate(self):
            depth += (letter == "[") - (letter == "]")
            if letter == ":" and depth <= 0:
                parts.append(_Part(self[start:place], self.column + start))
                start = place + 1
        return [*parts, _Part(self[start:], self.column + start)]


class _Text:
    """A text being parsed, for errors that quote it and point at a part."""

    def __init__(self, what: str, text: str) -> None:
        self.what = what
        self.text = text

    def whole(self) -> _Part:
        """The text as a part of itself."""
        return _Part(self.text, 1)

    def rest(self, part: _Part) -> _Part:
        """All of the text from a part on."""
        return _Part(self.text[part.column - 1 :], part.column)

    def error(self, part: _Part | None, why: str) -> PolicyError:
        where = ""
        if part:
            shown = repr(str(part)) if len(part) <= 60 else f"{str(part[:60])!r}..."
            where = f"{shown} (column {part.column}) "
        text = self.text if len(self.text) <= 200 else f"{self.text[:200]}..."
        return PolicyError(f"{self.what} {text!r}: {where}{why}")


def _suggest(word: str, words: Iterable[str] = _WORDS) -> str:
    import difflib

    if word.lower() == "localhost":
        return "; did you mean 'loopback'?"
    if word == "*":
        return "; did you mean 'wildcard'?"
    close = difflib.get_close_matches(word.lower(), words, 1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _pack(host: str) -> tuple[int, bytes] | None:
    """Return (family, packed address); a v4-mapped one is IPv4."""
    if ":" not in host:
        numbers = [_decimal(one, 255) for one in host.split(".")]
        known = [one for one in numbers if one is not None]
        if len(numbers) != 4 or len(known) != 4:
            return None
        return _core.FAMILY_IPV4, bytes(known)

    import ipaddress  # which takes longer than all of the policy

    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return None
    if address.ipv4_mapped is None:
        return _core.FAMILY_IPV6, address.packed
    return _core.FAMILY_IPV4, address.ipv4_mapped.packed


def move_family(host: str | None) -> int:
    """Return the family that a move to a host is for; FAMILY_ANY for each."""
    packed = _pack(host) if host not in (None, "loopback") else None
    return packed[0] if packed else _core.FAMILY_ANY


def move_fields(host: str | None, port: int | None) -> TargetFields:
    """Return a move's target as the core wants it."""
    if host is None:
        return _core.MOVE_HOST_KEEP, b"", port
    if host == "loopback":
        return _core.MOVE_HOST_LOOPBACK, b"", port
    family, packed = _pack(host) or (0, b"")
    four = family == _core.FAMILY_IPV4
    return (_core.MOVE_HOST_IPV4 if four else _core.MOVE_HOST_IPV6), packed, port


def _looks_like_address(part: str) -> bool:
    return part.startswith("[") or "." in part


def _parse_address(part: _Part, whole: _Text) -> tuple[int, bytes, int]:
    """Parse ADDRESS or ADDRESS/LENGTH; return (family, packed, length)."""
    host, slash, length_text = part.partition("/")
    if "]" in length_text:
        raise whole.error(part, "is written [ADDRESS]/LENGTH")
    bracketed = host.startswith("[") and host.endswith("]")
    inner = host[1:-1] if bracketed else host
    if "%" in inner:
        raise whole.error(part, "names an interface; a rule is about addresses only")
    packed = _pack(inner)
    if packed is not None and bracketed and ":" not in inner:
        right = f"{inner}{slash}{length_text}"
        raise whole.error(part, f"is IPv4, written without brackets: {right}")
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
        found = _decimal(length_text, longest)
        if found is None:
            raise whole.error(part, f"needs a prefix length of 0 to {longest}")
        length = found - 96 if mapped else found
        if length < 0:
            raise whole.error(
                part, "covers more than IPv4; write the IPv4 prefix itself"
            )
        value = int.from_bytes(address, "big")
        below = (1 << (bits - length)) - 1
        if value & below:
            network = _show(family, (value & ~below).to_bytes(len(address), "big"))
            raise whole.error(
                part,
                f"has bits set behind its prefix length of {length_text}; "
                f"right is {network}/{length}",
            )
    return family, address, length


def _wrong_family(
    part: _Part, wanted: str, found: tuple[int, bytes, int], whole: _Text
) -> PolicyError:
    """Say that an address is not of the family before it."""
    family, address, length = found
    if wanted != "ipv6" or not part.startswith("["):
        return whole.error(part, f"is no address of {wanted}")
    right = _show(family, address) + (f"/{length}" if length < 32 else "")
    return whole.error(part, f"is judged as IPv4; right is {right}, without ipv6")


def _show(family: int, packed: bytes) -> str:
    """Write an address as rules have it."""
    if family == _core.FAMILY_IPV4:
        return ".".join(map(str, packed))

    import ipaddress

    return f"[{ipaddress.IPv6Address(packed)}]"


def _decimal(text: str, most: int) -> int | None:
    """Read a plain decimal number of 0 to `most`."""
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):
        return None
    if text[0] == "0" and text != "0":
        return None
    number = int(text)
    return number if number <= most else None


def _number(text: str) -> int | None:
    """Read a number as systemd does, with +80 and 0x50, but no octal 010."""
    digits = text.removeprefix("+")
    if not digits.isascii() or len(digits) > 12:
        return None
    if digits[:2].lower() == "0x" and digits[2:].isalnum():
        try:
            return int(digits, 16)
        except ValueError:
            return None
    if not digits.isdigit() or (digits.startswith("0") and digits != "0"):
        return None
    return int(digits)


def _parse_port(text: str, part: _Part, whole: _Text, most: int) -> int:
    port = _number(text)
    if port is None and text.isascii() and text.isdigit() and text.startswith("0"):
        raise whole.error(part, "has a leading zero")
    if port is None and not (text.isascii() and text.isdigit()):
        raise whole.error(part, "is no port; right are 8080, 8000-8999, ephemeral, any")
    if port == EPHEMERAL and most == _HIGHEST_VSOCK_PORT:
        raise whole.error(
            part, "has port 0, which no rule can name; 'vsock' covers all ports"
        )
    if port == EPHEMERAL:
        raise whole.error(part, "has port 0; the kernel's choice is called 'ephemeral'")
    if port == _VSOCK_PORT_ANY and most == _HIGHEST_VSOCK_PORT:
        raise whole.error(part, _VSOCK_CHOICE)
    if port is None or port > most:
        raise whole.error(part, f"is above {most}, the highest port")
    return port


def _parse_ports(part: _Part, whole: _Text, most: int) -> tuple[int, int, int]:
    """Parse the ports of a selector; return (match_ports, first, last)."""
    if part == "any":
        return _core.PORTS_ANY, 0, 0
    if part == "ephemeral" and most == _HIGHEST_VSOCK_PORT:
        raise whole.error(part, _VSOCK_CHOICE)
    if part == "ephemeral":
        return _core.PORTS_EPHEMERAL, 0, 0
    first_text, dash, last_text = part.partition("-")
    first = _parse_port(first_text, part, whole, most)
    last = _parse_port(last_text, part, whole, most) if dash else first
    if last < first:
        raise whole.error(part, f"ends before it starts; right is {last}-{first}")
    return _core.PORTS_RANGE, first, last


_HEXTETS = frozenset("0123456789abcdefABCDEF:.")


def _check_brackets(text: _Part, whole: _Text) -> None:
    """An IPv6 address without brackets falls apart at its colons."""
    address, slash, length = text.partition("/")
    if text.count(":") < 2 or not _HEXTETS.issuperset(address.partition("%")[0]):
        return
    if _pack(address) is None:
        host, _, port = address.rpartition(":")
        if _pack(host) is None or slash:
            return
        raise whole.error(text, f"is written in brackets: [{host}]:{port}")
    right = f"[{address}]{slash}{length}"
    host, _, port = address.rpartition(":")
    if len(port) > 1 and port.isdigit() and _pack(host) is not None:
        right += f", or [{host}]:{port}"
    raise whole.error(text, f"is written in brackets: {right}")


class _SelectorParser:
    """Takes the parts of a selector, one after the other."""

    def __init__(self, whole: _Text) -> None:
        self._whole = whole
        self._step = 0  # 1: family seen, 2: protocol, 3: address, 4: ports
        self.family = ""
        self.found = Selector()

    def _once(self, part: _Part, step: int) -> None:
        if self._step >= step:
            raise self._whole.error(
                part, "comes too late; the order is family, protocol, address, ports"
            )
        self._step = step

    def take(self, part: _Part) -> None:
        """Take one part; raises PolicyError for one that does not fit."""
        self._check_habits(part)
        word = part.lower() if part.lower() in PROTOCOLS else str(part)
        found = self.found
        if word in FAMILIES:
            self._once(part, 1)
            self.family = word
            self.found = found._replace(family=FAMILIES[word])
        elif word in PROTOCOLS:
            self._once(part, 2)
            self.found = found._replace(protocol=PROTOCOLS[word])
        elif word in _ADDRESS_WORDS:
            self._once(part, 3)
            self.found = found._replace(match_address=_ADDRESS_WORDS[word])
        elif _looks_like_address(part):
            self._once(part, 3)
            self._take_address(part)
        elif word in ("any", "ephemeral") or part[:1].isdigit() or part[:1] == "+":
            self._once(part, 4)
            vsock = self.family == "vsock"
            most = _HIGHEST_VSOCK_PORT if vsock else _HIGHEST_PORT
            match, first, last = _parse_ports(part, self._whole, most)
            self.found = found._replace(
                match_ports=match, port_first=first, port_last=last
            )
        elif not part:
            raise self._whole.error(
                None, "has an empty part (an IPv6 address is written in brackets)"
            )
        else:
            raise self._whole.error(
                part, f"is no family, protocol, address or port{_suggest(part)}"
            )

    def _check_habits(self, part: _Part) -> None:
        """Answer what is written so elsewhere."""
        if self.family == "unix" and part[:1] in ("/", "@", "."):
            raise self._whole.error(
                part, "is a path, which rules don't look at; right is 'unix' alone"
            )
        first, _, last = part.partition("/")
        for protocol, ports in ((first, last), (last, first)):
            if protocol.lower() in PROTOCOLS and ports[:1].isdigit():
                raise self._whole.error(part, f"is written {protocol}:{ports}")

    def _take_address(self, part: _Part) -> None:
        place = family, address, length = _parse_address(part, self._whole)
        if self.family and FAMILIES[self.family] != family:
            raise _wrong_family(part, self.family, place, self._whole)
        self.found = self.found._replace(
            family=family,
            match_address=_core.ADDRESS_PREFIX,
            address=address,
            prefix_length=length,
        )

    def end(self, text: _Part) -> Selector:
        """Return what was found, if it fits together."""
        found = self.found
        if self.family in ("unix", "vsock"):
            ports = found.match_ports != _core.PORTS_ANY and self.family == "unix"
            if found.protocol or found.match_address or ports:
                right = {"unix": "'unix'", "vsock": "'vsock' or 'vsock:PORT'"}
                raise self._whole.error(
                    text.fields()[0], f"has no such part; right is {right[self.family]}"
                )
        return found


def _parse_selector(text: _Part, whole: _Text) -> Selector:
    if text == "any":
        return Selector()
    if not text:
        raise whole.error(None, _NEEDS_SELECTOR)
    if "," in text:
        one = "one rule each, in a list" if whole.what == "rule" else "one of them"
        raise whole.error(text, f"is more than one selector; write {one}")
    _check_brackets(text, whole)
    parts = text.fields()
    if parts[-1] == "*":
        raise whole.error(parts[-1], "is no port; did you mean 'any'?")
    parser = _SelectorParser(whole)
    for part in parts:
        parser.take(part)
    return parser.end(text)


def parse_selector(text: str) -> Selector:
    """Parse a selector such as "tcp:loopback:8000-8999"; raises PolicyError."""
    if not isinstance(text, str):
        raise PolicyError(f"a selector is a string such as 'tcp:8080', not {text!r}")
    whole = _Text("selector", text.strip())
    return _parse_selector(whole.whole(), whole)


def _parse_target(text: _Part, whole: _Text) -> Target:
    if not text:
        raise whole.error(None, "needs a target behind '->': ADDRESS, PORT or both")
    parts = text.fields()
    host: str | None = None
    port: int | None = None
    if parts[0] == "loopback":
        host = str(parts.pop(0))
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
        elif part[:1].isdigit() or part[:1] == "+":
            if "-" in part:
                raise whole.error(part, "is a range; a target has only one port")
            port = _parse_port(part, part, whole, _HIGHEST_PORT)
        else:
            right = "right are ADDRESS, PORT, ADDRESS:PORT"
            raise whole.error(part, f"is no target; {right}{_suggest(part)}")
    if parts:
        raise whole.error(
            parts[0], "is too much; right are ADDRESS, PORT, ADDRESS:PORT"
        )
    return Target(host, port)


def parse_rule(text: str) -> Rule:
    """Parse one rule such as "deny 8080 with EPERM"; raises PolicyError."""
    if not isinstance(text, str):
        raise PolicyError(f"a rule is a string such as 'deny 8080', not {text!r}")
    if text.split()[:1] == ["move"]:
        text = text.replace("->", " -> ")
    text = " ".join(text.split())
    whole = _Text("rule", text)
    verb, *rest = whole.whole().words() or [_Part("", 1)]
    if verb not in VERBS:
        hint = _suggest(verb, VERBS)
        raise whole.error(verb, f"is no verb: allow, deny, ask or move{hint}")
    if not rest or rest[0] in ("with", "->"):
        raise whole.error(None, _NEEDS_SELECTOR)

    for word in rest[1:]:
        if word in VERBS:
            raise whole.error(
                whole.rest(word), "is another rule; write one rule each, in a list"
            )

    errno: int | None = None
    target: Target | None = None
    selector = _parse_selector(rest[0], whole)
    if verb == "move":
        target = _parse_move(rest[1:], whole)
        _check_move(selector, target, rest[2] if len(rest) > 2 else None, whole)
    elif verb == "deny" and len(rest) > 1:
        errno = _parse_errno(rest[1:], whole)
    elif len(rest) > 1:
        tail = whole.rest(rest[1])
        raise whole.error(tail, f"is too much; right is: {verb} SELECTOR")
    return Rule(text, VERBS[verb], selector, errno, target)


def _parse_errno(rest: list[_Part], whole: _Text) -> int:
    """Parse what follows the selector of a deny rule."""
    right = "right is: deny SELECTOR with ERRNO"
    if rest[0] != "with":
        raise whole.error(rest[0], f"is wrong; {right}")
    if len(rest) == 1:
        raise whole.error(rest[0], f"needs an errno; {right}")
    if len(rest) > 2:
        raise whole.error(whole.rest(rest[2]), f"is too much; {right}")
    try:
        return errno_number(rest[1])
    except ValueError as error:
        why = str(error).removeprefix(f"{str(rest[1])!r} ")
        raise whole.error(rest[1], why) from None


def _parse_move(rest: list[_Part], whole: _Text) -> Target:
    if not rest or rest[0] != "->":
        raise whole.error(None, "needs a target: move SELECTOR -> TARGET")
    if len(rest) > 2:
        raise whole.error(rest[2], "is too much; right is: move SELECTOR -> TARGET")
    return _parse_target(rest[1] if len(rest) == 2 else _Part("", 1), whole)


def _check_move(
    selector: Selector, target: Target, where: _Part | None, whole: _Text
) -> None:
    """A moved socket stays of its family."""
    if selector.family in (_core.FAMILY_UNIX, _core.FAMILY_VSOCK):
        raise whole.error(None, "can't move: only IPv4 and IPv6 ports move")
    packed = None
    if target.host is not None and target.host != "loopback":
        packed = _pack(target.host)
    if packed and selector.family not in (_core.FAMILY_ANY, packed[0]):
        raise whole.error(where, "is of another family than what moves")


def format_selector(selector: Selector) -> str:
    """Print a selector in its shortest form; it parses to the same again."""
    parts = [word for word, code in FAMILIES.items() if code == selector.family]
    if selector.protocol:
        parts += [w for w, code in PROTOCOLS.items() if code == selector.protocol]
    if selector.match_address == _core.ADDRESS_PREFIX:
        text = _show(selector.family, selector.address)
        if selector.prefix_length < 8 * len(selector.address):
            text += f"/{selector.prefix_length}"
        parts = [*parts[1:], text]  # the address says the family
    elif selector.match_address:
        words = _ADDRESS_WORDS.items()
        parts += [word for word, code in words if code == selector.match_address]
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
    """Parse an endpoint: [PROTOCOL:]ADDRESS:PORT, unix:PATH or vsock:[CID:]PORT.

    Without a protocol it is TCP; without an address, or with `wildcard`, the
    IPv4 wildcard. An IPv6 wildcard is open on IPv4 too, unless `ipv6:` stands
    first. PORT may be `ephemeral` or 0. Raises PolicyError.
    """
    if not isinstance(text, str):
        raise PolicyError(
            f"an endpoint is a string such as 'tcp:[::]:80', not {text!r}"
        )
    text = text.strip()
    whole = _Text("endpoint", text)
    _check_brackets(whole.whole(), whole)
    parts = whole.whole().fields()
    head = str(parts[0])
    if head == "unix":
        return Endpoint(text, _core.FAMILY_UNIX, 0, b"", 0, False)
    if head == "vsock":
        return _parse_vsock(text, parts[1:], whole)
    family = FAMILIES[parts.pop(0)] if head in FAMILIES else _core.FAMILY_ANY
    number = _PROTOCOL_NUMBERS["tcp"]
    if parts and parts[0] in _PROTOCOL_NUMBERS:
        number = _PROTOCOL_NUMBERS[parts.pop(0)]
    port = _parse_endpoint_port(parts, whole)

    host = parts.pop() if parts else _Part("wildcard", 1)
    if parts:
        raise whole.error(parts[0], "is not expected; right is tcp:127.0.0.1:8080")
    if host in _ADDRESS_WORDS:
        hosts = {"loopback": ("127.0.0.1", "::1"), "wildcard": ("0.0.0.0", "::")}
        text_of = hosts[host][family == _core.FAMILY_IPV6]
        found, address = _pack(text_of) or (family, b"")
    else:
        if "/" in host:
            raise whole.error(host, "is a network; an endpoint is one address")
        if not _looks_like_address(host):
            raise whole.error(host, f"is no address such as 127.0.0.1{_suggest(host)}")
        place = found, address, _ = _parse_address(host, whole)
        if family not in (_core.FAMILY_ANY, found):
            raise _wrong_family(host, head, place, whole)
    dual_stack = (
        found == _core.FAMILY_IPV6 and not any(address) and family == _core.FAMILY_ANY
    )
    return Endpoint(text, found, number, address, port, dual_stack)


def _parse_vsock(text: str, parts: list[_Part], whole: _Text) -> Endpoint:
    """Parse what follows `vsock:` in an endpoint, PORT or CID:PORT."""
    right = "right is vsock:PORT or vsock:CID:PORT"
    if not parts or not parts[-1]:
        raise whole.error(None, f"needs a port; {right}")
    *cids, part = parts
    if len(cids) > 1:
        raise whole.error(part, f"is too much; {right}")
    address = b""
    if cids:
        cid = _number(cids[0])
        if cid is None or cid > 0xFFFFFFFF:
            raise whole.error(cids[0], f"is no CID, the address of vsock; {right}")
        address = cid.to_bytes(4, sys.byteorder)
    if part == "ephemeral":
        raise whole.error(part, _VSOCK_CHOICE)
    if not part[:1].isdigit() or "-" in part:
        raise whole.error(part, f"is not one port; {right}")
    port = 0 if part == "0" else _parse_port(part, part, whole, _HIGHEST_VSOCK_PORT)
    return Endpoint(text, _core.FAMILY_VSOCK, 0, address, port, False)


def _parse_endpoint_port(parts: list[_Part], whole: _Text) -> int:
    right = "needs a port: tcp:127.0.0.1:8080"
    if not parts or not parts[-1]:
        raise whole.error(None, right)
    part = parts.pop()
    if part in ("ephemeral", "0"):
        return EPHEMERAL
    if _looks_like_address(part):
        raise whole.error(part, right)
    if not part[:1].isdigit() or "-" in part:
        raise whole.error(part, f"is not one port; it {right}")
    return _parse_port(part, part, whole, _HIGHEST_PORT)

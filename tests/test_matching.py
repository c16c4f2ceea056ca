"""The matcher in C against a slow one that is written from the documentation."""

from __future__ import annotations

import errno
import ipaddress
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portseccomp import Policy, _core
from portseccomp.grammar import parse_selector

thorough = settings(deadline=None, max_examples=300)

# ---- the slow matcher: nothing in here comes from the package ----


class Place(NamedTuple):
    """A socket as rules see it. `ip` is None where the family has no addresses."""

    family: str
    protocol: int
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None
    port: int
    dual_stack: bool = False


class Line(NamedTuple):
    """A rule in words; an empty word stands for a part left out."""

    verb: str
    family: str = ""
    protocol: str = ""
    address: str = ""
    ports: str = ""
    errno: str = ""
    target: str = ""

    @property
    def selector(self) -> str:
        parts = (self.family, self.protocol, self.address, self.ports)
        return ":".join(part for part in parts if part) or "any"

    @property
    def text(self) -> str:
        text = f"{self.verb} {self.selector}"
        if self.errno:
            text += f" with {self.errno}"
        return f"{text} -> {self.target}" if self.target else text


def selects(line: Line, place: Place) -> bool:
    if line.family:
        if line.family != place.family:
            return False
    elif place.family not in ("ipv4", "ipv6"):
        return False
    if line.protocol == "tcp" and place.protocol not in (6, 262):  # MPTCP
        return False
    if line.protocol == "udp" and place.protocol not in (17, 136):  # UDP-Lite
        return False
    if line.address == "loopback":
        if not place.ip.is_loopback:
            return False
    elif line.address == "wildcard":
        if str(place.ip) not in ("0.0.0.0", "::"):
            return False
    elif line.address:
        network = ipaddress.ip_network(line.address.replace("[", "").replace("]", ""))
        if network.version != place.ip.version or place.ip not in network:
            return False
    if line.ports in ("", "any"):
        return True
    if line.ports == "ephemeral":
        return place.port == 0
    first, _, last = line.ports.partition("-")
    return int(first) <= place.port <= int(last or first) and place.port != 0


def views(place: Place) -> list[Place]:
    """How a socket is judged: an IPv6 wildcard that is not V6ONLY twice."""
    if not place.dual_stack:
        return [place]
    ipv4 = Place("ipv4", place.protocol, ipaddress.ip_address("0.0.0.0"), place.port)
    return [place, ipv4]


STRICTNESS = ("allow", "move", "ask", "deny")


def judge_view(
    lines: list[Line], default: str, error: str, place: Place
) -> tuple[str, str, int]:
    """Return (verdict, errno, index) of the first rule, or of the default, -1."""
    for index, line in enumerate(lines):
        if selects(line, place):
            denied = line.verb == "deny"
            return line.verb, (line.errno or error) if denied else "", index
    if place.family not in ("ipv4", "ipv6"):
        return "allow", "", -1
    return default, error if default == "deny" else "", -1


def judge(
    lines: list[Line], default: str, error: str, place: Place
) -> list[tuple[str, str, int]]:
    """Return the answers that are right: of equally strict ones any is."""
    found = [judge_view(lines, default, error, view) for view in views(place)]
    strictest = max(STRICTNESS.index(verdict) for verdict, _, _ in found)
    return [one for one in found if STRICTNESS.index(one[0]) == strictest]


# ---- policies and sockets that meet often ----

PORTS = (1, 79, 80, 81, 8000, 8080, 8999, 9000, 65534, 65535)
HOSTS4 = (
    "0.0.0.0",
    "127.0.0.1",
    "127.255.255.255",
    "126.255.255.255",
    "128.0.0.0",
    "10.0.0.0",
    "10.255.255.255",
    "11.0.0.0",
    "10.128.0.1",
    "255.255.255.255",
    "0.0.0.1",
)
HOSTS6 = (
    "::",
    "::1",
    "::2",
    "fd00::",
    "fd00::1",
    "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "fe80::1",
    "2001:db8::1",
    "7f00::",
    "a00::",
    "::127.0.0.1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
)
hosts4 = st.sampled_from(HOSTS4).map(ipaddress.ip_address) | st.ip_addresses(v=4)
hosts6 = st.sampled_from(HOSTS6).map(ipaddress.ip_address) | st.ip_addresses(
    v=6
).filter(lambda one: one.ipv4_mapped is None)
numbers = st.sampled_from(PORTS) | st.integers(1, 65535)


@st.composite
def networks(draw, hosts) -> str:
    host = draw(hosts)
    bits = draw(st.sampled_from([0, 1, 7, 8, 9, 15, 16, 31, 32]) | st.integers(0, 128))
    bits = min(bits, host.max_prefixlen)
    network = ipaddress.ip_network((host, bits), strict=False)
    if network.version == 6 and network.network_address.ipv4_mapped is not None:
        network = ipaddress.ip_network("::/0")
    text = str(network.network_address)
    text = f"[{text}]" if network.version == 6 else text
    whole = bits == host.max_prefixlen and draw(st.booleans())
    return text if whole else f"{text}/{bits}"


@st.composite
def ranges(draw) -> str:
    kind = draw(st.sampled_from(["", "any", "ephemeral", "one", "range"]))
    if kind == "one":
        return str(draw(numbers))
    if kind == "range":
        first, last = sorted((draw(numbers), draw(numbers)))
        return f"{first}-{last}"
    return kind


@st.composite
def line_of(draw, verbs=("allow", "deny", "ask", "move")) -> Line:
    verb = draw(st.sampled_from(verbs))
    error = draw(st.sampled_from(["", "EPERM", "EADDRINUSE"])) if verb == "deny" else ""
    target = "ephemeral" if verb == "move" else ""
    families = ["", "", "ipv4", "ipv6"]
    if verb != "move":
        families += ["unix", "vsock"]
    family = draw(st.sampled_from(families))
    if family == "unix":
        return Line(verb, family, errno=error)
    if family == "vsock":
        ports = draw(ranges().filter(lambda one: one != "ephemeral"))
        return Line(verb, family, ports=ports, errno=error)
    protocol = draw(st.sampled_from(["", "tcp", "udp"]))
    kinds = ["", "loopback", "wildcard", "network"]
    address = draw(st.sampled_from(kinds))
    if address == "network":
        family = family or draw(st.sampled_from(["ipv4", "ipv6"]))
        address = draw(networks(hosts4 if family == "ipv4" else hosts6))
    return Line(verb, family, protocol, address, draw(ranges()), error, target)


@st.composite
def places(draw) -> Place:
    family = draw(st.sampled_from(["ipv4", "ipv6", "dual", "unix", "vsock", "other"]))
    port = draw(st.just(0) | numbers)
    protocol = draw(st.sampled_from([6, 6, 17, 17, 262, 136, 132, 33, 255]))
    if family == "ipv4":
        return Place(family, protocol, draw(hosts4), port)
    if family == "ipv6":
        return Place(family, protocol, draw(hosts6), port)
    if family == "dual":
        return Place("ipv6", protocol, ipaddress.ip_address("::"), port, True)
    if family == "vsock":
        return Place(family, 0, None, draw(st.just(port) | st.integers(0, 2**32 - 1)))
    return Place(family, 0, None, 0)


CODES = {
    "ipv4": _core.FAMILY_IPV4,
    "ipv6": _core.FAMILY_IPV6,
    "unix": _core.FAMILY_UNIX,
    "vsock": _core.FAMILY_VSOCK,
    "other": _core.FAMILY_OTHER,
}
VERDICTS = {word: getattr(_core, f"VERDICT_{word.upper()}") for word in STRICTNESS}

lists = st.lists(line_of(), max_size=6)
defaults = st.sampled_from(["allow", "deny", "ask"])
errors = st.sampled_from(["EACCES", "EPERM", "ENOSYS"])


def fields(place: Place) -> tuple[int, int, bytes, int, bool]:
    packed = place.ip.packed if place.ip else b""
    return CODES[place.family], place.protocol, packed, place.port, place.dual_stack


def table_of(lines: list[Line], default: str, error: str) -> _core.Table:
    policy = Policy([one.text for one in lines], default=default, errno=error)
    return policy.table(unix_continue=False)


@thorough
@given(lists, defaults, errors, st.lists(places(), min_size=1, max_size=8))
def test_matchers_agree(lines, default, error, sockets):
    """The C matcher decides every socket as the documentation says."""
    table = table_of(lines, default, error)
    for place in sockets:
        verdict, number, index = table.decide(fields(place))
        name = errno.errorcode[number] if number else ""
        right = [(VERDICTS[v], e, i) for v, e, i in judge(lines, default, error, place)]
        assert (verdict, name, index) in right, place


@thorough
@given(line_of(), st.lists(places(), min_size=1, max_size=8))
def test_one_rule_agrees(line, sockets):
    """One rule selects a socket when it selects one of the ways to reach it."""
    table = table_of([line], "allow", "EACCES")
    for place in sockets:
        wanted = any(selects(line, view) for view in views(place))
        assert table.matches(0, fields(place)) is wanted, place


@pytest.mark.parametrize("on_ipv6", STRICTNESS)
@pytest.mark.parametrize("on_ipv4", STRICTNESS)
@pytest.mark.parametrize("first", ["ipv4", "ipv6"])
def test_stricter_verdict_holds(on_ipv4, on_ipv6, first):
    """Of the verdicts on a dual-stack wildcard's halves the stricter holds."""
    lines = [
        Line(verb, family, target="ephemeral" if verb == "move" else "")
        for family, verb in (("ipv4", on_ipv4), ("ipv6", on_ipv6))
    ]
    lines.sort(key=lambda line: line.family != first)
    table = table_of(lines, "allow", "EACCES")
    place = Place("ipv6", 6, ipaddress.ip_address("::"), 80, dual_stack=True)
    stricter = max(on_ipv4, on_ipv6, key=STRICTNESS.index)
    verdict, _, index = table.decide(fields(place))
    assert verdict == VERDICTS[stricter]
    assert lines[index].verb == stricter


@thorough
@given(lists, defaults, errors, st.sampled_from(["unix", "vsock", "other"]))
def test_other_families_need_their_name(lines, default, error, family):
    """unix, vsock and others are allowed unless a rule names their family."""
    lines = [one for one in lines if one.family != family]
    table = table_of(lines, default, error)
    assert table.decide((CODES[family], 0, b"", 0, False)) == (
        _core.VERDICT_ALLOW,
        0,
        _core.RULE_DEFAULT,
    )


@thorough
@given(lists, defaults)
def test_can_deny(lines, default):
    """A table can deny exactly when a rule or the default is not allow."""
    wanted = default != "allow" or any(one.verb != "allow" for one in lines)
    assert table_of(lines, default, "EACCES").can_deny is wanted


@thorough
@given(hosts4, st.integers(0, 32), hosts4)
def test_mapped_prefix_is_the_ipv4_prefix(host, bits, other):
    """A v4-mapped prefix selects what the IPv4 prefix does."""
    network = ipaddress.ip_network((host, bits), strict=False)
    mapped = f"[::ffff:{network.network_address}]/{96 + bits}"
    assert parse_selector(mapped) == parse_selector(str(network))
    found = Policy(f"deny {mapped}").explain(f"[::ffff:{other}]:80")
    assert (found.verdict == "deny") is (other in network)


@pytest.mark.parametrize("bits", range(129))
def test_each_prefix_length(bits):
    """A prefix of each length ends at its last bit, neither before nor after."""
    value = (0xFD5A << 112) | (1 << 127)
    value = value >> (128 - bits) << (128 - bits)
    base = ipaddress.IPv6Address(value)
    table = table_of(
        [Line("deny", "ipv6", address=f"[{base}]/{bits}")], "allow", "EACCES"
    )
    inside = ipaddress.IPv6Address(value | ((1 << (128 - bits)) - 1))
    assert table.decide(fields(Place("ipv6", 6, base, 1)))[2] == 0
    assert table.decide(fields(Place("ipv6", 6, inside, 1)))[2] == 0
    if bits:
        outside = ipaddress.IPv6Address(value ^ (1 << (128 - bits)))
        assert table.decide(fields(Place("ipv6", 6, outside, 1)))[2] == -1


def test_many_rules():
    """The rule that decides is found among a thousand, first and last ones too."""
    lines = [Line("deny", ports=str(port)) for port in range(1, 1001)]
    table = table_of(lines, "allow", "EACCES")
    for port in (1, 500, 1000):
        place = Place("ipv4", 6, ipaddress.ip_address("127.0.0.1"), port)
        assert table.decide(fields(place))[2] == port - 1
    place = Place("ipv4", 6, ipaddress.ip_address("127.0.0.1"), 1001)
    assert table.decide(fields(place))[2] == _core.RULE_DEFAULT


@pytest.mark.parametrize(
    "row",
    [
        (0, 1, 0, 1, bytes(17), 0, 0, 0, 0, 13),
        (0, 1, 0, 1, bytes(4), 33, 0, 0, 0, 13),
        (0, 1, 0, 1, bytes(4), -1, 0, 0, 0, 13),
        (0, 2, 0, 1, bytes(16), 129, 0, 0, 0, 13),
    ],
)
def test_table_checks_what_it_copies(row):
    """A row that would make the core read past an address is refused."""
    with pytest.raises(ValueError):
        _core.Table([row], _core.VERDICT_ALLOW, 13, False)


def test_endpoint_is_checked():
    """An endpoint with too long an address, or an index outside, is refused."""
    table = table_of([], "allow", "EACCES")
    with pytest.raises(ValueError):
        table.decide((1, 6, bytes(17), 80, False))
    for index in (-1, 0, 1):
        with pytest.raises(IndexError):
            table.matches(index, (1, 6, bytes(4), 80, False))

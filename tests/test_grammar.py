"""The text of rules, selectors and endpoints: what it means, and what it says
when it is wrong."""

from __future__ import annotations

import errno
import ipaddress
import itertools
import subprocess
import sys

import pytest
from conftest import need
from hypothesis import example, given, settings
from hypothesis import strategies as st

from portseccomp import PolicyError, PortseccompError, _core
from portseccomp.grammar import (
    Rule,
    Selector,
    Target,
    format_rule,
    format_selector,
    parse_endpoint,
    parse_rule,
    parse_selector,
)

quick = settings(deadline=None, max_examples=300)

FOUR, SIX = _core.FAMILY_IPV4, _core.FAMILY_IPV6
TCP, UDP = _core.PROTOCOL_TCP, _core.PROTOCOL_UDP
LOOPBACK, WILDCARD = _core.ADDRESS_LOOPBACK, _core.ADDRESS_WILDCARD


def ports(first: int, last: int | None = None) -> dict[str, int]:
    return {
        "match_ports": _core.PORTS_RANGE,
        "port_first": first,
        "port_last": first if last is None else last,
    }


EPHEMERAL = {"match_ports": _core.PORTS_EPHEMERAL}


def address(text: str, bits: int) -> dict[str, object]:
    found = ipaddress.ip_address(text)
    return {
        "family": FOUR if found.version == 4 else SIX,
        "match_address": _core.ADDRESS_PREFIX,
        "address": found.packed,
        "prefix_length": bits,
    }


SELECTORS = {
    "any": {},
    # the examples of the documentation
    "8080": ports(8080),
    "tcp:8000-8999": {"protocol": TCP, **ports(8000, 8999)},
    "ipv6:udp": {"family": SIX, "protocol": UDP},
    "loopback:8000-8999": {"match_address": LOOPBACK, **ports(8000, 8999)},
    "tcp:10.0.0.0/8:any": {"protocol": TCP, **address("10.0.0.0", 8)},
    "[::1]:8080": {**address("::1", 128), **ports(8080)},
    "udp:ephemeral": {"protocol": UDP, **EPHEMERAL},
    # each part alone
    "ipv4": {"family": FOUR},
    "ipv6": {"family": SIX},
    "unix": {"family": _core.FAMILY_UNIX},
    "vsock": {"family": _core.FAMILY_VSOCK},
    "tcp": {"protocol": TCP},
    "udp": {"protocol": UDP},
    "127.0.0.1": address("127.0.0.1", 32),
    "10.0.0.0/8": address("10.0.0.0", 8),
    "[::1]": address("::1", 128),
    "[fd00::]/8": address("fd00::", 8),
    "loopback": {"match_address": LOOPBACK},
    "wildcard": {"match_address": WILDCARD},
    "8000-8999": ports(8000, 8999),
    "ephemeral": EPHEMERAL,
    # the ends of each range
    "1": ports(1),
    "65535": ports(65535),
    "1-65535": ports(1, 65535),
    "80-80": ports(80),
    "0.0.0.0/0": address("0.0.0.0", 0),
    "[::]/0": address("::", 0),
    "10.1.2.3/32": address("10.1.2.3", 32),
    "[::1]/128": address("::1", 128),
    "vsock:4294967294": {"family": _core.FAMILY_VSOCK, **ports(4294967294)},
    # together
    "ipv4:tcp:127.0.0.1:80": {**address("127.0.0.1", 32), "protocol": TCP, **ports(80)},
    "ipv6:tcp:[fd00::]/8:1-2": {**address("fd00::", 8), "protocol": TCP, **ports(1, 2)},
    "ipv4:loopback": {"family": FOUR, "match_address": LOOPBACK},
    "ipv6:udp:wildcard:any": {
        "family": SIX,
        "protocol": UDP,
        "match_address": WILDCARD,
    },
    "unix:any": {"family": _core.FAMILY_UNIX},
    "vsock:any": {"family": _core.FAMILY_VSOCK},
    "vsock:1024": {"family": _core.FAMILY_VSOCK, **ports(1024)},
    "wildcard:ephemeral": {"match_address": WILDCARD, **EPHEMERAL},
    # a v4-mapped address is the IPv4 address that it is
    "[::ffff:127.0.0.1]:80": {**address("127.0.0.1", 32), **ports(80)},
    "[::ffff:10.0.0.0]/104": address("10.0.0.0", 8),
    "[::ffff:0.0.0.0]/96": address("0.0.0.0", 0),
}


@pytest.mark.parametrize("text", SELECTORS)
def test_selector_means(text):
    """Each selector means what the documentation says, alone and in a rule."""
    wanted = Selector(**SELECTORS[text])
    assert parse_selector(text) == wanted
    assert parse_rule(f"ask {text}").selector == wanted


@pytest.mark.parametrize("verb", ["allow", "deny", "ask"])
def test_verbs(verb):
    """The first word of a rule is its verdict; blanks around words don't count."""
    rule = parse_rule(f"\t {verb}   tcp:80 \n")
    assert rule.verdict == getattr(_core, f"VERDICT_{verb.upper()}")
    assert (rule.errno, rule.target) == (None, None)
    assert rule.text == str(rule) == f"{verb} tcp:80"


@pytest.mark.parametrize("name", ["EACCES", "EPERM", "EADDRINUSE", "EWOULDBLOCK"])
def test_deny_with(name):
    """A deny rule carries the errno that it names."""
    rule = parse_rule(f"deny 8080 with {name}")
    assert rule.errno == getattr(errno, name)
    assert rule.selector == parse_selector("8080")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1", "127.0.0.1", None),
        ("8080", None, 8080),
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("[::1]", "::1", None),
        ("[::1]:8080", "::1", 8080),
        ("loopback", "loopback", None),
        ("loopback:8080", "loopback", 8080),
        ("ephemeral", None, 0),
        ("127.0.0.1:ephemeral", "127.0.0.1", 0),
        ("[::1]:ephemeral", "::1", 0),
    ],
)
def test_move_target(text, host, port):
    """A target is ADDRESS, PORT or ADDRESS:PORT, with blanks around -> or not."""
    for arrow in (" -> ", "->", "  ->  "):
        rule = parse_rule(f"move tcp:80{arrow}{text}")
        assert rule.verdict == _core.VERDICT_MOVE
        assert rule.selector == parse_selector("tcp:80")
        assert rule.target == Target(host, port)


# ---- systemd ----

SYSTEMD_FAMILIES = {"": {}, "ipv4:": {"family": FOUR}, "ipv6:": {"family": SIX}}
SYSTEMD_PROTOCOLS = {"": {}, "tcp:": {"protocol": TCP}, "udp:": {"protocol": UDP}}
SYSTEMD_PORTS = {
    "": {},
    "any": {},
    "1": ports(1),
    "6666": ports(6666),
    "6666-6667": ports(6666, 6667),
    "6666-6666": ports(6666),
    "65535": ports(65535),
    "1-65535": ports(1, 65535),
}
SYSTEMD_RULES = {
    (family + protocol + last).rstrip(":"): {
        **SYSTEMD_FAMILIES[family],
        **SYSTEMD_PROTOCOLS[protocol],
        **SYSTEMD_PORTS[last],
    }
    for family, protocol, last in itertools.product(
        SYSTEMD_FAMILIES, SYSTEMD_PROTOCOLS, SYSTEMD_PORTS
    )
    if family + protocol + last
}

# What systemd's parser refuses too: wrong order, empty parts, wrong ports.
NOT_SYSTEMD_EITHER = (
    ":",
    "::",
    "any:",
    ":80",
    "any:any",
    "any:80",
    "meh",
    "meh:80",
    "ip",
    "dccp",
    "ipv6meh",
    "ipv6:",
    "ipv6::",
    "ipv6::6666",
    "ipv6:ipv6",
    "ipv4:ipv6",
    "ipv6:icmp",
    "tcp:",
    "tcp:ipv4",
    "tcp:udp",
    "80:tcp",
    "65536",
    "1-65536",
    "6666-6665",
    "6666-",
    "-6666",
    "6666--6667",
    "1-2-3",
    "ipv6:tcp:any:",
    "ipv6:tcp:any:ipv6",
    "ipv6:tcp:6666:any",
    "ipv6:tcp:6666 zupa",
    "IPv4",
)

# Port 0 was wrong for systemd at first; newer parsers let it pass. What it could
# mean has a name here, and the error says so.
ZERO = ("0", "tcp:0", "0-100", "0-65535")

# systemd reads these too: strtoul(3) with base 0, names in either case.
ODD = {
    "0x50": ports(80),
    "0x1F90-0x1f99": ports(8080, 8089),
    "+80": ports(80),
    "+0x50": ports(80),
    "tcp:+80": {"protocol": TCP, **ports(80)},
    "TCP:80": {"protocol": TCP, **ports(80)},
    "ipv4:Udp": {"family": FOUR, "protocol": UDP},
}
# For systemd these are octal, binary or wrong; here they are refused.
OTHER_BASES = ("010", "1-010", "08", "0080", "00", "0b11", "0o17")


@pytest.mark.parametrize("text", SYSTEMD_RULES)
def test_systemd_rule_means_the_same(text):
    """What systemd's SocketBindAllow= accepts means the same here."""
    assert parse_selector(text) == Selector(**SYSTEMD_RULES[text])


@pytest.mark.parametrize("text", NOT_SYSTEMD_EITHER)
def test_systemd_refuses_too(text):
    """What systemd refuses for its form is refused here as well."""
    with pytest.raises(PolicyError):
        parse_rule(f"allow {text}")


@pytest.mark.parametrize("text", ZERO)
def test_port_zero_is_called_ephemeral(text):
    """Port 0 is refused with the word for what it stands for."""
    with pytest.raises(PolicyError, match="'ephemeral'"):
        parse_rule(f"allow {text}")


@pytest.mark.parametrize("text", OTHER_BASES)
def test_number_is_never_another_port(text):
    """A number that systemd reads in another base is refused, not read as decimal."""
    with pytest.raises(PolicyError):
        parse_selector(text)


@pytest.mark.parametrize("text", ODD)
def test_systemd_oddities(text):
    """Even the spellings that systemd only happens to accept mean the same."""
    assert parse_selector(text) == Selector(**ODD[text])


def test_systemd_itself_agrees(tmp_path):
    """systemd accepts what this file believes it does, and refuses the rest."""
    verify = need("systemd-analyze", "systemd")
    unit = tmp_path / "rules.service"
    texts = [*SYSTEMD_RULES, *ODD, *NOT_SYSTEMD_EITHER]
    lines = "".join(f"SocketBindAllow={one}\n" for one in texts)
    unit.write_text(f"[Service]\nType=oneshot\nExecStart=/bin/true\n{lines}")
    done = subprocess.run(
        [verify, "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    start = 4  # the line of the first rule
    refused = {
        texts[int(line.split(":")[1]) - start]
        for line in done.stderr.splitlines()
        if line.startswith(f"{unit}:") and "SocketBindAllow=" in line
    }
    assert refused == set(NOT_SYSTEMD_EITHER), done.stderr


# ---- wrong rules ----

RIGHT_VERBS = "allow, deny, ask or move"
RIGHT_ADDRESSES = "127.0.0.1, 10.0.0.0/8, [::1], [fd00::]/8"
RIGHT_PORTS = "8080, 8000-8999, ephemeral, any"
RIGHT_ORDER = "family, protocol, address, ports"
RIGHT_TARGETS = "ADDRESS, PORT, ADDRESS:PORT"
ONE_EACH = "one rule each, in a list"
VSOCK_CHOICE = "the kernel's choice"

# (text, the part that is wrong, where it starts counted from 1, what would be
# right); no part where something is missing.
WRONG = [
    # verbs
    ("", None, None, RIGHT_VERBS),
    ("8080", "8080", 1, RIGHT_VERBS),
    ("alow 8080", "alow", 1, "did you mean 'allow'?"),
    ("Allow 8080", "Allow", 1, "did you mean 'allow'?"),
    ("deny:8080", "deny:8080", 1, "did you mean 'deny'?"),
    ("block 8080", "block", 1, RIGHT_VERBS),
    ("allow", None, None, "a selector such as 8080, tcp:8000-8999 or any"),
    ("deny", None, None, "a selector such as 8080, tcp:8000-8999 or any"),
    # more or less than a rule
    ("allow 8080 9090", "9090", 12, "allow SELECTOR"),
    ("allow tcp 8080", "8080", 11, "allow SELECTOR"),
    ("allow 8080 # web", "# web", 12, "allow SELECTOR"),
    ("allow 80 with EPERM", "with EPERM", 10, "allow SELECTOR"),
    ("ask 80 -> 90", "-> 90", 8, "ask SELECTOR"),
    ("deny 80 EPERM", "EPERM", 9, "deny SELECTOR with ERRNO"),
    ("deny 80 with", "with", 9, "needs an errno; right is: deny SELECTOR with ERRNO"),
    ("deny 80 as EPERM", "as", 9, "deny SELECTOR with ERRNO"),
    ("deny 80 with EPERM x", "x", 20, "deny SELECTOR with ERRNO"),
    ("deny 80 with EPERM x y", "x y", 20, "deny SELECTOR with ERRNO"),
    ("deny 80 with EPRM", "EPRM", 14, "did you mean EPERM?"),
    ("deny 80 with eperm", "eperm", 14, "did you mean EPERM?"),
    ("deny 80 with 13", "13", 14, "is no errno name such as EACCES"),
    ("deny 80 with NOTHING", "NOTHING", 14, "is no errno name such as EACCES"),
    # several in one
    ("allow 80 deny 90", "deny 90", 10, ONE_EACH),
    ("deny 80 with EPERM allow 90", "allow 90", 20, ONE_EACH),
    ("move 80 -> 81 move 82 -> 83", "move 82 -> 83", 15, ONE_EACH),
    ("allow 8080,9090", "8080,9090", 7, ONE_EACH),
    ("allow 8080, 9090", "8080,", 7, ONE_EACH),
    ("allow tcp:80,udp:90", "tcp:80,udp:90", 7, ONE_EACH),
    # ports
    ("allow 0", "0", 7, "ephemeral"),
    ("allow 70000", "70000", 7, "65535"),
    ("allow 1-65536", "1-65536", 7, "65535"),
    ("allow 0-80", "0-80", 7, "ephemeral"),
    ("allow 9000-8000", "9000-8000", 7, "8000-9000"),
    ("allow 8080-", "8080-", 7, RIGHT_PORTS),
    ("allow 80-90-100", "80-90-100", 7, RIGHT_PORTS),
    ("allow 8080/tcp", "8080/tcp", 7, "is written tcp:8080"),
    ("allow tcp/8080", "tcp/8080", 7, "is written tcp:8080"),
    ("allow ipv4:UDP/80-90", "UDP/80-90", 12, "is written UDP:80-90"),
    ("allow 8080²", "8080²", 7, RIGHT_PORTS),
    ("allow vsock:4294967296", "4294967296", 13, "above 4294967294"),
    ("allow vsock:4294967295", "4294967295", 13, VSOCK_CHOICE),
    ("allow vsock:1-4294967295", "1-4294967295", 13, VSOCK_CHOICE),
    ("allow vsock:ephemeral", "ephemeral", 13, VSOCK_CHOICE),
    ("allow vsock:0", "0", 13, "'vsock' covers all ports"),
    # words
    ("allow localhost:80", "localhost", 7, "did you mean 'loopback'?"),
    ("allow ipv5:80", "ipv5", 7, "did you mean 'ipv"),
    ("allow tcp:ephemral", "ephemral", 11, "did you mean 'ephemeral'?"),
    ("allow http", "http", 7, "family, protocol, address or port"),
    ("allow *:80", "*", 7, "did you mean 'wildcard'?"),
    ("allow tcp:*:80", "*", 11, "did you mean 'wildcard'?"),
    ("allow *", "*", 7, "did you mean 'any'?"),
    ("allow tcp:*", "*", 11, "did you mean 'any'?"),
    # order
    ("allow 8080:tcp", "tcp", 12, RIGHT_ORDER),
    ("allow tcp:ipv4:80", "ipv4", 11, RIGHT_ORDER),
    ("allow tcp:udp", "udp", 11, RIGHT_ORDER),
    ("allow any:8080", "8080", 11, RIGHT_ORDER),
    ("allow ipv4:loopback:[::1]", "[::1]", 21, RIGHT_ORDER),
    ("allow tcp:", None, None, "empty part"),
    ("allow :80", None, None, "empty part"),
    ("allow tcp::80", None, None, "empty part"),
    # addresses
    ("allow ::1", "::1", 7, "[::1]"),
    ("allow ::", "::", 7, "[::]"),
    ("allow [::1", "[::1", 7, RIGHT_ADDRESSES),
    ("allow [::1]80", "[::1]80", 7, RIGHT_ADDRESSES),
    ("allow [127.0.0.1]:80", "[127.0.0.1]", 7, "without brackets: 127.0.0.1"),
    ("allow [10.0.0.0]/8", "[10.0.0.0]/8", 7, "without brackets: 10.0.0.0/8"),
    ("allow [256.0.0.1]", "[256.0.0.1]", 7, RIGHT_ADDRESSES),
    ("allow 1.2.3.04", "1.2.3.04", 7, RIGHT_ADDRESSES),
    ("allow 1.2.3.4.5", "1.2.3.4.5", 7, RIGHT_ADDRESSES),
    ("allow 1.2.3.²", "1.2.3.²", 7, RIGHT_ADDRESSES),
    ("allow 1..2.3", "1..2.3", 7, RIGHT_ADDRESSES),
    ("allow 256.0.0.1", "256.0.0.1", 7, RIGHT_ADDRESSES),
    ("allow 127.1", "127.1", 7, RIGHT_ADDRESSES),
    ("allow tcp:example.com:80", "example.com", 11, RIGHT_ADDRESSES),
    ("allow [fd00::/8]", "[fd00::/8]", 7, "[ADDRESS]/LENGTH"),
    ("allow 10.0.0.0/33", "10.0.0.0/33", 7, "0 to 32"),
    ("allow 10.0.0.0/", "10.0.0.0/", 7, "0 to 32"),
    ("allow 10.0.0.0/255.0.0.0", "10.0.0.0/255.0.0.0", 7, "0 to 32"),
    ("allow 10.0.0.0/+8", "10.0.0.0/+8", 7, "0 to 32"),
    ("allow 10.0.0.0/0x8", "10.0.0.0/0x8", 7, "0 to 32"),
    ("allow 10.0.0.0/08", "10.0.0.0/08", 7, "0 to 32"),
    ("allow 10.0.0.0/²", "10.0.0.0/²", 7, "0 to 32"),
    ("allow [fd00::]/+8", "[fd00::]/+8", 7, "0 to 128"),
    ("allow [::]/129", "[::]/129", 7, "0 to 128"),
    ("allow 10.0.0.1/8", "10.0.0.1/8", 7, "prefix length of 8"),
    ("allow [::1]/64", "[::1]/64", 7, "prefix length of 64"),
    ("allow [::ffff:0:0]/90", "[::ffff:0:0]/90", 7, "the IPv4 prefix"),
    ("allow ipv4:[::1]", "[::1]", 12, "ipv4"),
    ("allow ipv6:127.0.0.1", "127.0.0.1", 12, "no address of ipv6"),
    ("allow ipv6:[::ffff:1.2.3.4]", "[::ffff:1.2.3.4]", 12, "IPv4; right is 1.2.3.4,"),
    (
        "allow ipv6:[::ffff:10.0.0.0]/104",
        "[::ffff:10.0.0.0]/104",
        12,
        "judged as IPv4; right is 10.0.0.0/8, without ipv6",
    ),
    # unix and vsock have less
    ("allow unix:80", "unix", 7, "right is 'unix'"),
    ("allow unix:loopback", "unix", 7, "right is 'unix'"),
    ("allow unix:tcp", "unix", 7, "right is 'unix'"),
    ("allow unix:/tmp/x", "/tmp/x", 12, "right is 'unix' alone"),
    ("allow unix:/run/x.sock", "/run/x.sock", 12, "right is 'unix' alone"),
    ("allow unix:@name", "@name", 12, "right is 'unix' alone"),
    ("allow vsock:tcp", "vsock", 7, "'vsock' or 'vsock:PORT'"),
    ("allow vsock:loopback:1", "vsock", 7, "'vsock' or 'vsock:PORT'"),
    # moves
    ("move 80", None, None, "move SELECTOR -> TARGET"),
    ("move 80 => 90", None, None, "move SELECTOR -> TARGET"),
    ("move 80 ->", None, None, "ADDRESS, PORT or both"),
    ("move -> 90", None, None, "a selector such as"),
    ("move 80 -> localhost", "localhost", 12, RIGHT_TARGETS),
    ("move 80 -> any", "any", 12, RIGHT_TARGETS),
    ("move 80 -> 127.0.0.1:90:91", "91", 25, RIGHT_TARGETS),
    ("move 80 -> 90-91", "90-91", 12, "only one port"),
    ("move 80 -> [127.0.0.1]:90", "[127.0.0.1]", 12, "without brackets: 127.0.0.1"),
    ("move 80 -> 10.0.0.0/8", "10.0.0.0/8", 12, "one address"),
    ("move ipv4 -> [::1]", "[::1]", 14, "another family"),
    ("move unix -> 80", None, None, "only IPv4 and IPv6"),
    ("move vsock:1 -> 2", None, None, "only IPv4 and IPv6"),
]


def refusal(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse_rule(text)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PortseccompError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "part", "column", "right"), WRONG, ids=[repr(one[0]) for one in WRONG]
)
def test_wrong_rule(text, part, column, right):
    """A wrong rule is quoted, its wrong part pointed at, and the right one said."""
    message = refusal(text)
    assert message.startswith(f"rule {text!r}: ")
    assert len(message.splitlines()) == 1
    explanation = message.removeprefix(f"rule {text!r}: ")
    if column is not None:
        assert text[column - 1 :].startswith(part)  # this table's own mistakes
        assert f"'{part}' (column {column})" in explanation
    elif part is not None:
        assert repr(part) in explanation
    assert right in explanation


@pytest.mark.parametrize(
    ("text", "part", "column"),
    [
        ("allow all", "all", 7),
        ("allow low:80", "low", 7),
        ("move 80 -> 0", "0", 12),
        ("move 80 -> ephemeral:80", "80", 22),
        ("allow tcp:tcp", "tcp", 11),
    ],
)
def test_column_is_the_parts_own(text, part, column):
    """The column is that of the wrong part, not of the same letters before it."""
    assert f"'{part}' (column {column})" in refusal(text)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("allow fd00::/8", "[fd00::]/8"),
        ("allow ::1:8080", "[::1]:8080"),
        ("allow 10.0.0.1/8", "10.0.0.0/8"),
        ("move 80 -> localhost", "loopback"),
        ("deny with EPERM", "selector"),
        ("allow 80\ndeny 90\n", "one rule each, in a list"),
    ],
)
def test_frequent_mistakes_are_understood(text, right):
    """What people type first and wrongly is answered with what they meant."""
    assert right in refusal(text)


@pytest.mark.parametrize("rule", [8080, None, b"allow 80", ["allow 80"], ("allow",)])
def test_rule_is_a_string(rule):
    """A rule that is no string is a PolicyError that shows one."""
    with pytest.raises(PolicyError, match="a rule is a string such as 'deny 8080'"):
        parse_rule(rule)


HUGE = "9" * 5000  # int() refuses so many digits with a plain ValueError


@pytest.mark.parametrize(
    "text", [f"allow {HUGE}", f"allow 1-{HUGE}", f"allow 10.0.0.0/{HUGE}"]
)
def test_huge_number(text):
    """A number of any length is a PolicyError, like every wrong number."""
    try:
        parse_rule(text)
    except PolicyError:
        return
    pytest.fail("accepted")


def test_zone_is_not_dropped():
    """A rule for one interface's address is refused, or keeps to the interface."""
    with pytest.raises(PolicyError):
        parse_rule("allow [fe80::1%eth0]:80")


def test_several_selectors_for_one():
    """Where only one selector fits, the error does not speak of rules."""
    with pytest.raises(PolicyError, match="write one of them"):
        parse_selector("80,90")


@pytest.mark.parametrize("parse", [parse_selector, parse_endpoint])
def test_selector_error_is_one_line(parse):
    """An error about a selector or an endpoint is one line, whatever is in it."""
    with pytest.raises(PolicyError) as caught:
        parse("tcp:80\n90")
    assert len(str(caught.value).splitlines()) == 1


# ---- endpoints ----


def endpoint(text: str) -> tuple[object, ...]:
    return parse_endpoint(text).fields()


def cid(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)  # as the core keeps it


ANY4, ANY6 = bytes(4), bytes(16)
LOOP4, LOOP6 = b"\x7f\0\0\1", bytes(15) + b"\1"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("tcp:0.0.0.0:8080", (FOUR, 6, ANY4, 8080, False)),
        ("8080", (FOUR, 6, ANY4, 8080, False)),
        ("tcp:8080", (FOUR, 6, ANY4, 8080, False)),
        ("udp:53", (FOUR, 17, ANY4, 53, False)),
        ("mptcp:127.0.0.1:1", (FOUR, 262, LOOP4, 1, False)),
        ("wildcard:80", (FOUR, 6, ANY4, 80, False)),
        ("loopback:80", (FOUR, 6, LOOP4, 80, False)),
        ("ipv4:loopback:80", (FOUR, 6, LOOP4, 80, False)),
        ("ipv6:loopback:80", (SIX, 6, LOOP6, 80, False)),
        ("[::1]:65535", (SIX, 6, LOOP6, 65535, False)),
        ("[::]:80", (SIX, 6, ANY6, 80, True)),
        ("tcp:[::]:80", (SIX, 6, ANY6, 80, True)),
        ("ipv6:[::]:80", (SIX, 6, ANY6, 80, False)),
        ("ipv6:80", (SIX, 6, ANY6, 80, False)),
        ("[::ffff:127.0.0.1]:80", (FOUR, 6, LOOP4, 80, False)),
        ("[::ffff:0.0.0.0]:80", (FOUR, 6, ANY4, 80, False)),
        ("tcp:127.0.0.1:ephemeral", (FOUR, 6, LOOP4, 0, False)),
        ("tcp:127.0.0.1:0", (FOUR, 6, LOOP4, 0, False)),
        ("ephemeral", (FOUR, 6, ANY4, 0, False)),
        ("unix", (_core.FAMILY_UNIX, 0, b"", 0, False)),
        ("unix:/run/some:odd/path", (_core.FAMILY_UNIX, 0, b"", 0, False)),
        ("unix:@abstract", (_core.FAMILY_UNIX, 0, b"", 0, False)),
        ("vsock:1024", (_core.FAMILY_VSOCK, 0, b"", 1024, False)),
        ("vsock:70000", (_core.FAMILY_VSOCK, 0, b"", 70000, False)),
        ("vsock:0", (_core.FAMILY_VSOCK, 0, b"", 0, False)),
        ("vsock:4294967294", (_core.FAMILY_VSOCK, 0, b"", 0xFFFFFFFE, False)),
        ("vsock:3:5", (_core.FAMILY_VSOCK, 0, cid(3), 5, False)),
        ("vsock:4294967295:5", (_core.FAMILY_VSOCK, 0, cid(0xFFFFFFFF), 5, False)),
    ],
)
def test_endpoint_means(text, fields):
    """An endpoint is read as the socket that it names, and prints as written."""
    assert endpoint(text) == fields
    assert str(parse_endpoint(text)) == text


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", "tcp:127.0.0.1:8080"),
        ("tcp", "tcp:127.0.0.1:8080"),
        ("tcp:", "tcp:127.0.0.1:8080"),
        ("ipv6:udp", "tcp:127.0.0.1:8080"),
        ("127.0.0.1", "tcp:127.0.0.1:8080"),
        ("[::1]", "tcp:127.0.0.1:8080"),
        ("70000", "65535"),
        ("80-90", "8080"),
        ("10.0.0.0/8:80", "one address"),
        ("ipv4:[::1]:80", "ipv4"),
        ("ipv6:127.0.0.1:80", "ipv6"),
        ("localhost:80", "127.0.0.1"),
        ("http://localhost:8080", "tcp:127.0.0.1:8080"),
        ("127.0.0.1:80:90", "tcp:127.0.0.1:8080"),
        ("*:80", "did you mean 'wildcard'?"),
        ("[127.0.0.1]:80", "without brackets: 127.0.0.1"),
        ("ipv6:[::ffff:127.0.0.1]:80", "judged as IPv4; right is 127.0.0.1,"),
        ("vsock", "right is vsock:PORT or vsock:CID:PORT"),
        ("vsock:", "right is vsock:PORT or vsock:CID:PORT"),
        ("vsock:tcp", "'tcp' (column 7)"),
        ("vsock:tcp:5", "'tcp' (column 7) is no CID"),
        ("vsock::5", "right is vsock:PORT or vsock:CID:PORT"),
        ("vsock:loopback:5", "'loopback' (column 7) is no CID"),
        ("vsock:4294967296:5", "'4294967296' (column 7) is no CID"),
        ("vsock:1:2:3", "'3' (column 11) is too much"),
        ("vsock:80-90", "is not one port"),
        ("vsock:ephemeral", "the kernel's choice"),
        ("vsock:3:4294967295", "the kernel's choice"),
        ("vsock:4294967296", "above 4294967294"),
    ],
)
def test_wrong_endpoint(text, right):
    """A wrong endpoint is quoted on one line that says what would be right."""
    with pytest.raises(PolicyError) as caught:
        parse_endpoint(text)
    message = str(caught.value)
    assert message.startswith(f"endpoint {text!r}: ")
    assert right in message
    assert len(message.splitlines()) == 1


def test_endpoint_hint_is_no_circle():
    """A hint never suggests the very word that was refused."""
    with pytest.raises(PolicyError) as caught:
        parse_endpoint("tcp:any")
    assert "did you mean 'any'" not in str(caught.value)


# ---- random rules, random text ----


@st.composite
def networks(draw, version: int) -> tuple[bytes, int]:
    bits = 32 if version == 4 else 128
    length = draw(st.integers(0, bits))
    value = draw(st.integers(0, (1 << bits) - 1))
    value = value >> (bits - length) << (bits - length)
    return value.to_bytes(bits // 8, "big"), length


def is_mapped(packed: bytes) -> bool:
    return packed[:12] == bytes(10) + b"\xff\xff"


@st.composite
def port_fields(draw, most: int) -> tuple[int, int, int]:
    kind = draw(st.sampled_from(["any", "ephemeral", "range"]))
    if kind == "any":
        return _core.PORTS_ANY, 0, 0
    if kind == "ephemeral":
        return _core.PORTS_EPHEMERAL, 0, 0
    first, last = sorted(draw(st.tuples(*[st.integers(1, most)] * 2)))
    return _core.PORTS_RANGE, first, last


@st.composite
def selectors(draw, families: str = "46uv") -> Selector:
    kind = draw(st.sampled_from(families + "*"))
    if kind == "u":
        return Selector(family=_core.FAMILY_UNIX)
    if kind == "v":
        numbers = port_fields(0xFFFFFFFE)
        found = draw(numbers.filter(lambda one: one[0] != _core.PORTS_EPHEMERAL))
        return Selector(_core.FAMILY_VSOCK, 0, 0, b"", 0, *found)
    protocol = draw(st.sampled_from([_core.PROTOCOL_ANY, TCP, UDP]))
    family = {"4": FOUR, "6": SIX, "*": _core.FAMILY_ANY}[kind]
    match = draw(st.sampled_from([_core.ADDRESS_ANY, LOOPBACK, WILDCARD]))
    packed, length = b"", 0
    if kind != "*" and draw(st.booleans()):
        match = _core.ADDRESS_PREFIX
        packed, length = draw(networks(int(kind)))
        if is_mapped(packed):
            packed, length = bytes(16), 0
    found = draw(port_fields(65535))
    return Selector(family, protocol, match, packed, length, *found)


@st.composite
def rules(draw) -> Rule:
    verb = draw(st.sampled_from(["allow", "deny", "ask", "move"]))
    verdict = getattr(_core, f"VERDICT_{verb.upper()}")
    if verb != "move":
        error = None
        if verb == "deny":
            error = draw(st.none() | st.sampled_from(sorted(errno.errorcode)))
        return Rule("", verdict, draw(selectors()), error)
    selector = draw(selectors("46"))
    hosts = [st.none(), st.just("loopback")]
    if selector.family != SIX:
        hosts.append(st.ip_addresses(v=4).map(str))
    if selector.family != FOUR:
        six = st.ip_addresses(v=6).filter(lambda one: not is_mapped(one.packed))
        hosts.append(six.map(str))
    host = draw(st.one_of(hosts))
    port = draw(st.integers(0, 65535))
    with_port = host is None or draw(st.booleans())
    return Rule("", verdict, selector, None, Target(host, port if with_port else None))


@quick
@given(rules())
def test_printed_rule_is_the_same_rule(rule):
    """A rule that is printed parses to the same rule again."""
    text = format_rule(rule)
    assert parse_rule(text) == rule._replace(text=text)


@quick
@given(selectors())
def test_printed_selector_is_the_same_selector(selector):
    """A selector that is printed parses to the same selector again."""
    assert parse_selector(format_selector(selector)) == selector


@pytest.mark.parametrize("text", SELECTORS)
def test_printing_settles(text):
    """Printing what was printed changes nothing more."""
    printed = format_selector(parse_selector(text))
    assert format_selector(parse_selector(printed)) == printed


# Pieces of rules in any order find more than letters do.
WORDS = """
    allow deny ask move with -> EPERM any ipv4 ipv6 unix vsock tcp udp loopback
    wildcard ephemeral 80 0 65536 1-2 2-1 127.0.0.1 10.0.0.0/8 / /8 [::1] [ ] ::
    [fd00::]/8 [::ffff:1.2.3.4]/100 : - . % @ 0x50
"""
PIECES = st.lists(
    st.sampled_from(WORDS.split())
    | st.sampled_from([" ", ":", "\t", ""])
    | st.text(max_size=3),
    max_size=12,
).map("".join)


@quick
@given(st.text(max_size=60) | PIECES)
@example("allow [::ffff:1.2.3.4%1]")
@example("allow ٣٠")
@example("move 80 -> [")
@example("deny 80 with __name__")
@example("\0")
def test_text_never_breaks_the_parser(text):
    """Arbitrary text is a rule, a selector or an endpoint, or a PolicyError."""
    for parse in (parse_rule, parse_selector, parse_endpoint):
        for tried in (text, f"allow {text}", f"deny {text} with EPERM"):
            try:
                parse(tried)
            except PolicyError as error:
                assert str(error)


@quick
@given(PIECES)
def test_refused_rule_is_one_line(text):
    """Whatever is in a rule, its error is one line that quotes it."""
    try:
        parse_rule(f"allow {text}")
    except PolicyError as error:
        quoted = " ".join(f"allow {text}".split())
        assert str(error).startswith(f"rule {quoted!r}: ")
        assert len(str(error).splitlines()) == 1


@quick
@given(
    st.lists(st.integers(0, 300).map(str) | st.text("0129.²x+ ", max_size=3)).map(
        ".".join
    )
)
@example("1.2.3.4")
@example("01.2.3.4")
def test_ipv4_is_what_the_standard_library_takes(text):
    """An address is read as ipaddress reads it, without importing it."""
    if "." not in text or " " in text:
        return
    try:
        wanted = ipaddress.IPv4Address(text).packed
    except ValueError:
        wanted = None
    try:
        found = parse_selector(text).address
    except PolicyError:
        found = None
    assert found == wanted


@quick
@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_is_an_endpoint(place, port):
    """Each address and port is an endpoint; a v4-mapped one is IPv4."""
    host = f"[{place}]" if place.version == 6 else str(place)
    family, protocol, packed, found, _ = endpoint(f"tcp:{host}:{port}")
    plain = place.packed[12:] if is_mapped(place.packed) else place.packed
    assert (family, packed) == (FOUR if len(plain) == 4 else SIX, plain)
    assert (protocol, found) == (6, port)

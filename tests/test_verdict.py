"""What a hook can answer: ALLOW, DENY, deny() and move()."""

from __future__ import annotations

import copy
import errno
import pickle
import re

import pytest

import portseccomp
from portseccomp import ALLOW, DENY, Verdict, deny, move

EACH = [ALLOW, DENY, deny("EPERM"), move(port=80), move("::1"), move("127.0.0.1", 0)]


def test_kinds():
    """Each verdict says what it is, and only its own kind's fields are set."""
    for verdict, *fields in (
        (ALLOW, "allow", None, None, None),
        (DENY, "deny", None, None, None),
        (deny("EPERM"), "deny", errno.EPERM, None, None),
        (move(port=80), "move", None, None, 80),
        (move("::1"), "move", None, "::1", None),
        (move("127.0.0.1", 0), "move", None, "127.0.0.1", 0),
        (move(host="127.0.0.1", port=65535), "move", None, "127.0.0.1", 65535),
    ):
        found = (verdict.kind, verdict.errno, verdict.host, verdict.port)
        assert found == tuple(fields)
        assert isinstance(verdict, Verdict)


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_deny_takes_number_and_name(number):
    """deny() takes every errno of the system, by its number and by its name."""
    by_number = deny(number)
    assert by_number.errno == number
    assert deny(errno.errorcode[number]) == by_number
    assert eval(repr(by_number)) == by_number


@pytest.mark.parametrize("value", [0, -1, -13, 134, 512, 99999])
def test_deny_of_no_errno(value):
    """A number that is no errno is a ValueError that shows it."""
    with pytest.raises(ValueError, match=f"^{value} is no errno"):
        deny(value)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("EPRM", "did you mean EPERM?"),
        ("eperm", "did you mean EPERM?"),
        ("eaccess", "did you mean EACCES?"),
        ("", "EACCES"),
        ("13", "EACCES"),
        ("errorcode", "EACCES"),
        ("__NAME__", "EACCES"),
        ("nonsense", "EACCES"),
    ],
)
def test_deny_of_no_name(name, right):
    """A name that is no errno is a ValueError with what would be right."""
    with pytest.raises(ValueError) as caught:
        deny(name)
    message = str(caught.value)
    assert message.startswith(f"{name!r} is no errno name")
    assert right in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("value", [None, 1.5, b"EPERM", ["EPERM"]])
def test_deny_of_other_types(value):
    """What is neither a number nor a name is a TypeError."""
    with pytest.raises(TypeError):
        deny(value)


@pytest.mark.parametrize("value", [1 << 40, -(1 << 40)])
def test_deny_of_huge_number(value):
    """A number too large for the system is the same ValueError."""
    with pytest.raises(ValueError):
        deny(value)


@pytest.mark.parametrize("value", [1.0, True])
def test_deny_is_not_fooled_by_equal_numbers(value):
    """A float or a bool is no errno, though it compares equal to one."""
    with pytest.raises((TypeError, ValueError)):
        deny(value)


@pytest.mark.parametrize("name", ["EAGAIN", "EDEADLK", "EOPNOTSUPP"])
def test_errno_is_shown_by_the_usual_name(name):
    """Of an errno's two names the one that manual pages use is shown."""
    assert repr(deny(name)) == f"deny({name!r})"


def test_move_needs_a_place():
    """move() without host and port is a ValueError that says so."""
    with pytest.raises(ValueError, match="host, a port, or both"):
        move()


@pytest.mark.parametrize("port", [-1, 65536, 1 << 40])
def test_move_checks_the_port(port):
    """A port outside 0 to 65535 is a ValueError that shows it."""
    with pytest.raises(ValueError, match=f"{port} is outside 0 to 65535"):
        move(port=port)


@pytest.mark.parametrize("port", ["80", [80]])
def test_move_port_is_a_number(port):
    """A port that is no number is a TypeError."""
    with pytest.raises(TypeError):
        move(port=port)


@pytest.mark.parametrize("host", ["", "bogus", "10.0.0.0/8", "1.2.3", 127])
def test_move_checks_the_host(host):
    """A host that is no address is refused where it is written."""
    with pytest.raises((TypeError, ValueError)):
        move(host)


def test_equality():
    """Verdicts are equal, and hash alike, when they say the same."""
    assert deny(errno.EPERM) == deny("EPERM")
    assert hash(deny(errno.EPERM)) == hash(deny("EPERM"))
    assert move("::1", 80) == move(host="::1", port=80)
    assert len(set(EACH)) == len(EACH)
    # DENY takes the policy's errno, whatever it is.
    assert deny("EACCES") != DENY
    assert ALLOW not in (True, "allow", None)
    assert DENY not in (False, "deny", None)


@pytest.mark.parametrize("verdict", EACH, ids=repr)
def test_verdict_is_no_tuple(verdict):
    """A verdict equals no tuple, and has no length and no items."""
    fields = (verdict.kind, verdict.errno, verdict.host, verdict.port)
    assert verdict != fields
    assert fields != verdict
    for access in (len, iter):
        with pytest.raises(TypeError):
            access(verdict)


@pytest.mark.parametrize("verdict", EACH, ids=repr)
def test_verdict_has_no_truth(verdict):
    """`if verdict` is an error that says how to compare: DENY is not false."""
    with pytest.raises(TypeError, match="`is ALLOW`"):
        bool(verdict)


@pytest.mark.parametrize(
    "fields",
    [
        ("nonsense",),
        ("Allow",),
        ("",),
        (None,),
        (["allow"],),
        ("allow", errno.EPERM),
        ("move", errno.EPERM, None, 80),
        ("deny", None, "::1"),
        ("allow", None, None, 80),
    ],
)
def test_no_such_verdict(fields):
    """Only three kinds of verdict can be made, with their own fields."""
    with pytest.raises(ValueError, match=f"^{re.escape(repr(fields[0]))} "):
        Verdict(*fields)


def test_plain_verdicts_are_one_object():
    """However it is made, ALLOW is ALLOW, and DENY is DENY."""
    for verdict in (ALLOW, DENY):
        assert Verdict(verdict.kind) is verdict
        assert copy.copy(verdict) is copy.deepcopy(verdict) is verdict
        assert pickle.loads(pickle.dumps(verdict)) is verdict


def test_verdict_can_be_matched():
    """`match` takes a verdict apart by its fields."""
    match deny("EPERM"):
        case Verdict("deny", number):
            assert number == errno.EPERM
        case _:
            pytest.fail("not matched")


def test_repr():
    """The repr of a verdict is what makes it."""
    for verdict in EACH:
        assert eval(repr(verdict)) == verdict
    assert repr(ALLOW) == "ALLOW"
    assert repr(DENY) == "DENY"
    assert repr(deny(errno.EPERM)) == "deny('EPERM')"
    assert repr(move(port=80)) == "move(host=None, port=80)"


@pytest.mark.parametrize("name", ["kind", "errno", "host", "port", "_fields", "new"])
@pytest.mark.parametrize("verdict", EACH, ids=repr)
def test_immutable(verdict, name):
    """A verdict can't be changed, nor given new attributes."""
    with pytest.raises(AttributeError):
        setattr(verdict, name, "allow")


@pytest.mark.parametrize("name", ["kind", "errno"])
def test_properties_stay(name):
    """What a verdict says can't be deleted from it."""
    with pytest.raises(AttributeError):
        delattr(deny("EPERM"), name)


def test_fields_stay():
    """Nothing of a verdict can be deleted: ALLOW is shared by all."""
    with pytest.raises(AttributeError):
        del deny("EPERM")._fields


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]
)
def test_copies_are_equal(clone):
    """A verdict can be copied, and sent between processes."""
    for verdict in EACH:
        found = clone(verdict)
        assert isinstance(found, Verdict)
        assert found == verdict
        assert hash(found) == hash(verdict)


def test_exported():
    """The package itself has what a hook needs."""
    for name in ("ALLOW", "DENY", "Verdict", "deny", "move"):
        assert name in portseccomp.__all__
        assert name in dir(portseccomp)

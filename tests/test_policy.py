"""Policies: defaults, errnos, files, explanations, and what a guard refuses."""

from __future__ import annotations

import copy
import errno
import itertools
import os
import pickle
import subprocess
import sys

import pytest
from conftest import open_descriptors, python

import portseccomp
from portseccomp import Guard, Policy, PolicyError, PortseccompError
from portseccomp.grammar import parse_endpoint, parse_rule
from portseccomp.hook import load_hook

# ---- defaults ----

A, D, K, M = "allow 80", "deny 81", "ask 82", "move 83 -> 84"


def expected_default(rules: tuple[str, ...]) -> str | None:
    """The documentation's words: None where the default must be said."""
    verbs = {one.split()[0] for one in rules}
    if "allow" in verbs and "deny" in verbs:
        return None
    return "deny" if "allow" in verbs else "allow"


COMBINATIONS = [
    combination
    for count in range(5)
    for combination in itertools.combinations((A, D, K, M), count)
]


@pytest.mark.parametrize("rules", COMBINATIONS, ids=lambda r: "+".join(r) or "none")
def test_default(rules):
    """Without `default`, the verbs of the rules say it, in any order, or it must
    be given."""
    wanted = expected_default(rules)
    for order in itertools.permutations(rules):
        if wanted is None:
            with pytest.raises(PolicyError, match="default allow or default deny"):
                Policy(order)
        else:
            assert Policy(order).default == wanted


@pytest.mark.parametrize("default", ["allow", "deny", "ask"])
@pytest.mark.parametrize("rules", COMBINATIONS, ids=lambda r: "+".join(r) or "none")
def test_default_given(rules, default):
    """A default that is given holds with every mix of rules."""
    policy = Policy(rules, default=default)
    assert policy.default == default
    explanation = policy.explain("tcp:1.2.3.4:9999")
    assert (explanation.verdict, explanation.rule) == (default, "default")
    assert explanation.number is None
    assert str(explanation) == f"tcp:1.2.3.4:9999 -> {default} (default)"


@pytest.mark.parametrize(
    "default", ["", "Allow", "drop", "move", "block", 5, ["allow"], {}, b"allow"]
)
def test_wrong_default(default):
    """A wrong default is quoted, and the three right ones are named."""
    with pytest.raises(PolicyError, match="allow, deny, ask") as caught:
        Policy(default=default)
    assert repr(default) in str(caught.value)


def test_mixed_rules_say_what_is_missing():
    """The error about mixed rules has the words for Python and the command line."""
    with pytest.raises(PolicyError) as caught:
        Policy([A, D])
    assert "default allow or default deny" in str(caught.value)
    assert "--default" in str(caught.value)


def test_hook_without_policy_is_asked_about_everything():
    """A guard with a hook and no policy asks it about everything."""
    with Guard(hook=lambda request: True) as guard:
        assert (guard.policy.default, guard.policy.rules) == ("ask", ())
    with Guard() as guard:
        assert (guard.policy.default, guard.policy.rules) == ("allow", ())


# ---- rules ----


def test_rules_in_every_form():
    """A policy takes one rule, an iterable of them, or parsed rules."""
    wanted = Policy(["allow 80", "allow 90"])
    assert Policy(("allow 80", "allow 90")) == wanted
    assert Policy(one for one in ["allow 80", "allow 90"]) == wanted
    assert Policy([parse_rule("allow 80"), "allow 90"]) == wanted
    assert Policy("allow 80") == Policy(["allow 80"])
    assert Policy() == Policy([]) == Policy(())


@pytest.mark.parametrize("rules", [8080, None, [8080], [None], b"allow 80", object()])
def test_wrong_rules(rules):
    """Rules that are no strings are a PolicyError, which is a ValueError too."""
    with pytest.raises(PolicyError, match="string") as caught:
        Policy(rules)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PortseccompError)


@pytest.mark.parametrize("rules", [b"allow 80", bytearray(b"allow 80")])
def test_bytes_are_no_rules(rules):
    """Bytes are shown as they were given, not letter by letter."""
    with pytest.raises(PolicyError) as caught:
        Policy(rules)
    assert str(caught.value) == f"rules are strings, not {rules!r}"


@pytest.mark.parametrize("hook", [5, b"a:b", ["a:b"], len])
def test_hook_is_a_name(hook):
    """A policy's hook that is no string is a PolicyError that shows it."""
    with pytest.raises(PolicyError, match="'module:function'") as caught:
        Policy(hook=hook)
    assert str(caught.value).startswith(f"hook {hook!r}: ")


def test_wrong_rule_among_right_ones():
    """The error about a policy names the one rule that is wrong."""
    with pytest.raises(PolicyError, match="rule 'allow 70000'"):
        Policy(["allow 80", "allow 70000", "allow 90"])


def test_first_match_wins():
    """The first rule that matches decides, whatever comes after."""
    policy = Policy(["deny 80", "allow 1-100", "ask tcp", "deny 90"], default="deny")
    assert policy.explain("80").number == 1
    assert policy.explain("90").number == 2
    assert policy.explain("101").number == 3
    assert policy.explain("udp:101").number is None


# ---- errno ----


@pytest.mark.parametrize("given", ["EPERM", errno.EPERM])
def test_errno(given):
    """A policy's errno is that of the default and of rules without one."""
    policy = Policy(["deny 80", "deny 81 with EADDRINUSE"], default="deny", errno=given)
    assert policy.errno == "EPERM"
    assert policy.explain("80").errno == "EPERM"
    assert policy.explain("81").errno == "EADDRINUSE"
    assert policy.explain("82").errno == "EPERM"


def test_errno_is_eacces():
    """Denials are EACCES unless something else is said; nothing else has one."""
    policy = Policy(["deny 80", "ask 81", "move 82 -> 83"])
    assert policy.errno == "EACCES"
    assert policy.explain("80").errno == "EACCES"
    for other in ("81", "82", "84"):
        assert policy.explain(other).errno is None


@pytest.mark.parametrize(
    "given",
    ["", "EPRM", "eperm", "13", 0, -1, 99999, None, True, 1.0, [], {}, b"EPERM"],
)
def test_wrong_errno(given):
    """A wrong errno is a PolicyError that quotes it."""
    with pytest.raises(PolicyError, match="errno") as caught:
        Policy("deny 80", errno=given)
    assert repr(given) in str(caught.value)


# ---- explain ----

EXPLAINED = ["allow loopback:8000-8999", "deny wildcard:any"]


@pytest.mark.parametrize(
    ("rules", "default", "endpoint", "text"),
    [
        (
            EXPLAINED,
            "allow",
            "tcp:0.0.0.0:8080",
            "tcp:0.0.0.0:8080 -> deny (rule 2: deny wildcard:any)",
        ),
        (
            EXPLAINED,
            "allow",
            "127.0.0.1:8080",
            "127.0.0.1:8080 -> allow (rule 1: allow loopback:8000-8999)",
        ),
        (EXPLAINED, "allow", "1.2.3.4:80", "1.2.3.4:80 -> allow (default)"),
        (EXPLAINED, "deny", "[::1]:80", "[::1]:80 -> deny (default)"),
        (
            ["deny 80  with\tEPERM"],
            None,
            "mptcp:80",
            "mptcp:80 -> deny (rule 1: deny 80 with EPERM)",
        ),
        (["ask tcp"], None, "tcp:1", "tcp:1 -> ask (rule 1: ask tcp)"),
        (
            ["move 80 -> ephemeral"],
            None,
            "80",
            "80 -> move (rule 1: move 80 -> ephemeral)",
        ),
    ],
)
def test_explain(rules, default, endpoint, text):
    """explain() prints the endpoint, the verdict, and the rule that decides."""
    assert str(Policy(rules, default=default).explain(endpoint)) == text


def test_explanation_has_fields():
    """An explanation can be read by programs as well."""
    found = Policy(EXPLAINED, default="allow").explain("tcp:0.0.0.0:8080")
    assert found.endpoint == "tcp:0.0.0.0:8080"
    assert found.verdict == "deny"
    assert found.errno == "EACCES"
    assert found.rule == "deny wildcard:any"
    assert found.number == 2
    assert found.reason == "rule 2: deny wildcard:any"


def test_explain_parsed_endpoint():
    """explain() takes an endpoint that is parsed already."""
    policy = Policy("deny 80")
    assert policy.explain(parse_endpoint("tcp:80")) == policy.explain("tcp:80")


@pytest.mark.parametrize("endpoint", ["", "any", "tcp:", "localhost:80", "70000"])
def test_explain_no_endpoint(endpoint):
    """explain() of what is no endpoint is a PolicyError that quotes it."""
    with pytest.raises(PolicyError) as caught:
        Policy().explain(endpoint)
    assert str(caught.value).startswith(f"endpoint {endpoint!r}: ")


def test_explain_port_number():
    """explain(8080) is a PolicyError or works, but no accident."""
    try:
        assert Policy("deny 8080").explain(8080).verdict == "deny"
    except PolicyError:
        pass


@pytest.mark.parametrize(
    ("rules", "verdict", "number"),
    [
        (["allow ipv6"], "deny", None),
        (["allow ipv4"], "deny", None),
        (["allow ipv4", "allow ipv6"], "allow", 2),
        (["allow wildcard:8080"], "allow", 1),
        (["deny ipv4:8080"], "deny", 1),
        (["deny ipv6:8080"], "deny", 1),
        (["deny 0.0.0.0:8080"], "deny", 1),
        (["deny [::]:8080"], "deny", 1),
        (["deny 127.0.0.1:8080"], "allow", None),
        (["ask ipv4"], "ask", 1),
        (["ask ipv6", "deny ipv4"], "deny", 2),
        (["deny ipv6", "ask ipv4"], "deny", 1),
        (["move ipv4 -> 1", "ask ipv6"], "ask", 2),
        (["move ipv4 -> 1"], "move", 1),
    ],
)
def test_dual_stack(rules, verdict, number):
    """An IPv6 wildcard is judged as both, and the stricter verdict holds."""
    found = Policy(rules).explain("tcp:[::]:8080")
    assert (found.verdict, found.number) == (verdict, number)
    assert "IPv6 and on IPv4" in str(found)


def test_v6only_is_judged_once():
    """A V6ONLY wildcard, written ipv6:, is judged by rules for IPv6 alone."""
    policy = Policy("deny ipv4")
    assert policy.explain("tcp:[::]:80").verdict == "deny"
    assert str(policy.explain("ipv6:[::]:80")) == "ipv6:[::]:80 -> allow (default)"


def test_v4_mapped():
    """A v4-mapped address is judged as the IPv4 address that it is."""
    policy = Policy(["deny 127.0.0.0/8", "ask ipv6"])
    assert policy.explain("[::ffff:127.0.0.1]:80").number == 1
    assert policy.explain("[::ffff:10.0.0.1]:80").number is None
    assert policy.explain("[::1]:80").number == 2


def test_unix_and_vsock_need_their_name():
    """unix and vsock are denied by rules that name them, never by others."""
    others = Policy(["deny any", "deny 80", "deny tcp"], default="deny")
    for endpoint in ("unix:/tmp/x", "unix:@x", "unix", "vsock:80"):
        found = others.explain(endpoint)
        assert found.verdict == "allow"
        assert str(found) == f"{endpoint} -> allow (default: no rule names its family)"
    named = Policy(["deny unix", "deny vsock:80 with EPERM"])
    assert named.explain("unix:/tmp/x").verdict == "deny"
    assert named.explain("vsock:80").errno == "EPERM"
    assert named.explain("vsock:81").verdict == "allow"
    assert named.explain("vsock:3:80").errno == "EPERM"
    assert named.explain("tcp:80").verdict == "allow"


@pytest.mark.parametrize("written", ["tcp:127.0.0.1:0", "tcp:127.0.0.1:ephemeral"])
def test_ephemeral(written):
    """Numbers and ranges never cover ephemeral; `any` and no ports do."""
    assert Policy("deny 1-65535").explain(written).verdict == "allow"
    assert Policy("deny ephemeral").explain(written).verdict == "deny"
    assert Policy("deny any").explain(written).verdict == "deny"
    assert Policy("deny tcp:any").explain(written).verdict == "deny"
    assert Policy("deny loopback").explain(written).verdict == "deny"
    assert Policy("deny ephemeral").explain("tcp:80").verdict == "allow"


def test_mptcp_is_tcp():
    """MPTCP is TCP to the rules; SCTP is neither TCP nor UDP."""
    policy = Policy(["deny tcp:80", "deny udp:81", "ask 82"])
    assert policy.explain("mptcp:80").verdict == "deny"
    assert policy.explain("mptcp:81").verdict == "allow"
    assert policy.explain("sctp:80").verdict == "allow"
    assert policy.explain("sctp:82").verdict == "ask"


# ---- what a policy is ----


def test_equality():
    """Policies are equal when rules, default, errno and hook are."""
    one = Policy(["deny 80", "deny 90"])
    for same in (
        Policy(["deny  80", "deny 90 "]),
        Policy(["deny 80", "deny 90"], default="allow"),
        Policy(["deny 80", "deny 90"], errno="EACCES"),
        Policy(["deny 80", "deny 90"], errno=errno.EACCES),
    ):
        assert same == one
        assert hash(same) == hash(one)
    for other in (
        Policy(["deny 90", "deny 80"]),
        Policy(["deny 80"]),
        Policy(["deny 80", "deny 90"], default="deny"),
        Policy(["deny 80", "deny 90"], errno="EPERM"),
        Policy(["deny 80", "deny 90"], hook="a:b"),
        "deny 80",
        None,
    ):
        assert other != one


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy("allow tcp:8000-8999"),
        Policy(["allow 80", "deny 90 with EPERM"], default="ask", errno="EADDRINUSE"),
        Policy(["move [::1]:80 -> loopback:90"], hook="module:function"),
    ],
    ids=repr,
)
def test_repr_and_copies(policy):
    """The repr of a policy makes the same policy again; so do copy and pickle."""
    assert eval(repr(policy)) == policy
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(policy, protocol))
        assert again == policy
        assert again.rules == policy.rules
        assert again.explain("tcp:80") == policy.explain("tcp:80")
    assert copy.copy(policy) == copy.deepcopy(policy) == policy


@pytest.mark.parametrize("name", ["rules", "default", "errno", "hook", "asks"])
def test_immutable(name):
    """What a policy says can't be changed."""
    with pytest.raises(AttributeError):
        setattr(Policy("deny 80"), name, None)


@pytest.mark.parametrize(
    ("rules", "default", "asks"),
    [
        ([], "allow", False),
        ([], "ask", True),
        (["ask 80"], "allow", True),
        (["allow 80"], None, False),
        (["move 80 -> 90"], None, False),
    ],
)
def test_asks(rules, default, asks):
    """A policy says whether it needs a hook."""
    assert Policy(rules, default=default).asks is asks


# ---- files ----


@pytest.fixture
def policy_file(tmp_path):
    def write(content: str | bytes) -> str:
        path = tmp_path / "policy.toml"
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data)
        return str(path)

    return write


def test_file_with_everything(policy_file):
    """A policy file has rules, default, errno and hook."""
    path = policy_file(
        """
        default = "deny"
        errno = "EPERM"
        hook = "module:function"
        rules = [
            "allow loopback:8000-8999",  # comments and blanks as TOML has them
            "ask tcp:ephemeral",
            'deny 80 with EADDRINUSE',
        ]
        """
    )
    rules = ["allow loopback:8000-8999", "ask tcp:ephemeral"]
    rules.append("deny 80 with EADDRINUSE")
    wanted = Policy(rules, default="deny", errno="EPERM", hook="module:function")
    assert Policy.from_file(path) == wanted


def test_empty_file(policy_file):
    """An empty file is the policy without rules."""
    assert Policy.from_file(policy_file("")) == Policy()


def test_file_by_path_object(policy_file, tmp_path):
    """A policy file is named by a string, bytes or a path."""
    path = policy_file('rules = ["allow 80"]')
    assert Policy.from_file(tmp_path / "policy.toml") == Policy("allow 80")
    assert Policy.from_file(os.fsencode(path)) == Policy("allow 80")


@pytest.mark.parametrize(
    ("content", "right"),
    [
        ("rule = ['allow 80']", "'rule'; there are rules, default, errno, hook"),
        ("[rules]\nallow = 80", "rules must be a list of strings"),
        ("rules = 'allow 80'", "rules must be a list of strings"),
        ("rules = [8080]", "a rule is a string such as 'deny 8080', not 8080"),
        ("rules = ['allow 70000']", "rule 'allow 70000': '70000' (column 7)"),
        ("rules = ['allow 80', 'deny 90']", "default allow or default deny"),
        ("default = true", "default must be a string"),
        ("default = 'drop'", "allow, deny, ask"),
        ("errno = 13", "errno must be a string"),
        ("errno = 'EPRM'", "did you mean EPERM?"),
        ("hook = ['a:b']", "hook must be a string"),
        ("rules = ['allow 80'", "Unclosed array"),
        ("\n\ndefault = deny", "line 3"),
        ("default = 'a'\ndefault = 'b'", "Cannot overwrite a value"),
        (b"default = '\xff'", "utf-8"),
        (b"\xff\xfe", "utf-8"),
        (f"errno = {'9' * 5000}", "too many digits"),
        (f"rules = {'[' * 3000}", "nested too deeply"),
    ],
)
def test_wrong_file(policy_file, content, right):
    """A wrong file is a PolicyError: one line, with the file and what is right."""
    path = policy_file(content)
    with pytest.raises(PolicyError) as caught:
        Policy.from_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert right in message
    assert len(message.splitlines()) == 1


def test_missing_file(tmp_path):
    """A file that can't be read is the OSError that the system gives."""
    with pytest.raises(FileNotFoundError) as caught:
        Policy.from_file(tmp_path / "none.toml")
    assert caught.value.filename == str(tmp_path / "none.toml")
    with pytest.raises(IsADirectoryError):
        Policy.from_file(tmp_path)


@pytest.mark.parametrize(
    "spec", ["./hooks_for_test.py:decide", "hooks_for_test.py:decide"]
)
def test_hook_path_is_relative_to_the_file(policy_file, tmp_path, monkeypatch, spec):
    """A hook that is a path is found beside the file, from any directory."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    (tmp_path / "hooks_for_test.py").write_text(
        "def decide(request):\n    return True\n"
    )
    path = policy_file(f'default = "ask"\nhook = "{spec}"')
    monkeypatch.chdir(tmp_path)
    policy = Policy.from_file(os.path.basename(path))
    assert Policy.from_file(b"policy.toml") == policy
    monkeypatch.chdir(place)
    with Guard(policy) as guard:
        assert guard.policy is policy


def test_hook_with_absolute_path(policy_file, tmp_path):
    """A hook's absolute path stays as it is."""
    path = policy_file(f'default = "ask"\nhook = "{tmp_path}/sub/h.py:decide"')
    assert Policy.from_file(path).hook == f"{tmp_path}/sub/h.py:decide"


def test_hook_module_is_no_path(policy_file):
    """A hook that is a module stays one."""
    path = policy_file('default = "ask"\nhook = "package.module:function"')
    assert Policy.from_file(path).hook == "package.module:function"


# ---- what a guard refuses before anything starts ----


async def coroutine_hook(request):
    return True


def refuse(kind: type[Exception], *args: object, **kwargs: object) -> str:
    """Check that Guard refuses, and that nothing is left; return the message."""
    before = open_descriptors()
    with pytest.raises(kind) as caught:
        Guard(*args, **kwargs)
    assert open_descriptors() == before
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    "rule",
    [
        "move 80 -> 90",
        "move loopback -> ephemeral",
        "deny udp:53",
        "allow ipv6:udp",
        "deny ephemeral",
        "allow tcp:loopback:ephemeral",
    ],
)
def test_rules_about_bind_are_taken(rule):
    """A guard takes every rule that is decided at `bind`."""
    with Guard(rule) as guard:
        assert [one.text for one in guard.policy.rules] == [rule]


@pytest.mark.parametrize("policy", ["ask 80", Policy(default="ask")], ids=str)
def test_ask_needs_a_hook(policy):
    """A policy that asks is refused without a hook."""
    assert "give hook=" in refuse(PolicyError, policy)


@pytest.mark.parametrize(
    "policy", [8080, True, object(), b"allow 80", [80], {"allow": "80"}, "80", ""]
)
def test_wrong_policy(policy):
    """A policy that is none is a PolicyError."""
    refuse(PolicyError, policy)


@pytest.mark.parametrize("hook", [5, "module:function", ["a"]])
def test_wrong_hook(hook):
    """A hook that can't be called is a TypeError that shows it."""
    assert repr(hook) in refuse(TypeError, hook=hook)


@pytest.mark.parametrize(
    ("spec", "right"),
    [
        ("decide", "module:function"),
        (":decide", "module:function"),
        ("module:", "module:function"),
        ("no_such_module_here:decide", "no_such_module_here"),
        ("./no_such_file.py:decide", "./no_such_file.py"),
        ("json:no_such_function", "no_such_function"),
        ("json:__name__", "no function"),
    ],
)
def test_wrong_hook_of_a_file(spec, right):
    """A policy's hook that can't be loaded is a PolicyError that quotes it."""
    message = refuse(PolicyError, Policy(default="ask", hook=spec))
    assert f"hook {spec!r}: " in message
    assert right in message


def test_hook_module_that_fails(tmp_path):
    """A hook module that raises is a PolicyError with that error as its cause."""
    (tmp_path / "broken_for_test.py").write_text("1 / 0\n")
    spec = f"{tmp_path}/broken_for_test.py:decide"
    with pytest.raises(PolicyError, match="ZeroDivisionError") as caught:
        Guard(Policy(default="ask", hook=spec))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "broken_for_test" not in sys.modules


def test_hook_module_that_exits(tmp_path):
    """A hook module that ends the program is not left half imported."""
    (tmp_path / "exiting_for_test.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(SystemExit):
        load_hook(f"{tmp_path}/exiting_for_test.py:decide")
    assert "exiting_for_test" not in sys.modules


def test_failing_hook_module_hides_no_other(tmp_path):
    """A broken file leaves the module alone that has its name."""
    (tmp_path / "copy.py").write_text("1 / 0\n")
    with pytest.raises(PolicyError, match="ZeroDivisionError"):
        load_hook(f"{tmp_path}/copy.py:decide")
    assert sys.modules["copy"] is copy


def test_given_hook_wins_over_the_files():
    """A hook that is given is used, and the one the file names not even loaded."""
    policy = Policy(default="ask", hook="no_such_module_here:decide")
    with Guard(policy, hook=coroutine_hook) as guard:
        assert guard.policy is policy


@pytest.mark.parametrize("value", [0, -1, 1e9, float("nan"), float("inf")])
def test_wrong_hook_timeout(value):
    """A deadline that is none is a ValueError that names the argument."""
    message = refuse(ValueError, hook_timeout=value)
    assert message.startswith("hook_timeout ")
    assert str(value) in message


@pytest.mark.parametrize("value", [0, -1, 1 << 25])
def test_wrong_event_buffer(value):
    """A buffer that is none is a ValueError that names the argument."""
    message = refuse(ValueError, event_buffer=value)
    assert message.startswith("event_buffer ")
    assert str(value) in message


@pytest.mark.parametrize("value", ["", "allow", None, True])
def test_wrong_unix(value):
    """`unix` is "perform" or "continue"."""
    assert "'perform' or 'continue'" in refuse(ValueError, unix=value)


@pytest.mark.parametrize(
    "option",
    [
        {"hook_timeout": "5"},
        {"hook_timeout": None},
        {"event_buffer": "10"},
        {"event_buffer": None},
        {"event_buffer": 1.5},
    ],
    ids=str,
)
def test_wrong_type(option):
    """An option of a wrong type is a TypeError."""
    refuse(TypeError, **option)


@pytest.mark.parametrize("option", ["hook_timeout", "event_buffer"])
def test_wrong_type_is_named(option):
    """The error about an option of a wrong type names the option."""
    assert option in refuse(TypeError, **{option: "5"})


def test_wrong_on_event():
    """An on_event that can't be called is refused, like such a hook."""
    try:
        guard = Guard(on_event=5)
    except TypeError:
        return
    guard.close()
    pytest.fail("accepted")


@pytest.mark.parametrize("option", ["policies", "timeout", "default", "errno"])
def test_unknown_option(option):
    """An option that a guard does not have is a TypeError that names it."""
    assert option in refuse(TypeError, **{option: "deny"})


def test_nothing_starts():
    """A refused guard leaves its thread without a filter and no_new_privs."""
    source = """
        import portseccomp
        for policy in ("allow 70000", "ask 80", "move 80 ->", "deny udp tcp"):
            try:
                portseccomp.run(["/bin/echo", "started"], policy)
            except portseccomp.PolicyError:
                print("refused", flush=True)
        import threading
        print(threading.active_count())
        status = open("/proc/self/status").read()
        print(*(one for one in status.splitlines() if one.startswith("NoNewPrivs")))
    """
    source = "\n".join(line[8:] for line in source.splitlines())
    with open("/proc/self/status") as status:
        mine = next(one for one in status if one.startswith("NoNewPrivs"))
    done = subprocess.run(
        python(source), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.splitlines() == ["refused"] * 4 + ["1", mine.strip()]
    assert done.returncode == 0


def test_run_takes_a_policy_in_every_form():
    """portseccomp.run takes what Guard takes."""
    for policy in (None, "allow 80", ["allow 80"], Policy("allow 80")):
        assert portseccomp.run(["true"], policy).returncode == 0

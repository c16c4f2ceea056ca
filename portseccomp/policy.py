"""Policies: ordered rules, and what holds when none matches."""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from portseccomp import _core
from portseccomp.errors import PolicyError
from portseccomp.grammar import (
    VERBS,
    Endpoint,
    Rule,
    parse_endpoint,
    parse_rule,
)
from portseccomp.verdict import errno_name, errno_number

if TYPE_CHECKING:
    from typing import TypeAlias

    PolicyLike: TypeAlias = "Policy | str | Iterable[str | Rule] | None"

_WORD_OF = {code: word for word, code in VERBS.items()}
_DEFAULTS = {word: VERBS[word] for word in ("allow", "deny", "ask")}


class Explanation(NamedTuple):
    """Which rule decides about an endpoint, and why.

    `verdict` is "allow", "deny", "ask" or "move"; `errno` the name of a
    denial's errno, else None; `rule` the rule's text or "default"; `number`
    counts rules from 1, None for the default.
    """

    endpoint: str
    verdict: str
    errno: str | None
    rule: str
    number: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.endpoint} -> {self.verdict} ({self.reason})"


class Policy:
    """Ordered rules; the first that matches decides, then the default.

    `rules`: one rule, or an iterable of rules, each a string such as
    "allow loopback:8000-8999". `default`: "allow", "deny" or "ask"; left out,
    it is "allow" without rules or with only deny, ask and move rules, and
    "deny" when there are allow rules but no deny rules. Where allow and deny
    are mixed it must be given. `errno`: the name or number of the errno of
    denials whose rule has none.

    Raises PolicyError, which quotes what is wrong.
    """

    def __init__(
        self,
        rules: str | Iterable[str | Rule] = (),
        *,
        default: str | None = None,
        errno: str | int = "EACCES",
        hook: str | None = None,
    ) -> None:
        if isinstance(rules, str):
            rules = (rules,)
        if isinstance(rules, (bytes, bytearray)):
            raise PolicyError(f"rules are strings, not {rules!r}")
        if hook is not None and not isinstance(hook, str):
            raise PolicyError(
                f"hook {hook!r}: a policy names it, 'module:function'; a function "
                "is given to the guard"
            )
        try:
            iterator = iter(rules)
        except TypeError:
            raise PolicyError(f"rules are strings, not {rules!r}") from None
        self._rules = tuple(
            one if isinstance(one, Rule) else parse_rule(one) for one in iterator
        )
        self._errno = _check_errno(errno)
        self._default = _check_default(default, self._rules)
        self._hook = hook
        self._table = self.table(unix_continue=False)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a policy from a TOML file with `rules`, `default`, `errno`, `hook`.

        A hook that is a path, "./policy.py:decide", is relative to the file.
        Raises PolicyError for what is wrong in it, OSError where it can't be
        read.
        """
        import tomllib

        name = os.fsdecode(path)
        with open(name, "rb") as file:
            try:
                content = tomllib.load(file)
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise PolicyError(f"{name}: {error}") from None
            except ValueError:  # int()'s own limit of digits
                raise PolicyError(f"{name}: a number has too many digits") from None
            except RecursionError:
                raise PolicyError(f"{name}: it is nested too deeply") from None
        unknown = sorted(content.keys() - {"rules", "default", "errno", "hook"})
        if unknown:
            raise PolicyError(
                f"{name}: no such key: {unknown[0]!r}; there are rules, default, "
                "errno, hook"
            )
        rules = content.get("rules", [])
        if not isinstance(rules, list):
            raise PolicyError(f"{name}: rules must be a list of strings")
        for key in ("default", "errno", "hook"):
            if key in content and not isinstance(content[key], str):
                raise PolicyError(f"{name}: {key} must be a string")
        hook = content.get("hook")
        if hook and ("/" in hook or hook.partition(":")[0].endswith(".py")):
            hook = os.path.join(os.path.dirname(os.path.abspath(name)), hook)
        try:
            return cls(
                rules,
                default=content.get("default"),
                errno=content.get("errno", "EACCES"),
                hook=hook,
            )
        except PolicyError as error:
            raise PolicyError(f"{name}: {error}") from None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in their order."""
        return self._rules

    @property
    def default(self) -> str:
        """What holds when no rule matches: "allow", "deny" or "ask"."""
        return self._default

    @property
    def errno(self) -> str:
        """The name of the errno of denials whose rule has none."""
        return errno_name(self._errno)

    @property
    def hook(self) -> str | None:
        """The hook that a policy file names, "module:function", or None."""
        return self._hook

    @property
    def asks(self) -> bool:
        """Whether a hook is needed."""
        return self._default == "ask" or any(
            one.verdict == _core.VERDICT_ASK for one in self._rules
        )

    @property
    def needs_bind(self) -> bool:
        """Whether `bind` must be intercepted.

        Where a TCP port can be denied, not a socket's own name is to be trusted
        when it listens, but how it was bound.
        """
        return self._decides_binds or any(
            one.verdict != _core.VERDICT_ALLOW
            and one.selector.family != _core.FAMILY_VSOCK
            for one in self._rules
        )

    @property
    def _decides_binds(self) -> bool:
        """Whether binds are anything to speak of: for UDP, ephemeral and moves."""
        if self._default != "allow" or not self._rules:
            return True
        for one in self._rules:
            named = one.selector.family in (_core.FAMILY_UNIX, _core.FAMILY_VSOCK)
            tcp = one.selector.protocol == _core.PROTOCOL_TCP
            ephemeral = one.selector.match_ports == _core.PORTS_EPHEMERAL
            moves = one.verdict == _core.VERDICT_MOVE
            if not (named or tcp) or ephemeral or moves:
                return True
            if one.selector.family == _core.FAMILY_UNIX and one.verdict != (
                _core.VERDICT_ALLOW
            ):
                return True
        return False

    def table(self, *, unix_continue: bool) -> _core.Table:
        """Return the rules as the core matches them. Private."""
        return _core.Table(
            [one.row(self._errno) for one in self._rules],
            _DEFAULTS[self._default],
            self._errno,
            unix_continue,
            not self._decides_binds,
        )

    def explain(self, endpoint: str | Endpoint) -> Explanation:
        """Say which rule decides about an endpoint such as "tcp:0.0.0.0:8080".

        Raises PolicyError where `endpoint` is none.
        """
        place = endpoint if isinstance(endpoint, Endpoint) else parse_endpoint(endpoint)
        verdict, error, index = self._table.decide(place.fields())
        if index >= 0:
            rule = self._rules[index].text
            reason = f"rule {index + 1}: {rule}"
        else:
            rule = "default"
            reason = "default"
            if place.family in (_core.FAMILY_UNIX, _core.FAMILY_VSOCK):
                reason = "default: no rule names its family"
        if place.dual_stack:
            reason += "; judged on IPv6 and on IPv4, the stricter holds"
        return Explanation(
            place.text,
            _WORD_OF[verdict],
            errno_name(error) if error else None,
            rule,
            index + 1 if index >= 0 else None,
            reason,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[object, ...]:
        return self._rules, self._default, self._errno, self._hook

    def __reduce__(self) -> tuple[object, ...]:
        # The core's table stays behind; it is made again from the rules.
        return _restore, (type(self), *self._identity())

    def __repr__(self) -> str:
        rules = [one.text for one in self._rules]
        text = f"{rules!r}, default={self._default!r}, errno={self.errno!r}"
        if self._hook is not None:
            text += f", hook={self._hook!r}"
        return f"Policy({text})"


def _restore(
    kind: type[Policy],
    rules: tuple[Rule, ...],
    default: str,
    errno: int,
    hook: str | None,
) -> Policy:
    """Make a policy that was copied or pickled."""
    return kind(rules, default=default, errno=errno, hook=hook)


def _check_errno(errno: str | int) -> int:
    try:
        number = errno_number(errno) if isinstance(errno, str) else errno
    except ValueError as error:
        raise PolicyError(f"errno: {error}") from None
    if not isinstance(number, int) or isinstance(number, bool):
        raise PolicyError(f"errno: {errno!r} is no name such as 'EACCES', or number")
    if number not in _errno.errorcode:
        raise PolicyError(f"errno: {errno!r} is no errno of this system")
    return number


def _check_default(default: str | None, rules: tuple[Rule, ...]) -> str:
    if default is not None:
        if not isinstance(default, str) or default not in _DEFAULTS:
            raise PolicyError(f"default {default!r}: right are allow, deny, ask")
        return default
    verdicts = {one.verdict for one in rules}
    if {_core.VERDICT_ALLOW, _core.VERDICT_DENY} <= verdicts:
        raise PolicyError(
            "allow and deny rules are mixed: say what holds for everything else, "
            "default allow or default deny (--default on the command line)"
        )
    return "deny" if _core.VERDICT_ALLOW in verdicts else "allow"


def make_policy(policy: PolicyLike, *, hooked: bool) -> Policy:
    """Make a Policy of what users pass; a hook without any is always asked."""
    if isinstance(policy, Policy):
        return policy
    if policy is None:
        return Policy(default="ask" if hooked else "allow")
    return Policy(policy)

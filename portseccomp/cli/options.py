"""Reading the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from portseccomp._version import __version__
from portseccomp.policy import Policy

_COMMANDS = ("run", "watch", "explain", "probe")

_USAGE = """\
usage: portseccomp run [RULES] [--json] [--log FILE] [--quiet] [--wait] [--confine]
                       [--] CMD...
       portseccomp watch [--json] [--log FILE] [--wait] [--] CMD...
       portseccomp explain [RULES] ENDPOINT
       portseccomp probe
       portseccomp --version

RULES, in their order:
  --allow S, --deny S, --ask S, --move S=T
                 a rule; S is any, or family:protocol:address:ports with each
                 part optional: 8080, tcp:8000-8999, loopback:any, ipv6:udp
  --default D    allow, deny or ask: what holds when no rule matches
  --policy FILE  rules from a TOML file, after those given here
  --hook M:F     the function that decides for `ask`: module:function, or
                 ./file.py:function
  --errno NAME   the errno of denials, EACCES unless given

run prints denials on stderr, watch every port that opens; --json makes each
event a JSON object on a line, --log appends those lines to a file. --wait goes
on until the last guarded process has ended. --confine keeps CMD from signalling,
or tracing, any process that it has not started (Linux 6.12).

Exit status: the command's own; 128+N when signal N killed it; 127 not found,
126 not executable, 125 when portseccomp itself failed.
"""


class UsageError(Exception):
    """The command line is wrong."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message} (portseccomp --help)")


class _AddRule(argparse.Action):
    """Keeps --allow, --deny, --ask and --move in the order they are given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        verb = (option_string or "").removeprefix("--")
        text = str(values)
        if verb == "move":
            selector, equals, target = text.partition("=")
            if not equals:
                raise UsageError(f"--move {text}: right is SELECTOR=TARGET")
            text = f"{selector} -> {target}"
        namespace.rules = [*namespace.rules, f"{verb} {text}"]


def _add_rule_options(parser: _Parser) -> None:
    for verb in ("allow", "deny", "ask", "move"):
        parser.add_argument(f"--{verb}", action=_AddRule, metavar="SELECTOR")
    parser.add_argument("--default", metavar="VERDICT")
    parser.add_argument("--policy", metavar="FILE")
    parser.add_argument("--hook", metavar="MODULE:FUNCTION")
    parser.add_argument("--errno", metavar="NAME")
    parser.set_defaults(rules=[])


def _add_output_options(parser: _Parser) -> None:
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--log", metavar="FILE")
    parser.add_argument("--wait", action="store_true")


def _parser(command: str) -> _Parser:
    parser = _Parser(prog=command, add_help=False, allow_abbrev=False)
    if command in ("run", "explain"):
        _add_rule_options(parser)
    if command in ("run", "watch"):
        _add_output_options(parser)
    if command == "run":
        parser.add_argument("--quiet", action="store_true")
        parser.add_argument("--confine", action="store_true")
    return parser


def _split_command(parser: _Parser, argv: list[str]) -> tuple[list[str], list[str]]:
    """Part the options of ours from CMD and all that belongs to it."""
    valued = {
        name
        for action in parser._actions
        if action.nargs is None
        for name in action.option_strings
    }
    place = 0
    while place < len(argv):
        word = argv[place]
        if word == "--":
            return argv[:place], argv[place + 1 :]
        if not word.startswith("-") or word == "-":
            break
        place += 2 if word in valued else 1
    return argv[:place], argv[place:]


def _make_policy(options: argparse.Namespace) -> Policy:
    rules = list(options.rules)
    default, errno, hook = options.default, options.errno, options.hook
    if options.policy is not None:
        file = Policy.from_file(options.policy)
        from_file: list[Any] = [*rules, *file.rules]
        rules = from_file
        errno = errno or file.errno
        hook = hook or file.hook
        if default is None and (not options.rules or file.default == "ask"):
            default = file.default
    if default is None and hook and not rules:
        default = "ask"
    return Policy(rules, default=default, errno=errno or "EACCES", hook=hook)


def _parse_run(name: str, argv: list[str]) -> Callable[[], int]:
    parser = _parser(name)
    own, command = _split_command(parser, argv)
    options = parser.parse_args(own)
    if not command:
        raise UsageError(f"{name}: which command? right is: portseccomp {name} -- CMD")
    if not command[0]:
        raise UsageError(f"{name}: the command is an empty word")
    watching = name == "watch"
    policy = Policy() if watching else _make_policy(options)

    from portseccomp.cli.run import run_command

    return lambda: run_command(
        command,
        policy,
        watching=watching,
        json_lines=options.json,
        log=options.log,
        quiet=not watching and options.quiet,
        wait=options.wait,
        confine=not watching and options.confine,
    )


def _parse_explain(argv: list[str]) -> Callable[[], int]:
    parser = _parser("explain")
    parser.add_argument("endpoint", metavar="ENDPOINT")
    options = parser.parse_args(argv)
    policy = _make_policy(options)

    def explain() -> int:
        print(policy.explain(options.endpoint))
        return 0

    return explain


def _print_and_succeed(text: str) -> Callable[[], int]:
    def show() -> int:
        print(text, end="")
        return 0

    return show


def parse(argv: list[str]) -> Callable[[], int]:
    """Return what the command line asks for; raises UsageError, PolicyError."""
    name, rest = (argv[0], argv[1:]) if argv else ("", [])
    if name in ("-h", "--help", "help") or (name in _COMMANDS and _asks_help(rest)):
        return _print_and_succeed(_USAGE)
    if name == "--version":
        return _print_and_succeed(f"portseccomp {__version__}\n")
    if name in ("run", "watch"):
        return _parse_run(name, rest)
    if name == "explain":
        return _parse_explain(rest)
    if name == "probe":
        _parser(name).parse_args(rest)
        from portseccomp.cli.probe import show_probe

        return show_probe
    what = f"{name}: no such command" if name else "a command is missing"
    raise UsageError(f"{what}; there are {', '.join(_COMMANDS)} (portseccomp --help)")


def _asks_help(argv: list[str]) -> bool:
    return bool(argv) and argv[0] in ("-h", "--help")

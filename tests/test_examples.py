"""What people run first does run: the examples, and the check of the tools."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CHECK_TOOLS = str(ROOT / "scripts" / "check_tools.py")
LIMIT = 60  # seconds; only a hang takes so long

LISTEN = """
import socket, sys
with socket.socket() as one:
    one.bind((sys.argv[1], 0))
    one.listen()
"""


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in the project's directory, from its sources."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    for name in ("CC", "NO_COLOR", "PORTSECCOMP_TRUST"):
        if name not in variables:
            environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_example_says_how_to_run_it(path):
    """Each example says in its docstring how to run it, and is run here."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"examples/{path.name}" in docstring
    assert f"examples/{path.name}" in Path(__file__).read_text()


def test_demo():
    """The demo shows a server that serves, then one that is denied, and succeeds."""
    done = run("examples/demo.py")
    assert (done.returncode, done.stderr) == (0, "")
    words = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert words == [
        *("policy:", "start", "open", "fetch"),
        *("start", "denied", "exit", "connect", "ok", "ok"),
    ]
    assert "\033" not in done.stdout


def test_demo_fails_where_nothing_can_be_guarded():
    """The demo exits with 1 where a guard does not work: inside another guard."""
    guarded = "import portseccomp, sys; sys.exit(portseccomp.run(sys.argv[1:])"
    done = run("-c", f"{guarded}.returncode)", sys.executable, "examples/demo.py")
    assert done.returncode == 1
    assert "does not work here" in done.stdout
    assert done.stderr == ""


def test_embed():
    """The embedded tool listens where the rule or the hook allows, nowhere else."""
    done = run("examples/embed.py")
    assert (done.returncode, done.stderr) == (0, "")
    pattern = r"^(tool|guard): (\S+):(\d)\d\d\d: (.*)$"
    found = re.findall(pattern, done.stdout, re.MULTILINE)
    assert found == [
        ("tool", "127.0.0.1", "8", "listens"),
        ("tool", "127.0.0.1", "9", "listens"),
        ("tool", "0.0.0.0", "8", "Operation not permitted"),
        ("tool", "0.0.0.0", "9", "Operation not permitted"),
        ("guard", "127.0.0.1", "8", "allow, by allow loopback:8000-8999"),
        ("guard", "127.0.0.1", "9", "allow, by hook"),
        ("guard", "0.0.0.0", "8", "deny, by hook"),
        ("guard", "0.0.0.0", "9", "deny, by hook"),
    ]


@pytest.mark.parametrize(
    ("host", "trusted", "status"),
    [
        ("127.0.0.1", "", 0),
        ("0.0.0.0", "", 1),
        ("0.0.0.0", os.path.realpath(sys.executable), 0),
    ],
    ids=["loopback", "elsewhere", "trusted"],
)
def test_hook(host, trusted, status):
    """The hook allows loopback, and elsewhere only the programs that it trusts."""
    hook = ("--hook", "examples/hook.py:decide")
    command = (sys.executable, "-c", LISTEN, host)
    run_it = ("-m", "portseccomp", "run", *hook, "--", *command)
    done = run(*run_it, PORTSECCOMP_TRUST=trusted)
    assert done.returncode == status
    assert ("may not listen on 0.0.0.0" in done.stderr) is bool(status)
    assert ("Operation not permitted" in done.stderr) is bool(status)


@pytest.mark.parametrize(
    "runner", [(), ("-m", "pytest", "-q", "-p", "no:cacheprovider")]
)
def test_wait_for_server(runner):
    """The server's test passes, by itself and with pytest."""
    done = run(*runner, "examples/wait_for_server.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "ok" in done.stdout or "1 passed" in done.stdout


# ---- scripts/check_tools.py ----


def test_missing_compiler_is_one_line_that_installs_it(tmp_path):
    """Without a compiler the check fails, with the command that installs one."""
    done = run(CHECK_TOOLS, PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "C compiler" in done.stderr
    assert re.search(r": (sudo )?apt-get install .*\bgcc\b", done.stderr)


def test_missing_servers_are_a_hint(tmp_path):
    """Servers that are missing do not fail the check: one line says what to do."""
    done = run(CHECK_TOOLS, "test", PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert re.search(r"\bgo\b.* will be skipped: .*\bgolang-go\b", done.stdout)


def test_packages_for_apt():
    """The names of sections' packages are printed in one line, and a typo is told."""
    done = run(CHECK_TOOLS, "--packages", "build", "test")
    assert done.returncode == 0
    assert {"gcc", "nginx-light", "default-jdk-headless"} <= set(done.stdout.split())
    done = run(CHECK_TOOLS, "--packages", "tests")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "check_tools: sections are build, test, fuzz and kernels\n"


@pytest.mark.parametrize("option", ["--packages", "--missing"])
def test_packages_of_other_machines_are_not_named(option, tmp_path):
    """What only one machine has is named there, where it is missing, and only there."""
    source = "import platform, runpy, sys; machine = sys.argv.pop(1); "
    source += "platform.machine = lambda: machine; "
    source += "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    named = {}
    for machine in ("x86_64", "aarch64"):
        # Without any tool, all that can be missing is.
        command = ("-c", source, machine, CHECK_TOOLS, option, "build", "test")
        done = run(*command, PATH=str(tmp_path))
        assert (done.returncode, done.stderr) == (0, "")
        named[machine] = set(done.stdout.split())
    assert named["x86_64"] - named["aarch64"] == {"gcc-12-multilib", "libc6-dev-i386"}
    assert {"gcc", "bubblewrap"} <= named["aarch64"] < named["x86_64"]


def test_packages_that_tests_ask_for_are_listed():
    """Each package that a test names when it skips is one that CI installs."""
    pattern = r'\bneed\(\s*"[^"]+",\s*"([^"]+)"'
    sources = [one.read_text() for one in (ROOT / "tests").glob("*.py")]
    asked = {name for text in sources for name in re.findall(pattern, text)}
    done = run(CHECK_TOOLS, "--packages", "build", "test")
    assert "nginx-light" in asked
    assert asked <= set(done.stdout.split())

"""SECURITY.md and docs/sandboxing.md: every example in them does what they say.

The Python and ini blocks of both pages are files, named by their first line. The
console blocks are run by bash, section by section, in network and pid namespaces of
their own, and must print what stands below the commands. Commands in the
background print when they like, so lines are compared in sorted order.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import need, python

import portseccomp
from portseccomp import Guard

ROOT = Path(__file__).parent.parent
PAGES = ("SECURITY.md", "docs/sandboxing.md")
MACHINE = platform.machine()
LIMIT = 60  # seconds; only a hang takes so long

# Programs of the examples, and their packages.
PROGRAMS = {
    "bwrap": "bubblewrap",
    "ip": "iproute2",
    "setpriv": "util-linux",
    "socat": "socat",
    "systemd-analyze": "systemd",
    "tmux": "tmux",
    "unshare": "util-linux",
}
# What some examples need of the kernel, and of the user.
KERNELS = {"ring.py": (6, 11), "udp.py": (6, 3), "ephemeral.py": (6, 3)}
KERNELS |= {"--confine": (6, 12), "landlock.py": (6, 7)}
FOR_X86_64 = ("after.py", "block.py", "fail.py 50")  # system calls by number
FOR_ROOT = ("setpriv ", "other.py", "block.py", "raw.py")
# Holes without an example.
TOO_SMALL = {"V6ONLY in the moment of the call"}


class Section(NamedTuple):
    """What stands below a heading of a page."""

    page: str
    title: str
    text: str

    def blocks(self, language: str) -> list[str]:
        """The code blocks in a language."""
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.M | re.S)


def read(page: str) -> list[Section]:
    """The sections of a page; what stands before the first heading has no title."""
    found, title, lines, in_code = [], "", [], False
    for line in (ROOT / page).read_text().splitlines():
        in_code ^= line.startswith("```")
        heading = None if in_code else re.fullmatch(r"#{2,3} (.+)", line)
        if heading:
            found.append(Section(page, title, "\n".join(lines) + "\n"))
            title, lines = heading[1], []
        else:
            lines.append(line)
    return [*found, Section(page, title, "\n".join(lines) + "\n")]


SECTIONS = [one for page in PAGES for one in read(page)]
EXAMPLES = [one for one in SECTIONS if one.blocks("console")]


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    kept = re.sub(r"[^\w\- ]", "", title.lower())
    return kept.replace(" ", "-")


def write_files(place: Path) -> None:
    """Write the files of both pages."""
    for section in SECTIONS:
        for block in section.blocks("python") + section.blocks("ini"):
            name = re.match(r"# ([\w.]+)", block)
            assert name, f"{section.page}, {section.title}: a file without a name"
            assert not (place / name[1]).exists(), f"{name[1]} stands there twice"
            (place / name[1]).write_text(block)


@pytest.fixture
def shell(tmp_path):
    """Run a script beside the pages' files, apart from all other tests."""
    write_files(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    command = programs / "portseccomp"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m portseccomp "$@"\n')
    command.chmod(0o755)
    path = [str(programs), str(Path(sys.executable).parent)]
    if not (Path(sys.executable).parent / "python3").exists():
        (programs / "python3").symlink_to(sys.executable)
    apart = [need("unshare", "util-linux"), "--net", "--pid", "--fork"]
    apart += ["--mount-proc", "--kill-child"]
    if os.geteuid() != 0:
        apart.append("--map-root-user")

    def run(script: str) -> str:
        need("ip", "iproute2")
        (tmp_path / "script.sh").write_text(f"ip link set lo up\n{script}\nwait\n")
        environment = os.environ | {
            "PATH": ":".join([*path, os.environ["PATH"], "/usr/sbin", "/sbin"]),
            "PYTHONPATH": str(Path(portseccomp.__file__).parent.parent),
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
        }
        for name in ("PORTSECCOMP_SERVER", "PYTHONUNBUFFERED"):
            environment.pop(name, None)
        done = subprocess.run(
            [*apart, "bash", "script.sh"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
        )
        return done.stdout.decode()

    return run


def normal(text: str) -> list[str]:
    """The lines of an output, without what differs from run to run."""
    text = re.sub(r"python[\d.]*\[\d+\] *", "python3[1] ", text.replace("\r", ""))
    text = re.sub(r"\[\d+\]", "[1]", text)
    text = re.sub(r"^script.sh: line .* Killed .*$", "", text, flags=re.M)
    return sorted(line.rstrip() for line in text.splitlines() if line.strip())


def need_all(script: str) -> None:
    """Skip where the machine lacks what a script names."""
    for program, package in PROGRAMS.items():
        if re.search(rf"(^|[ '\"]){program} ", script, re.M):
            need(program, package)
    release = tuple(int(one) for one in re.findall(r"\d+", os.uname().release)[:2])
    for word, least in KERNELS.items():
        if word in script and release < least:
            pytest.skip(f"needs a kernel of Linux {least[0]}.{least[1]}")
    if MACHINE != "x86_64" and any(word in script for word in FOR_X86_64):
        pytest.skip("needs an x86-64 machine")
    if os.geteuid() != 0 and any(word in script for word in FOR_ROOT):
        pytest.skip("needs root")


@pytest.mark.parametrize(
    "section", EXAMPLES, ids=[f"{Path(x.page).stem}: {x.title}" for x in EXAMPLES]
)
def test_the_example_does_what_the_page_says(shell, section):
    """The commands of a section print what stands below them."""
    lines = "".join(section.blocks("console")).splitlines()
    script = "\n".join(line[2:] for line in lines if line.startswith(("$ ", "> ")))
    expected = [line for line in lines if not line.startswith(("$ ", "> "))]
    need_all(script)
    assert normal(shell(script)) == normal("\n".join(expected))


def test_every_hole_has_an_example():
    """Each hole of the table has a section, in its order, and an example that ran."""
    [holes] = [one for one in SECTIONS if one.title == "What is not covered"]
    listed = re.findall(r"^\| \[.+?\]\(#(.+?)\) \|", holes.text, re.M)
    titles = [one.title for one in read("SECURITY.md")]
    start, end = titles.index(holes.title), titles.index("What is covered, and how")
    assert sorted(listed) == sorted(map(slug, titles[start + 1 : end]))
    shown = {slug(one.title) for one in EXAMPLES}
    assert set(listed) - shown == set(map(slug, TOO_SMALL))


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_links_lead_somewhere(page):
    """Each link to a file or a heading of the repository finds it."""
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text)
    assert links
    for path, anchor in links:
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), path
        if anchor:
            where = str(file.resolve().relative_to(ROOT.resolve()))
            assert anchor in {slug(one.title) for one in read(where)}, anchor


def test_every_file_is_used():
    """Each file of a page is run by one of its commands, or by another file."""
    everything = "".join(one.text for one in SECTIONS)
    names = re.findall(r"^```(?:python|ini)\n# ([\w.]+)", everything, re.M)
    assert names
    for name in names:
        uses = re.findall(rf"(?<![\w.]){re.escape(name)}", everything)
        assert len(uses) > 1, name


def test_the_filter_of_the_unit_lets_a_guard_work():
    """The unit allows the calls that a guard makes, also those that are rare."""
    need("systemd-analyze", "systemd")
    [unit] = [one for x in SECTIONS for one in x.blocks("ini")]
    allowed: set[str] = set()
    wanted = [w for x in re.findall("SystemCallFilter=(.*)", unit) for w in x.split()]
    while wanted:
        name = wanted.pop()
        if name.startswith("@"):
            command = ["systemd-analyze", "syscall-filter", name]
            lines = subprocess.run(command, capture_output=True, text=True).stdout
            wanted += [x.strip() for x in lines.splitlines()[2:] if "#" not in x]
        elif name:
            allowed.add(name)
    needed = "seccomp pidfd_open pidfd_getfd process_vm_readv kcmp capget capset setns"
    needed += (
        " prctl ioctl epoll_wait eventfd2 futex tgkill vfork bind listen prlimit64"
    )
    needed += " landlock_create_ruleset landlock_restrict_self getsockname setsockopt"
    assert set(needed.split()) <= allowed


BIND_IN_CGROUP = """
import socket, sys
if sys.argv[1]:
    with open(sys.argv[1] + "/cgroup.procs", "w") as file:
        file.write("0")
try:
    socket.socket().bind(("127.0.0.1", 0))
    print("bound")
except OSError as error:
    print(error.strerror)
"""


def forbid_bind(cgroup: str) -> None:
    """Attach a BPF program that fails every IPv4 bind, as systemd does."""
    libc = ctypes.CDLL(None, use_errno=True)

    def bpf(command: int, attributes: bytes) -> int:
        buffer = ctypes.create_string_buffer(attributes, 128)
        result = libc.syscall({"x86_64": 321}.get(MACHINE, 280), command, buffer, 128)
        assert result >= 0, os.strerror(ctypes.get_errno())
        return result

    # r0 = 0; exit
    code = ctypes.create_string_buffer(
        struct.pack("<BBhiBBhi", 183, *[0] * 3, 149, *[0] * 3)
    )
    licence = ctypes.create_string_buffer(b"GPL")
    inet4_bind = 8
    load = struct.pack(
        "<IIQQ44xI",
        18,
        2,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        inet4_bind,
    )
    program = bpf(5, load)
    directory = os.open(cgroup, os.O_RDONLY)
    try:
        bpf(8, struct.pack("<IIII", directory, program, inet4_bind, 0))
    finally:
        os.close(directory)
        os.close(program)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_cgroups_programs_hold_for_the_supervisors_calls():
    """A bind that the target's cgroup forbids fails, though the supervisor makes it."""
    mounts = [x.split() for x in Path("/proc/mounts").read_text().splitlines()]
    places = [x[1] for x in mounts if x[2] == "cgroup2"]
    if not places:
        pytest.skip("needs a kernel with cgroup2, mounted")
    cgroup = tempfile.mkdtemp(prefix="portseccomp-test-", dir=places[0])
    try:
        forbid_bind(cgroup)
        seen = []
        for place in (cgroup, ""):
            command = python(BIND_IN_CGROUP, place)
            seen.append(subprocess.run(command, stdout=-1, text=True).stdout)
            with Guard("allow loopback:any") as guard:
                seen.append(guard.run(command, stdout=-1, text=True).stdout)
                assert guard.stats().allowed == 1
    finally:
        os.rmdir(cgroup)
    assert seen == ["Operation not permitted\n"] * 2 + ["bound\n"] * 2

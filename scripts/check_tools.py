"""Check that what portseccomp is built and tested with is there.

check_tools.py                        what the build needs; exit 1 without it
check_tools.py test                   what the tests use; only a hint
check_tools.py --packages SECTION...  names of Debian packages, for apt-get
check_tools.py --missing SECTION...   the same, without those that are there

Says what is missing in one line, with the command that installs it. It has no
dependencies, and runs on old Pythons far enough to say that they are too old.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = os.path.join(HERE, "debian-packages.txt")
OLDEST = (3, 11)
MACHINES = ("x86_64", "aarch64")

# Debian keeps servers where a user's PATH does not lead.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class Package:
    """One line of debian-packages.txt."""

    def __init__(self, line: str) -> None:
        self.name, self.shown_by, self.why = line.split(None, 2)

    def is_there(self) -> bool:
        """Whether what the package brings is there, from wherever it came."""
        if self.shown_by == "-":
            return True
        if self.shown_by.startswith("("):
            return PROBES[self.shown_by.strip("()")]()
        return shutil.which(self.shown_by, path=PATH) is not None


def read_packages() -> dict[str, list[Package]]:
    """Return the packages of each section that are for this machine."""
    sections: dict[str, list[Package]] = {}
    with open(PACKAGES, encoding="utf-8") as file:
        for line in map(str.strip, file):
            if line.startswith("["):
                name, *machines = line.strip("[]").split(", ")
                current = sections.setdefault(name, [])
                if machines and platform.machine() not in machines:
                    current = []  # read, and forgotten
            elif line and not line.startswith("#"):
                current.append(Package(line))
    return sections


# ---- probes ----


def compiler() -> list[str]:
    """The compiler that the extension is built with, as setuptools chooses it."""
    chosen = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    return shlex.split(chosen)


def has_compiler() -> bool:
    """Whether that compiler is there."""
    return shutil.which(compiler()[0]) is not None


def has_headers() -> bool:
    """Whether a program that includes libc's and Linux's headers compiles."""
    if not has_compiler():
        return False  # not known; their package belongs to the compiler's
    done = subprocess.run(
        [*compiler(), "-fsyntax-only", "-x", "c", "-"],
        input=b"#include <stdio.h>\n#include <linux/seccomp.h>\n",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return done.returncode == 0


def has_python_h() -> bool:
    """Whether the running Python's own header is there."""
    return os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))


def has_venv() -> bool:
    """Whether `python -m venv` would work: Debian splits ensurepip off."""
    return all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))


def has_i386() -> bool:
    """Whether programs for i386 are compiled and linked."""
    if not has_compiler():
        return False
    done = subprocess.run(
        [*compiler(), "-m32", "-x", "c", "-", "-o", os.devnull],
        input=b"int main(void) { return 0; }\n",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return done.returncode == 0


def runs(python: str) -> bool:
    """Whether a Python is there and starts; pyenv has names that don't."""
    return (
        shutil.which(python) is not None
        and subprocess.run([python, "-c", ""], stderr=subprocess.DEVNULL).returncode
        == 0
    )


PROBES = {
    "compiler": has_compiler,
    "headers": has_headers,
    "Python.h": has_python_h,
    "venv": has_venv,
    "i386": has_i386,
}


# ---- what to say ----


def join(words: list[str]) -> str:
    """Join words as a sentence does."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def install_line(packages: list[Package]) -> str:
    """Return the command that installs packages."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install {' '.join(one.name for one in packages)}"


def unfit() -> str | None:
    """Say what no package could change about this machine, or return None."""
    if sys.platform != "linux":
        return f"portseccomp needs Linux; this is {sys.platform}"
    if platform.machine() not in MACHINES:
        return f"portseccomp needs {' or '.join(MACHINES)}; this is " + (
            platform.machine()
        )
    if sys.version_info[:2] < OLDEST:
        newer = (f"python3.{minor}" for minor in range(19, OLDEST[1] - 1, -1))
        found = next(filter(runs, newer), None)
        hint = f"make PYTHON={found}" if found else "Debian 12 and Ubuntu 24.04 have it"
        return (
            f"portseccomp needs Python {OLDEST[0]}.{OLDEST[1]} or newer; "
            f"{sys.executable} is {platform.python_version()}: {hint}"
        )
    if not has_compiler() and shutil.which("cc"):
        return f"the C compiler {compiler()[0]} is not there, but cc is: export CC=cc"
    if not has_python_h() and sys.base_prefix != "/usr":
        return (
            f"portseccomp needs Python.h, and {sys.executable} came without it: "
            "choose another Python, make PYTHON=/usr/bin/python3"
        )
    return None


def check_build(packages: list[Package]) -> int:
    """Say what the build lacks, in one line; return the exit status."""
    problem = unfit()
    missing = [] if problem else [one for one in packages if not one.is_there()]
    if missing:
        what = join([one.why.partition(",")[0] for one in missing])
        problem = f"portseccomp needs {what}: {install_line(missing)}"
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


def hint_tests(packages: list[Package]) -> int:
    """Say which tests will be skipped, and what would change that."""
    missing = [one for one in packages if not one.is_there()]
    if missing:
        what = join([*dict.fromkeys(one.shown_by.strip("()") for one in missing)])
        print(f"tests with {what} will be skipped: {install_line(missing)}")
    return 0


def main(args: list[str]) -> int:
    """Do what the command line says; return the exit status."""
    sections = read_packages()
    lists = args[:1] in (["--packages"], ["--missing"])
    names = args[1:] if lists else args or ["build"]
    if not names or not set(names) <= sections.keys():
        print(f"check_tools: sections are {join(list(sections))}", file=sys.stderr)
        return 2
    if lists:
        found = [one for name in names for one in sections[name]]
        if args[0] == "--missing":
            found = [one for one in found if not one.is_there()]
        print(*(one.name for one in found))
        return 0
    return max(
        (check_build if name == "build" else hint_tests)(sections[name])
        for name in names
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

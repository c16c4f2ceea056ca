# SPDX-License-Identifier: MIT
"""The parts of `make test-kernels` that need no QEMU; docs/kernels.md."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import HERE, need, spread

SCRIPTS = HERE.parent / "scripts"


@pytest.fixture(scope="module")
def scripts():
    """The modules in scripts/: test_kernels and guest."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import guest
        import test_kernels

        yield test_kernels, guest
    finally:
        sys.path.remove(str(SCRIPTS))


def test_what_is_left_out_is_there(scripts):
    """Each file that guests leave out exists, and each has a reason."""
    test_kernels, _ = scripts
    assert test_kernels.LEFT_OUT
    for name, reason in test_kernels.LEFT_OUT.items():
        assert (HERE / name).exists(), name
        assert reason


def test_the_default_leaves_out_what_it_says(scripts):
    """Without arguments all other files are tested; with some, only those."""
    test_kernels, _ = scripts
    line = test_kernels.pytest_line("py", [])
    assert line.startswith("py -m pytest ")
    for name in test_kernels.LEFT_OUT:
        assert f"--ignore=tests/{name}" in line
    for name in test_kernels.LEFT_OUT_OLD:
        assert (HERE / name).exists(), name
        assert f"--ignore=tests/{name}" not in line
        assert f"--ignore=tests/{name}" in test_kernels.pytest_line("py", [], False)
    chosen = test_kernels.pytest_line("py", ["tests/test_listen.py", "-k", "a b"])
    assert chosen.endswith("tests/test_listen.py -k 'a b'")
    assert "--ignore" not in chosen


@pytest.mark.parametrize(
    ("most", "kept"), [(1, "0"), (2, "09"), (3, "049"), (10, "0123456789")]
)
def test_some_cases_of_many(most, kept):
    """Of a test's cases those that are run are spread evenly."""
    assert "".join(spread(list("0123456789"), most)) == kept


def test_arguments(scripts):
    """Names choose kernels; what follows -- is pytest's; other names are errors."""
    test_kernels, _ = scripts
    options = test_kernels.parse(["6.1", "5.10", "--", "tests", "-k", "x"])
    assert [one.name for one in options.kernels] == ["6.1", "5.10"]
    assert options.pytest == ["tests", "-k", "x"]
    assert len(test_kernels.parse([]).kernels) == len(test_kernels.KERNELS)
    with pytest.raises(SystemExit):
        test_kernels.parse(["2.6"])


def test_modules_come_after_what_they_need(scripts, tmp_path):
    """Modules are ordered by the names in them; one that is not there is left out."""
    _, guest = scripts
    for name, needs in {"9p": "9pnet,net-fs", "9pnet": "", "net_fs": "9pnet"}.items():
        (tmp_path / f"{name}.ko").write_bytes(b"x\0depends=%b\0y" % needs.encode())
    paths = {path.stem: str(path) for path in tmp_path.iterdir()}
    assert list(guest.in_order(paths, ["built_in", "9p", "9pnet"])) == [
        "9pnet",
        "net_fs",
        "9p",
    ]


def test_archive_is_one_that_cpio_reads(scripts, tmp_path):
    """The archive that is written here is what cpio writes and the kernel reads."""
    _, guest = scripts
    files = {
        "bin": (guest.DIRECTORY, b""),
        "bin/a": (guest.PROGRAM, b"12345"),
        "b": (guest.TEXT, b""),
    }
    command = [need("cpio", "cpio"), "--extract", "--quiet"]
    archive = guest.archive(files)
    subprocess.run(command, input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/a").read_bytes() == b"12345"
    assert (tmp_path / "bin/a").stat().st_mode == guest.PROGRAM
    assert (tmp_path / "b").read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("Linux 6.1.0-1-amd64 x86_64", "release", "6.1.0-1-amd64"),
        ("57 passed, 0 failed", "core", "57 passed, 0 failed"),
        ("== 2 failed, 3 passed in 4.0s (0:01:00) ==", "tests", "2 failed, 3 passed"),
        ("\x1b[32m=== \x1b[1m9 passed\x1b[0m in 1s =\x1b[0m", "tests", "9 passed"),
        ("= test session starts =", "tests", "-"),
    ],
)
def test_what_a_guest_prints_is_understood(scripts, capsys, line, field, value):
    """The closing lines of both test runners end up in the table."""
    test_kernels, _ = scripts
    result = test_kernels.Result("6.1")
    result.read(line)
    assert getattr(result, field) == value
    assert capsys.readouterr().out == f"{line}\n"


# Plays QEMU: prints what a guest would.
FAKE = (
    "import sys, time; print(sys.argv[1], flush=True); time.sleep(float(sys.argv[2]))"
)


@pytest.mark.parametrize("status", [0, 1, 127])
def test_exit_status_comes_back(scripts, status):
    """What the firmware prints is not shown; the job's lines are, and its status."""
    _, guest = scripts
    text = f"firmware\nx{guest.START}\none\n{guest.MARK} {status}\nlater"
    shown: list[str] = []
    command = [sys.executable, "-c", FAKE, text, "60"]
    assert guest.follow(command, 30, shown.append) == status
    assert shown == ["one"]


@pytest.mark.parametrize(
    ("wait", "timeout", "message"),
    [("0", 30, "ended early\nbad firmware"), ("60", 0.5, "not done in 0 seconds")],
)
def test_guest_that_does_not_come_to_its_end(scripts, wait, timeout, message):
    """A guest that dies or hangs is an error that says so, never a pass."""
    _, guest = scripts
    command = [sys.executable, "-c", FAKE, "bad firmware", wait]
    with pytest.raises(guest.GuestError, match=message):
        guest.follow(command, timeout, print)


@pytest.mark.parametrize("panics", [0, 2, 3])
def test_guest_that_panics_at_boot_is_booted_again(
    scripts, tmp_path, monkeypatch, capsys, panics
):
    """A kernel that ends before its job starts has three tries; a job has one."""
    _, guest = scripts
    boots = tmp_path / "boots"
    script = f"echo x >>{boots}; test $(wc -l <{boots}) -gt {panics} || exit; "
    script += f"echo {guest.START}; echo {guest.MARK} 7"
    monkeypatch.setattr(guest, "CACHE", str(tmp_path))
    monkeypatch.setattr(guest, "initramfs", lambda kernel, job: b"")
    monkeypatch.setattr(guest, "command_line", lambda *_: ["sh", "-c", script])
    kernel, job = guest.Kernel("6.1", ()), guest.Job("true", {}, timeout=30)
    if panics == 3:
        with pytest.raises(guest.GuestError, match="ended early"):
            guest.run(kernel, job)
    else:
        assert guest.run(kernel, job) == 7
    assert boots.read_text() == "x\n" * min(panics + 1, 3)
    assert capsys.readouterr().err.count("once more") == min(panics, 2)
    # What happened to the job itself is told at once.
    boots.unlink()
    script = f"echo x >>{boots}; echo {guest.START}"
    with pytest.raises(guest.GuestError, match="ended early"):
        guest.run(kernel, job)
    assert boots.read_text() == "x\n"


def test_packages_are_named_once():
    """What test-kernels needs is in the list that apt-get is given."""
    command = [sys.executable, str(SCRIPTS / "check_tools.py"), "--packages", "kernels"]
    done = subprocess.run(command, stdout=-1, text=True, check=True)
    assert "qemu-system-x86" in done.stdout.split()

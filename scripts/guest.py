# SPDX-License-Identifier: MIT
"""Boot a Debian kernel in QEMU and run a command there.

What is fetched comes from the machine's own Debian mirror, by a private apt state
below the user's cache directory: nothing is installed, and no root is needed.
QEMU emulates (TCG): the same everywhere, whoever may use /dev/kvm.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

CACHE = os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
    "portseccomp",
    "kernels",
)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FRESH = 24 * 3600  # how long a package list is good for
DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


class GuestError(Exception):
    """A guest could not be made, or did not come to its end."""


class NotStarted(GuestError):
    """A guest ended before its job had started."""


# ---- packages ----


def mirrors() -> dict[str, str]:
    """The machine's own mirrors, by the label of what they hold."""
    found: dict[str, str] = {}
    command = ["apt-get", "indextargets", "--format", "$(LABEL)\t$(REPO_URI)"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        label, uri = line.split("\t")
        found.setdefault(label, uri)
    return found


class Apt:
    """A private apt state for some suites and one architecture."""

    def __init__(self, suites: tuple[str, ...], machine: str) -> None:
        self.suites, self.arch = suites, DEBIAN_NAMES[machine]
        self.place = os.path.join(CACHE, "apt", "+".join((*suites, self.arch)))

    def options(self) -> list[str]:
        """What keeps apt away from the state of the machine."""
        settings = {
            "APT::Architecture": self.arch,
            "APT::Architectures": self.arch,
            # Another user could not write below the cache directory.
            "APT::Sandbox::User": "",
            "Dir::State": self.place,
            "Dir::State::lists": f"{self.place}/lists",
            "Dir::State::status": f"{self.place}/status",
            "Dir::Cache": f"{self.place}/cache",
            "Dir::Etc::sourcelist": f"{self.place}/debian.sources",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Acquire::Languages": "none",
        }
        return [word for one in settings.items() for word in ("-o", "=".join(one))]

    def run(self, program: str, *args: str, cwd: str | None = None) -> str:
        """Run an apt program on the private state; return what it printed."""
        command = [program, *self.options(), "-q", *args]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise GuestError(f"{program} {args[0]}: {said}")
        return done.stdout

    def refresh(self) -> None:
        """Fetch the package lists, unless they are of today."""
        stamp = f"{self.place}/fetched"
        if os.path.exists(stamp) and time.time() - os.path.getmtime(stamp) < FRESH:
            return
        hosts = mirrors()
        for part in ("lists/partial", "cache/archives/partial"):
            os.makedirs(f"{self.place}/{part}", exist_ok=True)
        with open(f"{self.place}/status", "w"):
            pass  # nothing is installed
        with open(f"{self.place}/debian.sources", "w") as file:
            for suite in self.suites:
                label = "Debian-Security" if "-security" in suite else "Debian"
                if label not in hosts:
                    raise GuestError(
                        f"apt knows no {label} mirror here: this needs a Debian "
                        "machine, after apt-get update"
                    )
                file.write(
                    f"Types: deb\nURIs: {hosts[label]}\nSuites: {suite}\n"
                    f"Components: main\nSigned-By: {KEYRING}\n\n"
                )
        try:
            self.run("apt-get", "update")
        except GuestError as error:
            if not os.path.exists(stamp):
                raise
            print(f"{error}\ngoing on with the lists of before", file=sys.stderr)
        with open(stamp, "w"):
            pass

    def depends(self, package: str) -> list[str]:
        """The names that a package depends on, alternatives left out."""
        text = self.run("apt-cache", "show", "--no-all-versions", package)
        line = re.search(r"^Depends: (.*)$", text, re.MULTILINE)
        return [one.split()[0] for one in line[1].split(",")] if line else []

    def download(self, package: str) -> str:
        """Fetch a package; return the path of the .deb."""
        place = f"{self.place}/debs"
        os.makedirs(place, exist_ok=True)
        before = set(os.listdir(place))
        self.run("apt-get", "download", package, cwd=place)
        new = [x for x in os.listdir(place) if x not in before]
        names = new or [x for x in before if x.startswith(f"{package}_")]
        return os.path.join(place, max(names))


def unpack(debs: Iterable[str], place: str) -> None:
    """Unpack packages below a directory, as into a root whose /usr is merged."""
    os.makedirs(place, exist_ok=True)
    for deb in debs:
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE
        ) as source:
            tar = ["tar", "-x", "-C", place, "--keep-directory-symlink"]
            done = subprocess.run([*tar, "--no-same-owner"], stdin=source.stdout)
        if source.returncode or done.returncode:
            raise GuestError(f"could not unpack {deb}")


# ---- kernels ----


@dataclass
class Kernel:
    """A kernel that Debian has: where it comes from, what it was unpacked to."""

    name: str
    suites: tuple[str, ...]
    machine: str = "x86_64"
    append: str = ""  # on its command line
    whole: bool = False  # has all that the newest kernel has
    place: str = field(default="", init=False)

    def fetch(self) -> None:
        """Unpack the newest image of the suites, and a static busybox."""
        apt = Apt(self.suites, self.machine)
        apt.refresh()
        image = re.compile(r"linux-(image|binary|modules)-\d.*")
        wanted = [f"linux-image-{apt.arch}"]
        for package in wanted:  # grows
            found = filter(image.fullmatch, apt.depends(package))
            wanted += [one for one in found if one not in wanted]
        if len(wanted) == 1:
            raise GuestError(f"no kernel in {' '.join(self.suites)}")
        self.place = os.path.join(CACHE, "unpacked", wanted[1].split("-", 2)[2])
        if os.path.exists(self.place):
            return
        busybox = Apt(("bookworm",), self.machine)
        busybox.refresh()
        debs = [*map(apt.download, wanted[1:]), busybox.download("busybox-static")]
        part = f"{self.place}.{os.getpid()}"
        unpack(debs, part)
        for deb in debs:
            os.unlink(deb)
        os.rename(part, self.place)

    def image(self) -> str:
        """The path of the kernel itself."""
        for top in ("boot", "usr/lib/modules"):
            for place, _, names in os.walk(os.path.join(self.place, top)):
                for name in names:
                    if name.startswith("vmlinuz"):
                        return os.path.join(place, name)
        raise GuestError(f"no kernel below {self.place}")

    def modules(self) -> dict[str, str]:
        """The paths of all modules, by name."""
        found = {}
        for place, _, names in os.walk(self.place):
            for name in names:
                stem, dot, end = name.partition(".ko")
                if dot and end in ("", ".xz"):
                    found[stem.replace("-", "_")] = os.path.join(place, name)
        return found


def read_module(path: str) -> bytes:
    """The module itself, uncompressed."""
    with open(path, "rb") as file:
        data = file.read()
    return lzma.decompress(data) if path.endswith(".xz") else data


def in_order(paths: dict[str, str], wanted: Iterable[str]) -> dict[str, bytes]:
    """The wanted modules and what they need, each after what it needs.

    What is no module is built in, or isn't there; the guest will tell.
    """
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in paths:
            return
        data = read_module(paths[name])
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        for one in filter(None, needs[1].decode().split(",") if needs else []):
            add(one.replace("-", "_"))
        ordered[name] = data

    for name in wanted:
        add(name)
    return ordered


# ---- the root of another machine ----


def foreign_root(suite: str, machine: str, packages: Iterable[str]) -> str:
    """Unpack a small Debian for another machine; return where it is.

    Nothing of it is run here, so what its packages would do when they are
    installed is left out, but for the little that the tests need.
    """
    apt = Apt((suite, f"{suite}-security"), machine)
    words = " ".join(sorted(packages))
    key = hashlib.sha256(words.encode()).hexdigest()[:12]
    place = os.path.join(CACHE, "roots", f"{suite}-{apt.arch}-{key}")
    if os.path.exists(place):
        return place
    apt.refresh()
    install = ["install", "--download-only", "--no-install-recommends", "-y"]
    apt.run("apt-get", *install, "?essential", *words.split())
    part = f"{place}.{os.getpid()}"
    for name in ("bin", "sbin", "lib"):
        os.makedirs(f"{part}/usr/{name}")
        os.symlink(f"usr/{name}", f"{part}/{name}")
    debs = f"{apt.place}/cache/archives"
    unpack(sorted(f"{debs}/{x}" for x in os.listdir(debs) if x.endswith(".deb")), part)
    for name in ("passwd", "group"):
        shutil.copy(f"{part}/usr/share/base-passwd/{name}.master", f"{part}/etc/{name}")
    os.symlink("gcc", f"{part}/usr/bin/cc")
    os.rename(part, place)
    apt.run("apt-get", "clean")
    return place


# ---- the initial file system ----

START = "guest: start"
MARK = "guest: exit status"

# What is written in the guest goes into memory, and is gone at the end.
INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox mkdir -p /bin /proc /sys /dev /root
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
exec </dev/console >/dev/console 2>&1
mount -t proc none /proc
echo 1 >/proc/sys/kernel/printk
while read -r module; do
	insmod "/modules/$module.ko" || echo "could not load $module"
done </modules/order
ninep() { # tag, where, options
	options="$3,trans=virtio,version=9p2000.L,msize=512000"
	mount -t 9p -o "$options" "$1" "$2" || poweroff -f
}
share() { # tag, where
	mkdir -p "/lower/$1" "/upper/$1" "$2"
	ninep "$1" "/lower/$1" ro,cache=loose
	mount -t tmpfs -o mode=755 none "/upper/$1"
	mkdir "/upper/$1/over" "/upper/$1/work"
	layers="lowerdir=/lower/$1,upperdir=/upper/$1/over,workdir=/upper/$1/work"
	mount -t overlay -o "$layers" none "$2"
}
. /shares
[ -e /root/etc/hosts ] || echo "127.0.0.1 localhost" >/root/etc/hosts
mount -t proc none /root/proc
mount -t sysfs none /root/sys
mount -t devtmpfs none /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts -o ptmxmode=666 none /root/dev/pts
mount -t tmpfs -o mode=1777 none /root/dev/shm
mount -t tmpfs -o mode=755 none /root/run
ln -sf /proc/self/fd /root/dev/fd
if [ -e /writable ]; then
	mkdir /root/run/out
	ninep out /root/run/out rw,cache=none
fi
ifconfig lo 127.0.0.1 up
# A network, so that there is an address beside loopback; what is sent there is lost.
ifconfig dummy0 198.51.100.1 netmask 255.255.255.0 up
route add default dev dummy0
cp /job /root/run/job
mkdir /root/run/guest
cp -r /bin /stage /root/run/guest
[ -e /terminal ] && touch /root/run/guest/terminal
# Not chroot: a process that is in one may make no user namespace.
exec switch_root -c /dev/console /root /run/guest/bin/busybox sh /run/guest/stage
"""

# What the first process does when the root is there.
STAGE = """export PATH=/run/guest/bin
ulimit -Hn 524288
ulimit -Sn 1024
echo "@START@"
if [ -e /run/guest/terminal ]; then
	setsid cttyhack /bin/sh /run/job
	echo "@MARK@ $?"
else
	# Through a pipe: programs treat a terminal differently.
	mkfifo /run/guest/pipe
	stty -onlcr
	cat </run/guest/pipe &
	exec 9>/run/guest/pipe
	/bin/sh /run/job </dev/null >&9 2>&1 9>&-
	echo "@MARK@ $?" >&9
	sleep 5 # for what is still in the pipe; QEMU is ended before
fi
poweroff -f
""".replace("@START@", START).replace("@MARK@", MARK)

MODULES = (
    *("virtio_pci", "9pnet_virtio", "9p", "overlay"),
    # what the tests look at sockets with
    *("inet_diag", "tcp_diag", "udp_diag", "mptcp_diag", "unix_diag", "vsock_diag"),
    *("vsock", "vsock_loopback", "smc", "dummy"),
)


DIRECTORY, PROGRAM, TEXT, DEVICE = 0o040755, 0o100755, 0o100644, 0o020600


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive ("newc"): the mode and the content of each file.

    Written here since a device needs no root in a file of ours.
    """
    out = bytearray()
    for number, (name, (mode, data)) in enumerate(
        [*files.items(), ("TRAILER!!!", (0, b""))]
    ):
        path = name.encode() + b"\0"
        device = (5, 1) if mode == DEVICE else (0, 0)  # the console
        head = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        out += b"070701" + b"".join(b"%08x" % one for one in head) + path
        out += bytes(-len(out) % 4)
        out += data + bytes(-len(data) % 4)
    return bytes(out)


@dataclass
class Job:
    """What is to be done in a guest."""

    script: str  # for /bin/sh
    shares: dict[str, str]  # directories of the guest, and what of the host they show
    out: str | None = None  # of the host, to write to at /run/out
    terminal: bool = False  # whether the script talks to the user
    timeout: float | None = None


def initramfs(kernel: Kernel, job: Job) -> bytes:
    """What the kernel starts with: busybox, modules, and what to do."""
    modules = in_order(kernel.modules(), MODULES)
    with open(f"{kernel.place}/bin/busybox", "rb") as file:
        busybox = file.read()
    shares = (
        f"share tree{i} {shlex.quote('/root' + where)}\n"
        for i, where in enumerate(job.shares)
    )
    files = {
        "bin": (DIRECTORY, b""),
        "dev": (DIRECTORY, b""),
        "dev/console": (DEVICE, b""),
        "modules": (DIRECTORY, b""),
        "bin/busybox": (PROGRAM, busybox),
        "init": (PROGRAM, INIT.encode()),
        "stage": (PROGRAM, STAGE.encode()),
        "shares": (TEXT, "".join(shares).encode()),
        "job": (TEXT, job.script.encode()),
        "modules/order": (TEXT, "".join(f"{one}\n" for one in modules).encode()),
    }
    if job.out:
        files["writable"] = (TEXT, b"")
    if job.terminal:
        files["terminal"] = (TEXT, b"")
    for name, data in modules.items():
        files[f"modules/{name}.ko"] = (TEXT, data)
    return archive(files)


# ---- QEMU ----

QEMU = {
    "x86_64": ("qemu-system-x86_64", "-M", "q35", "-cpu", "max"),
    "aarch64": ("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57"),
}
CONSOLE = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}
BOOTS = 3  # of a guest whose kernel ends before the job has started


def command_line(kernel: Kernel, start: str, job: Job) -> list[str]:
    """The command that boots a kernel."""
    append = f"console={CONSOLE[kernel.machine]} quiet panic=-1 {kernel.append}"
    command = [
        *QEMU[kernel.machine],
        *("-accel", "tcg,thread=multi", "-smp", "2", "-m", "2048"),
        *("-nographic", "-no-reboot", "-nodefaults"),
        *("-serial", "mon:stdio" if job.terminal else "stdio"),
        *("-kernel", kernel.image(), "-initrd", start, "-append", append.strip()),
    ]
    shown = {f"tree{i}": path for i, path in enumerate(job.shares.values())}
    if job.out:
        shown["out"] = job.out
    for tag, path in shown.items():
        options = {
            "id": tag,
            "path": path.replace(",", ",,"),  # QEMU's way to quote it
            "security_model": "none",
            "readonly": "off" if tag == "out" else "on",
            "multidevs": "remap",
        }
        words = ",".join(f"{key}={value}" for key, value in options.items())
        command += ["-fsdev", f"local,{words}"]
        command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return command


def run(kernel: Kernel, job: Job, show: Callable[[str], object] = print) -> int:
    """Boot a kernel, do a job there, and return its exit status.

    Each line that the job prints is shown at once.
    """
    os.makedirs(CACHE, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=CACHE, prefix="start.") as start:
        start.write(initramfs(kernel, job))
        start.flush()
        command = command_line(kernel, start.name, job)
        if job.terminal:
            return subprocess.run(command).returncode
        for _ in range(BOOTS - 1):
            try:
                return follow(command, job.timeout, show)
            except NotStarted as error:
                print(f"{kernel.name}: {error}\nonce more", file=sys.stderr)
        return follow(command, job.timeout, show)


def follow(
    command: list[str], timeout: float | None, show: Callable[[str], object]
) -> int:
    """Run QEMU; show the job's lines, and return its exit status."""
    early: list[str] = []
    started = False
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        timer = threading.Timer(timeout or threading.TIMEOUT_MAX, process.kill)
        timer.daemon = True
        timer.start()
        try:
            for line in map(str.rstrip, process.stdout):
                if line.startswith(MARK):
                    return int(line.rpartition(" ")[2])
                if started:
                    show(line)
                elif line.endswith(START):
                    started = True
                    early.clear()
                else:
                    early.append(line)  # the firmware's, and complaints
        finally:
            late = not timer.is_alive()
            timer.cancel()
            process.kill()
    if late:
        raise GuestError(f"not done in {timeout:.0f} seconds")
    kind = GuestError if started else NotStarted
    raise kind("\n".join(["the guest ended early", *early[-20:]]))

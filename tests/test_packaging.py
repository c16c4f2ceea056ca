"""What is shipped: sdist, wheel, version, and what an import costs."""

from __future__ import annotations

import email
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import python

import portseccomp

ROOT = Path(__file__).parent.parent
MADE = ("build", "dist", ".*", "*.so", "*.egg-info", "__pycache__", "*.o", "_core.c")


# What stands beside the sources of people who work on them.
MADE_EXAMPLES = (
    "build/c/libportseccomp.a",
    "csrc/rules.o",
    "portseccomp/_core.so",
    "tests/.pytest_cache/v/cache/lastfailed",
    "tests/__pycache__/conftest.cpython-311.pyc",
    ".hypothesis/examples/1/2",
)


def source_files(*folders: str) -> set[str]:
    """The files below folders that people write, relative to the root."""
    ignore = shutil.ignore_patterns(*MADE)
    found = set()
    for folder in folders:
        for place, directories, names in os.walk(ROOT / folder):
            left_out = ignore(place, [*directories, *names])
            directories[:] = [one for one in directories if one not in left_out]
            path = Path(place).relative_to(ROOT)
            found |= {str(path / one) for one in names if one not in left_out}
    return found


def need_distribution(name: str, least: int) -> None:
    """Skip where a package that builds ours is missing, or too old."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < least:
        pytest.skip(f"needs {name}: pip install '{name}>={least}'")


def build(kind: str, source: Path, place: Path) -> Path:
    """Build an sdist or a wheel with what is installed; return its path."""
    for name, least in (("build", 1), ("setuptools", 77), ("Cython", 3)):
        need_distribution(name, least)
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}"]
    done = subprocess.run(
        [*command, "--outdir", str(place), str(source)],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    [built] = place.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the sources, without anything that was built."""
    place = tmp_path_factory.mktemp("tree") / "portseccomp"
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(*MADE))
    return place


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory) -> Path:
    """The sdist, built where caches and old objects lie about."""
    for name in MADE_EXAMPLES:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    return build("sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def sdist_files(sdist) -> set[str]:
    """The files of the sdist, without the folder that all are in."""
    with tarfile.open(sdist) as archive:
        names = [one.name for one in archive if one.isfile()]
    assert {one.split("/")[0] for one in names} == {
        f"portseccomp-{portseccomp.__version__}"
    }
    return {one.partition("/")[2] for one in names}


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    """The wheel, built from the sources."""
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_files(wheel) -> set[str]:
    """The files of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata_of(text: bytes) -> email.message.Message:
    return email.message_from_bytes(text)


# ---- sdist ----


def test_sdist_has_what_describes_it(sdist_files):
    """The sdist has its licence, its readme, and how it is built."""
    wanted = {"LICENSE", "README.md", "pyproject.toml", "setup.py", "PKG-INFO"}
    assert wanted - sdist_files == set()


def test_sdist_has_all_of_the_core(sdist_files):
    """The sdist has every C source and every header."""
    wanted = {one for one in source_files("csrc") if one.endswith((".c", ".h"))}
    assert len(wanted) > 20
    assert wanted - sdist_files == set()


@pytest.mark.parametrize("ending", [".py", ".pyi", ".pxd", "py.typed", ".pyx"])
def test_sdist_has_all_of_the_package(sdist_files, ending):
    """The sdist has every file of the package."""
    wanted = {one for one in source_files("portseccomp") if one.endswith(ending)}
    assert wanted
    assert wanted - sdist_files == set()


def test_sdist_can_be_tested(sdist_files):
    """The sdist has the tests with all that they need, and what they look at."""
    folders = ("tests", "examples", "benchmarks", "scripts", "csrc")
    wanted = {*source_files(*folders), "Makefile", "CHANGELOG.md", "MANIFEST.in"}
    for name in ("conftest.py", "servers/main.go", "victims/listen.c"):
        assert f"tests/{name}" in wanted
    assert any(one.startswith("tests/c/") for one in wanted)
    assert "csrc/Makefile" in wanted
    assert wanted - sdist_files == set()


def test_sdist_has_nothing_built(sdist_files):
    """Nothing that is made, or that is private to a machine, is in the sdist."""
    known = source_files(".") | {"PKG-INFO", "setup.cfg"}
    extra = {
        one
        for one in sdist_files - known
        if not one.startswith("portseccomp.egg-info/")
    }
    assert extra == set()


@pytest.mark.slow
def test_sdist_builds(sdist, wheel_files, tmp_path):
    """The sdist alone builds the same wheel as the sources do."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    place = tmp_path / "wheel"
    place.mkdir()
    with zipfile.ZipFile(build("wheel", source, place)) as archive:
        assert set(archive.namelist()) == wheel_files


# ---- wheel ----


def test_wheel_has_the_package_and_no_more(wheel_files):
    """The wheel has modules, extension, stubs and marker; no sources, no tests."""
    endings = (".py", ".pyi", "py.typed")
    wanted = {one for one in source_files("portseccomp") if one.endswith(endings)}
    assert {"portseccomp/py.typed", "portseccomp/_core.pyi"} <= wanted
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    found = {one for one in wheel_files if ".dist-info/" not in one}
    extensions = {one for one in found if one.endswith(".so")}
    assert extensions in ({f"portseccomp/_core{suffix}"}, {"portseccomp/_core.abi3.so"})
    assert found - extensions == wanted


def test_wheel_metadata(wheel):
    """The wheel's metadata has the version, the licence, and no requirement."""
    with zipfile.ZipFile(wheel) as archive:
        info = f"portseccomp-{portseccomp.__version__}.dist-info"
        metadata = metadata_of(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        licence = archive.read(f"{info}/licenses/LICENSE")
    assert metadata["Version"] == portseccomp.__version__
    assert metadata["License-Expression"] == "MIT"
    assert licence == (ROOT / "LICENSE").read_bytes()
    needed = metadata.get_all("Requires-Dist") or []
    assert [one for one in needed if "extra ==" not in one] == []
    assert "portseccomp = portseccomp.cli:main" in entry_points


LISTEN = """
import portseccomp, socket, sys
assert portseccomp.__file__.startswith(sys.argv[1]), portseccomp.__file__
def listen():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
with portseccomp.Guard("deny any with EADDRINUSE") as guard:
    try:
        guard.call(listen)
    except OSError as error:
        print(error.errno)
"""


def test_wheel_works(wheel, tmp_path):
    """What is in the wheel guards, without the sources beside it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(
        python(LISTEN, str(tmp_path)),
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("98\n", "")  # EADDRINUSE


# ---- version ----


def test_version_is_in_one_place(sdist):
    """Only _version.py has the version; everything else takes it from there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]
    files = {*source_files("portseccomp", "csrc"), "setup.py", "pyproject.toml"}
    having = {
        one
        for one in files
        if f'"{portseccomp.__version__}"' in (ROOT / one).read_text()
    }
    assert having == {"portseccomp/_version.py"}
    with tarfile.open(sdist) as archive:
        name = sdist.name.removesuffix(".tar.gz")
        metadata = metadata_of(archive.extractfile(f"{name}/PKG-INFO").read())
    assert metadata["Version"] == portseccomp.__version__


def test_command_prints_the_version():
    """`portseccomp --version` says the same version."""
    done = subprocess.run(
        [sys.executable, "-m", "portseccomp", "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert portseccomp.__version__ in done.stdout.split()


# ---- import ----

HEAVY = {
    "argparse",
    "asyncio",
    "concurrent.futures",
    "dataclasses",
    "difflib",
    "email",
    "inspect",
    "ipaddress",
    "json",
    "logging",
    "multiprocessing",
    "pathlib",
    "subprocess",
    "tempfile",
    "tomllib",
    "typing_extensions",
}


def imported_by(code: str) -> set[str]:
    """What a fresh interpreter imports for some code, beyond what it starts with."""
    source = "import sys; old = set(sys.modules); exec(sys.argv[1]); "
    source += "print(*sorted(set(sys.modules) - old))"
    done = subprocess.run(
        python(source, code), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_is_light():
    """`import portseccomp` imports its own version and nothing else."""
    assert imported_by("import portseccomp") == {
        "portseccomp",
        "portseccomp._version",
    }


@pytest.mark.parametrize("name", portseccomp.__all__)
def test_first_use_is_light(name):
    """The first use of a name imports nothing that only some programs need."""
    found = imported_by(f"import portseccomp; portseccomp.{name}")
    assert found & HEAVY == set()


@pytest.mark.parametrize(
    "rule",
    [
        "allow loopback:8000-8999",
        "allow tcp:loopback:80",
        "deny ipv6:tcp:wildcard:80 with EPERM",
        "allow ipv4:tcp:10.0.0.0/8:80-90",
        "move tcp:127.0.0.1:80 -> 127.0.0.1:90",
        "allow vsock:80",
    ],
)
def test_policy_without_ipv6_is_light(rule):
    """Only an IPv6 address costs the import of a module for addresses."""
    code = f"import portseccomp; portseccomp.Policy({rule!r}).explain('tcp:1.2.3.4:5')"
    assert imported_by(code) & HEAVY == set()


def test_every_name_is_there():
    """Each name in __all__ exists; another one is an AttributeError."""
    for name in portseccomp.__all__:
        assert getattr(portseccomp, name) is not None
        assert name in dir(portseccomp)
    with pytest.raises(AttributeError, match="no_such_name"):
        portseccomp.no_such_name  # noqa: B018


def test_import_star():
    """`from portseccomp import *` gives exactly the public names."""
    code = "import json; space = {}; exec('from portseccomp import *', space); "
    code += "del space['__builtins__']; print(json.dumps(sorted(space)))"
    done = subprocess.run(
        python(code), capture_output=True, text=True, timeout=30, check=True
    )
    assert json.loads(done.stdout) == sorted(portseccomp.__all__)

"""The command line: `portseccomp run`, `watch`, `explain`, `probe`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

FAILED = 125  # anything that is portseccomp's own failure, usage included


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    from portseccomp.cli.options import UsageError, parse
    from portseccomp.errors import PortseccompError

    _open_standard_streams()
    try:
        command = parse(list(sys.argv[1:] if argv is None else argv))
        return command()
    except (UsageError, PortseccompError) as error:
        return fail(str(error))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return fail(f"{name}{error.strerror or error}")
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return fail(f"internal error: {type(error).__name__}: {error}")


def _open_standard_streams() -> None:
    """Give closed standard streams a place, or what we open would take theirs."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "r" if fd == 0 else "w"
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115


def fail(why: str) -> int:
    """Print one line on stderr; return the status of our own failures."""
    from portseccomp._process import printable

    print(f"portseccomp: {printable(why)}", file=sys.stderr)
    return FAILED

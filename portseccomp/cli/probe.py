"""`portseccomp probe`."""

from __future__ import annotations

import sys

from portseccomp._process import printable
from portseccomp.cli.display import wants_colour
from portseccomp.features import probe

_UNUSABLE = 1


def show_probe() -> int:
    """Print what works here; return 0 where a guard can be used, else 1."""
    found = probe()
    colour = wants_colour(sys.stdout)
    print(f"Linux {found.kernel}, {found.machine}")
    for one in found.features:
        word = "yes" if one.available else "no"
        if colour:
            word = f"\033[{'32' if one.available else '31'}m{word}\033[0m"
            width = 3 + 9
        else:
            width = 3
        print(f"  {word:<{width}}  {one.name:<27} {printable(one.detail)}")
        if not one.available:
            print(f"       without it: {one.without}")
    print("a guard works here" if found.usable else "no guard can work here")
    return 0 if found.usable else _UNUSABLE

"""`python -m portseccomp` is the command `portseccomp`."""

import sys

from portseccomp.cli import main

sys.exit(main())

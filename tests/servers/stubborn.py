"""stubborn.py HOST PORT: goes on when it may not listen, as named does.

Says how `listen` ended, and keeps its socket until its standard input closes.
"""

import errno
import socket
import sys

with socket.socket() as one:
    one.bind((sys.argv[1], int(sys.argv[2])))
    try:
        one.listen()
        print("listens", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
    sys.stdin.read()

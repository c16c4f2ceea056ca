"""prefork.py parent|children HOST PORT: three processes share one socket.

`parent` listens before it forks, as gunicorn does; with `children` each child
listens on the socket that it inherited, as uvicorn's workers do. Each child
answers one connection with its process id, and ends.
"""

import multiprocessing
import os
import socket
import sys

CHILDREN = 3


def serve(shared, listens):
    if listens:
        shared.listen()
    connection, _ = shared.accept()
    with connection:
        connection.sendall(str(os.getpid()).encode())


who, host, port = sys.argv[1:]
with socket.socket() as shared:
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.bind((host, int(port)))
    if who == "parent":
        shared.listen()
    start = multiprocessing.get_context("fork").Process
    children = []
    for _ in range(CHILDREN):
        children.append(start(target=serve, args=(shared, who == "children")))
        children[-1].start()
    for child in children:
        child.join()
sys.exit(any(child.exitcode for child in children))

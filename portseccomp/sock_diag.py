"""Open sockets of our own network namespace, asked of sock_diag(7).

/proc/net/tcp goes through every connection of the machine, which takes
milliseconds on a large one; the kernel can be asked for listening sockets only.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_TCP_LISTEN, _TCP_CLOSE = 10, 7  # a UDP socket that is not connected is closed
_TCP_ESTABLISHED = 1

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST = struct.Struct("=BBBxI48x")  # inet_diag_req_v2
_INODE = struct.Struct("=68xI")  # inet_diag_msg, up to idiag_inode

_PROTOCOLS = {
    "tcp": (socket.IPPROTO_TCP, 1 << _TCP_LISTEN),
    "udp": (socket.IPPROTO_UDP, 1 << _TCP_CLOSE | 1 << _TCP_ESTABLISHED),
}


def _answers(netlink: socket.socket) -> Iterator[bytes]:
    while True:
        data = netlink.recv(1 << 16)
        while len(data) >= _HEADER.size:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR or length < _HEADER.size:
                raise OSError("sock_diag refused")
            yield data[_HEADER.size : length]
            data = data[(length + 3) & ~3 :]


def open_inodes(protocol: str) -> set[int]:
    """Return the inodes of sockets of "tcp" that listen, or of all of "udp".

    Raises OSError where the kernel has no sock_diag for them.
    """
    number, states = _PROTOCOLS[protocol]
    found = set()
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, number, 0, states)
            length = _HEADER.size + len(request)
            header = (length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0)
            netlink.send(_HEADER.pack(*header) + request)
            for answer in _answers(netlink):
                found.add(_INODE.unpack_from(answer)[0])
    return found

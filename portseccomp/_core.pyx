# SPDX-License-Identifier: MIT
# The one module that knows both worlds. Python objects own what the C core
# needs, each blocking call releases the GIL exactly once, and Python is never
# called from C: the supervisor comes back when the hook must decide.
"""The C core of portseccomp. Private: use the modules above it."""

from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.errno cimport EINTR, EACCES
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from portseccomp.core cimport *

import os as _os

from portseccomp import _process
from portseccomp.verdict import ALLOW as _ALLOW, DENY as _DENY

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int af, const void *src, char *dst, unsigned int size)

cdef enum:
    AF_INET = 2
    AF_INET6 = 10

# Codes of the table; policy.py builds rules with them.
VERDICT_ALLOW = <int>PSC_VERDICT_ALLOW
VERDICT_MOVE = <int>PSC_VERDICT_MOVE
VERDICT_ASK = <int>PSC_VERDICT_ASK
VERDICT_DENY = <int>PSC_VERDICT_DENY
FAMILY_ANY = <int>PSC_FAMILY_ANY
FAMILY_IPV4 = <int>PSC_FAMILY_IPV4
FAMILY_IPV6 = <int>PSC_FAMILY_IPV6
FAMILY_UNIX = <int>PSC_FAMILY_UNIX
FAMILY_VSOCK = <int>PSC_FAMILY_VSOCK
FAMILY_OTHER = <int>PSC_FAMILY_OTHER
ADDRESS_ANY = <int>PSC_ADDRESS_ANY
ADDRESS_PREFIX = <int>PSC_ADDRESS_PREFIX
ADDRESS_LOOPBACK = <int>PSC_ADDRESS_LOOPBACK
ADDRESS_WILDCARD = <int>PSC_ADDRESS_WILDCARD
PORTS_ANY = <int>PSC_PORTS_ANY
PORTS_RANGE = <int>PSC_PORTS_RANGE
PORTS_EPHEMERAL = <int>PSC_PORTS_EPHEMERAL
MOVE_HOST_KEEP = <int>PSC_MOVE_HOST_KEEP
MOVE_HOST_IPV4 = <int>PSC_MOVE_HOST_IPV4
MOVE_HOST_IPV6 = <int>PSC_MOVE_HOST_IPV6
MOVE_HOST_LOOPBACK = <int>PSC_MOVE_HOST_LOOPBACK
PROTOCOL_ANY = <int>PSC_PROTOCOL_ANY
PROTOCOL_TCP = <int>PSC_PROTOCOL_TCP
PROTOCOL_UDP = <int>PSC_PROTOCOL_UDP
RULE_DEFAULT = <int>PSC_RULE_DEFAULT
RULE_HOOK = <int>PSC_RULE_HOOK
RULE_FAILURE = <int>PSC_RULE_FAILURE
WAIT_KILLABLE = <int>PSC_LISTENER_WAIT_KILLABLE
SYNC_WAKE_UP = <int>PSC_LISTENER_SYNC_WAKE_UP
INSTALL_BUILD = <int>PSC_INSTALL_BUILD
INSTALL_SIZES = <int>PSC_INSTALL_SIZES
INSTALL_NO_NEW_PRIVS = <int>PSC_INSTALL_NO_NEW_PRIVS
INSTALL_SECCOMP = <int>PSC_INSTALL_SECCOMP
INSTALL_SERVE = <int>PSC_INSTALL_SERVE


class InstallError(OSError):
    """The filter could not be put on the thread; `stage` says where."""

    stage: int


def same_files(int first, int second):
    """Whether two threads share a descriptor table; raises OSError."""
    cdef int result = psc_callers_same_files(first, second)
    if result < 0:
        raise OSError(-result, _os.strerror(-result))
    return result == 0


def confine_version():
    """Return the kernel's Landlock ABI; raises OSError where there is none."""
    cdef int version = psc_confine_version()
    if version < 0:
        raise OSError(-version, _os.strerror(-version))
    return version


def confine_thread():
    """Put the calling thread, and all that it starts, into a Landlock domain."""
    cdef int result = psc_confine_thread()
    if result < 0:
        raise OSError(-result, _os.strerror(-result))


cdef object host_of(const psc_endpoint *endpoint):
    cdef char text[64]
    cdef uint32_t cid
    if endpoint.family == PSC_FAMILY_IPV4:
        inet_ntop(AF_INET, endpoint.address, text, 64)
        return text.decode("ascii")
    if endpoint.family == PSC_FAMILY_IPV6:
        inet_ntop(AF_INET6, endpoint.address, text, 64)
        if endpoint.scope:
            return f"{text.decode('ascii')}%{endpoint.scope}"
        return text.decode("ascii")
    if endpoint.family == PSC_FAMILY_UNIX:
        path = endpoint.path[:endpoint.path_length]
        if path.startswith(b"\0"):
            path = b"@" + path[1:]
        return _os.fsdecode(path)
    if endpoint.family == PSC_FAMILY_VSOCK:
        memcpy(&cid, endpoint.address, 4)
        return str(cid)
    return None


cdef object port_of(const psc_endpoint *endpoint):
    if endpoint.family in (PSC_FAMILY_IPV4, PSC_FAMILY_IPV6, PSC_FAMILY_VSOCK):
        return endpoint.port
    return None


cdef void fill_endpoint(psc_endpoint *endpoint, tuple fields) except *:
    # (family, protocol number, packed address, port, dual stack)
    family, protocol, address, port, dual_stack = fields
    memset(endpoint, 0, sizeof(psc_endpoint))
    endpoint.family = family
    endpoint.protocol = protocol
    endpoint.port = port
    endpoint.dual_stack = dual_stack
    cdef bytes packed = address
    if len(packed) > 16:
        raise ValueError("an address has at most 16 bytes")
    memcpy(endpoint.address, <const char *>packed, len(packed))


cdef void fill_target(psc_target *target, tuple fields) except *:
    # (how the host moves, packed address, port or None)
    host, address, port = fields
    memset(target, 0, sizeof(psc_target))
    target.host = host
    target.has_port = port is not None
    target.port = port or 0
    cdef bytes packed = address
    if len(packed) > 16:
        raise ValueError("an address has at most 16 bytes")
    memcpy(target.address, <const char *>packed, len(packed))


cdef class Table:
    """A policy's rules as the core matches them; immutable."""

    cdef psc_policy policy
    cdef psc_rule *rules

    def __cinit__(
        self, rules, int default, int error, bint unix_continue=False,
        bint quiet_binds=False,
    ):
        # A rule: (verdict, family, protocol, match_address, packed address,
        # prefix length, match_ports, first port, last port, errno, target)
        cdef psc_rule *rule
        cdef bytes packed
        cdef size_t count = len(rules)
        self.rules = <psc_rule *>PyMem_RawCalloc(count or 1, sizeof(psc_rule))
        if self.rules == NULL:
            raise MemoryError()
        for i, fields in enumerate(rules):
            rule = &self.rules[i]
            rule.verdict = fields[0]
            rule.family = fields[1]
            rule.match_protocol = fields[2]
            rule.match_address = fields[3]
            packed = fields[4]
            if len(packed) > 16 or not 0 <= fields[5] <= 8 * len(packed):
                raise ValueError("wrong address or prefix length")
            memcpy(rule.address, <const char *>packed, len(packed))
            rule.prefix_length = fields[5]
            rule.match_ports = fields[6]
            rule.port_first = fields[7]
            rule.port_last = fields[8]
            rule.error = fields[9]
            if fields[10] is not None:
                fill_target(&rule.target, fields[10])
        self.policy.rules = self.rules
        self.policy.count = count
        self.policy.default_verdict = <psc_verdict>default
        self.policy.error = error
        self.policy.unix_continue = unix_continue
        self.policy.quiet_binds = quiet_binds

    def __dealloc__(self):
        PyMem_RawFree(self.rules)

    @property
    def can_deny(self):
        """Whether a call can ever be denied, asked about or moved."""
        return bool(psc_rules_can_deny(&self.policy))

    def decide(self, tuple endpoint):
        """Judge an endpoint; return (verdict, errno, index of the rule)."""
        cdef psc_endpoint place
        fill_endpoint(&place, endpoint)
        cdef psc_decision decision = psc_rules_decide(&self.policy, &place)
        return <int>decision.verdict, decision.error, decision.rule

    def matches(self, int index, tuple endpoint):
        """Tell whether one rule selects an endpoint, on either of its stacks."""
        cdef psc_endpoint place
        if not 0 <= index < <int>self.policy.count:
            raise IndexError(index)
        fill_endpoint(&place, endpoint)
        if psc_rules_match(&self.rules[index], &place):
            return True
        if not place.dual_stack:
            return False
        place.family = PSC_FAMILY_IPV4
        return bool(psc_rules_match(&self.rules[index], &place))


cdef class Request:
    """One call that the hook decides. The caller waits for as long.

    `call` ("listen" or "bind"), `pid`, `tid` and `comm` name the call and its
    caller; `family`, `protocol`, `host`, `port` (0: ephemeral) and `backlog`
    what it asks for. The other attributes are read from /proc when they are
    asked for, and raise ProcessLookupError once the caller waits no more.
    """

    cdef psc_event event
    cdef uint64_t ticket
    cdef Supervisor supervisor

    @property
    def call(self):
        return "listen" if self.event.call == 1 else "bind"

    @property
    def pid(self):
        return self.event.pid

    @property
    def tid(self):
        return self.event.tid

    @property
    def family(self):
        return _process.family_name(self.event.requested.family, self.event.requested.af)

    @property
    def protocol(self):
        return _process.protocol_name(
            self.event.requested.af,
            self.event.requested.protocol,
            self.event.requested.type,
        )

    @property
    def host(self):
        return host_of(&self.event.requested)

    @property
    def port(self):
        return port_of(&self.event.requested)

    @property
    def backlog(self):
        return self.event.backlog if self.event.call == 1 else None

    @property
    def comm(self):
        return _os.fsdecode(<bytes>self.event.comm)

    def _read(self, reader):
        error = None
        try:
            value = reader(self.event.tid)
        except OSError as caught:
            error = caught
        # Only what was read while the caller still waited is about the caller.
        if not psc_supervisor_waits(self.supervisor.core, self.ticket):
            raise ProcessLookupError("the caller of this request waits no more")
        if error is not None:
            raise error
        return value

    @property
    def exe(self):
        return self._read(_process.exe)

    @property
    def cmdline(self):
        return self._read(_process.cmdline)

    @property
    def cwd(self):
        return self._read(_process.cwd)

    @property
    def uid(self):
        return self._read(_process.uid)

    @property
    def gid(self):
        return self._read(_process.gid)

    @property
    def cgroup(self):
        return self._read(_process.cgroup)

    def __repr__(self):
        return (
            f"<Request {self.call} {self.family}:{self.protocol} "
            f"{_process.printable(str(self.host))} port {self.port} "
            f"by {_process.printable(self.comm)}[{self.pid}]>"
        )

    def _decide(self, int verdict, int error, target=None):
        """Answer, from any thread; False: somebody else has answered."""
        cdef int result
        cdef psc_target place
        if target is not None:
            fill_target(&place, target)
        with nogil:
            result = psc_supervisor_decide(
                self.supervisor.core, self.ticket, <psc_verdict>verdict, error,
                &place)
        return result == 0


cdef class Supervisor:
    """The core's supervisor; threads of Python run it (supervisor.py)."""

    cdef psc_supervisor *core
    cdef list tables
    cdef bint ready
    cdef uint64_t in_hand  # events that are being delivered
    cdef uint64_t lost  # events that were taken from the ring in vain

    def __cinit__(self, *, uint64_t capacity, double hook_timeout, int max_hooks):
        self.tables = []
        self.core = <psc_supervisor *>PyMem_RawCalloc(1, sizeof(psc_supervisor))
        if self.core == NULL:
            raise MemoryError()
        cdef int result = psc_supervisor_init(
            self.core, capacity, <int64_t>(hook_timeout * 1e9), max_hooks)
        if result < 0:
            raise OSError(-result, _os.strerror(-result))
        self.ready = True

    def __dealloc__(self):
        # Workers and requests hold references: nobody is inside any more.
        if self.core != NULL:
            if self.ready:
                psc_supervisor_free(self.core)
            PyMem_RawFree(self.core)

    def install(
        self, Table table not None, *, bint listen, bint bind, bint no_io_uring,
        bint no_listener, bint no_prlimit, unsigned int wanted,
    ):
        """Put the filter on the calling thread, for good, and serve its listener.

        Return the features that the kernel gave; raises InstallError.
        """
        cdef psc_filter_need need
        cdef unsigned int features = 0
        cdef psc_install_stage stage = PSC_INSTALL_BUILD
        cdef int result
        need.listen = listen
        need.bind = bind
        need.no_io_uring = no_io_uring
        need.no_listener = no_listener
        need.no_prlimit = no_prlimit
        if table not in self.tables:
            self.tables.append(table)
        with nogil:
            result = psc_supervisor_install(
                self.core, &need, wanted, &table.policy, &features, &stage)
        if result < 0:
            error = InstallError(-result, _os.strerror(-result))
            error.stage = <int>stage
            raise error
        return features

    def unknown_sockets(self, descriptors):
        """Those that may be sockets whose place trust_socket() can learn."""
        return [
            fd for fd in descriptors if psc_supervisor_wants_trust(self.core, fd)]

    def trust_socket(self, int fd):
        """Take a bound socket's name at its word; may wait for its lock."""
        with nogil:
            psc_supervisor_trust(self.core, fd)

    def run(self, hook, owner):
        """Lead or stand by until the supervisor stops.

        `hook` decides requests. `owner` is told what this loop can't settle:
        `want_standby()`, `settle(request, answer)` and `hook_raised(request,
        error)`. False: the thread was one too many.
        """
        cdef psc_worker *worker
        cdef uint64_t ticket = 0
        cdef int result
        cdef Request request
        worker = <psc_worker *>PyMem_RawCalloc(1, sizeof(psc_worker))
        if worker == NULL:
            raise MemoryError()
        psc_worker_init(self.core, worker)
        try:
            while True:
                with nogil:
                    result = psc_supervisor_run(self.core, worker, &ticket)
                if result < 0:
                    raise OSError(-result, _os.strerror(-result))
                if result != PSC_RUN_ASK:
                    return result == PSC_RUN_STOPPED
                request = Request.__new__(Request)
                request.event = worker.request.event
                request.ticket = ticket
                request.supervisor = self
                self.ask(request, hook, owner)
                request = None
        finally:
            psc_worker_close(self.core, worker)
            PyMem_RawFree(worker)

    cdef void ask(self, Request request, hook, owner) except *:
        cdef psc_verdict verdict
        try:
            if self.core.standbys == 0:
                owner.want_standby()
            answer = hook(request)
        except BaseException as error:
            owner.hook_raised(request, error)
            return
        if answer is _ALLOW or answer is True:
            verdict = PSC_VERDICT_ALLOW
        elif answer is _DENY or answer is False:
            verdict = PSC_VERDICT_DENY
        else:
            owner.settle(request, answer)
            return
        with nogil:
            psc_supervisor_decide(self.core, request.ticket, verdict, 0, NULL)

    def deliver_events(self, int most, deliver, log):
        """Hand up to `most` finished requests to `deliver`; False: there were none.

        `deliver(events)` gets tuples for events.py, and adds them to `log`. Those
        that `log.end` does not count afterwards are lost.
        """
        cdef psc_event event
        cdef uint64_t taken = 0
        cdef list events = []
        while taken < <uint64_t>most and psc_event_ring_pop(
            &self.core.books.ring, &event
        ):
            taken += 1
            try:
                events.append(self.event_fields(&event))
            except MemoryError:
                break
        if taken == 0:
            return False
        self.in_hand += taken
        try:
            deliver(events)
        finally:
            self.in_hand -= taken
            self.count_lost(log)
        return True

    cdef void count_lost(self, log) except *:
        # From scratch, and by what needs no memory: it may have ended anywhere.
        if self.in_hand == 0:  # on_event may ask for more events
            self.lost = self.core.books.ring.tail - <uint64_t>log.end

    def close_events(self):
        """Take no more events: those that come are counted as lost."""
        psc_event_ring_close(&self.core.books.ring)

    def lose_events(self, log):
        """Count all events that are not in `log` by now as lost."""
        cdef psc_event event
        while psc_event_ring_pop(&self.core.books.ring, &event):
            pass
        self.count_lost(log)

    @property
    def drained(self):
        """Whether all events have been delivered, or are lost."""
        return self.in_hand == 0 and psc_event_ring_count(&self.core.books.ring) == 0

    cdef tuple event_fields(self, const psc_event *event):
        return (
            event.time_ns, event.call, event.pid, event.tid,
            <bytes>event.comm, event.known,
            event.requested.family, event.requested.af,
            event.requested.protocol, event.requested.type,
            event.requested.dual_stack,
            host_of(&event.requested) if event.known else None,
            port_of(&event.requested) if event.known else None,
            event.open,
            host_of(&event.actual) if event.open else None,
            port_of(&event.actual) if event.open else None,
            event.backlog, event.outcome, event.error, event.first,
            event.rule, event.latency_ns, event.inode,
            event.failure, event.failure_error,
        )

    def wait_events(self, double timeout):
        """Sleep until the bell rings, or `timeout` seconds (negative: ever)."""
        cdef int64_t limit = -1 if timeout < 0 else <int64_t>(timeout * 1e9)
        with nogil:
            psc_bell_wait(&self.core.event_bell, limit)

    def ring(self):
        """Wake who sleeps in wait_events."""
        psc_bell_ring(&self.core.event_bell)

    def set_threshold(self, uint64_t events):
        """Ring for events only when there are this many."""
        self.core.bell_threshold = events

    @property
    def standbys(self):
        """Threads that could take the lead."""
        return self.core.standbys

    @property
    def wants_thread(self):
        """Whether nobody stands by, or a request waits for a thread."""
        return self.core.standbys == 0 or (
            self.core.asks.queued > 0 and self.core.hooks < self.core.max_hooks)

    @property
    def live(self):
        """Listeners that can still send requests."""
        return self.core.live

    @property
    def popped(self):
        """How many events deliver_events() has taken."""
        return self.core.books.ring.tail

    @property
    def pushed(self):
        """How many events the ring has taken, without those that found no room."""
        return psc_event_ring_pushed(&self.core.books.ring)

    def stop(self):
        """Make every thread come back."""
        with nogil:
            psc_supervisor_stop(self.core)

    def close(self):
        """Close every listener: calls fail with ENOSYS from now on."""
        with nogil:
            psc_supervisor_close(self.core)

    def stats(self):
        """Return the counters by name, and the latency histogram.

        The histogram is a list of (end of the bucket in ns, count).
        """
        cdef psc_stats *stats = &self.core.books.stats
        counters = {
            "requests": stats.requests,
            "allowed": stats.allowed,
            "denied": stats.denied,
            "moved": stats.moved,
            "continued": stats.continued,
            "vanished": stats.vanished,
            "asked": stats.asked,
            "failed": stats.failed,
            "hook_timeouts": stats.late,
            "takeovers": stats.takeovers,
            "events_lost": self.core.books.ring.lost + self.lost,
        }
        histogram = [
            (psc_stats_bucket_end(i), stats.latency[i])
            for i in range(PSC_STATS_BUCKETS) if stats.latency[i]
        ]
        return counters, histogram

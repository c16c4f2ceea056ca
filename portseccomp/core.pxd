# The C core as Cython sees it: a mirror of csrc/'s headers, without logic.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<stdatomic.h>" nogil:
    pass

cdef extern from "filter.h" nogil:
    ctypedef bint c_bool "bool"
    cdef struct psc_filter_need:
        c_bool listen
        c_bool bind
        c_bool no_io_uring
        c_bool no_listener
        c_bool no_prlimit

cdef extern from "listener.h" nogil:
    enum: PSC_LISTENER_WAIT_KILLABLE
    enum: PSC_LISTENER_SYNC_WAKE_UP
    cdef enum psc_install_stage:
        PSC_INSTALL_BUILD
        PSC_INSTALL_SIZES
        PSC_INSTALL_NO_NEW_PRIVS
        PSC_INSTALL_SECCOMP
        PSC_INSTALL_SERVE

cdef extern from "caller.h" nogil:
    int psc_callers_same_files(int32_t first, int32_t second)

cdef extern from "confine.h" nogil:
    int psc_confine_version()
    int psc_confine_thread()

cdef extern from "endpoint.h" nogil:
    cdef enum psc_family:
        PSC_FAMILY_ANY
        PSC_FAMILY_IPV4
        PSC_FAMILY_IPV6
        PSC_FAMILY_UNIX
        PSC_FAMILY_VSOCK
        PSC_FAMILY_OTHER
    cdef struct psc_endpoint:
        uint8_t family
        c_bool dual_stack
        uint16_t af
        uint16_t protocol
        uint16_t type
        uint32_t port
        uint32_t scope
        uint8_t address[16]
        uint16_t path_length
        char path[108]

cdef extern from "rules.h" nogil:
    cdef enum psc_verdict:
        PSC_VERDICT_ALLOW
        PSC_VERDICT_MOVE
        PSC_VERDICT_ASK
        PSC_VERDICT_DENY
    enum: PSC_ADDRESS_ANY
    enum: PSC_ADDRESS_PREFIX
    enum: PSC_ADDRESS_LOOPBACK
    enum: PSC_ADDRESS_WILDCARD
    enum: PSC_PORTS_ANY
    enum: PSC_PORTS_RANGE
    enum: PSC_PORTS_EPHEMERAL
    enum: PSC_PROTOCOL_ANY
    enum: PSC_PROTOCOL_TCP
    enum: PSC_PROTOCOL_UDP
    enum: PSC_RULE_DEFAULT
    enum: PSC_MOVE_HOST_KEEP
    enum: PSC_MOVE_HOST_IPV4
    enum: PSC_MOVE_HOST_IPV6
    enum: PSC_MOVE_HOST_LOOPBACK
    cdef struct psc_target:
        uint8_t host
        c_bool has_port
        uint16_t port
        uint8_t address[16]
    cdef struct psc_rule:
        uint8_t verdict
        uint8_t family
        uint8_t match_protocol
        uint8_t match_address
        uint8_t match_ports
        uint8_t prefix_length
        uint16_t error
        uint32_t port_first
        uint32_t port_last
        uint8_t address[16]
        psc_target target
    cdef struct psc_policy:
        const psc_rule *rules
        size_t count
        psc_verdict default_verdict
        int error
        c_bool unix_continue
        c_bool quiet_binds
    cdef struct psc_decision:
        psc_verdict verdict
        int error
        int rule
    c_bool psc_rules_match(const psc_rule *rule, const psc_endpoint *endpoint)
    psc_decision psc_rules_decide(
        const psc_policy *policy, const psc_endpoint *endpoint)
    c_bool psc_rules_can_deny(const psc_policy *policy)

cdef extern from "event.h" nogil:
    cdef struct psc_event:
        int64_t time_ns
        uint64_t cookie
        uint64_t inode
        int64_t latency_ns
        int32_t pid
        int32_t tid
        int32_t backlog
        int32_t rule
        uint16_t error
        uint16_t failure_error
        uint8_t call
        uint8_t outcome
        uint8_t failure
        c_bool known
        c_bool open
        c_bool first
        char comm[16]
        psc_endpoint requested
        psc_endpoint actual
    cdef struct psc_event_ring:
        uint64_t tail
        uint64_t lost
    void psc_event_ring_close(psc_event_ring *ring)
    uint64_t psc_event_ring_count(psc_event_ring *ring)
    uint64_t psc_event_ring_pushed(psc_event_ring *ring)
    c_bool psc_event_ring_pop(psc_event_ring *ring, psc_event *ret_event)
    enum: PSC_RULE_HOOK
    enum: PSC_RULE_FAILURE

cdef extern from "bell.h" nogil:
    cdef struct psc_bell:
        pass
    void psc_bell_ring(psc_bell *bell)
    int psc_bell_wait(psc_bell *bell, int64_t timeout_ns)

cdef extern from "stats.h" nogil:
    enum: PSC_STATS_BUCKETS
    cdef struct psc_stats:
        uint64_t requests
        uint64_t allowed
        uint64_t denied
        uint64_t moved
        uint64_t continued
        uint64_t vanished
        uint64_t asked
        uint64_t failed
        uint64_t late
        uint64_t takeovers
        uint64_t latency[312]
    int64_t psc_stats_bucket_end(unsigned int bucket)

cdef extern from "round.h" nogil:
    cdef struct psc_books:
        psc_event_ring ring
        psc_stats stats
    cdef struct psc_request:
        psc_event event

cdef extern from "asks.h" nogil:
    cdef struct psc_asks:
        int queued

cdef extern from "supervisor.h" nogil:
    enum: PSC_RUN_STOPPED
    enum: PSC_RUN_SURPLUS
    enum: PSC_RUN_ASK
    cdef struct psc_worker:
        psc_request request
    cdef struct psc_supervisor:
        c_bool stopping
        int standbys
        int hooks
        int max_hooks
        psc_asks asks
        int live
        psc_books books
        psc_bell event_bell
        uint64_t bell_threshold
    int psc_supervisor_init(
        psc_supervisor *supervisor, uint64_t ring_capacity,
        int64_t hook_timeout_ns, int max_hooks)
    void psc_supervisor_free(psc_supervisor *supervisor)
    int psc_supervisor_install(
        psc_supervisor *supervisor, const psc_filter_need *need,
        unsigned int wanted, const psc_policy *policy,
        unsigned int *ret_features, psc_install_stage *ret_stage)
    c_bool psc_supervisor_wants_trust(psc_supervisor *supervisor, int fd)
    void psc_supervisor_trust(psc_supervisor *supervisor, int fd)
    void psc_worker_init(psc_supervisor *supervisor, psc_worker *worker)
    void psc_worker_close(psc_supervisor *supervisor, psc_worker *worker)
    int psc_supervisor_run(
        psc_supervisor *supervisor, psc_worker *worker, uint64_t *ret_ticket)
    c_bool psc_supervisor_waits(psc_supervisor *supervisor, uint64_t ticket)
    int psc_supervisor_decide(
        psc_supervisor *supervisor, uint64_t ticket, psc_verdict verdict,
        int error, const psc_target *target)
    void psc_supervisor_stop(psc_supervisor *supervisor)
    void psc_supervisor_close(psc_supervisor *supervisor)

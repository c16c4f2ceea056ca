"""What one guarded `listen` costs its caller, beside what nobody can beat."""

import pytest


@pytest.mark.benchmark(group="floors")
def test_unguarded(record):
    """Seconds for a `listen` that nobody intercepts: the price of the call."""
    record("unguarded")


@pytest.mark.benchmark(group="floors")
def test_floor_continue(record):
    """Seconds for RECV and SEND with CONTINUE in bare C: the kernel's price."""
    record("floor-continue")


@pytest.mark.benchmark(group="floors")
def test_floor_round(record):
    """Seconds for the whole round in a bare C loop: what portseccomp is up to."""
    record("floor-round")


@pytest.mark.benchmark(group="floors")
def test_floor_round_without_sync(record):
    """Seconds for the same round without the synchronous wake-up (Linux 6.6)."""
    record("floor-round-no-sync", "floor-round")


@pytest.mark.benchmark(group="portseccomp")
def test_core(record):
    """Seconds for a `listen` that the C core decides, without any Python."""
    record("core", "floor-round")


@pytest.mark.benchmark(group="portseccomp")
def test_rule(record):
    """Seconds for a `listen` decided by a rule of a Guard."""
    record("rule", "floor-round", "1.10")


@pytest.mark.benchmark(group="portseccomp")
def test_rule_without_sync(record):
    """Seconds for a rule's decision without the synchronous wake-up (Linux 6.6)."""
    record("rule-no-sync", "rule")


@pytest.mark.benchmark(group="portseccomp")
def test_hook(record, latencies, benchmark):
    """Seconds for a `listen` decided by a Python function."""
    record("hook", "rule", "rule + 1 us")
    more = (latencies.p50("hook") - latencies.p50("rule")) / 1000
    benchmark.extra_info["more_than_rule_us"] = more


@pytest.mark.benchmark(group="portseccomp")
def test_rule_while_gil_is_busy(record):
    """Seconds for a rule's decision while Python code keeps the GIL."""
    record("rule-busy-gil", "rule", "1.10")


@pytest.mark.benchmark(group="portseccomp")
def test_hook_while_gil_is_busy(record):
    """Seconds for a hook's decision while Python code keeps the GIL (5 ms)."""
    record("hook-busy-gil", "hook")


@pytest.mark.benchmark(group="bind")
def test_bind_unguarded(record):
    """Seconds for the `bind` of a new UDP socket that nobody intercepts."""
    record("bind-unguarded")


@pytest.mark.benchmark(group="bind")
def test_bind_floor_round(record):
    """Seconds for the whole round of a `bind` in a bare C loop."""
    record("bind-floor-round")


@pytest.mark.benchmark(group="bind")
def test_bind_rule(record):
    """Seconds for a `bind` decided by a rule of a Guard."""
    record("bind-rule", "bind-floor-round", "1.10")


@pytest.mark.benchmark(group="bind")
def test_bind_hook(record):
    """Seconds for a `bind` decided by a Python function."""
    record("bind-hook", "bind-rule", "rule + 1 us")


@pytest.mark.benchmark(group="bind")
def test_bind_moved(record):
    """Seconds for a `bind` that a rule moves to an ephemeral port."""
    record("bind-moved", "bind-rule")


@pytest.mark.benchmark(group="bind")
def test_resolver_query(record):
    """Seconds for a resolver's query: socket, bind, send, receive, close."""
    record("query-unguarded")


@pytest.mark.benchmark(group="bind")
def test_resolver_query_guarded(record):
    """Seconds for the same query in a guarded process."""
    record("query-guarded", "query-unguarded")


@pytest.mark.benchmark(group="not intercepted")
def test_other_call(record):
    """Seconds for getppid without a filter."""
    record("other-call")


@pytest.mark.benchmark(group="not intercepted")
def test_other_call_under_empty_filter(record):
    """Seconds for getppid under a filter of one ALLOW: the kernel's own price."""
    record("other-call-empty", "other-call")


@pytest.mark.benchmark(group="not intercepted")
def test_other_call_guarded(record):
    """Seconds for getppid in a guarded process: not intercepted."""
    record("other-call-guarded", "other-call-empty", "1.02")

/* SPDX-License-Identifier: MIT */
#include "round.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "listener.h"
#include "socket.h"

static int64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t psc_round_now(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

void psc_source_release(struct psc_source *source)
{
	if (atomic_fetch_sub(&source->references, 1) != 1)
		return;
	if (source->fd >= 0)
		close(source->fd);
	free(source);
}

static void count_outcome(const struct psc_event *event,
			  struct psc_stats *stats)
{
	switch (event->outcome) {
	case PSC_OUTCOME_ALLOW:
		psc_stats_add(&stats->allowed);
		break;
	case PSC_OUTCOME_DENY:
		psc_stats_add(&stats->denied);
		break;
	case PSC_OUTCOME_MOVE:
		psc_stats_add(&stats->moved);
		break;
	default:
		psc_stats_add(&stats->continued);
		break;
	}
	if (event->failure)
		psc_stats_add(&stats->failed);
	psc_stats_add(&stats->latency[psc_stats_bucket(event->latency_ns)]);
}

static void close_copy(struct psc_request *request)
{
	if (request->copy_fd >= 0)
		close(request->copy_fd);
	request->copy_fd = -1;
}

/* The end of every round that somebody waits for. */
static void answer(struct psc_request *request, struct psc_event_ring *ring,
		   struct psc_stats *stats)
{
	struct psc_event *event = &request->event;
	int result;

	close_copy(request);
	event->latency_ns = psc_round_now() - request->started_ns;
	count_outcome(event, stats);
	psc_event_ring_push(ring, event);

	if (event->outcome == PSC_OUTCOME_CONTINUE)
		result = psc_listener_continue(request->source->fd,
					       request->id);
	else
		result = psc_listener_answer(request->source->fd, request->id,
					     event->error);
	if (result < 0)
		psc_stats_add(&stats->vanished);
}

void psc_round_fail(struct psc_request *request, enum psc_failure failure,
		    int failure_error, struct psc_event_ring *ring,
		    struct psc_stats *stats)
{
	struct psc_event *event = &request->event;

	event->rule = PSC_RULE_FAILURE;
	event->failure = (uint8_t)failure;
	event->failure_error = (uint16_t)failure_error;
	event->open = false;
	event->first = false;
	if (request->source->can_deny) {
		event->outcome = PSC_OUTCOME_DENY;
		event->error = (uint16_t)request->source->policy->error;
	} else {
		/* Nothing to protect: the target must not suffer from us. */
		event->outcome = PSC_OUTCOME_CONTINUE;
		event->error = 0;
	}
	answer(request, ring, stats);
}

/* The call itself has failed, by its own arguments. */
static enum psc_round_state finish_call(struct psc_request *request, int error,
					struct psc_event_ring *ring,
					struct psc_stats *stats)
{
	request->event.outcome = PSC_OUTCOME_ALLOW;
	request->event.rule = PSC_RULE_DEFAULT;
	request->event.error = (uint16_t)error;
	answer(request, ring, stats);
	return PSC_ROUND_DONE;
}

static enum psc_round_state gone(struct psc_request *request,
				 struct psc_stats *stats)
{
	close_copy(request);
	psc_stats_add(&stats->vanished);
	return PSC_ROUND_DONE;
}

/*
 * Read the two words of i386's socketcall once. What they say is what is
 * made, so rewriting them afterwards changes nothing.
 */
static int read_words(const struct seccomp_notif *notif, uint32_t words[2])
{
	struct iovec local = {.iov_base = words, .iov_len = 8};
	struct iovec remote = {
		.iov_base = (void *)(uintptr_t)(uint32_t)notif->data.args[1],
		.iov_len = 8};
	ssize_t length;

	length = process_vm_readv((pid_t)notif->pid, &local, 1, &remote, 1, 0);
	if (length < 0)
		return -errno;
	return length == 8 ? 0 : -EFAULT;
}

static void begin_event(struct psc_event *event,
			const struct seccomp_notif *notif,
			const struct psc_caller_name *name)
{
	memset(event, 0, sizeof(*event));
	event->time_ns = clock_ns(CLOCK_REALTIME);
	event->tid = (int32_t)notif->pid;
	event->pid = name->pid;
	memcpy(event->comm, name->comm, sizeof(event->comm));
}

/* Whether a policy leaves this `listen` to the kernel. */
static bool may_continue(const struct psc_request *request)
{
	const struct psc_source *source = request->source;

	if (psc_endpoint_has_ports(&request->event.requested) ||
	    request->decision.verdict != PSC_VERDICT_ALLOW)
		return false;
	return !source->can_deny ||
	       (source->policy->unix_continue &&
		request->event.requested.family == PSC_FAMILY_UNIX);
}

enum psc_round_state psc_round_open(struct psc_request *request,
				    const struct seccomp_notif *notif,
				    struct psc_callers *callers,
				    struct psc_event_ring *ring,
				    struct psc_stats *stats)
{
	struct psc_event *event = &request->event;
	int fd = (int)notif->data.args[0];
	int backlog = (int)notif->data.args[1];
	bool in_memory;
	int result;

	request->id = notif->id;
	request->copy_fd = -1;
	request->started_ns = psc_round_now();
	begin_event(event, notif,
		    psc_callers_name(callers, (int32_t)notif->pid,
				     notif->data.instruction_pointer));
	psc_stats_add(&stats->requests);

	event->call = psc_filter_call(notif->data.arch, notif->data.nr,
				      notif->data.args[0], &in_memory);
	if (event->call != PSC_CALL_LISTEN) {
		psc_round_fail(request, PSC_FAILURE_CALL, 0, ring, stats);
		return PSC_ROUND_DONE;
	}

	if (in_memory) {
		uint32_t words[2];

		result = read_words(notif, words);
		if (result == -EFAULT)
			return finish_call(request, EFAULT, ring, stats);
		if (result < 0) {
			psc_round_fail(request, PSC_FAILURE_MEMORY, -result,
				       ring, stats);
			return PSC_ROUND_DONE;
		}
		fd = (int)words[0];
		backlog = (int)words[1];
	}
	event->backlog = backlog;

	/* 0: a caller that this pid namespace can't see, and so can't open */
	result = notif->pid == 0 ? -ESRCH
				 : psc_callers_copy_fd(
					   callers, (int32_t)notif->pid, fd);
	if (result == -EBADF)
		return finish_call(request, EBADF, ring, stats);
	if (result < 0) {
		psc_round_fail(request, PSC_FAILURE_COPY, -result, ring, stats);
		return PSC_ROUND_DONE;
	}
	request->copy_fd = result;

	/* Until here the thread's number may have passed to another. */
	if (psc_listener_id_valid(request->source->fd, request->id) < 0)
		return gone(request, stats);

	result = psc_socket_read(request->copy_fd, &event->requested);
	if (result == -ENOTSOCK || result == -EBADF)
		return finish_call(request, -result, ring, stats);
	if (result < 0) {
		psc_round_fail(request, PSC_FAILURE_ENDPOINT, -result, ring,
			       stats);
		return PSC_ROUND_DONE;
	}
	event->known = true;
	event->cookie = psc_socket_cookie(request->copy_fd);

	request->decision =
		psc_rules_decide(request->source->policy, &event->requested);
	event->rule = request->decision.rule;
	if (request->decision.verdict == PSC_VERDICT_ASK)
		return PSC_ROUND_ASK;
	return PSC_ROUND_DECIDED;
}

/*
 * Listen on the copy, where it was judged and nowhere else.
 * Return: 0, -errno of the call, or -ESTALE when the socket was moved.
 */
static int listen_as_judged(struct psc_request *request)
{
	struct psc_event *event = &request->event;
	const struct psc_endpoint *judged = &event->requested;
	const bool ports = psc_endpoint_has_ports(judged);
	/* Others fail by themselves, and are not to be bound by the attempt. */
	const bool can_listen = judged->type == SOCK_STREAM ||
				judged->type == SOCK_SEQPACKET;
	const bool guarded = ports && can_listen && request->source->can_deny;
	bool was_listening;
	uint32_t port = judged->port;
	int result;

	was_listening = psc_socket_is_listening(request->copy_fd);
	if (guarded && port == PSC_PORT_EPHEMERAL) {
		result = psc_socket_bind_ephemeral(request->copy_fd);
		if (result == -EINVAL)
			return -ESTALE;
		if (result < 0)
			return result;
		result = psc_socket_read(request->copy_fd, &event->actual);
		if (result < 0 || event->actual.port == PSC_PORT_EPHEMERAL)
			return -ESTALE;
		port = event->actual.port;
	}

	result = psc_socket_listen(request->copy_fd, event->backlog);
	if (result < 0)
		return result;

	result = ports ? psc_socket_read(request->copy_fd, &event->actual) : 0;
	if (guarded &&
	    (result < 0 || event->actual.port != port ||
	     !psc_endpoint_same_place(&event->actual, judged))) {
		psc_socket_unlisten(request->copy_fd);
		return -ESTALE;
	}
	if (!ports)
		event->actual = *judged;
	event->open = result == 0;
	event->first = !was_listening;
	return 0;
}

void psc_round_close(struct psc_request *request, struct psc_event_ring *ring,
		     struct psc_stats *stats)
{
	struct psc_event *event = &request->event;
	int result;

	if (request->decision.verdict != PSC_VERDICT_ALLOW) {
		event->outcome = PSC_OUTCOME_DENY;
		event->error = (uint16_t)request->decision.error;
		answer(request, ring, stats);
		return;
	}
	if (may_continue(request)) {
		event->outcome = PSC_OUTCOME_CONTINUE;
		event->open = true;
		event->first = !psc_socket_is_listening(request->copy_fd);
		event->actual = event->requested;
		answer(request, ring, stats);
		return;
	}

	result = listen_as_judged(request);
	if (result == -ESTALE) {
		psc_round_fail(request, PSC_FAILURE_CHANGED, 0, ring, stats);
		return;
	}
	event->outcome = PSC_OUTCOME_ALLOW;
	event->error = (uint16_t)-result;
	answer(request, ring, stats);
}

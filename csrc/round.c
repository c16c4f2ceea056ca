/* SPDX-License-Identifier: MIT */
#include "round.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "binding.h"
#include "forking.h"
#include "listener.h"
#include "listening.h"
#include "socket.h"

/* Times that a round waits, a millisecond each, for another one... */
#define SOCKET_TRIES 200  /* of its socket */
#define THREAD_TRIES 1000 /* of its thread, which has called again */

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

/* Wait for a claim. Return: 0; -EBUSY; -ECANCELED when the caller does not. */
static int wait_for_claim(struct psc_request *request, struct psc_books *books,
			  uint64_t key, int tries)
{
	const struct timespec nap = {.tv_nsec = 1000000};

	while (!psc_memory_claim(&books->memory, key)) {
		if (psc_listener_id_valid(request->source->fd, request->id) < 0)
			return -ECANCELED;
		if (tries-- == 0)
			return -EBUSY;
		nanosleep(&nap, NULL);
	}
	return 0;
}

/* Nobody else may bind the socket, or let it listen, from now on. */
static int claim_socket(struct psc_request *request, struct psc_books *books)
{
	int result;

	if (!request->source->can_deny || !request->event.cookie)
		return 0;
	result = wait_for_claim(request, books, request->event.cookie,
				SOCKET_TRIES);
	if (result == 0)
		request->claim = &books->memory;
	return result;
}

/*
 * A thread that a signal has interrupted calls again while its first round may
 * still be under way, in another thread of ours. That one is waited for, without
 * a copy: or the copy of an older call, of which nobody knows any more, would
 * keep a port busy that the caller has closed by now.
 */
static int claim_thread(struct psc_request *request, struct psc_books *books)
{
	uint64_t key = PSC_MEMORY_THREAD | (uint32_t)request->event.tid;
	int result;

	if (!request->source->restarts)
		return 0;
	result = wait_for_claim(request, books, key, THREAD_TRIES);
	if (result == 0)
		request->thread_claim = &books->memory;
	return result;
}

static void unclaim(struct psc_request *request)
{
	if (request->claim)
		psc_memory_unclaim(request->claim, request->event.cookie);
	request->claim = NULL;
}

static void unclaim_thread(struct psc_request *request)
{
	if (request->thread_claim)
		psc_memory_unclaim(request->thread_claim,
				   PSC_MEMORY_THREAD |
					   (uint32_t)request->event.tid);
	request->thread_claim = NULL;
}

static void close_copy(struct psc_request *request)
{
	if (request->copy_fd < 0)
		return;
	psc_socket_stop_linger(request->copy_fd);
	psc_forking_hold();
	close(request->copy_fd);
	request->copy_fd = -1;
	psc_forking_release();
}

/* A bind that is only to be remembered is nobody's business. */
static bool is_hidden(const struct psc_request *request)
{
	return request->quiet && request->source->policy->quiet_binds;
}

static void count(struct psc_request *request, struct psc_books *books)
{
	if (!is_hidden(request) && !request->counted)
		psc_stats_add(&books->stats.requests);
	request->counted = true;
}

/* The end of every round that somebody waits for. */
static void answer(struct psc_request *request, struct psc_books *books)
{
	struct psc_event *event = &request->event;
	const bool is_bind = event->call == PSC_CALL_BIND;
	int result;

	if (event->open)
		event->inode = psc_socket_inode(request->copy_fd);
	close_copy(request);
	/*
	 * The claim goes last: the same call, made again after a signal, waits for
	 * it in another thread, and must find its first round over and remembered.
	 * But before the answer: or the caller's next call could find it.
	 */
	if (is_bind && request->source->restarts)
		psc_binding_interrupted(request, &books->memory);
	unclaim(request);
	event->latency_ns = psc_round_now() - request->started_ns;
	count(request, books);
	if (!is_hidden(request))
		count_outcome(event, &books->stats);
	if (!request->quiet)
		psc_event_ring_push(&books->ring, event);

	if (event->outcome == PSC_OUTCOME_CONTINUE)
		result = psc_listener_continue(request->source->fd,
					       request->id);
	else
		result = psc_listener_answer(request->source->fd, request->id,
					     event->error);
	if (result < 0)
		psc_stats_add(&books->stats.vanished);
	if (is_bind && result < 0 && !request->source->restarts)
		psc_binding_interrupted(request, &books->memory);
}

void psc_round_fail(struct psc_request *request, enum psc_failure failure,
		    int failure_error, struct psc_books *books)
{
	struct psc_event *event = &request->event;

	event->rule = PSC_RULE_FAILURE;
	event->failure = (uint8_t)failure;
	event->failure_error = (uint16_t)failure_error;
	event->open = false;
	event->first = false;
	request->quiet = false;
	if (request->source->can_deny) {
		event->outcome = PSC_OUTCOME_DENY;
		event->error = (uint16_t)request->source->policy->error;
	} else {
		/* Nothing to protect: the target must not suffer from us. */
		event->outcome = PSC_OUTCOME_CONTINUE;
		event->error = 0;
	}
	answer(request, books);
}

static enum psc_round_state fail(struct psc_request *request,
				 enum psc_failure failure, int result,
				 struct psc_books *books)
{
	psc_round_fail(request, failure, -result, books);
	return PSC_ROUND_DONE;
}

/* The call itself has failed, by its own arguments. */
static enum psc_round_state finish_call(struct psc_request *request, int result,
					struct psc_books *books)
{
	request->quiet = request->event.call == PSC_CALL_BIND;
	request->event.outcome = PSC_OUTCOME_ALLOW;
	request->event.rule = PSC_RULE_DEFAULT;
	request->event.error = (uint16_t)-result;
	answer(request, books);
	return PSC_ROUND_DONE;
}

void psc_round_forget(struct psc_request *request, bool is_noted)
{
	const int copy_fd = request->copy_fd;

	request->copy_fd = -1;
	if (copy_fd < 0)
		return;
	if (!is_noted) {
		/* It may have been closed, and be something else's by now. */
		const uint64_t cookie = psc_socket_cookie(copy_fd);

		if (!cookie || (request->event.cookie &&
				request->event.cookie != cookie))
			return;
	}
	close(copy_fd);
}

void psc_round_vanish(struct psc_request *request, struct psc_books *books)
{
	close_copy(request);
	unclaim(request);
	count(request, books);
	psc_stats_add(&books->stats.vanished);
}

static enum psc_round_state gone(struct psc_request *request,
				 struct psc_books *books)
{
	psc_round_vanish(request, books);
	return PSC_ROUND_DONE;
}

/* The arguments of `listen` and `bind`, wherever they are. */
struct arguments {
	int fd;
	uint64_t second; /* backlog, or where the address is */
	int third;	 /* its length */
};

/*
 * Read the words of i386's socketcall once. What they say is what is made, so
 * rewriting them afterwards changes nothing.
 */
static int read_words(const struct seccomp_notif *notif, enum psc_call call,
		      struct arguments *ret_arguments)
{
	const size_t count = call == PSC_CALL_LISTEN ? 2 : 3;
	uint32_t words[3] = {0};
	ssize_t length;

	length = psc_callers_read((int32_t)notif->pid,
				  (uint32_t)notif->data.args[1], words,
				  4 * count);
	if (length < 0)
		return (int)length;
	if ((size_t)length != 4 * count)
		return -EFAULT;
	*ret_arguments =
		(struct arguments){(int)words[0], words[1], (int)words[2]};
	return 0;
}

static void begin(struct psc_request *request,
		  const struct seccomp_notif *notif,
		  struct psc_callers *callers)
{
	struct psc_event *event = &request->event;
	struct psc_caller_name name;

	request->id = notif->id;
	request->copy_fd = -1;
	request->started_ns = psc_round_now();
	request->let_continue = false;
	request->quiet = false;
	request->counted = false;
	request->asked = false;
	request->made = false;
	request->by_number = false;
	request->keeps_port = false;
	memset(event, 0, sizeof(*event));
	event->time_ns = clock_ns(CLOCK_REALTIME);
	event->tid = (int32_t)notif->pid;
	psc_callers_name(callers, event->tid, &name);
	event->pid = name.pid;
	memcpy(event->comm, name.comm, sizeof(event->comm));
	request->place = NULL;
	request->claim = NULL;
	request->thread_claim = NULL;
}

/* Take a place among the rounds; false: too many of them are stuck. */
static bool enter(struct psc_request *request, struct psc_books *books)
{
	_Atomic int32_t *rounds = books->rounds;
	const int32_t pid = request->event.pid ? request->event.pid : -1;
	int same = 0;

	for (int i = 0; i < PSC_ROUNDS; i++)
		same += atomic_load_explicit(&rounds[i],
					     memory_order_relaxed) == pid;
	if (same >= PSC_ROUNDS_PROCESS)
		return false;
	for (int i = 0; i < PSC_ROUNDS; i++) {
		int32_t nobody = 0;

		if (atomic_compare_exchange_strong(&rounds[i], &nobody, pid)) {
			request->place = &rounds[i];
			return true;
		}
	}
	return false;
}

void psc_round_leave(struct psc_request *request)
{
	if (request->place)
		atomic_store(request->place, 0);
	request->place = NULL;
	unclaim_thread(request);
	unclaim(request); /* a hook may take long: claimed again after it */
}

/*
 * Copy the socket, and be sure that it is the caller's; of a bind, that is asked
 * when its address has been read as well.
 * Return: 0; -ECANCELED when the caller waits no more; why there is no copy.
 */
static int copy(struct psc_request *request, struct psc_callers *callers,
		int fd)
{
	int32_t tid = request->event.tid;
	int result;

	/* 0: a caller that this pid namespace can't see, and so can't open */
	psc_forking_hold();
	result = tid == 0 ? -ESRCH : psc_callers_copy_fd(callers, tid, fd);
	if (result >= 0)
		request->copy_fd = result;
	psc_forking_release();
	if (result >= 0 && request->event.call == PSC_CALL_BIND)
		return 0;
	/* Until here the thread's number may have passed to another. */
	if (psc_listener_id_valid(request->source->fd, request->id) < 0)
		return -ECANCELED;
	return result < 0 ? result : 0;
}

enum psc_round_state psc_round_open(struct psc_request *request,
				    const struct seccomp_notif *notif,
				    struct psc_callers *callers,
				    struct psc_books *books)
{
	struct psc_event *event = &request->event;
	struct arguments arguments = {(int)notif->data.args[0],
				      notif->data.args[1],
				      (int)notif->data.args[2]};
	bool in_memory;
	int result;

	begin(request, notif, callers);
	event->call = (uint8_t)psc_filter_call(notif->data.arch, notif->data.nr,
					       notif->data.args[0], &in_memory);
	if (event->call == PSC_CALL_NONE)
		return fail(request, PSC_FAILURE_CALL, 0, books);
	if (!enter(request, books))
		return fail(request, PSC_FAILURE_STUCK, 0, books);
	if (in_memory) {
		result = read_words(notif, (enum psc_call)event->call, &arguments);
		if (result == -EFAULT)
			return finish_call(request, result, books);
		if (result < 0)
			return fail(request, PSC_FAILURE_MEMORY, result, books);
	}
	if (event->call == PSC_CALL_LISTEN)
		event->backlog = (int)arguments.second;

	result = claim_thread(request, books);
	if (result == -EBUSY)
		return fail(request, PSC_FAILURE_STUCK, 0, books);
	if (result == 0)
		result = copy(request, callers, arguments.fd);
	if (result == -ECANCELED)
		return gone(request, books);
	if (result == -EBADF)
		return finish_call(request, result, books);
	if (result < 0)
		return fail(request, PSC_FAILURE_COPY, result, books);

	event->cookie = psc_socket_cookie(request->copy_fd);
	result = claim_socket(request, books);
	if (result == -ECANCELED)
		return gone(request, books);
	if (result < 0)
		return fail(request, PSC_FAILURE_CHANGED, 0, books);
	result = psc_socket_read(request->copy_fd, &request->bound);
	if (result == -ENOTSOCK || result == -EBADF)
		return finish_call(request, result, books);
	if (result < 0)
		return fail(request, PSC_FAILURE_ENDPOINT, result, books);
	event->known = true;

	if (event->call == PSC_CALL_LISTEN) {
		psc_listening_judge(request, &books->memory);
	} else {
		result = psc_binding_judge(request, event->tid,
					   arguments.second, arguments.third);
		/* Until here it may have been a stranger's socket and memory. */
		if (psc_listener_id_valid(request->source->fd, request->id) < 0)
			return gone(request, books);
		if (result == -EINVAL || result == -EFAULT ||
		    result == -EAFNOSUPPORT)
			return finish_call(request, result, books);
		if (result < 0)
			return fail(request, PSC_FAILURE_MEMORY, result, books);
	}
	count(request, books);
	event->rule = request->decision.rule;
	request->asked = request->decision.verdict == PSC_VERDICT_ASK;
	if (request->asked)
		return PSC_ROUND_ASK;
	return PSC_ROUND_DECIDED;
}

/* Whether the kernel may run this `listen`: nothing is left to protect. */
static bool listen_may_continue(const struct psc_request *request)
{
	const struct psc_source *source = request->source;

	if (psc_endpoint_has_ports(&request->bound))
		return false;
	return !source->can_deny ||
	       (source->policy->unix_continue &&
		request->bound.family == PSC_FAMILY_UNIX);
}

static void let_continue(struct psc_request *request, struct psc_books *books)
{
	struct psc_event *event = &request->event;

	event->outcome = PSC_OUTCOME_CONTINUE;
	if (event->call == PSC_CALL_LISTEN) {
		event->open = true;
		event->first = !psc_socket_is_listening(request->copy_fd);
		event->actual = request->bound;
	} else {
		psc_binding_continues(request, &books->memory);
	}
	answer(request, books);
}

void psc_round_close(struct psc_request *request, struct psc_books *books)
{
	struct psc_event *event = &request->event;
	int result;

	if (request->decision.verdict == PSC_VERDICT_DENY) {
		event->outcome = PSC_OUTCOME_DENY;
		event->error = (uint16_t)request->decision.error;
		answer(request, books);
		return;
	}
	if (request->decision.verdict == PSC_VERDICT_ALLOW &&
	    (request->let_continue ||
	     (event->call == PSC_CALL_LISTEN && listen_may_continue(request)))) {
		let_continue(request, books);
		return;
	}

	if (request->asked) {
		/* Much may have happened in the hook's time. */
		if (psc_listener_id_valid(request->source->fd, request->id) <
		    0) {
			psc_round_vanish(request, books);
			return;
		}
		result = claim_socket(request, books);
		if (result == -ECANCELED) {
			psc_round_vanish(request, books);
			return;
		}
		if (result < 0 ||
		    !(event->call == PSC_CALL_LISTEN
			      ? psc_listening_still_holds(request,
							  &books->memory)
			      : psc_binding_still_holds(request))) {
			psc_round_fail(request, PSC_FAILURE_CHANGED, 0, books);
			return;
		}
	}
	result = event->call == PSC_CALL_LISTEN
			 ? psc_listening_act(request, &books->memory)
			 : psc_binding_act(request, &books->memory);
	if (result == -ESTALE || result == -EXDEV) {
		psc_round_fail(request,
			       result == -EXDEV ? PSC_FAILURE_MOVE
						: PSC_FAILURE_CHANGED,
			       0, books);
		return;
	}
	event->outcome = request->decision.verdict == PSC_VERDICT_MOVE
				 ? PSC_OUTCOME_MOVE
				 : PSC_OUTCOME_ALLOW;
	event->error = (uint16_t)-result;
	answer(request, books);
}

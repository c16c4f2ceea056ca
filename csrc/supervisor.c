/* SPDX-License-Identifier: MIT */
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "forking.h"
#include "listener.h"
#include "listening.h"
#include "privilege.h"

/*
 * The lead is one word: a count of rounds, and a phase. It changes with every
 * round, so a watcher that finds the same word twice, BUSY both times, knows
 * that its leader is stuck. Only the leader moves it on from WAITING; from BUSY
 * the leader and the watcher race with compare-and-swap, and who loses is no
 * leader.
 */
enum lead_phase {
	LEAD_VACANT,
	LEAD_WAITING, /* for a request, RECV included: can't be taken over */
	LEAD_BUSY,    /* with a request, or in the hook */
};

#define PHASE_BITS 2
#define PHASE_MASK ((1u << PHASE_BITS) - 1)

/* How often the watch looks, and after how many quiet looks it sleeps. */
#define WATCH_TICK_NS (4 * 1000 * 1000)
#define WATCH_QUIET_TICKS 64

/* More threads than this on standby are sent home. */
#define STANDBYS_MAX 2

#define READY_MAX 16

/* Requests of one listener before the others and the deadlines have a turn. */
#define SERVE_IN_A_ROW 64

static enum lead_phase phase_of(uint64_t lead)
{
	return (enum lead_phase)(lead & PHASE_MASK);
}

static uint64_t same_round(uint64_t lead, enum lead_phase phase)
{
	return (lead & ~(uint64_t)PHASE_MASK) | phase;
}

static uint64_t next_round(uint64_t lead, enum lead_phase phase)
{
	return ((lead >> PHASE_BITS) + 1) << PHASE_BITS | phase;
}

/* Wake the reader of events, if there are as many as it wants. */
static void ring_for_events(struct psc_supervisor *supervisor)
{
	if (psc_event_ring_count(&supervisor->books.ring) >=
	    atomic_load(&supervisor->bell_threshold))
		psc_bell_ring(&supervisor->event_bell);
}

/* ---- the hook ---- */

static void close_asks(struct psc_supervisor *supervisor)
{
	if (psc_asks_close(&supervisor->asks, &supervisor->books) > 0)
		ring_for_events(supervisor);
}

/* Deny what has waited too long. Return ns to the next deadline, or -1. */
static int64_t expire_asks(struct psc_supervisor *supervisor)
{
	int64_t next_ns;

	if (psc_asks_expire(&supervisor->asks, &supervisor->books, &next_ns) > 0)
		ring_for_events(supervisor);
	return next_ns;
}

bool psc_supervisor_waits(struct psc_supervisor *supervisor, uint64_t ticket)
{
	return psc_asks_waits(&supervisor->asks, ticket);
}

int psc_supervisor_decide(struct psc_supervisor *supervisor, uint64_t ticket,
			  enum psc_verdict verdict, int error,
			  const struct psc_target *target)
{
	struct psc_request *request = psc_asks_claim(&supervisor->asks, ticket);

	if (!request)
		return -ESTALE;
	request->decision.verdict = verdict;
	request->decision.error =
		error ? error : request->source->policy->error;
	if (verdict == PSC_VERDICT_MOVE)
		request->decision.target = *target;
	request->event.rule = PSC_RULE_HOOK;
	psc_round_close(request, &supervisor->books);
	psc_asks_release(&supervisor->asks, ticket);
	ring_for_events(supervisor);
	return 0;
}

/* ---- sources ---- */

int psc_supervisor_add(struct psc_supervisor *supervisor, int listener_fd,
		       unsigned int features, const struct psc_policy *policy)
{
	struct psc_source *source = calloc(1, sizeof(*source));
	struct epoll_event interest = {.events = EPOLLIN};
	int result = 0;

	if (!source)
		return -ENOMEM;
	source->fd = listener_fd;
	source->policy = policy;
	source->can_deny = psc_rules_can_deny(policy);
	source->sees_binds = features & PSC_LISTENER_SEES_BINDS;
	source->restarts = !(features & PSC_LISTENER_WAIT_KILLABLE);
	atomic_init(&source->references, 1);
	interest.data.ptr = source;

	pthread_mutex_lock(&supervisor->lists);
	if (epoll_ctl(supervisor->epoll_fd, EPOLL_CTL_ADD, listener_fd,
		      &interest) < 0) {
		result = -errno;
		free(source);
	} else {
		source->next = supervisor->sources;
		supervisor->sources = source;
		atomic_fetch_add(&supervisor->live, 1);
	}
	pthread_mutex_unlock(&supervisor->lists);
	return result;
}

int psc_supervisor_install(struct psc_supervisor *supervisor,
			   const struct psc_filter_need *need,
			   unsigned int wanted, const struct psc_policy *policy,
			   unsigned int *ret_features,
			   enum psc_install_stage *ret_stage)
{
	int listener_fd, result;

	psc_forking_hold();
	result = listener_fd =
		psc_listener_install(need, wanted, ret_features, ret_stage);
	if (listener_fd >= 0) {
		*ret_stage = PSC_INSTALL_SERVE;
		result = psc_supervisor_add(supervisor, listener_fd,
					    *ret_features, policy);
		if (result < 0)
			close(listener_fd);
	}
	psc_forking_release();
	return result;
}

bool psc_supervisor_wants_trust(struct psc_supervisor *supervisor, int fd)
{
	return psc_listening_wants_trust(fd, &supervisor->books.memory) &&
	       !psc_asks_hold(&supervisor->asks, fd);
}

void psc_supervisor_trust(struct psc_supervisor *supervisor, int fd)
{
	/* It may be long since somebody asked. */
	if (!psc_asks_hold(&supervisor->asks, fd))
		psc_listening_trust(fd, &supervisor->books.memory);
}

/* Nobody is left who could send a request. Only the leader retires sources. */
static void retire(struct psc_supervisor *supervisor, struct psc_source *source)
{
	struct psc_source **link;

	pthread_mutex_lock(&supervisor->lists);
	if (supervisor->closed) {
		pthread_mutex_unlock(&supervisor->lists);
		return;
	}
	epoll_ctl(supervisor->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
	for (link = &supervisor->sources; *link; link = &(*link)->next)
		if (*link == source) {
			*link = source->next;
			break;
		}
	pthread_mutex_unlock(&supervisor->lists);
	psc_source_release(source);
	atomic_fetch_sub(&supervisor->live, 1);
	psc_bell_ring(&supervisor->event_bell);
}

/*
 * Let go of what is left once the supervisor is closed and nobody is inside who
 * could still use it. The lists are locked.
 */
static void let_go(struct psc_supervisor *supervisor)
{
	struct psc_source *source;

	if (!supervisor->closed || supervisor->workers)
		return;
	while ((source = supervisor->sources)) {
		supervisor->sources = source->next;
		psc_source_release(source);
	}
	if (supervisor->epoll_fd >= 0)
		close(supervisor->epoll_fd);
	if (supervisor->wake_fd >= 0)
		close(supervisor->wake_fd);
	supervisor->epoll_fd = -1;
	supervisor->wake_fd = -1;
}

void psc_supervisor_close(struct psc_supervisor *supervisor)
{
	close_asks(supervisor); /* a round may have opened one after the stop */
	pthread_mutex_lock(&supervisor->lists);
	/*
	 * A thread that is stuck in a round still knows the source and its
	 * descriptor's number. The listener itself goes now.
	 */
	if (!supervisor->closed)
		for (struct psc_source *source = supervisor->sources; source;
		     source = source->next)
			dup3(supervisor->wake_fd, source->fd, O_CLOEXEC);
	supervisor->closed = true;
	atomic_store(&supervisor->live, 0);
	let_go(supervisor);
	pthread_mutex_unlock(&supervisor->lists);
	psc_bell_ring(&supervisor->event_bell);
}

static void forget_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void psc_supervisor_forget(struct psc_supervisor *supervisor, bool is_noted)
{
	for (struct psc_source *source = supervisor->sources; source;
	     source = source->next)
		forget_fd(&source->fd);
	psc_asks_forget(&supervisor->asks, is_noted);
	for (struct psc_worker *worker = supervisor->workers; worker;
	     worker = worker->next) {
		psc_round_forget(&worker->request, is_noted);
		psc_callers_close(&worker->callers);
	}
	forget_fd(&supervisor->epoll_fd);
	forget_fd(&supervisor->wake_fd);
	/* Whoever held them is not in this process. */
	pthread_mutex_init(&supervisor->books.memory.lock, NULL);
	pthread_mutex_init(&supervisor->duty, NULL);
	pthread_mutex_init(&supervisor->lists, NULL);
}

/* ---- leading ---- */

static void resign(struct psc_supervisor *supervisor, struct psc_worker *worker)
{
	uint64_t expected = worker->lead;

	if (!worker->lead)
		return;
	atomic_compare_exchange_strong(&supervisor->lead, &expected,
				       same_round(expected, LEAD_VACANT));
	worker->lead = 0;
	psc_bell_ring(&supervisor->watch);
}

/* From WAITING only the leader moves the word. */
static void enter_round(struct psc_supervisor *supervisor,
			struct psc_worker *worker)
{
	worker->lead = next_round(worker->lead, LEAD_BUSY);
	atomic_store(&supervisor->lead, worker->lead);
	/* The watch stores its flag and then reads the lead: see stand_by(). */
	if (atomic_load(&supervisor->watch_sleeps))
		psc_bell_ring(&supervisor->watch);
}

/* False: another thread leads by now. */
static bool leave_round(struct psc_supervisor *supervisor,
			struct psc_worker *worker)
{
	uint64_t expected = worker->lead;
	uint64_t waiting = same_round(expected, LEAD_WAITING);

	if (phase_of(expected) == LEAD_WAITING)
		return true;
	if (!atomic_compare_exchange_strong(&supervisor->lead, &expected,
					    waiting)) {
		worker->lead = 0;
		return false;
	}
	worker->lead = waiting;
	return true;
}

/* Put the worker's request into a slot. True: its hook is to be run now. */
static bool ask(struct psc_supervisor *supervisor, struct psc_worker *worker,
		uint64_t *ret_ticket)
{
	struct psc_request *request = &worker->request;
	struct psc_request *asked =
		psc_asks_take(&supervisor->asks, request->copy_fd, ret_ticket);
	bool run;

	if (!asked) {
		psc_round_fail(request, PSC_FAILURE_BUSY, 0, &supervisor->books);
		psc_round_leave(request);
		psc_source_release(request->source);
		return false;
	}
	psc_stats_add(&supervisor->books.stats.asked);
	psc_round_leave(request);
	*asked = *request;
	request->copy_fd = -1; /* the slot's, from here on */

	/*
	 * Somebody has to lead while this thread is in the hook, and it may be
	 * long before Python can start another one: the hook may keep the GIL.
	 * A thread that never had company can't wait for any.
	 */
	run = atomic_fetch_add(&supervisor->hooks, 1) < supervisor->max_hooks &&
	      (atomic_load(&supervisor->standbys) > 0 ||
	       atomic_load(&supervisor->threads) == 1);
	if (run)
		worker->in_hook = true;
	else
		atomic_fetch_sub(&supervisor->hooks, 1);
	psc_asks_post(&supervisor->asks, *ret_ticket,
		      request->started_ns + supervisor->hook_timeout_ns, !run);
	if (!run)
		psc_bell_ring(&supervisor->event_bell); /* a thread is wanted */
	if (atomic_load(&supervisor->stopping))
		close_asks(supervisor); /* which others may have done by now */
	return run;
}

/*
 * Whether another request waits behind the one that was just received.
 *
 * The kernel's poll looks through all requests until it has seen one that is
 * new and one that is being handled. Right after RECV there is one of the
 * latter, at the front, so this look is short. Asked at any other time, as
 * epoll_wait() does, it goes through a thousand waiting processes: measured,
 * three quarters of the time that a round took then. And RECV does not block
 * on a request that has gone in between: it says ENOENT.
 *
 * A caller that comes back alone, call after call, is not worth the look.
 */
static bool more_waits(struct psc_worker *worker, int listener_fd, int32_t tid)
{
	struct pollfd look = {.fd = listener_fd, .events = POLLIN};

	if (worker->last_tid == tid)
		return false;
	worker->last_tid = tid;
	return poll(&look, 1, 0) == 1 && look.revents & POLLIN;
}

enum serve_result {
	SERVED,
	SERVED_MORE, /* and another request waits on the same listener */
	SERVE_ASK,
};

/* One readable listener: one request. */
static enum serve_result serve(struct psc_supervisor *supervisor,
			       struct psc_worker *worker,
			       struct psc_source *source, uint64_t *ret_ticket)
{
	struct seccomp_notif notif;
	enum serve_result served;
	int result;

	result = psc_listener_receive(source->fd, &notif);
	if (result == -ENOENT)
		psc_stats_add(&supervisor->books.stats.vanished);
	if (result == -ENOENT || result == -EINTR)
		return SERVED;
	if (result < 0) {
		/* A listener that can't be read any more: closed, not open. */
		retire(supervisor, source);
		return SERVED;
	}

	enter_round(supervisor, worker);
	psc_asks_forsake(&supervisor->asks, (int32_t)notif.pid,
			 &supervisor->books);
	served = more_waits(worker, source->fd, (int32_t)notif.pid)
			 ? SERVED_MORE
			 : SERVED;
	atomic_fetch_add(&source->references, 1);
	worker->request.source = source;
	switch (psc_round_open(&worker->request, &notif, &worker->callers,
			       &supervisor->books)) {
	case PSC_ROUND_ASK:
		if (ask(supervisor, worker, ret_ticket))
			return SERVE_ASK;
		return served;
	case PSC_ROUND_DECIDED:
		psc_round_close(&worker->request, &supervisor->books);
		break;
	case PSC_ROUND_DONE:
		break;
	}
	psc_round_leave(&worker->request);
	psc_source_release(source);
	return served;
}

/*
 * Serve a readable listener until nothing waits there, or others are due.
 * False: come back with @ret_why, or, at PSC_RUN_SURPLUS, without the lead.
 */
static bool serve_waiting(struct psc_supervisor *supervisor,
			  struct psc_worker *worker, struct psc_source *source,
			  uint64_t *ret_ticket, int *ret_why)
{
	enum serve_result result = SERVED_MORE;

	for (int i = 0; i < SERVE_IN_A_ROW && result == SERVED_MORE &&
			!atomic_load(&supervisor->stopping);
	     i++) {
		result = serve(supervisor, worker, source, ret_ticket);
		if (result == SERVE_ASK) {
			*ret_why = PSC_RUN_ASK;
			return false;
		}
		ring_for_events(supervisor);
		if (!leave_round(supervisor, worker)) {
			*ret_why = PSC_RUN_SURPLUS;
			return false;
		}
	}
	return true;
}

static int milliseconds(int64_t ns)
{
	return ns < 0 ? -1 : (int)(ns / 1000000) + 1;
}

/* Lead until something else is to be done; PSC_RUN_SURPLUS: lost the lead. */
static int lead(struct psc_supervisor *supervisor, struct psc_worker *worker,
		uint64_t *ret_ticket)
{
	struct epoll_event ready[READY_MAX];
	uint64_t drained;
	int why;

	while (!atomic_load(&supervisor->stopping)) {
		int count = epoll_wait(supervisor->epoll_fd, ready, READY_MAX,
				       milliseconds(expire_asks(supervisor)));

		if (count < 0 && errno != EINTR) {
			int error = errno;

			resign(supervisor, worker);
			return -error;
		}
		for (int i = 0; i < count; i++) {
			struct psc_source *source = ready[i].data.ptr;

			if (!source) {
				if (read(supervisor->wake_fd, &drained,
					 sizeof(drained)) < 0)
					continue; /* somebody else did */
			} else if (!(ready[i].events & EPOLLIN)) {
				retire(supervisor, source);
			} else if (!serve_waiting(supervisor, worker, source,
						  ret_ticket, &why)) {
				return why;
			}
		}
	}
	resign(supervisor, worker);
	return PSC_RUN_STOPPED;
}

/* Watch the leader until it is stuck or gone; the duty is held. */
static bool watch(struct psc_supervisor *supervisor, struct psc_worker *worker)
{
	uint64_t before = 0, now;
	int quiet = 0;

	while (!atomic_load(&supervisor->stopping)) {
		now = atomic_load(&supervisor->lead);
		if (phase_of(now) == LEAD_VACANT ||
		    (phase_of(now) == LEAD_BUSY && now == before)) {
			uint64_t taken = next_round(now, LEAD_WAITING);

			if (!atomic_compare_exchange_strong(&supervisor->lead,
							    &now, taken))
				continue;
			worker->lead = taken;
			if (phase_of(now) == LEAD_BUSY)
				psc_stats_add(&supervisor->books.stats.takeovers);
			return true;
		}

		quiet = now == before ? quiet + 1 : 0;
		if (quiet < WATCH_QUIET_TICKS) {
			psc_bell_wait(&supervisor->watch, WATCH_TICK_NS);
		} else {
			/* Nothing happens: sleep until the leader rings. */
			atomic_store(&supervisor->watch_sleeps, true);
			if (atomic_load(&supervisor->lead) == now &&
			    !atomic_load(&supervisor->stopping))
				psc_bell_wait(&supervisor->watch, -1);
			atomic_store(&supervisor->watch_sleeps, false);
			quiet = 0;
		}
		before = now;
	}
	return false;
}

/* Wait for the lead. False: PSC_RUN_SURPLUS or PSC_RUN_STOPPED. */
static bool stand_by(struct psc_supervisor *supervisor,
		     struct psc_worker *worker, int *ret_why)
{
	bool leads = false;

	/* Only the leader needs them; most are of callers that are gone. */
	psc_callers_close(&worker->callers);
	*ret_why = PSC_RUN_SURPLUS;
	if (atomic_fetch_add(&supervisor->standbys, 1) < STANDBYS_MAX) {
		*ret_why = PSC_RUN_STOPPED;
		pthread_mutex_lock(&supervisor->duty);
		leads = watch(supervisor, worker);
		pthread_mutex_unlock(&supervisor->duty);
	}
	atomic_fetch_sub(&supervisor->standbys, 1);
	/* The owner may want to start another thread for standby. */
	if (leads)
		psc_bell_ring(&supervisor->event_bell);
	return leads;
}

int psc_supervisor_run(struct psc_supervisor *supervisor,
		       struct psc_worker *worker, uint64_t *ret_ticket)
{
	int why;

	if (worker->in_hook) {
		worker->in_hook = false;
		atomic_fetch_sub(&supervisor->hooks, 1);
		if (!atomic_load(&supervisor->stopping) &&
		    psc_asks_dequeue(&supervisor->asks, &worker->request.event,
				     ret_ticket)) {
			worker->in_hook = true;
			atomic_fetch_add(&supervisor->hooks, 1);
			return PSC_RUN_ASK;
		}
	}

	/* A fresh thread where another stands by: take what waits for one. */
	if (!worker->lead && !atomic_load(&supervisor->stopping) &&
	    atomic_load(&supervisor->standbys) > 0 &&
	    atomic_load(&supervisor->hooks) < supervisor->max_hooks &&
	    psc_asks_dequeue(&supervisor->asks, &worker->request.event,
			     ret_ticket)) {
		worker->in_hook = true;
		atomic_fetch_add(&supervisor->hooks, 1);
		return PSC_RUN_ASK;
	}

	for (;;) {
		if (worker->lead && leave_round(supervisor, worker)) {
			why = lead(supervisor, worker, ret_ticket);
			if (why != PSC_RUN_SURPLUS)
				return why;
		}
		if (!stand_by(supervisor, worker, &why))
			return why;
	}
}

void psc_supervisor_stop(struct psc_supervisor *supervisor)
{
	const uint64_t one = 1;

	atomic_store(&supervisor->stopping, true);
	pthread_mutex_lock(&supervisor->lists);
	if (supervisor->wake_fd >= 0 &&
	    write(supervisor->wake_fd, &one, sizeof(one)) < 0) {
		/* The counter is full: it is readable, which is all we want. */
	}
	pthread_mutex_unlock(&supervisor->lists);
	psc_bell_ring(&supervisor->watch);
	psc_bell_ring(&supervisor->event_bell);
	close_asks(supervisor);
}

/* ---- making and freeing ---- */

void psc_worker_init(struct psc_supervisor *supervisor,
		     struct psc_worker *worker)
{
	worker->lead = 0;
	worker->in_hook = false;
	worker->request.copy_fd = -1;
	psc_callers_init(&worker->callers);
	psc_privilege_begin(); /* for good: the thread is ours */
	pthread_mutex_lock(&supervisor->lists);
	worker->next = supervisor->workers;
	supervisor->workers = worker;
	atomic_fetch_add(&supervisor->threads, 1);
	pthread_mutex_unlock(&supervisor->lists);
}

void psc_worker_close(struct psc_supervisor *supervisor,
		      struct psc_worker *worker)
{
	struct psc_worker **link;

	if (worker->in_hook)
		atomic_fetch_sub(&supervisor->hooks, 1);
	resign(supervisor, worker);
	psc_callers_close(&worker->callers); /* while a fork finds them */
	pthread_mutex_lock(&supervisor->lists);
	for (link = &supervisor->workers; *link; link = &(*link)->next)
		if (*link == worker) {
			*link = worker->next;
			atomic_fetch_sub(&supervisor->threads, 1);
			break;
		}
	let_go(supervisor);
	pthread_mutex_unlock(&supervisor->lists);
}

int psc_supervisor_init(struct psc_supervisor *supervisor,
			uint64_t ring_capacity, int64_t hook_timeout_ns,
			int max_hooks)
{
	struct epoll_event interest = {.events = EPOLLIN};
	int result;

	memset(supervisor, 0, sizeof(*supervisor));
	supervisor->made = true;
	supervisor->epoll_fd = -1;
	supervisor->wake_fd = -1;
	supervisor->hook_timeout_ns = hook_timeout_ns;
	supervisor->max_hooks = max_hooks;
	atomic_init(&supervisor->bell_threshold, ring_capacity / 2 + 1);
	pthread_mutex_init(&supervisor->duty, NULL);
	pthread_mutex_init(&supervisor->lists, NULL);

	psc_asks_init(&supervisor->asks);
	psc_memory_init(&supervisor->books.memory);
	result = psc_event_ring_init(&supervisor->books.ring, ring_capacity);
	if (result < 0)
		goto failed;
	supervisor->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (supervisor->epoll_fd < 0) {
		result = -errno;
		goto failed;
	}
	supervisor->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (supervisor->wake_fd < 0 ||
	    epoll_ctl(supervisor->epoll_fd, EPOLL_CTL_ADD, supervisor->wake_fd,
		      &interest) < 0) {
		result = -errno;
		goto failed;
	}
	result = psc_forking_register(supervisor);
	if (result < 0)
		goto failed;
	return 0;

failed:
	psc_supervisor_free(supervisor);
	memset(supervisor, 0, sizeof(*supervisor));
	return result;
}

void psc_supervisor_free(struct psc_supervisor *supervisor)
{
	if (!supervisor->made)
		return;
	supervisor->made = false;
	psc_forking_unregister(supervisor);
	psc_supervisor_close(supervisor);
	psc_event_ring_free(&supervisor->books.ring);
	psc_memory_free(&supervisor->books.memory);
	pthread_mutex_destroy(&supervisor->duty);
	pthread_mutex_destroy(&supervisor->lists);
}

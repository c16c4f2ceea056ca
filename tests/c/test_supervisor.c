/* SPDX-License-Identifier: MIT */
/*
 * The supervisor, driven by plain threads, against real guarded processes.
 *
 * Every guard here has the same policy: 127.0.0.1 is allowed, 127.0.0.2 is
 * denied with EPERM, 127.0.0.3 and .4 are asked about, all else is denied with
 * EACCES. Ports are the kernel's choice, so tests don't get in each other's
 * way.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "listener.h"
#include "supervisor.h"
#include "victim.h"

enum { ALLOWED = 1, DENIED = 2, ASKED = 3, ASKED_TOO = 4, UNNAMED = 5 };

#define VICTIMS_MAX 6
#define WORKERS_MAX 64
#define RING 1024
#define SECOND_NS 1000000000ll
#define PATIENCE_NS (30 * SECOND_NS) /* for what must happen */

enum hook {
	HOOK_ANSWERS, /* at once: allow 127.0.0.3, deny the rest */
	HOOK_HANGS,   /* until release_hooks(): somebody else answers */
};

struct worker {
	struct guard *guard;
	pthread_t thread;
	int why; /* what psc_supervisor_run() came back with at last */
};

/**
 * struct guard - one supervisor, its threads and its victims
 * @listener_fd: until it is added
 * @lock: guards what follows it
 * @tickets: what the hooks were asked, in that order
 * @back: workers that have come back for good
 */
struct guard {
	struct psc_supervisor core;
	struct psc_policy policy;
	enum hook hook;
	struct worker workers[WORKERS_MAX];
	int worker_count;

	int listener_fd;
	struct victim victims[VICTIMS_MAX];
	int victim_count;
	pthread_t installer;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool installed, installer_may_go, hooks_may_go;
	uint64_t tickets[16];
	int ticket_count;
	int back;
};

static const struct psc_rule rules[] = {
	{.verdict = PSC_VERDICT_ALLOW,
	 .family = PSC_FAMILY_IPV4,
	 .match_address = PSC_ADDRESS_PREFIX,
	 .prefix_length = 32,
	 .address = {127, 0, 0, ALLOWED}},
	{.verdict = PSC_VERDICT_DENY,
	 .error = EPERM,
	 .family = PSC_FAMILY_IPV4,
	 .match_address = PSC_ADDRESS_PREFIX,
	 .prefix_length = 32,
	 .address = {127, 0, 0, DENIED}},
	{.verdict = PSC_VERDICT_ASK,
	 .family = PSC_FAMILY_IPV4,
	 .match_address = PSC_ADDRESS_PREFIX,
	 .prefix_length = 32,
	 .address = {127, 0, 0, ASKED}},
	{.verdict = PSC_VERDICT_ASK,
	 .family = PSC_FAMILY_IPV4,
	 .match_address = PSC_ADDRESS_PREFIX,
	 .prefix_length = 32,
	 .address = {127, 0, 0, ASKED_TOO}},
};

static struct psc_event_ring *ring_of(struct guard *guard)
{
	return &guard->core.books.ring;
}

static struct psc_stats *stats_of(struct guard *guard)
{
	return &guard->core.books.stats;
}

static int decide(struct guard *guard, uint64_t ticket,
		  enum psc_verdict verdict, int error)
{
	return psc_supervisor_decide(&guard->core, ticket, verdict, error,
				     NULL);
}

/* ---- waiting, never longer than PATIENCE_NS ---- */

static struct timespec patience(void)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += PATIENCE_NS / SECOND_NS;
	return until;
}

/* Until @flag is set or, without one, until @count is @least. */
static bool wait_locked(struct guard *guard, const bool *flag, const int *count,
			int least)
{
	const struct timespec until = patience();
	bool good;

	pthread_mutex_lock(&guard->lock);
	while (!(good = flag ? *flag : *count >= least))
		if (pthread_cond_timedwait(&guard->changed, &guard->lock,
					   &until) == ETIMEDOUT)
			break;
	pthread_mutex_unlock(&guard->lock);
	return good;
}

static void set_locked(struct guard *guard, bool *flag)
{
	pthread_mutex_lock(&guard->lock);
	*flag = true;
	pthread_cond_broadcast(&guard->changed);
	pthread_mutex_unlock(&guard->lock);
}

static void release_hooks(struct guard *guard)
{
	set_locked(guard, &guard->hooks_may_go);
}

/* The ticket of the hook that was called as number @index. */
static bool wait_ticket(struct guard *guard, int index, uint64_t *ret_ticket)
{
	if (!wait_locked(guard, NULL, &guard->ticket_count, index + 1)) {
		FAIL("hook %d was not called", index);
		return false;
	}
	pthread_mutex_lock(&guard->lock);
	*ret_ticket = guard->tickets[index];
	pthread_mutex_unlock(&guard->lock);
	return true;
}

/* Until a count of the supervisor's is there, which rings when it changes. */
static bool wait_count(struct guard *guard, const _Atomic int *count,
		       int wanted)
{
	const int64_t until = psc_round_now() + PATIENCE_NS;

	while (atomic_load(count) != wanted) {
		const int64_t left = until - psc_round_now();

		if (left <= 0)
			return FAIL("waited for %d, found %d", wanted,
				    atomic_load(count));
		psc_bell_wait(&guard->core.event_bell, left);
	}
	return true;
}

/* Until so many sources can send requests. */
static bool wait_live(struct guard *guard, int wanted)
{
	return wait_count(guard, &guard->core.live, wanted);
}

/* ---- the hook and the threads ---- */

static void answer_at_once(struct guard *guard, const struct psc_event *event,
			   uint64_t ticket)
{
	const bool allowed = event->requested.address[3] == ASKED;

	CHECK(psc_supervisor_waits(&guard->core, ticket));
	CHECK_INT(decide(guard, ticket,
			 allowed ? PSC_VERDICT_ALLOW : PSC_VERDICT_DENY,
			 allowed ? 0 : ENOSPC),
		  0);
}

static void run_hook(struct guard *guard, const struct psc_event *event,
		     uint64_t ticket)
{
	if (guard->hook == HOOK_ANSWERS) {
		answer_at_once(guard, event, ticket);
		return;
	}
	pthread_mutex_lock(&guard->lock);
	if (guard->ticket_count < (int)COUNT_OF(guard->tickets))
		guard->tickets[guard->ticket_count++] = ticket;
	pthread_cond_broadcast(&guard->changed);
	while (!guard->hooks_may_go)
		pthread_cond_wait(&guard->changed, &guard->lock);
	pthread_mutex_unlock(&guard->lock);
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct guard *guard = worker->guard;
	struct psc_worker *core = calloc(1, sizeof(*core));
	uint64_t ticket;

	if (!core)
		abort();
	psc_worker_init(&guard->core, core);
	while ((worker->why = psc_supervisor_run(&guard->core, core,
						 &ticket)) == PSC_RUN_ASK)
		run_hook(guard, &core->request.event, ticket);
	psc_worker_close(&guard->core, core);
	free(core);

	pthread_mutex_lock(&guard->lock);
	guard->back++;
	pthread_cond_broadcast(&guard->changed);
	pthread_mutex_unlock(&guard->lock);
	return NULL;
}

static void start_workers(struct guard *guard, int count)
{
	for (int i = 0; i < count; i++) {
		struct worker *worker = &guard->workers[guard->worker_count];

		worker->guard = guard;
		if (CHECK(pthread_create(&worker->thread, NULL, work, worker) ==
			  0))
			guard->worker_count++;
	}
}

/* ---- a guard ---- */

/* The guarded thread: installs, forks the victims, and goes when it may. */
static void *install(void *argument)
{
	const struct psc_filter_need need = {.listen = true,
					     .no_io_uring = true};
	struct guard *guard = argument;
	enum psc_install_stage stage;
	unsigned int features;

	guard->listener_fd = psc_listener_install(
		&need, PSC_LISTENER_WAIT_KILLABLE | PSC_LISTENER_SYNC_WAKE_UP,
		&features, &stage);
	if (guard->listener_fd < 0)
		FAIL("install: errno %d at stage %d", -guard->listener_fd,
		     (int)stage);
	for (int i = 0; i < guard->victim_count; i++)
		CHECK(victim_start(&guard->victims[i]));
	set_locked(guard, &guard->installed);
	pthread_mutex_lock(&guard->lock);
	while (!guard->installer_may_go)
		pthread_cond_wait(&guard->changed, &guard->lock);
	pthread_mutex_unlock(&guard->lock);
	return NULL;
}

static struct guard *open_guard(enum hook hook, int victims, int workers,
				int64_t hook_timeout_ns, int max_hooks)
{
	struct guard *guard = calloc(1, sizeof(*guard));

	if (!guard)
		abort();
	guard->policy = (struct psc_policy){.rules = rules,
					    .count = COUNT_OF(rules),
					    .default_verdict = PSC_VERDICT_DENY,
					    .error = EACCES};
	guard->hook = hook;
	guard->victim_count = victims;
	pthread_mutex_init(&guard->lock, NULL);
	pthread_cond_init(&guard->changed, NULL);
	CHECK_INT(psc_supervisor_init(&guard->core, RING, hook_timeout_ns,
				      max_hooks),
		  0);
	atomic_store(&guard->core.bell_threshold, 1);

	CHECK(pthread_create(&guard->installer, NULL, install, guard) == 0);
	CHECK(wait_locked(guard, &guard->installed, NULL, 0));
	if (guard->listener_fd >= 0)
		CHECK_INT(psc_supervisor_add(&guard->core, guard->listener_fd,
			   PSC_LISTENER_WAIT_KILLABLE, &guard->policy),
			  0);
	start_workers(guard, workers);
	return guard;
}

/* Stop, and wait for every thread that serves. */
static void stop_guard(struct guard *guard)
{
	psc_supervisor_stop(&guard->core);
	release_hooks(guard);
	CHECK(wait_locked(guard, NULL, &guard->back, guard->worker_count));
	for (int i = 0; i < guard->worker_count; i++)
		pthread_join(guard->workers[i].thread, NULL);
	guard->worker_count = 0;
}

static void end_installer(struct guard *guard)
{
	if (guard->installer_may_go)
		return;
	set_locked(guard, &guard->installer_may_go);
	pthread_join(guard->installer, NULL);
}

/* Everything that is left, in the order in which an owner does it. */
static void close_guard(struct guard *guard)
{
	stop_guard(guard);
	psc_supervisor_close(&guard->core);
	CHECK_INT(atomic_load(&guard->core.live), 0);
	CHECK_INT(guard->core.epoll_fd, -1);
	CHECK_INT(guard->core.wake_fd, -1);
	CHECK_INT(atomic_load(&guard->core.asks.open), 0);
	CHECK_INT(atomic_load(&guard->core.asks.queued), 0);
	CHECK_INT(atomic_load(&guard->core.hooks), 0);
	CHECK_INT(atomic_load(&guard->core.standbys), 0);
	for (int i = 0; i < guard->victim_count; i++)
		victim_stop(&guard->victims[i]);
	end_installer(guard);
	psc_supervisor_free(&guard->core);
	pthread_mutex_destroy(&guard->lock);
	pthread_cond_destroy(&guard->changed);
	free(guard);
}

/* ---- what victims see ---- */

static void tell(struct guard *guard, int victim, uint8_t last)
{
	CHECK(victim_listen(&guard->victims[victim], last));
}

static struct victim_report hear(struct guard *guard, int victim)
{
	struct victim_report report;

	if (!victim_report(&guard->victims[victim], &report))
		FAIL("victim %d says nothing", victim);
	return report;
}

static struct victim_report tell_and_hear(struct guard *guard, int victim,
					  uint8_t last)
{
	tell(guard, victim, last);
	return hear(guard, victim);
}

/* A victim's report: the errno, and the port open exactly without one. */
static bool check_report(int line, struct victim_report report, int error)
{
	if (report.error == error && report.open == (error == 0))
		return true;
	return check_fail(__FILE__, line, "listen: errno %d, %s; not errno %d",
			  report.error, report.open ? "open" : "not open",
			  error);
}

#define CHECK_REPORT(report, error) check_report(__LINE__, report, error)

static struct psc_event pop_event(struct guard *guard)
{
	struct psc_event event = {.rule = -100};

	CHECK(psc_event_ring_pop(ring_of(guard), &event));
	return event;
}

/* ---- the promises ---- */

static void test_allowed(void)
{
	struct guard *guard = open_guard(HOOK_ANSWERS, 1, 1, PATIENCE_NS, 4);

	for (int i = 0; i < 3; i++) {
		struct victim_report report = tell_and_hear(guard, 0, ALLOWED);
		struct psc_event event;

		CHECK_REPORT(report, 0);
		/* It is there as soon as the call is back. */
		event = pop_event(guard);
		CHECK_INT(event.call, PSC_CALL_LISTEN);
		CHECK_INT(event.outcome, PSC_OUTCOME_ALLOW);
		CHECK_INT(event.rule, 0);
		CHECK_INT(event.error, 0);
		CHECK_INT(event.failure, PSC_FAILURE_NONE);
		CHECK_INT(event.backlog, 7);
		CHECK_INT(event.pid, guard->victims[0].pid);
		CHECK_INT(event.tid, guard->victims[0].pid);
		CHECK(event.comm[0] != '\0');
		CHECK(event.cookie != 0);
		CHECK(event.latency_ns > 0);
		CHECK(event.known && event.open && event.first);
		CHECK_INT(event.requested.family, PSC_FAMILY_IPV4);
		CHECK_INT(event.requested.port, report.port);
		CHECK_INT(event.actual.port, report.port);
		CHECK_INT(event.actual.address[3], ALLOWED);
	}
	CHECK_INT(atomic_load(&stats_of(guard)->requests), 3);
	CHECK_INT(atomic_load(&stats_of(guard)->allowed), 3);
	CHECK_INT(atomic_load(&stats_of(guard)->vanished), 0);
	close_guard(guard);
}

static void test_denied(void)
{
	struct guard *guard = open_guard(HOOK_ANSWERS, 1, 1, PATIENCE_NS, 4);
	struct psc_event event;

	CHECK_REPORT(tell_and_hear(guard, 0, DENIED), EPERM);
	event = pop_event(guard);
	CHECK_INT(event.outcome, PSC_OUTCOME_DENY);
	CHECK_INT(event.rule, 1);
	CHECK_INT(event.error, EPERM);
	CHECK(event.known && !event.open && !event.first);

	CHECK_REPORT(tell_and_hear(guard, 0, UNNAMED), EACCES);
	event = pop_event(guard);
	CHECK_INT(event.outcome, PSC_OUTCOME_DENY);
	CHECK_INT(event.rule, PSC_RULE_DEFAULT);
	CHECK_INT(event.error, EACCES);
	CHECK_INT(atomic_load(&stats_of(guard)->denied), 2);
	close_guard(guard);
}

static void test_hook_answers(void)
{
	struct guard *guard = open_guard(HOOK_ANSWERS, 1, 1, PATIENCE_NS, 4);
	struct psc_event event;

	CHECK_REPORT(tell_and_hear(guard, 0, ASKED), 0);
	event = pop_event(guard);
	CHECK_INT(event.outcome, PSC_OUTCOME_ALLOW);
	CHECK_INT(event.rule, PSC_RULE_HOOK);
	CHECK(event.open && event.first);

	CHECK_REPORT(tell_and_hear(guard, 0, ASKED_TOO), ENOSPC);
	event = pop_event(guard);
	CHECK_INT(event.outcome, PSC_OUTCOME_DENY);
	CHECK_INT(event.rule, PSC_RULE_HOOK);
	CHECK_INT(event.error, ENOSPC);
	CHECK_INT(atomic_load(&stats_of(guard)->asked), 2);
	close_guard(guard);
}

static void test_other_thread_answers(void)
{
	struct guard *guard = open_guard(HOOK_HANGS, 2, 3, PATIENCE_NS, 4);
	uint64_t first = UINT64_MAX, second;

	tell(guard, 0, ASKED);
	if (wait_ticket(guard, 0, &first)) {
		CHECK(psc_supervisor_waits(&guard->core, first));
		CHECK_INT(decide(guard, first, PSC_VERDICT_ALLOW, 0), 0);
		CHECK_REPORT(hear(guard, 0), 0);
		CHECK_INT(pop_event(guard).rule, PSC_RULE_HOOK);
		/* It has been answered, and stays so. */
		CHECK(!psc_supervisor_waits(&guard->core, first));
		CHECK_INT(decide(guard, first, PSC_VERDICT_ALLOW, 0), -ESTALE);
		/* Its thread calls on, and forsakes nobody's who comes next. */
		CHECK_INT(atomic_load(
				  &guard->core.asks.slots[first % PSC_ASKS].tid),
			  0);
	}

	/* Without an errno of its own a denial has the policy's. */
	tell(guard, 1, ASKED);
	if (wait_ticket(guard, 1, &second)) {
		CHECK(first != second);
		CHECK_INT(decide(guard, second, PSC_VERDICT_DENY, 0), 0);
		CHECK_REPORT(hear(guard, 1), EACCES);
	}
	close_guard(guard);
}

static void test_free_slots(void)
{
	struct psc_asks *asks = calloc(1, sizeof(*asks));

	/* A forked child closes what they hold, and 0 is a descriptor. */
	psc_asks_init(asks);
	for (int i = 0; i < PSC_ASKS; i++)
		CHECK_INT(asks->slots[i].request.copy_fd, -1);
	free(asks);
}

static void test_deadline(void)
{
	struct guard *guard = open_guard(HOOK_HANGS, 1, 2, SECOND_NS / 20, 4);
	struct psc_event event;
	uint64_t ticket;

	CHECK_REPORT(tell_and_hear(guard, 0, ASKED), EACCES);
	event = pop_event(guard);
	CHECK_INT(event.outcome, PSC_OUTCOME_DENY);
	CHECK_INT(event.rule, PSC_RULE_FAILURE);
	CHECK_INT(event.failure, PSC_FAILURE_DEADLINE);
	CHECK(event.latency_ns >= SECOND_NS / 20);
	CHECK_INT(atomic_load(&stats_of(guard)->late), 1);
	if (wait_ticket(guard, 0, &ticket)) {
		CHECK(!psc_supervisor_waits(&guard->core, ticket));
		CHECK_INT(decide(guard, ticket, PSC_VERDICT_ALLOW, 0), -ESTALE);
	}
	/* And the guard goes on. */
	CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), 0);
	close_guard(guard);
}

static void test_takeover(void)
{
	struct guard *guard = open_guard(HOOK_HANGS, 2, 2, PATIENCE_NS, 4);
	uint64_t ticket;

	tell(guard, 0, ASKED);
	if (wait_ticket(guard, 0, &ticket)) {
		for (int i = 0; i < 3; i++) {
			CHECK_REPORT(tell_and_hear(guard, 1, ALLOWED), 0);
			CHECK_REPORT(tell_and_hear(guard, 1, DENIED), EPERM);
		}
		CHECK_INT(atomic_load(&stats_of(guard)->takeovers), 1);
		CHECK(psc_supervisor_waits(&guard->core, ticket));

		/* What hung comes back, and is still in time. */
		CHECK_INT(decide(guard, ticket, PSC_VERDICT_ALLOW, 0), 0);
		CHECK_REPORT(hear(guard, 0), 0);
		release_hooks(guard);
		CHECK_REPORT(tell_and_hear(guard, 1, ALLOWED), 0);
	}
	close_guard(guard);
}

static void test_queue(void)
{
	struct guard *guard = open_guard(HOOK_HANGS, 3, 2, PATIENCE_NS, 1);
	uint64_t first, second;

	tell(guard, 0, ASKED);
	if (wait_ticket(guard, 0, &first)) {
		tell(guard, 1, ASKED_TOO);
		/* One hook at a time; rules are answered all the same. */
		CHECK_REPORT(tell_and_hear(guard, 2, ALLOWED), 0);
		CHECK(wait_count(guard, &guard->core.asks.queued, 1));
		CHECK_INT(atomic_load(&guard->core.hooks), 1);
		CHECK_INT(decide(guard, first, PSC_VERDICT_ALLOW, 0), 0);
		CHECK_REPORT(hear(guard, 0), 0);
		/* The thread that is free takes what has waited. */
		release_hooks(guard);
		if (wait_ticket(guard, 1, &second)) {
			CHECK_INT(
				decide(guard, second, PSC_VERDICT_DENY, ENOSPC),
				0);
			CHECK_REPORT(hear(guard, 1), ENOSPC);
		}
		CHECK_INT(atomic_load(&stats_of(guard)->asked), 2);
	}
	close_guard(guard);
}

static void test_caller_dies(void)
{
	struct guard *guard = open_guard(HOOK_HANGS, 2, 2, PATIENCE_NS, 4);
	uint64_t ticket;

	tell(guard, 0, ASKED);
	if (wait_ticket(guard, 0, &ticket)) {
		CHECK(psc_supervisor_waits(&guard->core, ticket));
		kill(guard->victims[0].pid, SIGKILL);
		victim_stop(&guard->victims[0]);
		CHECK(!psc_supervisor_waits(&guard->core, ticket));
		CHECK_INT(decide(guard, ticket, PSC_VERDICT_ALLOW, 0), 0);
		CHECK_INT(atomic_load(&stats_of(guard)->vanished), 1);
	}
	CHECK_REPORT(tell_and_hear(guard, 1, ALLOWED), 0);
	close_guard(guard);
}

static void test_stop(void)
{
	struct guard *guard = open_guard(HOOK_HANGS, 1, 3, PATIENCE_NS, 4);
	struct psc_event event;
	uint64_t ticket;
	int count = guard->worker_count;

	tell(guard, 0, ASKED);
	if (wait_ticket(guard, 0, &ticket)) {
		/* The hook still hangs; its request does not. */
		psc_supervisor_stop(&guard->core);
		CHECK_REPORT(hear(guard, 0), EACCES);
		event = pop_event(guard);
		CHECK_INT(event.rule, PSC_RULE_FAILURE);
		CHECK_INT(event.failure, PSC_FAILURE_CLOSED);
		CHECK_INT(decide(guard, ticket, PSC_VERDICT_ALLOW, 0), -ESTALE);
	}
	stop_guard(guard);
	for (int i = 0; i < count; i++)
		CHECK_INT(guard->workers[i].why, PSC_RUN_STOPPED);

	/* Whoever comes later is sent back at once. */
	start_workers(guard, 1);
	CHECK(wait_locked(guard, NULL, &guard->back, count + 1));
	CHECK_INT(guard->workers[0].why, PSC_RUN_STOPPED);
	pthread_join(guard->workers[0].thread, NULL);
	guard->worker_count = 0;
	close_guard(guard);
}

static void test_stop_idle(void)
{
	/* Threads in every state: about to lead, leading, watching, asleep. */
	for (int i = 0; i < 50; i++) {
		struct guard *guard = open_guard(HOOK_ANSWERS, i % 10 ? 0 : 1,
						 1 + i % 3, PATIENCE_NS, 4);

		close_guard(guard);
	}
}

static void test_surplus(void)
{
	struct guard *guard = open_guard(HOOK_ANSWERS, 1, 6, PATIENCE_NS, 4);
	int surplus = 0;

	/* One leads, two stand by. */
	CHECK(wait_locked(guard, NULL, &guard->back, 3));
	CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), 0);
	stop_guard(guard);
	for (int i = 0; i < 6; i++)
		surplus += guard->workers[i].why == PSC_RUN_SURPLUS;
	CHECK_INT(surplus, 3);
	close_guard(guard);
}

static void test_close(void)
{
	struct guard *guard = open_guard(HOOK_ANSWERS, 2, 2, PATIENCE_NS, 4);

	CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), 0);
	stop_guard(guard);
	/* This one waits while nobody serves. */
	tell(guard, 1, ALLOWED);
	psc_supervisor_close(&guard->core);
	CHECK_REPORT(hear(guard, 1), ENOSYS);
	CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), ENOSYS);
	close_guard(guard);
}

static void test_close_while_stuck(void)
{
	struct guard *guard = open_guard(HOOK_HANGS, 1, 2, PATIENCE_NS, 4);
	uint64_t ticket;

	tell(guard, 0, ASKED);
	if (wait_ticket(guard, 0, &ticket)) {
		psc_supervisor_stop(&guard->core);
		CHECK_REPORT(hear(guard, 0), EACCES);
		psc_supervisor_close(&guard->core);
		/* Nobody waits for the thread that is in the hook. */
		CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), ENOSYS);
		CHECK(guard->core.epoll_fd >= 0);
	}
	close_guard(guard);
}

static void test_close_in_round(void)
{
	struct guard *guard = open_guard(HOOK_ANSWERS, 1, 1, PATIENCE_NS, 4);
	struct psc_source *source = guard->core.sources;

	CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), 0);
	/* What a thread has that is stuck in a system call of its round. */
	atomic_fetch_add(&source->references, 1);
	stop_guard(guard);
	psc_supervisor_close(&guard->core);
	CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), ENOSYS);
	psc_source_release(source);
	close_guard(guard);
}

static void test_retire(void)
{
	struct guard *guard = open_guard(HOOK_ANSWERS, 2, 2, PATIENCE_NS, 4);

	CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), 0);
	victim_stop(&guard->victims[0]);
	CHECK_REPORT(tell_and_hear(guard, 1, ALLOWED), 0);
	victim_stop(&guard->victims[1]);
	/* The thread that installed the filter could still call. */
	CHECK_INT(atomic_load(&guard->core.live), 1);
	end_installer(guard);
	CHECK(wait_live(guard, 0));
	CHECK(guard->core.sources == NULL);
	close_guard(guard);
}

/* A forked child that forgets the guard, and lives on until @end closes. */
static pid_t fork_bystander(struct guard *guard, const int ready[2],
			    const int end[2])
{
	pid_t child = fork();
	char byte = 1;

	if (child != 0)
		return child;
	for (int i = 0; i < guard->victim_count; i++)
		close(guard->victims[i].fd);
	close(end[1]);
	psc_supervisor_forget(&guard->core, false);
	if (write(ready[1], &byte, 1) != 1)
		_exit(1);
	/* Ends with the parent, at the latest. */
	_exit(read(end[0], &byte, 1) != 0);
}

static void test_forget(void)
{
	struct guard *guard = open_guard(HOOK_ANSWERS, 1, 2, PATIENCE_NS, 4);
	int ready[2], end[2], status;
	pid_t child;
	char byte;

	REQUIRE(pipe(ready) == 0 && pipe(end) == 0);
	CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), 0);
	child = fork_bystander(guard, ready, end);
	CHECK(child > 0);
	close(ready[1]);
	CHECK_INT(read(ready[0], &byte, 1), 1);

	/* The parent's guard is as it was... */
	CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), 0);
	/* ...and nothing of it is left in the child when it closes. */
	stop_guard(guard);
	psc_supervisor_close(&guard->core);
	CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), ENOSYS);
	close(end[1]);
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	close(end[0]);
	close(ready[0]);
	close_guard(guard);
}

static void test_two_sources(void)
{
	struct guard *guard = open_guard(HOOK_ANSWERS, 1, 2, PATIENCE_NS, 4);
	struct guard *other = open_guard(HOOK_ANSWERS, 1, 0, PATIENCE_NS, 4);
	int moved_fd = dup(other->listener_fd);

	/* The second listener is served by the first guard's threads. */
	psc_supervisor_close(&other->core);
	CHECK_INT(psc_supervisor_add(&guard->core, moved_fd,
			   PSC_LISTENER_WAIT_KILLABLE, &other->policy),
		  0);
	CHECK_INT(psc_supervisor_add(&guard->core, moved_fd,
			   PSC_LISTENER_WAIT_KILLABLE, &other->policy),
		  -EEXIST);
	CHECK_INT(atomic_load(&guard->core.live), 2);
	for (int i = 0; i < 20; i++) {
		tell(guard, 0, ALLOWED);
		tell(other, 0, i % 2 ? DENIED : ALLOWED);
		CHECK_REPORT(hear(guard, 0), 0);
		CHECK_REPORT(hear(other, 0), i % 2 ? EPERM : 0);
	}
	victim_stop(&other->victims[0]);
	end_installer(other);
	CHECK(wait_live(guard, 1));
	CHECK_REPORT(tell_and_hear(guard, 0, ALLOWED), 0);
	close_guard(guard);
	close_guard(other);
}

/*
 * What an owner does while it waits: start a thread where a request waits for
 * one. With all three in a hook, or on their way out of one, nobody else does.
 */
static void serve_until_heard(struct guard *guard, int victim)
{
	enum { LOOK_MS = 10 };
	struct pollfd answer = {.fd = guard->victims[victim].fd,
				.events = POLLIN};
	const int64_t until = psc_round_now() + PATIENCE_NS;

	while (poll(&answer, 1, LOOK_MS) == 0 && psc_round_now() < until)
		if (atomic_load(&guard->core.asks.queued) > 0 &&
		    atomic_load(&guard->core.hooks) < guard->core.max_hooks &&
		    guard->worker_count < WORKERS_MAX)
			start_workers(guard, 1);
}

static void test_many(void)
{
	enum { TIMES = 150, VICTIMS = VICTIMS_MAX };
	static const int errors[] = {[ALLOWED] = 0,
				     [DENIED] = EPERM,
				     [ASKED] = 0,
				     [ASKED_TOO] = ENOSPC,
				     [UNNAMED] = EACCES};
	struct guard *guard =
		open_guard(HOOK_ANSWERS, VICTIMS, 3, PATIENCE_NS, 2);
	uint64_t random = 5, events = 0;
	const struct psc_stats *stats = stats_of(guard);
	struct psc_event event;

	for (int i = 0; i < TIMES; i++) {
		uint8_t last[VICTIMS];

		for (int j = 0; j < VICTIMS; j++) {
			last[j] = (uint8_t)(ALLOWED + check_below(&random, 5));
			tell(guard, j, last[j]);
		}
		for (int j = 0; j < VICTIMS; j++) {
			serve_until_heard(guard, j);
			CHECK_REPORT(hear(guard, j), errors[last[j]]);
		}
	}
	stop_guard(guard);
	while (psc_event_ring_pop(ring_of(guard), &event))
		events++;
	CHECK_INT(events + atomic_load(&ring_of(guard)->lost), TIMES * VICTIMS);
	CHECK_INT(atomic_load(&stats->requests), TIMES * VICTIMS);
	CHECK_INT(atomic_load(&stats->allowed) + atomic_load(&stats->denied),
		  TIMES * VICTIMS);
	CHECK_INT(atomic_load(&stats->failed), 0);
	CHECK_INT(atomic_load(&stats->late), 0);
	CHECK_INT(atomic_load(&stats->vanished), 0);
	close_guard(guard);
}

static void test_init(void)
{
	struct psc_supervisor *core = calloc(1, sizeof(*core));

	REQUIRE(core != NULL);
	CHECK_INT(psc_supervisor_init(core, 3, SECOND_NS, 1), -EINVAL);
	psc_supervisor_free(core);
	/* One that never served. */
	CHECK_INT(psc_supervisor_init(core, 4, SECOND_NS, 1), 0);
	psc_supervisor_free(core);
	free(core);
}

static const struct check_test tests[] = {
	{"a failed init leaves something that can be freed", test_init},
	{"an allowed port opens, and its event is there when the call is back",
	 test_allowed},
	{"a denied port stays closed, with the errno of its rule or default",
	 test_denied},
	{"a hook decides on the thread that asks it", test_hook_answers},
	{"any thread may answer for the hook, once", test_other_thread_answers},
	{"slots that nothing waits in hold no descriptor", test_free_slots},
	{"a hook that misses its deadline denies", test_deadline},
	{"while a hook hangs, another thread answers what rules decide",
	 test_takeover},
	{"requests beyond the hooks that may run wait for one of them",
	 test_queue},
	{"a caller that dies no longer waits, and disturbs nothing",
	 test_caller_dies},
	{"stop brings every thread back, and denies what waits for the hook",
	 test_stop},
	{"stop finds threads in whatever state they are", test_stop_idle},
	{"more than two threads on standby are sent home", test_surplus},
	{"after close, calls fail with ENOSYS: those that wait, and later ones",
	 test_close},
	{"close does not wait for a thread that is stuck in the hook",
	 test_close_while_stuck},
	{"close ends the listener though a round still refers to it",
	 test_close_in_round},
	{"a source is retired when the last task under its filter is gone",
	 test_retire},
	{"a forked child that forgets the guard does not keep calls hanging",
	 test_forget},
	{"one supervisor serves several listeners", test_two_sources},
	{"six victims at once each get their own answer, and are all counted",
	 test_many},
	{NULL, NULL},
};

const struct check_suite supervisor_suite = {"supervisor", tests};

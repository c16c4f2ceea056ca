/* SPDX-License-Identifier: MIT */
/*
 * The supervisor: many listeners, a few threads, one leader.
 *
 * Threads come from outside (the core creates none) and call
 * psc_supervisor_run(). One of them leads: it waits for requests and answers
 * them. The others stand by. RECV blocks when two threads race for one
 * request, so only the leader receives.
 *
 * A leader can get stuck: in the hook, which is anybody's code, or in a system
 * call on a socket whose lock a hostile target holds. So a thread on standby
 * looks every few milliseconds whether the leader is still in the same round
 * as before, and if so takes the lead. A leader that comes back finds that it
 * has lost the lead, finishes its own request, and stands by. While nothing
 * happens the watch sleeps; the leader wakes it with the next request.
 *
 * Requests for the hook wait elsewhere (asks.h), so that their thread, or
 * another one, can lead on.
 */
#ifndef PSC_SUPERVISOR_H
#define PSC_SUPERVISOR_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "asks.h"
#include "bell.h"
#include "event.h"
#include "listener.h"
#include "round.h"

/**
 * struct psc_worker - what one thread brings to psc_supervisor_run()
 * @lead: the value of the supervisor's @lead that makes this thread the
 *   leader, or 0
 * @last_tid: whose request it has received last
 * @in_hook: it came back with PSC_RUN_ASK, and is counted in @hooks
 * @request: the round that it is in. After PSC_RUN_ASK, its @event is what is
 *   known of the request to decide
 */
struct psc_worker {
	struct psc_worker *next;
	uint64_t lead;
	int32_t last_tid;
	bool in_hook;
	struct psc_callers callers;
	struct psc_request request;
};

/** Why psc_supervisor_run() came back. */
enum psc_run {
	PSC_RUN_STOPPED, /* the supervisor stops: do not come back */
	PSC_RUN_SURPLUS, /* enough threads stand by: do not come back */
	PSC_RUN_ASK,	 /* decide the ticket, then come back */
};

struct psc_supervisor {
	bool made; /* by psc_supervisor_init() */
	struct psc_supervisor *next; /* forking.c's */
	int epoll_fd;
	int wake_fd;
	int64_t hook_timeout_ns;
	int max_hooks;
	_Atomic bool stopping;

	_Atomic uint64_t lead;	  /* see supervisor.c */
	_Atomic int threads;	  /* that run the supervisor */
	_Atomic int standbys;	  /* those that could take the lead */
	_Atomic int hooks;	  /* threads that are out deciding */
	pthread_mutex_t duty;	  /* held by the standby that watches */
	struct psc_bell watch;	  /* wakes it */
	_Atomic bool watch_sleeps;

	pthread_mutex_t lists; /* guards the two lists and what follows */
	struct psc_source *sources;
	struct psc_worker *workers;
	bool closed;
	_Atomic int live;	  /* sources that can still send requests */

	struct psc_asks asks;
	struct psc_books books;
	struct psc_bell event_bell;	/* rings for events, and ended sources */
	_Atomic uint64_t bell_threshold; /* ...at this many events */
};

/**
 * psc_supervisor_init - make a supervisor without sources
 * @ring_capacity: events kept until they are read, a power of two
 * @hook_timeout_ns: how long a hook may take
 * @max_hooks: threads that may run hooks at one time; later requests queue
 *
 * Return: 0, -EINVAL, -ENOMEM, -EMFILE or -ENFILE.
 */
int psc_supervisor_init(struct psc_supervisor *supervisor,
			uint64_t ring_capacity, int64_t hook_timeout_ns,
			int max_hooks);

/**
 * psc_supervisor_free - give everything back
 *
 * No thread may be inside, or hold a ticket. Safe after a failed init if the
 * structure was zeroed before.
 */
void psc_supervisor_free(struct psc_supervisor *supervisor);

/**
 * psc_supervisor_add - serve one more listener
 * @listener_fd: owned by the supervisor on success
 * @features: what psc_listener_install() said of it
 * @policy: outlives the supervisor
 *
 * Return: 0, -ENOMEM, or what epoll_ctl(2) says.
 */
int psc_supervisor_add(struct psc_supervisor *supervisor, int listener_fd,
		       unsigned int features, const struct psc_policy *policy);

/**
 * psc_supervisor_install - put the filter on the calling thread, and serve it
 *
 * psc_listener_install() and psc_supervisor_add() in one: no fork of this
 * process can inherit the listener in between.
 *
 * Return: 0, or as those two; @ret_stage is PSC_INSTALL_SERVE for the latter.
 */
int psc_supervisor_install(struct psc_supervisor *supervisor,
			   const struct psc_filter_need *need,
			   unsigned int wanted, const struct psc_policy *policy,
			   unsigned int *ret_features,
			   enum psc_install_stage *ret_stage);

/**
 * psc_supervisor_wants_trust - whether psc_supervisor_trust() may learn something
 * @fd: of this process; anything
 *
 * Never waits.
 */
bool psc_supervisor_wants_trust(struct psc_supervisor *supervisor, int fd);

/**
 * psc_supervisor_trust - take the name of one of this process's sockets at its word
 *
 * Before a target starts that inherits it; see psc_listening_trust(). May wait.
 */
void psc_supervisor_trust(struct psc_supervisor *supervisor, int fd);

/** psc_worker_init - prepare a thread's own part; @worker is large */
void psc_worker_init(struct psc_supervisor *supervisor,
		     struct psc_worker *worker);

/**
 * psc_worker_close - the thread does not come back
 *
 * A leader that leaves makes room for another.
 */
void psc_worker_close(struct psc_supervisor *supervisor,
		      struct psc_worker *worker);

/**
 * psc_supervisor_run - lead, or stand by; blocks
 * @worker: the calling thread's own
 * @ret_ticket: with PSC_RUN_ASK, the request to decide
 *
 * Return: an enum psc_run, or -errno: the epoll descriptor failed.
 */
int psc_supervisor_run(struct psc_supervisor *supervisor,
		       struct psc_worker *worker, uint64_t *ret_ticket);

/** psc_supervisor_waits - whether the caller of a request still waits for it */
bool psc_supervisor_waits(struct psc_supervisor *supervisor, uint64_t ticket);

/**
 * psc_supervisor_decide - the hook's answer
 * @verdict: PSC_VERDICT_ALLOW, PSC_VERDICT_DENY or PSC_VERDICT_MOVE
 * @error: a positive errno for DENY, 0 for the policy's own
 * @target: for MOVE
 *
 * Any thread, at any time.
 *
 * Return: 0, or -ESTALE when the request has been answered by somebody else.
 */
int psc_supervisor_decide(struct psc_supervisor *supervisor, uint64_t ticket,
			  enum psc_verdict verdict, int error,
			  const struct psc_target *target);

/**
 * psc_supervisor_stop - make every thread come back, now and later
 *
 * Any thread. What waits for the hook is denied.
 */
void psc_supervisor_stop(struct psc_supervisor *supervisor);

/**
 * psc_supervisor_close - close every listener
 *
 * After psc_supervisor_stop(). Calls that wait, and all later ones, fail with
 * ENOSYS. The supervisor's own descriptors go with the last worker.
 */
void psc_supervisor_close(struct psc_supervisor *supervisor);

/**
 * psc_supervisor_forget - close the descriptors in a forked child
 * @is_noted: see psc_round_forget()
 *
 * Called there by itself (forking.h). Makes system calls, and nothing else.
 */
void psc_supervisor_forget(struct psc_supervisor *supervisor, bool is_noted);

#endif

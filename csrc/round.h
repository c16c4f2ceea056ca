/* SPDX-License-Identifier: MIT */
/*
 * The round of one request.
 *
 *	RECV -> copy the socket from the calling thread -> ID_VALID -> read it
 *	-> match the rules -> (hook) -> act on the copy -> read what resulted
 *	-> close the copy -> publish -> SEND
 *
 * What was checked is what is made: the call is performed on the copy, never
 * by letting the kernel look the descriptor up again, which another thread
 * could have swapped by then. The *socket* must not move between the check and
 * the act either: its binds pass through us and are remembered, `listen` is
 * judged by them, and no other round of the same socket runs meanwhile. An
 * unbound socket is bound first, on the copy. What is left (connect, IPV6_V6ONLY
 * from another thread) is looked for after the act: a port that is not the one
 * that was judged is closed and denied. Not before: whoever holds the socket's
 * lock can put that look off.
 *
 * The copy is closed before the answer: or a quick close and rebind in the
 * target finds its port busy. The event is published before the answer: or a
 * caller that looks at its own event right after the call may miss it.
 */
#ifndef PSC_ROUND_H
#define PSC_ROUND_H

#include <linux/seccomp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "caller.h"
#include "event.h"
#include "memory.h"
#include "rules.h"
#include "stats.h"

/** rounds of one supervisor that may be under way at one time... */
#define PSC_ROUNDS 16
/** ...and of one process: a hostile one must not take all threads */
#define PSC_ROUNDS_PROCESS 3

/**
 * struct psc_source - one listener and the policy that its requests meet
 * @fd: the listener; owned
 * @references: who uses the source; the last closes it
 * @policy: outlives the source
 * @can_deny: psc_rules_can_deny(@policy)
 * @sees_binds: PSC_LISTENER_SEES_BINDS
 * @restarts: a signal can make a caller drop an answer that was sent, and call
 *   again: there is no WAIT_KILLABLE_RECV
 */
struct psc_source {
	int fd;
	_Atomic int references;
	const struct psc_policy *policy;
	bool can_deny;
	bool sees_binds;
	bool restarts;
	struct psc_source *next;
};

/** psc_source_release - drop one reference */
void psc_source_release(struct psc_source *source);

/**
 * struct psc_books - where rounds are recorded; shared by all threads
 * @rounds: the processes whose requests are in hand, 0 where free. Usually one:
 *   more means that threads are stuck, in memory that blocks its reader or on a
 *   socket whose lock is held
 */
struct psc_books {
	struct psc_event_ring ring;
	struct psc_stats stats;
	struct psc_memory memory;
	_Atomic int32_t rounds[PSC_ROUNDS];
};

/**
 * struct psc_request - one intercepted call
 * @source: where it came from; a reference is held
 * @id: the kernel's number of it
 * @copy_fd: the copied socket; owned; -1 when closed
 * @started_ns: when it was received, CLOCK_MONOTONIC
 * @bound: the socket as it was found, before the call
 * @address, @address_length: of bind: where to, as read once from the caller
 * @let_continue: the kernel is to run the call as it stands
 * @quiet: the call opens nothing and is no event
 * @counted: it is counted as a request
 * @asked: it went to the hook
 * @made: the bind has been made
 * @by_number: it is judged by the port's number: it was bound to that
 * @keeps_port: ...as we have seen, so it can't lose it
 * @claim: where the socket is claimed for this round, or NULL
 * @thread_claim: where the calling thread is
 * @place: its place in @source's rounds, or NULL
 * @event: what is known of it so far
 */
struct psc_request {
	struct psc_source *source;
	_Atomic int32_t *place;
	struct psc_memory *claim;
	struct psc_memory *thread_claim;
	uint64_t id;
	int copy_fd;
	int64_t started_ns;
	struct psc_endpoint bound;
	union psc_sockaddr address;
	socklen_t address_length;
	bool let_continue;
	bool quiet;
	bool counted;
	bool asked;
	bool made;
	bool by_number;
	bool keeps_port;
	struct psc_decision decision;
	struct psc_event event;
};

/** What psc_round_open() made of a request. */
enum psc_round_state {
	PSC_ROUND_DONE,	   /* answered, or nobody waits any more */
	PSC_ROUND_DECIDED, /* @decision stands: close it */
	PSC_ROUND_ASK,	   /* the hook must decide */
};

/** psc_round_now - CLOCK_MONOTONIC, in nanoseconds */
int64_t psc_round_now(void);

/**
 * psc_round_open - copy, read and judge
 * @request: @source is set; everything else is written
 * @notif: as received
 * @callers: the supervisor thread's own
 * @books: where a request that needs no decision is recorded
 */
enum psc_round_state psc_round_open(struct psc_request *request,
				    const struct seccomp_notif *notif,
				    struct psc_callers *callers,
				    struct psc_books *books);

/** psc_round_leave - the thread is through with a request, for now */
void psc_round_leave(struct psc_request *request);

/**
 * psc_round_close - act on @decision, record, answer
 *
 * Closes the copy. Does not release the source.
 */
void psc_round_close(struct psc_request *request, struct psc_books *books);

/**
 * psc_round_vanish - nobody waits for the answer: count it, and close the copy
 */
void psc_round_vanish(struct psc_request *request, struct psc_books *books);

/**
 * psc_round_forget - close the copy, in a forked child
 * @is_noted: the fork was held until what the request says of it was true
 */
void psc_round_forget(struct psc_request *request, bool is_noted);

/**
 * psc_round_fail - deny for a reason that is not the policy's
 * @failure: the reason
 * @failure_error: the errno that tells more, or 0
 */
void psc_round_fail(struct psc_request *request, enum psc_failure failure,
		    int failure_error, struct psc_books *books);

#endif

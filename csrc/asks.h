/* SPDX-License-Identifier: MIT */
/*
 * Requests that wait for the hook: slots, each with a deadline.
 *
 * Whoever claims a slot first answers its request: the thread that ran the
 * hook, the leader at the deadline, or who closes the supervisor. A ticket
 * names a request for good: its slot is used again, under another ticket.
 */
#ifndef PSC_ASKS_H
#define PSC_ASKS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "event.h"
#include "round.h"

/** requests that can wait for the hook at one time */
#define PSC_ASKS 256

/* Who owns a slot; a claim moves it from WAITING or QUEUED to CLAIMED. */
enum psc_ask_state {
	PSC_ASK_FREE,
	PSC_ASK_QUEUED,	  /* no thread was free for its hook */
	PSC_ASK_WAITING,  /* the hook decides */
	PSC_ASK_BORROWED, /* WAITING, but looked at for an instant */
	PSC_ASK_CLAIMED,  /* is being filled, or answered */
};

/**
 * struct psc_ask - a request that the hook decides
 * @state: generation << 3 | enum psc_ask_state
 * @deadline_ns: CLOCK_MONOTONIC
 * @tid: the thread that waits
 * @copy_fd: @request's, for those who have not claimed it
 */
struct psc_ask {
	_Atomic uint64_t state;
	_Atomic int64_t deadline_ns;
	_Atomic int32_t tid;
	_Atomic int copy_fd;
	struct psc_request request;
};

/**
 * struct psc_asks - all of them
 * @open: slots that are not free
 * @queued: those that no thread runs the hook for
 */
struct psc_asks {
	_Atomic int open;
	_Atomic int queued;
	struct psc_ask slots[PSC_ASKS];
};

/** psc_asks_init - no request waits, and no slot holds a descriptor; all zeroed */
void psc_asks_init(struct psc_asks *asks);

/**
 * psc_asks_take - take a free slot
 * @copy_fd: what psc_asks_hold() is to know from now on
 *
 * Return: the request to fill; psc_asks_post() then shows it to others. NULL:
 * none is free.
 */
struct psc_request *psc_asks_take(struct psc_asks *asks, int copy_fd,
				  uint64_t *ret_ticket);

/**
 * psc_asks_post - let a request wait
 * @is_queued: no thread runs its hook yet: psc_asks_dequeue() gives it to one
 */
void psc_asks_post(struct psc_asks *asks, uint64_t ticket, int64_t deadline_ns,
		   bool is_queued);

/**
 * psc_asks_dequeue - give a thread what has been queued longest
 * @ret_event: what is known of it
 *
 * Return: false where nothing is queued.
 */
bool psc_asks_dequeue(struct psc_asks *asks, struct psc_event *ret_event,
		      uint64_t *ret_ticket);

/**
 * psc_asks_claim - take a request from whoever else may answer it
 *
 * Return: the request, which nobody else will touch, to be answered and then
 * given to psc_asks_release(); NULL where somebody else was first.
 */
struct psc_request *psc_asks_claim(struct psc_asks *asks, uint64_t ticket);

/** psc_asks_release - a claimed request has been answered */
void psc_asks_release(struct psc_asks *asks, uint64_t ticket);

/** psc_asks_waits - whether the caller of a request still waits for it */
bool psc_asks_waits(struct psc_asks *asks, uint64_t ticket);

/**
 * psc_asks_expire - deny what has waited too long
 * @ret_next_ns: time to the next deadline, or -1
 *
 * Return: how many were denied.
 */
int psc_asks_expire(struct psc_asks *asks, struct psc_books *books,
		    int64_t *ret_next_ns);

/**
 * psc_asks_forsake - end what a thread waits for no more, since it calls again
 * @tid: the thread; 0 is none
 *
 * A signal has interrupted it, or it is another thread of the same number. The
 * copy of that socket would keep a port busy that its caller has closed by now.
 */
void psc_asks_forsake(struct psc_asks *asks, int32_t tid,
		      struct psc_books *books);

/** psc_asks_close - deny all; return how many there were */
int psc_asks_close(struct psc_asks *asks, struct psc_books *books);

/** psc_asks_hold - whether a descriptor is the copy of a socket in here */
bool psc_asks_hold(struct psc_asks *asks, int fd);

/** psc_asks_forget - close the copies, in a forked child: psc_round_forget() */
void psc_asks_forget(struct psc_asks *asks, bool is_noted);

#endif

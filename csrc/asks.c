/* SPDX-License-Identifier: MIT */
#include "asks.h"

#include "listener.h"

#define STATE_BITS 3
#define STATE_MASK ((1u << STATE_BITS) - 1)

static uint64_t word(uint64_t generation, enum psc_ask_state state)
{
	return generation << STATE_BITS | state;
}

static enum psc_ask_state state_of(struct psc_ask *ask)
{
	return (enum psc_ask_state)(atomic_load(&ask->state) & STATE_MASK);
}

static uint64_t generation_of(struct psc_ask *ask)
{
	return atomic_load(&ask->state) >> STATE_BITS;
}

static struct psc_ask *ask_of(struct psc_asks *asks, uint64_t ticket)
{
	return &asks->slots[ticket % PSC_ASKS];
}

/* The ticket of a slot's present occupant. */
static uint64_t ticket_of(struct psc_asks *asks, uint64_t index)
{
	return generation_of(&asks->slots[index]) * PSC_ASKS + index;
}

static bool move(struct psc_ask *ask, uint64_t generation,
		 enum psc_ask_state from, enum psc_ask_state to)
{
	uint64_t expected = word(generation, from);

	return atomic_compare_exchange_strong(&ask->state, &expected,
					      word(generation, to));
}

static void set(struct psc_ask *ask, uint64_t generation,
		enum psc_ask_state state)
{
	atomic_store(&ask->state, word(generation, state));
}

void psc_asks_init(struct psc_asks *asks)
{
	/* 0 is a descriptor: of whatever else, which a forked child would close. */
	for (int i = 0; i < PSC_ASKS; i++)
		asks->slots[i].request.copy_fd = -1;
}

struct psc_request *psc_asks_take(struct psc_asks *asks, int copy_fd,
				  uint64_t *ret_ticket)
{
	for (uint64_t i = 0; i < PSC_ASKS; i++) {
		struct psc_ask *ask = &asks->slots[i];
		const uint64_t generation = generation_of(ask);

		if (state_of(ask) != PSC_ASK_FREE ||
		    !move(ask, generation, PSC_ASK_FREE, PSC_ASK_CLAIMED))
			continue;
		atomic_store(&ask->copy_fd, copy_fd);
		atomic_fetch_add(&asks->open, 1);
		*ret_ticket = generation * PSC_ASKS + i;
		return &ask->request;
	}
	return NULL;
}

void psc_asks_post(struct psc_asks *asks, uint64_t ticket, int64_t deadline_ns,
		   bool is_queued)
{
	struct psc_ask *ask = ask_of(asks, ticket);

	atomic_store(&ask->deadline_ns, deadline_ns);
	atomic_store(&ask->tid, ask->request.event.tid);
	if (is_queued)
		atomic_fetch_add(&asks->queued, 1);
	set(ask, ticket / PSC_ASKS,
	    is_queued ? PSC_ASK_QUEUED : PSC_ASK_WAITING);
}

bool psc_asks_dequeue(struct psc_asks *asks, struct psc_event *ret_event,
		      uint64_t *ret_ticket)
{
	while (atomic_load(&asks->queued) > 0) {
		struct psc_ask *oldest = NULL;
		uint64_t generation;

		for (uint64_t i = 0; i < PSC_ASKS; i++) {
			struct psc_ask *ask = &asks->slots[i];

			if (state_of(ask) == PSC_ASK_QUEUED &&
			    (!oldest ||
			     atomic_load(&ask->deadline_ns) <
				     atomic_load(&oldest->deadline_ns)))
				oldest = ask;
		}
		if (!oldest)
			return false;
		generation = generation_of(oldest);
		if (!move(oldest, generation, PSC_ASK_QUEUED, PSC_ASK_CLAIMED))
			continue;
		atomic_fetch_sub(&asks->queued, 1);
		*ret_event = oldest->request.event;
		*ret_ticket = generation * PSC_ASKS +
			      (uint64_t)(oldest - asks->slots);
		set(oldest, generation, PSC_ASK_WAITING);
		return true;
	}
	return false;
}

struct psc_request *psc_asks_claim(struct psc_asks *asks, uint64_t ticket)
{
	struct psc_ask *ask = ask_of(asks, ticket);
	const uint64_t generation = ticket / PSC_ASKS;

	for (;;) {
		uint64_t state;

		if (move(ask, generation, PSC_ASK_WAITING, PSC_ASK_CLAIMED))
			return &ask->request;
		if (move(ask, generation, PSC_ASK_QUEUED, PSC_ASK_CLAIMED)) {
			atomic_fetch_sub(&asks->queued, 1);
			return &ask->request;
		}
		state = atomic_load(&ask->state);
		if (state == word(generation, PSC_ASK_FREE) ||
		    state == word(generation, PSC_ASK_CLAIMED) ||
		    state >> STATE_BITS != generation)
			return NULL;
		/* BORROWED for the length of one ioctl, or just moved. */
	}
}

void psc_asks_release(struct psc_asks *asks, uint64_t ticket)
{
	struct psc_ask *ask = ask_of(asks, ticket);

	psc_source_release(ask->request.source);
	atomic_store(&ask->tid, 0); /* the next one is another thread's */
	set(ask, ticket / PSC_ASKS + 1, PSC_ASK_FREE);
	atomic_fetch_sub(&asks->open, 1);
}

bool psc_asks_waits(struct psc_asks *asks, uint64_t ticket)
{
	struct psc_ask *ask = ask_of(asks, ticket);
	const uint64_t generation = ticket / PSC_ASKS;
	bool waits;

	if (!move(ask, generation, PSC_ASK_WAITING, PSC_ASK_BORROWED))
		return false;
	waits = psc_listener_id_valid(ask->request.source->fd,
				      ask->request.id) == 0;
	set(ask, generation, PSC_ASK_WAITING);
	return waits;
}

/* Return: whether nobody else has answered it. */
static bool fail(struct psc_asks *asks, uint64_t ticket,
		 enum psc_failure failure, struct psc_books *books)
{
	struct psc_request *request = psc_asks_claim(asks, ticket);

	if (!request)
		return false;
	if (failure == PSC_FAILURE_DEADLINE)
		psc_stats_add(&books->stats.late);
	psc_round_fail(request, failure, 0, books);
	psc_asks_release(asks, ticket);
	return true;
}

int psc_asks_expire(struct psc_asks *asks, struct psc_books *books,
		    int64_t *ret_next_ns)
{
	int64_t now;
	int expired = 0;

	*ret_next_ns = -1;
	if (atomic_load(&asks->open) == 0)
		return 0;
	now = psc_round_now();
	for (uint64_t i = 0; i < PSC_ASKS; i++) {
		const uint64_t ticket = ticket_of(asks, i);
		struct psc_ask *ask = &asks->slots[i];
		const enum psc_ask_state state = state_of(ask);
		int64_t left;

		if (state == PSC_ASK_FREE || state == PSC_ASK_CLAIMED)
			continue;
		left = atomic_load(&ask->deadline_ns) - now;
		if (left <= 0) {
			expired +=
				fail(asks, ticket, PSC_FAILURE_DEADLINE, books);
		} else if (*ret_next_ns < 0 || left < *ret_next_ns) {
			*ret_next_ns = left;
		}
	}
	return expired;
}

void psc_asks_forsake(struct psc_asks *asks, int32_t tid,
		      struct psc_books *books)
{
	if (atomic_load(&asks->open) == 0 || tid == 0)
		return;
	for (uint64_t i = 0; i < PSC_ASKS; i++) {
		const uint64_t ticket = ticket_of(asks, i);
		struct psc_request *request;

		if (atomic_load(&asks->slots[i].tid) != tid)
			continue;
		request = psc_asks_claim(asks, ticket);
		if (!request)
			continue;
		psc_round_vanish(request, books);
		psc_asks_release(asks, ticket);
	}
}

int psc_asks_close(struct psc_asks *asks, struct psc_books *books)
{
	int closed = 0;

	for (uint64_t i = 0; i < PSC_ASKS; i++)
		closed += fail(asks, ticket_of(asks, i), PSC_FAILURE_CLOSED,
			       books);
	return closed;
}

bool psc_asks_hold(struct psc_asks *asks, int fd)
{
	if (atomic_load(&asks->open) == 0)
		return false;
	for (int i = 0; i < PSC_ASKS; i++)
		if (state_of(&asks->slots[i]) != PSC_ASK_FREE &&
		    atomic_load(&asks->slots[i].copy_fd) == fd)
			return true;
	return false;
}

void psc_asks_forget(struct psc_asks *asks, bool is_noted)
{
	for (int i = 0; i < PSC_ASKS; i++)
		if (state_of(&asks->slots[i]) != PSC_ASK_FREE)
			psc_round_forget(&asks->slots[i].request, is_noted);
}

/* SPDX-License-Identifier: MIT */
#include "event.h"

#include <errno.h>
#include <stdlib.h>

/* The share of a ring that is kept for ports that open. */
#define RESERVED 4

/* In the head of a ring that takes no more events. */
#define CLOSED (UINT64_C(1) << 63)

/*
 * A bounded queue for many producers and consumers, after the well-known
 * scheme of D. Vyukov. Slot i is used by positions i, i + capacity, ... Its
 * turn equals a position p when p may be pushed there, and p + 1 when p may be
 * popped. Whoever moves head (or tail) past p owns the slot until it stores
 * the next turn.
 */

int psc_event_ring_init(struct psc_event_ring *ring, uint64_t capacity)
{
	/* With a single slot, pushed and popped would be the same turn. */
	if (capacity < 2 || (capacity & (capacity - 1)) != 0)
		return -EINVAL;
	ring->slots = calloc(capacity, sizeof(*ring->slots));
	if (!ring->slots)
		return -ENOMEM;
	ring->capacity = capacity;
	for (uint64_t i = 0; i < capacity; i++)
		atomic_init(&ring->slots[i].turn, i);
	atomic_init(&ring->head, 0);
	atomic_init(&ring->tail, 0);
	atomic_init(&ring->lost, 0);
	return 0;
}

void psc_event_ring_free(struct psc_event_ring *ring)
{
	free(ring->slots);
	ring->slots = NULL;
}

static struct psc_event_slot *slot_of(struct psc_event_ring *ring,
				      uint64_t position)
{
	return &ring->slots[position & (ring->capacity - 1)];
}

/*
 * Move @end past the position whose slot has reached its turn, which is
 * @lead ahead of the position. Return the slot, or NULL: full, empty, or
 * closed.
 */
static struct psc_event_slot *claim(struct psc_event_ring *ring,
				    _Atomic uint64_t *end, uint64_t lead,
				    uint64_t *ret_position)
{
	uint64_t position = atomic_load_explicit(end, memory_order_relaxed);

	for (;;) {
		struct psc_event_slot *slot = slot_of(ring, position);
		uint64_t turn =
			atomic_load_explicit(&slot->turn, memory_order_acquire);
		int64_t ahead = (int64_t)(turn - (position + lead));

		if (ahead < 0 || position & CLOSED)
			return NULL;
		if (ahead > 0) {
			position =
				atomic_load_explicit(end, memory_order_relaxed);
			continue;
		}
		if (atomic_compare_exchange_weak_explicit(
			    end, &position, position + 1, memory_order_relaxed,
			    memory_order_relaxed)) {
			*ret_position = position;
			return slot;
		}
	}
}

bool psc_event_ring_push(struct psc_event_ring *ring,
			 const struct psc_event *event)
{
	const bool opens = event->open && event->first;
	struct psc_event_slot *slot = NULL;
	uint64_t position;

	if (opens || psc_event_ring_count(ring) <
			     ring->capacity - ring->capacity / RESERVED)
		slot = claim(ring, &ring->head, 0, &position);
	if (!slot) {
		atomic_fetch_add_explicit(&ring->lost, 1, memory_order_relaxed);
		return false;
	}
	slot->event = *event;
	atomic_store_explicit(&slot->turn, position + 1, memory_order_release);
	return true;
}

bool psc_event_ring_pop(struct psc_event_ring *ring,
			struct psc_event *ret_event)
{
	struct psc_event_slot *slot;
	uint64_t position;

	slot = claim(ring, &ring->tail, 1, &position);
	if (!slot)
		return false;
	*ret_event = slot->event;
	atomic_store_explicit(&slot->turn, position + ring->capacity,
			      memory_order_release);
	return true;
}

void psc_event_ring_close(struct psc_event_ring *ring)
{
	/* Whoever has not moved head past its position by now never will. */
	atomic_fetch_or(&ring->head, CLOSED);
}

uint64_t psc_event_ring_pushed(struct psc_event_ring *ring)
{
	return atomic_load_explicit(&ring->head, memory_order_relaxed) &
	       ~CLOSED;
}

uint64_t psc_event_ring_count(struct psc_event_ring *ring)
{
	uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
	uint64_t head = psc_event_ring_pushed(ring);

	return head > tail ? head - tail : 0;
}

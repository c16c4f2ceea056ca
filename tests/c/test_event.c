/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "event.h"

#define PRODUCERS 4
#define CONSUMERS 2
#define EACH 250000

/* An event of which every part tells its number: a torn one shows. */
static void fill(struct psc_event *event, int producer, uint64_t number)
{
	memset(event, (int)(number & 0x7f), sizeof(*event));
	event->known = false;
	event->requested.dual_stack = event->actual.dual_stack = false;
	event->open = event->first = true;
	event->tid = producer;
	event->cookie = number;
}

static bool whole(const struct psc_event *event)
{
	const int byte = (int)(event->cookie & 0x7f);
	char path[sizeof(event->actual.path)];

	memset(path, byte, sizeof(path));
	return memcmp(event->requested.path, path, sizeof(path)) == 0 &&
	       memcmp(event->actual.path, path, sizeof(path)) == 0 &&
	       memcmp(event->comm, path, sizeof(event->comm)) == 0;
}

static void test_capacity(void)
{
	static const uint64_t wrong[] = {0, 3, 6, 1000, UINT64_MAX};
	struct psc_event_ring ring;

	for (size_t i = 0; i < COUNT_OF(wrong); i++)
		CHECK_INT(psc_event_ring_init(&ring, wrong[i]), -EINVAL);
}

static void check_fill(uint64_t capacity)
{
	struct psc_event_ring ring;
	struct psc_event event;
	uint64_t next = 0, oldest = 0, lost = 0;

	REQUIRE(psc_event_ring_init(&ring, capacity) == 0);
	CHECK(!psc_event_ring_pop(&ring, &event));
	/* Several times around, and never from the same slot. */
	for (uint64_t turn = 0; turn < 10; turn++) {
		for (uint64_t i = 0; i < capacity; i++) {
			CHECK_INT(psc_event_ring_count(&ring), i);
			fill(&event, 0, next++);
			CHECK(psc_event_ring_push(&ring, &event));
		}
		for (uint64_t i = 0; i < 3; i++) {
			fill(&event, 0, 1000000);
			CHECK(!psc_event_ring_push(&ring, &event));
			lost++;
		}
		CHECK_INT(psc_event_ring_count(&ring), capacity);
		CHECK_INT(atomic_load(&ring.lost), lost);

		/* One place is free after one pop, not two. */
		CHECK(psc_event_ring_pop(&ring, &event));
		CHECK_INT(event.cookie, oldest++);
		fill(&event, 0, next++);
		CHECK(psc_event_ring_push(&ring, &event));
		CHECK(!psc_event_ring_push(&ring, &event));
		lost++;

		for (uint64_t i = 0; i < capacity; i++) {
			CHECK(psc_event_ring_pop(&ring, &event));
			CHECK(whole(&event));
			CHECK_INT(event.cookie, oldest++);
		}
		CHECK(!psc_event_ring_pop(&ring, &event));
		CHECK_INT(psc_event_ring_count(&ring), 0);
	}
	psc_event_ring_free(&ring);
}

static void test_fill(void)
{
	check_fill(2);
	check_fill(4);
	check_fill(64);
}

static void test_one(void)
{
	struct psc_event_ring ring;
	struct psc_event event;
	bool second;

	/* Refused is fine as well. */
	if (psc_event_ring_init(&ring, 1) < 0)
		return;
	fill(&event, 0, 1);
	CHECK(psc_event_ring_push(&ring, &event));
	fill(&event, 0, 2);
	second = CHECK(!psc_event_ring_push(&ring, &event));
	/* A pop would not come back from a ring that has been overrun. */
	if (second) {
		CHECK(psc_event_ring_pop(&ring, &event));
		CHECK_INT(event.cookie, 1);
		CHECK(!psc_event_ring_pop(&ring, &event));
	}
	psc_event_ring_free(&ring);
}

static void test_reserve(void)
{
	struct psc_event_ring ring;
	struct psc_event event;

	REQUIRE(psc_event_ring_init(&ring, 8) == 0);
	fill(&event, 0, 1);
	event.first = false;
	for (int i = 0; i < 6; i++)
		CHECK(psc_event_ring_push(&ring, &event));
	CHECK(!psc_event_ring_push(&ring, &event));
	event.open = false;
	event.first = true;
	CHECK(!psc_event_ring_push(&ring, &event));
	event.open = true;
	CHECK(psc_event_ring_push(&ring, &event));
	CHECK(psc_event_ring_push(&ring, &event));
	CHECK(!psc_event_ring_push(&ring, &event));
	CHECK_INT(atomic_load(&ring.lost), 3);
	CHECK_INT(psc_event_ring_count(&ring), 8);
	psc_event_ring_free(&ring);
}

static void test_close(void)
{
	struct psc_event_ring ring;
	struct psc_event event;

	REQUIRE(psc_event_ring_init(&ring, 4) == 0);
	for (uint64_t i = 0; i < 3; i++) {
		fill(&event, 0, i);
		CHECK(psc_event_ring_push(&ring, &event));
	}
	psc_event_ring_close(&ring);
	psc_event_ring_close(&ring);
	CHECK(!psc_event_ring_push(&ring, &event));
	CHECK_INT(atomic_load(&ring.lost), 1);
	for (uint64_t i = 0; i < 3; i++) {
		CHECK_INT(psc_event_ring_count(&ring), 3 - i);
		CHECK(psc_event_ring_pop(&ring, &event));
		CHECK_INT(event.cookie, i);
	}
	CHECK(!psc_event_ring_pop(&ring, &event));
	CHECK(!psc_event_ring_push(&ring, &event));
	CHECK_INT(psc_event_ring_pushed(&ring), 3);
	CHECK_INT(atomic_load(&ring.lost), 2);
	psc_event_ring_free(&ring);
}

/* ---- many threads ---- */

struct traffic {
	struct psc_event_ring ring;
	_Atomic int producing;
	_Atomic uint64_t refused;
	bool pushed[PRODUCERS][EACH];
	_Atomic uint8_t seen[PRODUCERS][EACH];
};

struct part {
	struct traffic *traffic;
	int number;
	pthread_t thread;
};

static void *produce(void *argument)
{
	struct part *part = argument;
	struct traffic *traffic = part->traffic;
	/* Half of them insist, so that most of the ring's time is full. */
	const bool insists = part->number % 2;
	struct psc_event event;

	for (uint64_t i = 0; i < EACH; i++) {
		bool pushed;

		fill(&event, part->number, i);
		while (!(pushed =
				 psc_event_ring_push(&traffic->ring, &event))) {
			atomic_fetch_add(&traffic->refused, 1);
			sched_yield();
			if (!insists)
				break;
		}
		traffic->pushed[part->number][i] = pushed;
	}
	atomic_fetch_sub(&traffic->producing, 1);
	return NULL;
}

static void *consume(void *argument)
{
	struct part *part = argument;
	struct traffic *traffic = part->traffic;
	int64_t last[PRODUCERS] = {-1, -1, -1, -1};
	struct psc_event event;

	for (;;) {
		/* Looked at before the pop: then empty means the end. */
		const bool last_look = atomic_load(&traffic->producing) == 0;

		if (!psc_event_ring_pop(&traffic->ring, &event)) {
			if (last_look)
				return NULL;
			sched_yield();
			continue;
		}
		if (event.tid < 0 || event.tid >= PRODUCERS ||
		    event.cookie >= EACH) {
			FAIL("an event that nobody pushed");
			continue;
		}
		if (!whole(&event))
			FAIL("a torn event");
		if ((int64_t)event.cookie <= last[event.tid])
			FAIL("out of order");
		last[event.tid] = (int64_t)event.cookie;
		atomic_fetch_add(&traffic->seen[event.tid][event.cookie], 1);
	}
}

static void test_threads(void)
{
	struct traffic *traffic = calloc(1, sizeof(*traffic));
	struct part parts[PRODUCERS + CONSUMERS];

	REQUIRE(traffic != NULL);
	CHECK_INT(psc_event_ring_init(&traffic->ring, 256), 0);
	atomic_store(&traffic->producing, PRODUCERS);
	for (int i = 0; i < PRODUCERS + CONSUMERS; i++) {
		parts[i] = (struct part){.traffic = traffic, .number = i};
		CHECK(pthread_create(&parts[i].thread, NULL,
				     i < PRODUCERS ? produce : consume,
				     &parts[i]) == 0);
	}
	for (int i = 0; i < PRODUCERS + CONSUMERS; i++)
		pthread_join(parts[i].thread, NULL);

	for (int producer = 0; producer < PRODUCERS; producer++)
		for (int i = 0; i < EACH; i++)
			if (atomic_load(&traffic->seen[producer][i]) !=
			    traffic->pushed[producer][i])
				FAIL("event %d of %d: seen %d times", i,
				     producer,
				     atomic_load(&traffic->seen[producer][i]));
	CHECK_INT(atomic_load(&traffic->ring.lost),
		  atomic_load(&traffic->refused));
	CHECK_INT(psc_event_ring_count(&traffic->ring), 0);
	psc_event_ring_free(&traffic->ring);
	free(traffic);
}

static const struct check_test tests[] = {
	{"a capacity that is no power of two is refused", test_capacity},
	{"a full ring counts what is lost, and keeps the order", test_fill},
	{"a ring of one event is refused, or holds one", test_one},
	{"the last quarter of a ring is for ports that open", test_reserve},
	{"a closed ring gives what it has, and counts what comes", test_close},
	{"four producers and two consumers lose, double and tear nothing of a "
	 "million events",
	 test_threads},
	{NULL, NULL},
};

const struct check_suite event_suite = {"event", tests};

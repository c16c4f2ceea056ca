/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "memory.h"

/* Sockets whose cookies differ by this share the same few places. */
#define NEXT PSC_MEMORY_SETS

enum { INHERITED = 0, FIRST = 1000, SECOND = 2000, THIRD = 3000 };

static struct psc_memory *fresh(void)
{
	struct psc_memory *memory = calloc(1, sizeof(*memory));

	if (!memory)
		abort();
	psc_memory_init(memory);
	return memory;
}

static void done(struct psc_memory *memory)
{
	psc_memory_free(memory);
	free(memory);
}

static void store(struct psc_memory *memory, uint64_t cookie, int32_t owner)
{
	const struct psc_endpoint place = {
		.family = PSC_FAMILY_IPV4, .port = 8000, .address = {127, 0, 0, 1}};

	psc_memory_store(memory,
			 (struct psc_memory_entry){.cookie = cookie,
						   .kind = PSC_MEMORY_CHOSEN,
						   .owner = owner},
			 &place, &place);
}

static bool knows(struct psc_memory *memory, uint64_t cookie)
{
	struct psc_memory_entry found;

	psc_memory_find(memory, cookie, &found);
	return found.kind != PSC_MEMORY_NOTHING;
}

/* Which of the sockets @cookie, @cookie + NEXT and so on are known, as bits. */
static unsigned int known(struct psc_memory *memory, uint64_t cookie, int count)
{
	unsigned int bits = 0;

	for (int i = 0; i < count; i++)
		if (knows(memory, cookie + (uint64_t)i * NEXT))
			bits |= 1u << i;
	return bits;
}

static void test_recall(void)
{
	const struct psc_endpoint asked = {.family = PSC_FAMILY_IPV6,
					   .dual_stack = true,
					   .port = 0,
					   .address = {[15] = 1}};
	const struct psc_endpoint actual = {.family = PSC_FAMILY_IPV4,
					    .port = 40000,
					    .address = {127, 0, 0, 2}};
	struct psc_memory *memory = fresh();
	struct psc_memory_entry entry = {.cookie = 5,
					 .kind = PSC_MEMORY_MOVED,
					 .owner = FIRST,
					 .rule = 3};
	struct psc_memory_entry found;

	CHECK(!knows(memory, 5));
	psc_memory_store(memory, entry, &asked, &actual);
	psc_memory_find(memory, 5, &found);
	CHECK_INT(found.kind, PSC_MEMORY_MOVED);
	CHECK_INT(found.rule, 3);
	CHECK_INT(found.family, PSC_FAMILY_IPV6);
	CHECK(found.dual_stack);
	CHECK_INT(found.port, 0);
	CHECK(memcmp(found.address, asked.address, 16) == 0);
	CHECK_INT(found.actual_family, PSC_FAMILY_IPV4);
	CHECK_INT(found.actual_port, 40000);
	CHECK(memcmp(found.actual_address, actual.address, 16) == 0);

	/* Where it is now is not known: nothing is left of where it was. */
	psc_memory_store(memory, entry, &asked, NULL);
	psc_memory_find(memory, 5, &found);
	CHECK_INT(found.actual_port, 0);
	CHECK_INT(found.actual_family, PSC_FAMILY_ANY);
	CHECK(!knows(memory, 5 + NEXT));
	done(memory);
}

static void test_own_first(void)
{
	struct psc_memory *memory = fresh();

	/* The oldest are another's, and stay. */
	for (int i = 0; i < PSC_MEMORY_WAYS - 1; i++)
		store(memory, 7 + (uint64_t)i * NEXT, FIRST);
	for (uint64_t i = PSC_MEMORY_WAYS - 1; i < 5000; i++)
		store(memory, 7 + i * NEXT, SECOND);
	CHECK_INT(known(memory, 7, PSC_MEMORY_WAYS),
		  (1 << (PSC_MEMORY_WAYS - 1)) - 1);
	CHECK(knows(memory, 7 + 4999u * NEXT));
	done(memory);
}

static void test_oldest_first(void)
{
	struct psc_memory *memory = fresh();

	for (uint64_t i = 0; i < 4; i++)
		store(memory, 7 + i * NEXT, FIRST);
	store(memory, 7, FIRST); /* bound again: the youngest */
	store(memory, 7 + 4 * NEXT, FIRST);
	CHECK_INT(known(memory, 7, 5), 0x1d);
	store(memory, 7 + 5 * NEXT, FIRST);
	CHECK_INT(known(memory, 7, 6), 0x39);

	/* Of others' as well: here nobody has one of his own. */
	store(memory, 7 + 6 * NEXT, SECOND);
	CHECK_INT(known(memory, 7, 7), 0x71);
	store(memory, 7 + 7 * NEXT, THIRD);
	CHECK_INT(known(memory, 7, 8), 0xf0);
	done(memory);
}

static void test_inherited_last(void)
{
	struct psc_memory *memory = fresh();

	store(memory, 7, INHERITED);
	for (uint64_t i = 1; i < 100; i++)
		store(memory, 7 + i * NEXT, (int32_t)i);
	CHECK_INT(known(memory, 7, 1), 1);

	/* Among themselves it is the oldest. */
	for (uint64_t i = 0; i < 5; i++)
		store(memory, 8 + i * NEXT, INHERITED);
	CHECK_INT(known(memory, 8, 5), 0x1e);
	/* Where there is nothing else one of them goes. */
	store(memory, 8 + 5 * NEXT, FIRST);
	CHECK_INT(known(memory, 8, 6), 0x3c);
	done(memory);
}

static void test_clock(void)
{
	struct psc_memory *memory = fresh();

	/* It may come around: it is the difference that counts. */
	memory->clock = UINT32_MAX - 1;
	for (uint64_t i = 0; i < 5; i++)
		store(memory, 7 + i * NEXT, FIRST);
	CHECK_INT(known(memory, 7, 5), 0x1e);
	done(memory);
}

static void test_other_sets(void)
{
	struct psc_memory *memory = fresh();

	for (uint64_t i = 1; i <= PSC_MEMORY_SETS * PSC_MEMORY_WAYS; i++)
		store(memory, i, FIRST);
	for (uint64_t i = 1; i <= PSC_MEMORY_SETS * PSC_MEMORY_WAYS; i++)
		if (!knows(memory, i))
			FAIL("%d is forgotten", (int)i);
	done(memory);
}

static void test_claims(void)
{
	struct psc_memory *memory = fresh();

	CHECK(psc_memory_claim(memory, 5));
	CHECK(!psc_memory_claim(memory, 5));
	/* A thread of the same number is something else. */
	CHECK(psc_memory_claim(memory, PSC_MEMORY_THREAD | 5));
	CHECK(!psc_memory_claim(memory, PSC_MEMORY_THREAD | 5));
	psc_memory_unclaim(memory, 5);
	psc_memory_unclaim(memory, 6);
	CHECK(!psc_memory_claim(memory, PSC_MEMORY_THREAD | 5));
	CHECK(psc_memory_claim(memory, 5));

	for (uint64_t i = 2; i < PSC_MEMORY_CLAIMS; i++)
		CHECK(psc_memory_claim(memory, 100 + i));
	CHECK(!psc_memory_claim(memory, 100));
	psc_memory_unclaim(memory, 102);
	CHECK(psc_memory_claim(memory, 100));
	done(memory);
}

static void test_interrupted(void)
{
	const struct psc_memory_interrupted bind = {
		.cookie = 5, .address_hash = 6, .tid = 7};
	struct psc_memory_interrupted other = bind;
	struct psc_memory *memory = fresh();

	CHECK(!psc_memory_resume(memory, &bind));
	psc_memory_interrupt(memory, &bind);
	other.tid = 8;
	CHECK(!psc_memory_resume(memory, &other));
	other = bind;
	other.address_hash = 8;
	CHECK(!psc_memory_resume(memory, &other));
	other = bind;
	other.cookie = 8;
	CHECK(!psc_memory_resume(memory, &other));
	CHECK(psc_memory_resume(memory, &bind));
	CHECK(!psc_memory_resume(memory, &bind));
	done(memory);
}

static const struct check_test tests[] = {
	{"all that is stored is recalled, and only the last of a socket",
	 test_recall},
	{"who binds thousands of sockets forgets none of another's",
	 test_own_first},
	{"the oldest goes first, of the same owner's and of others'",
	 test_oldest_first},
	{"what targets inherit goes last", test_inherited_last},
	{"the oldest goes first when the clock has come around", test_clock},
	{"4,096 sockets in a row are all remembered", test_other_sets},
	{"a socket, and a thread, is claimed once, and there is an end to it",
	 test_claims},
	{"an interrupted bind is resumed once, by the same call",
	 test_interrupted},
	{NULL, NULL},
};

const struct check_suite memory_suite = {"memory", tests};

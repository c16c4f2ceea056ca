/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bell.h"
#include "check.h"

#define SECOND_NS 1000000000ll
#define LONG_NS (60 * SECOND_NS) /* what does not ring by then never will */
#define ROUNDS 20000

static void test_ring_before_wait(void)
{
	struct psc_bell bell = {0};

	psc_bell_ring(&bell);
	CHECK_INT(psc_bell_wait(&bell, LONG_NS), 1);
	psc_bell_ring(&bell);
	psc_bell_ring(&bell);
	CHECK_INT(psc_bell_wait(&bell, -1), 1);
	/* Two rings before one wait are one. */
	CHECK_INT(psc_bell_wait(&bell, 0), 0);
}

static void test_timeout(void)
{
	struct psc_bell bell = {0};

	CHECK_INT(psc_bell_wait(&bell, 0), 0);
	CHECK_INT(psc_bell_wait(&bell, 1), 0);
	CHECK_INT(psc_bell_wait(&bell, 2000000), 0);
	psc_bell_ring(&bell);
	CHECK_INT(psc_bell_wait(&bell, 0), 1);
	CHECK_INT(psc_bell_wait(&bell, 2000000), 0);
}

struct table {
	struct psc_bell ping, pong;
	_Atomic int missed;
	_Atomic bool done;
	_Atomic int result;
};

/*
 * Whether it rings before LONG_NS are over. A wait that ends early is another
 * test's matter: here nobody may get out of step by it.
 */
static bool rings(struct psc_bell *bell)
{
	const time_t until = time(NULL) + LONG_NS / SECOND_NS;

	while (time(NULL) < until)
		if (psc_bell_wait(bell, LONG_NS) == 1)
			return true;
	return false;
}

static void *answer(void *argument)
{
	struct table *table = argument;

	for (int i = 0; i < ROUNDS && table->missed == 0; i++) {
		if (!rings(&table->ping))
			table->missed++;
		psc_bell_ring(&table->pong);
	}
	return NULL;
}

static void test_threads(void)
{
	struct table table = {.missed = 0};
	pthread_t thread;

	REQUIRE(pthread_create(&thread, NULL, answer, &table) == 0);
	for (int i = 0; i < ROUNDS && table.missed == 0; i++) {
		psc_bell_ring(&table.ping);
		if (!rings(&table.pong))
			table.missed++;
	}
	pthread_join(thread, NULL);
	CHECK_INT(table.missed, 0);
}

static void *sleep_once(void *argument)
{
	struct table *table = argument;

	table->result = psc_bell_wait(&table->ping, LONG_NS);
	table->done = true;
	return NULL;
}

/*
 * A ringer that is held up between its two steps wakes whoever sleeps by then:
 * a wait that the ring was not for. Done by hand here, so that it happens.
 */
static void test_late_wake(void)
{
	struct table table = {.missed = 0};
	pthread_t thread;
	long woken = 0;

	REQUIRE(pthread_create(&thread, NULL, sleep_once, &table) == 0);
	/* Twice: only who has gone back to sleep is there for the second. */
	while (woken < 2 && !table.done) {
		woken += syscall(__NR_futex, &table.ping.rung,
				 FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
		sched_yield();
	}
	CHECK_INT(woken, 2);
	psc_bell_ring(&table.ping);
	pthread_join(thread, NULL);
	CHECK_INT(table.result, 1);
}

static void nothing(int signal)
{
	(void)signal;
}

static void test_signal(void)
{
	const struct sigaction action = {.sa_handler = nothing};
	struct sigaction before;
	struct table table = {.missed = 0};
	pthread_t thread;

	REQUIRE(sigaction(SIGUSR1, &action, &before) == 0);
	REQUIRE(pthread_create(&thread, NULL, sleep_once, &table) == 0);
	while (!table.done) {
		pthread_kill(thread, SIGUSR1);
		sched_yield();
	}
	pthread_join(thread, NULL);
	CHECK_INT(table.result, -EINTR);
	sigaction(SIGUSR1, &before, NULL);
}

static const struct check_test tests[] = {
	{"a ring before the wait is not lost, and counts once",
	 test_ring_before_wait},
	{"a wait that nobody rings for ends with 0", test_timeout},
	{"two threads ring for each other and miss nothing", test_threads},
	{"the late wake-up of an earlier ring does not end a wait",
	 test_late_wake},
	{"a signal ends the wait with EINTR", test_signal},
	{NULL, NULL},
};

const struct check_suite bell_suite = {"bell", tests};

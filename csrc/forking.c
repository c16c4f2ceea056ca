/* SPDX-License-Identifier: MIT */
#include "forking.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <time.h>

#include "supervisor.h"

/* Guards the list. Then @changing is taken, then any supervisor's own lists. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct psc_supervisor *registered;

/*
 * Read-locked by whoever has a descriptor that is noted nowhere, or notes one
 * that is closed; write-locked by a fork, which goes before those that come
 * after it.
 */
#ifdef PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP
static const pthread_rwlock_t unlocked =
	PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static pthread_rwlock_t changing =
	PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
#else
static const pthread_rwlock_t unlocked = PTHREAD_RWLOCK_INITIALIZER;
static pthread_rwlock_t changing = PTHREAD_RWLOCK_INITIALIZER;
#endif
static bool changing_is_ours;

/* How long a fork waits for them: a target may hold one up. */
#define MOST_WAIT_NS 50000000

static struct timespec deadline_in(long ns)
{
	struct timespec deadline;

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_nsec += ns;
	deadline.tv_sec += deadline.tv_nsec / 1000000000;
	deadline.tv_nsec %= 1000000000;
	return deadline;
}

static void before_fork(void)
{
	const struct timespec deadline = deadline_in(MOST_WAIT_NS);

	pthread_mutex_lock(&lock);
	changing_is_ours =
		pthread_rwlock_timedwrlock(&changing, &deadline) == 0;
	/* What the child will walk through is whole. */
	for (struct psc_supervisor *one = registered; one; one = one->next)
		pthread_mutex_lock(&one->lists);
}

static void after_fork_in_parent(void)
{
	for (struct psc_supervisor *one = registered; one; one = one->next)
		pthread_mutex_unlock(&one->lists);
	if (changing_is_ours)
		pthread_rwlock_unlock(&changing);
	pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
	for (struct psc_supervisor *one = registered; one; one = one->next) {
		pthread_mutex_unlock(&one->lists);
		psc_supervisor_forget(one, changing_is_ours);
	}
	/* Whoever had it is not in this process. */
	changing = unlocked;
	pthread_mutex_unlock(&lock);
}

static int handlers_result;

static void install_handlers(void)
{
	handlers_result = -pthread_atfork(before_fork, after_fork_in_parent,
					  after_fork_in_child);
}

int psc_forking_register(struct psc_supervisor *supervisor)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, install_handlers);
	if (handlers_result < 0)
		return handlers_result;
	pthread_mutex_lock(&lock);
	supervisor->next = registered;
	registered = supervisor;
	pthread_mutex_unlock(&lock);
	return 0;
}

void psc_forking_unregister(struct psc_supervisor *supervisor)
{
	struct psc_supervisor **link;

	pthread_mutex_lock(&lock);
	for (link = &registered; *link; link = &(*link)->next)
		if (*link == supervisor) {
			*link = supervisor->next;
			break;
		}
	pthread_mutex_unlock(&lock);
}

void psc_forking_hold(void)
{
	pthread_rwlock_rdlock(&changing);
}

void psc_forking_release(void)
{
	pthread_rwlock_unlock(&changing);
}

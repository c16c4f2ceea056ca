/* SPDX-License-Identifier: MIT */
#include "forking.h"

#include <errno.h>
#include <pthread.h>

#include "supervisor.h"

/* Taken before any supervisor's own lists. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct psc_supervisor *registered;

/* How long a fork waits for threads that copy: a target may hold one up. */
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
	/* What the child will walk through is whole. */
	for (struct psc_supervisor *one = registered; one; one = one->next) {
		pthread_mutex_lock(&one->lists);
		psc_supervisor_hold_copies(one, &deadline);
	}
}

static void after_fork_in_parent(void)
{
	for (struct psc_supervisor *one = registered; one; one = one->next) {
		psc_supervisor_release_copies(one);
		pthread_mutex_unlock(&one->lists);
	}
	pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
	for (struct psc_supervisor *one = registered; one; one = one->next) {
		pthread_mutex_unlock(&one->lists);
		psc_supervisor_forget(one);
	}
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
	pthread_mutex_lock(&lock);
}

void psc_forking_release(void)
{
	pthread_mutex_unlock(&lock);
}

/* SPDX-License-Identifier: MIT */
#include "bell.h"

#include <limits.h>
#include <linux/futex.h>
#include <time.h>

#include "kernel.h"

static int futex_wait(_Atomic uint32_t *word, uint32_t value,
		      int64_t timeout_ns)
{
	const struct timespec timeout = {.tv_sec = timeout_ns / 1000000000,
					 .tv_nsec = timeout_ns % 1000000000};

	return (int)psc_kernel_result(
		syscall(__NR_futex, word, FUTEX_WAIT_PRIVATE, value,
			timeout_ns < 0 ? NULL : &timeout, NULL, 0));
}

void psc_bell_ring(struct psc_bell *bell)
{
	/* Both sides store first and then look at the other (seq_cst). */
	atomic_store(&bell->rung, 1);
	if (atomic_load(&bell->sleepers))
		syscall(__NR_futex, &bell->rung, FUTEX_WAKE_PRIVATE, INT_MAX,
			NULL, NULL, 0);
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int psc_bell_wait(struct psc_bell *bell, int64_t timeout_ns)
{
	const int64_t end_ns = timeout_ns < 0 ? 0 : now_ns() + timeout_ns;
	int64_t left_ns = timeout_ns;
	int result = 0;

	atomic_fetch_add(&bell->sleepers, 1);
	/* A ringer that was slow may wake the wait after the one it meant. */
	while (!atomic_load(&bell->rung) && result != -EINTR &&
	       (timeout_ns < 0 || left_ns > 0)) {
		result = futex_wait(&bell->rung, 0, left_ns);
		if (timeout_ns >= 0)
			left_ns = end_ns - now_ns();
	}
	atomic_fetch_sub(&bell->sleepers, 1);
	if (atomic_exchange(&bell->rung, 0))
		return 1;
	return result == -EINTR ? -EINTR : 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Counters and the latency histogram. Every field may be read at any time
 * from any thread; each is exact, but they are not taken at one instant.
 */
#ifndef PSC_STATS_H
#define PSC_STATS_H

#include <stdatomic.h>
#include <stdint.h>

/*
 * Buckets: 8 to each power of two of nanoseconds, so a bucket is at most
 * 12.5 % wide; the last one takes everything from 34 minutes on.
 */
#define PSC_STATS_BUCKETS (8 * 39)

struct psc_stats {
	_Atomic uint64_t requests;  /* received */
	_Atomic uint64_t allowed;
	_Atomic uint64_t denied;
	_Atomic uint64_t moved;
	_Atomic uint64_t continued;
	_Atomic uint64_t vanished;  /* callers that went away, or interrupted */
	_Atomic uint64_t asked;	    /* handed to the hook */
	_Atomic uint64_t failed;    /* not decided by the policy: see events */
	_Atomic uint64_t late;	    /* denied at the hook's deadline */
	_Atomic uint64_t takeovers; /* a thread was stuck, another took over */
	_Atomic uint64_t latency[PSC_STATS_BUCKETS];
};

/** psc_stats_add - count one more */
static inline void psc_stats_add(_Atomic uint64_t *counter)
{
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/** psc_stats_bucket - the bucket that a latency belongs to */
unsigned int psc_stats_bucket(int64_t latency_ns);

/** psc_stats_bucket_end - the first latency, in ns, above a bucket */
int64_t psc_stats_bucket_end(unsigned int bucket);

#endif

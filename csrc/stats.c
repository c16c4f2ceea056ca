/* SPDX-License-Identifier: MIT */
#include "stats.h"

unsigned int psc_stats_bucket(int64_t latency_ns)
{
	unsigned int exponent, bucket;

	if (latency_ns < 8)
		return latency_ns < 0 ? 0 : (unsigned int)latency_ns;
	/* 8 << e has exponent e + 3: keep the three bits below the first. */
	exponent = 63u - (unsigned int)__builtin_clzll(
				 (unsigned long long)latency_ns);
	bucket = (exponent - 2) * 8 +
		 (unsigned int)((latency_ns >> (exponent - 3)) & 7);
	return bucket < PSC_STATS_BUCKETS ? bucket : PSC_STATS_BUCKETS - 1;
}

int64_t psc_stats_bucket_end(unsigned int bucket)
{
	if (bucket < 8)
		return (int64_t)bucket + 1;
	return (int64_t)(8 + bucket % 8 + 1) << (bucket / 8 - 1);
}

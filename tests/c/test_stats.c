/* SPDX-License-Identifier: MIT */
#include "check.h"
#include "stats.h"

/* One value is in its bucket, between the ends of two neighbours. */
static void check_value(int64_t value)
{
	const unsigned int bucket = psc_stats_bucket(value);

	if (bucket >= PSC_STATS_BUCKETS) {
		FAIL("%lld: bucket %u", (long long)value, bucket);
		return;
	}
	if (bucket > 0 && value < psc_stats_bucket_end(bucket - 1))
		FAIL("%lld lies below bucket %u", (long long)value, bucket);
	if (bucket < PSC_STATS_BUCKETS - 1 &&
	    value >= psc_stats_bucket_end(bucket))
		FAIL("%lld lies above bucket %u", (long long)value, bucket);
}

static void test_values(void)
{
	uint64_t random = 99;

	for (int64_t value = 0; value < 1000000; value++)
		check_value(value);
	for (unsigned int bit = 0; bit < 63; bit++)
		for (int64_t near = -2; near <= 2; near++)
			check_value((int64_t)(1ull << bit) + near > 0
					    ? (int64_t)(1ull << bit) + near
					    : 0);
	for (int i = 0; i < 1000000; i++)
		check_value((int64_t)(check_random(&random) >>
				      (1 + check_below(&random, 62))));
	check_value(INT64_MAX);
}

static void test_ends(void)
{
	for (unsigned int bucket = 0; bucket < PSC_STATS_BUCKETS; bucket++) {
		const int64_t end = psc_stats_bucket_end(bucket);
		const int64_t start =
			bucket ? psc_stats_bucket_end(bucket - 1) : 0;

		CHECK(end > start);
		CHECK_INT(psc_stats_bucket(start), bucket);
		CHECK_INT(psc_stats_bucket(end - 1), bucket);
		if (bucket < PSC_STATS_BUCKETS - 1)
			CHECK_INT(psc_stats_bucket(end), bucket + 1);
		/* At most 12.5 % wide, where a nanosecond is no more. */
		if (start >= 8)
			CHECK((end - start) * 8 <= start);
	}
}

static void test_outside(void)
{
	CHECK_INT(psc_stats_bucket(-1), 0);
	CHECK_INT(psc_stats_bucket(INT64_MIN), 0);
	CHECK_INT(psc_stats_bucket(1ll << 42), PSC_STATS_BUCKETS - 1);
	CHECK_INT(psc_stats_bucket(INT64_MAX), PSC_STATS_BUCKETS - 1);
	/* 18 minutes are still told from 9. */
	CHECK(psc_stats_bucket(1ll << 40) > psc_stats_bucket((1ll << 40) - 1));
}

static const struct check_test tests[] = {
	{"every latency lies between the ends of its bucket and the one before",
	 test_values},
	{"buckets leave no gap, and are at most an eighth wide", test_ends},
	{"the first bucket takes what is below, the last what is above",
	 test_outside},
	{NULL, NULL},
};

const struct check_suite stats_suite = {"stats", tests};

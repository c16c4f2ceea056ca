/* SPDX-License-Identifier: MIT */
/*
 * The smallest test harness that does: tests are functions with a promise,
 * checks count failures and go on.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** struct check_test - one test; @promise is the sentence that it pins */
struct check_test {
	const char *promise;
	void (*run)(void);
};

/** struct check_suite - the tests of one file; the last has no function */
struct check_suite {
	const char *name;
	const struct check_test *tests;
};

/** check_fail - note that the running test has failed; any thread; false */
bool check_fail(const char *file, int line, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/** check_that - note @what unless it holds */
static inline bool check_that(const char *file, int line, const char *what,
			      bool holds)
{
	return holds || check_fail(file, line, "%s", what);
}

/** check_int - compare; on a difference note both values */
bool check_int(const char *file, int line, const char *what, long long got,
	       long long wanted);

/* All three are true when the check holds; any thread may use them. */
#define CHECK(condition) check_that(__FILE__, __LINE__, #condition, condition)
#define CHECK_INT(got, wanted)                                                 \
	check_int(__FILE__, __LINE__, #got, (long long)(got),                  \
		  (long long)(wanted))
#define FAIL(...) check_fail(__FILE__, __LINE__, __VA_ARGS__)

/* In a test: what follows makes no sense otherwise. */
#define REQUIRE(condition)                                                     \
	do {                                                                   \
		if (!CHECK(condition))                                         \
			return;                                                \
	} while (0)

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

/** check_random - the next number of a fixed sequence; @state is not 0 */
static inline uint64_t check_random(uint64_t *state)
{
	/* xorshift64*, S. Vigna */
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1dull;
}

/** check_below - a number from 0 to @limit - 1 */
static inline unsigned int check_below(uint64_t *state, unsigned int limit)
{
	return (unsigned int)((check_random(state) >> 33) % limit);
}

#endif

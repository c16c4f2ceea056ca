/* SPDX-License-Identifier: MIT */
/*
 * Run the core's tests: all of them, or the suites that are named.
 *
 *	core-tests [SUITE...]
 */
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "check.h"

/* No test takes as long: one that does hangs. */
#define TEST_SECONDS 120

/* Failures of one test that are shown. */
#define SHOWN 10

extern const struct check_suite bell_suite, bpf_suite, endpoint_suite,
	event_suite, filter_suite, memory_suite, rules_suite, stats_suite,
	supervisor_suite;

static const struct check_suite *const suites[] = {
	&bpf_suite,    &filter_suite, &endpoint_suite, &rules_suite,
	&memory_suite, &stats_suite,  &event_suite,    &bell_suite,
	&supervisor_suite,
};

static _Atomic int failures; /* of the running test */
static const char *running;

bool check_fail(const char *file, int line, const char *format, ...)
{
	const int before = atomic_fetch_add(&failures, 1);
	char text[256];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	if (before < SHOWN)
		printf("%s:%d: %s\n", file, line, text);
	return false;
}

bool check_int(const char *file, int line, const char *what, long long got,
	       long long wanted)
{
	if (got == wanted)
		return true;
	return check_fail(file, line, "%s is %lld, not %lld", what, got,
			  wanted);
}

static void put(const char *text)
{
	if (write(STDOUT_FILENO, text, strlen(text)) < 0)
		_exit(1);
}

static void on_alarm(int signal)
{
	(void)signal;
	put("HANGS ");
	put(running);
	put("\nstopped: a test hangs\n");
	_exit(1);
}

static bool wanted(const struct check_suite *suite, int argc, char **argv)
{
	if (argc < 2)
		return true;
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], suite->name) == 0)
			return true;
	return false;
}

int main(int argc, char **argv)
{
	int passed = 0, failed = 0;

	/* Children must not inherit text that is not written yet. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGALRM, on_alarm);
	for (size_t i = 0; i < COUNT_OF(suites); i++) {
		const struct check_test *test = suites[i]->tests;

		if (!wanted(suites[i], argc, argv))
			continue;
		for (; test->run; test++) {
			bool good;

			running = test->promise;
			atomic_store(&failures, 0);
			alarm(TEST_SECONDS);
			test->run();
			alarm(0);
			good = atomic_load(&failures) == 0;
			printf("%s %s: %s\n", good ? "ok   " : "FAILED",
			       suites[i]->name, test->promise);
			if (good)
				passed++;
			else
				failed++;
		}
	}
	printf("%d passed, %d failed\n", passed, failed);
	return failed == 0 && passed > 0 ? 0 : 1;
}

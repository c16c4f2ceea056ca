/* SPDX-License-Identifier: MIT */
/*
 * Listen under a storm of signals: storm ALLOWED DENIED TIMES HERTZ
 * restart|interrupt
 *
 * SIGALRM arrives up to HERTZ times a second, with SA_RESTART or without. The
 * call on the first port must give 0 each time, on the second EACCES. Prints how
 * often it did not, how often by EINTR, and whether there were signals at all.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t alarms;

static void count(int number)
{
	(void)number;
	alarms++;
}

static int bound_to(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((uint16_t)port);
	if (bind(fd, (void *)&address, sizeof(address)) < 0) {
		printf("bind: %s\n", strerrorname_np(errno));
		exit(1);
	}
	return fd;
}

/*
 * The time between two signals, in microseconds. Where a guarded call takes
 * longer than that, as on an emulated machine, none would ever come to its end:
 * there it is a few calls long.
 */
static int period(int hertz)
{
	enum { CALLS = 50 };
	struct timespec start, end;
	long calls, wanted = 1000000 / hertz;

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (int i = 0; i < CALLS; i++)
		listen(-1, 8); /* EBADF */
	clock_gettime(CLOCK_MONOTONIC, &end);
	calls = (end.tv_sec - start.tv_sec) * 1000000 +
		(end.tv_nsec - start.tv_nsec) / 1000;
	calls = 4 * calls / CALLS;
	return (int)(calls > wanted ? calls : wanted);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = count};
	struct itimerval timer = {0};
	int wrong = 0, interrupted = 0, allowed, denied;

	if (argc < 6)
		return 2;
	action.sa_flags = strcmp(argv[5], "restart") ? 0 : SA_RESTART;
	allowed = bound_to(atoi(argv[1]));
	denied = bound_to(atoi(argv[2]));
	sigaction(SIGALRM, &action, NULL);
	timer.it_value.tv_usec = timer.it_interval.tv_usec =
		period(atoi(argv[4]));
	setitimer(ITIMER_REAL, &timer, NULL);
	for (int i = 0; i < atoi(argv[3]); i++) {
		errno = 0;
		if (listen(allowed, 8) < 0)
			*(errno == EINTR ? &interrupted : &wrong) += 1;
		errno = 0;
		if (listen(denied, 8) == 0 || errno != EACCES)
			*(errno == EINTR ? &interrupted : &wrong) += 1;
	}
	printf("wrong: %d\ninterrupted: %d\n", wrong, interrupted);
	printf("alarms: %s\n", alarms > 10 ? "many" : "few");
	return 0;
}

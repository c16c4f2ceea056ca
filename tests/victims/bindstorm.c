/* SPDX-License-Identifier: MIT */
/*
 * Bind under a storm of signals: bindstorm ALLOWED DENIED TIMES HERTZ
 * restart|interrupt
 *
 * SIGALRM arrives up to HERTZ times a second, with SA_RESTART or without. A UDP
 * and a TCP socket are bound to the first port each time, which must give 0 and
 * that port; a UDP socket to the second must give EACCES, and no port. Prints how
 * often it did not and the first error, how often there was EINTR, and whether
 * there were signals at all. A call that gives EINTR is made again.
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
static int wrong, first, interrupted;

static void count(int number)
{
	(void)number;
	alarms++;
}

static void once(int type, int port, int expected)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons((uint16_t)port)};
	struct sockaddr_in name = {0};
	socklen_t length = sizeof(name);
	int fd = socket(AF_INET, type, 0), result;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (;;) {
		result = bind(fd, (void *)&address, sizeof(address)) < 0 ? errno
									 : 0;
		if (result != EINTR)
			break;
		interrupted++;
	}
	getsockname(fd, (void *)&name, &length);
	if (result != expected || ntohs(name.sin_port) != (expected ? 0 : port))
		first = wrong++ ? first : result ? result : -1;
	close(fd);
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
	struct sockaddr_in name = {.sin_family = AF_INET};

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (int i = 0; i < CALLS; i++)
		bind(-1, (void *)&name, sizeof(name)); /* EBADF */
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

	if (argc < 6)
		return 2;
	action.sa_flags = strcmp(argv[5], "restart") ? 0 : SA_RESTART;
	sigaction(SIGALRM, &action, NULL);
	timer.it_value.tv_usec = timer.it_interval.tv_usec =
		period(atoi(argv[4]));
	setitimer(ITIMER_REAL, &timer, NULL);
	for (int i = 0; i < atoi(argv[3]); i++) {
		once(SOCK_DGRAM, atoi(argv[1]), 0);
		once(SOCK_STREAM, atoi(argv[1]), 0);
		once(SOCK_DGRAM, atoi(argv[2]), EACCES);
	}
	printf("wrong: %d %s\ninterrupted: %d\n", wrong,
	       first > 0    ? strerrorname_np(first)
	       : first == 0 ? "0"
			    : "port",
	       interrupted);
	printf("alarms: %s\n", alarms > 10 ? "many" : "few");
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Call `listen` and `bind` on one descriptor number while it changes:
 * mix ALLOWED FORBIDDEN TRIES
 *
 * Two threads put, at full speed and in any order, one of these there: a TCP
 * socket on ALLOWED, one on FORBIDDEN, an unbound one, a UDP, a unix and a
 * netlink socket, a file, nothing. A third rewrites the address: its family and
 * its port, ALLOWED or FORBIDDEN. Two threads call `listen`, two `bind`;
 * half of the TRIES are for each.
 *
 * Prints how many calls were made and how many succeeded, and keeps what it has
 * until standard input ends. A UDP socket with a forbidden port is never closed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { SLOT = 100, KINDS = 7, SWAPPERS = 2, CALLERS = 4 };

static const size_t udp = 3; /* in fds */
static int allowed_port, forbidden_port, fds[KINDS];
static int most;
static volatile struct sockaddr_in address = {.sin_family = AF_INET};
static _Atomic int stop, tries[2], good[2];

static int bound_to(int port)
{
	struct sockaddr_in place = {.sin_family = AF_INET,
				    .sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(fd, (void *)&place, sizeof(place)) < 0) {
		printf("bind: %s\n", strerrorname_np(errno));
		exit(1);
	}
	return fd;
}

static unsigned int roll(unsigned int *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* A bound socket is no use any more; one that has won stays. */
static void renew_udp(void)
{
	struct sockaddr_in name = {0};
	socklen_t length = sizeof(name);
	int fresh;

	getsockname(fds[udp], (void *)&name, &length);
	if (!name.sin_port)
		return;
	if (ntohs(name.sin_port) != allowed_port)
		(void)!dup(fds[udp]);
	fresh = socket(AF_INET, SOCK_DGRAM, 0);
	dup2(fresh, fds[udp]);
	close(fresh);
}

static void *swap(void *number)
{
	unsigned int state = 88172645u + (unsigned int)(size_t)number;

	while (!stop) {
		const unsigned int kind = roll(&state) % (KINDS + 1);

		if (kind == KINDS)
			close(SLOT);
		else
			dup2(fds[kind], SLOT);
		if (kind == udp && number == 0)
			renew_udp();
	}
	return NULL;
}

static void *rewrite(void *unused)
{
	while (!stop) {
		address.sin_port = htons((uint16_t)forbidden_port);
		address.sin_family = AF_UNSPEC;
		address.sin_port = htons((uint16_t)allowed_port);
		address.sin_family = AF_UNIX;
		address.sin_family = AF_INET;
	}
	return unused;
}

static void *call(void *number)
{
	const size_t binds = (size_t)number % 2;

	while (tries[binds]++ < most / 2) {
		const int result =
			binds ? bind(SLOT, (const void *)&address,
				     sizeof(address))
			      : listen(SLOT, 8);

		good[binds] += result == 0;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t changing[SWAPPERS + 1], calling[CALLERS];
	char byte;

	if (argc < 4)
		return 2;
	allowed_port = atoi(argv[1]);
	forbidden_port = atoi(argv[2]);
	most = atoi(argv[3]);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	fds[0] = bound_to(allowed_port);
	fds[1] = bound_to(forbidden_port);
	fds[2] = socket(AF_INET, SOCK_STREAM, 0);
	fds[udp] = socket(AF_INET, SOCK_DGRAM, 0);
	fds[4] = socket(AF_UNIX, SOCK_STREAM, 0);
	fds[5] = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	fds[6] = open("/dev/null", O_RDONLY);

	for (size_t i = 0; i < SWAPPERS; i++)
		pthread_create(&changing[i], NULL, swap, (void *)i);
	pthread_create(&changing[SWAPPERS], NULL, rewrite, NULL);
	for (size_t i = 0; i < CALLERS; i++)
		pthread_create(&calling[i], NULL, call, (void *)i);
	for (int i = 0; i < CALLERS; i++)
		pthread_join(calling[i], NULL);
	stop = 1;
	for (int i = 0; i <= SWAPPERS; i++)
		pthread_join(changing[i], NULL);

	printf("listens: %d\nlistens good: %d\nbinds: %d\nbinds good: %d\n.\n",
	       most / 2, good[0], most / 2, good[1]);
	fflush(stdout);
	return read(0, &byte, 1) < 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Listen from threads with descriptor tables of their own: apart PORT OTHER
 *
 * For each byte of standard input a thread takes a table of its own, in which a
 * number stands for a socket bound to PORT; in the group leader's it stands for
 * one bound to OTHER. The thread listens on that number and prints the result.
 * Its socket stays open until the next byte.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int own, slot;

static int bound_to(int number)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	const int on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((uint16_t)number);
	/* In use: the table of the thread before is not closed yet. */
	while (bind(fd, (void *)&address, sizeof(address)) < 0)
		if (errno != EADDRINUSE)
			exit(1);
	return fd;
}

static void *run(void *unused)
{
	char byte;

	if (unshare(CLONE_FILES) < 0)
		exit(2);
	dup2(own, slot);
	printf("listen: %s\n",
	       listen(slot, 8) < 0 ? strerrorname_np(errno) : "0");
	/* Until the next byte: then another thread has its turn. */
	if (read(0, &byte, 1) != 1)
		exit(0);
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char byte;

	if (argc < 3)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (read(0, &byte, 1) != 1)
		return 0;
	for (;;) {
		own = bound_to(atoi(argv[1]));
		slot = bound_to(atoi(argv[2]));
		pthread_create(&thread, NULL, run, NULL);
		pthread_join(thread, NULL);
		close(slot);
		close(own);
	}
}

/* SPDX-License-Identifier: MIT */
/*
 * Lose a port between the hook's yes to it and the listen: lostport SERVER TRIES
 *
 * connect(2) to SERVER, on 127.0.0.1, gives each socket a port, which is lost when
 * the connection ends. One thread calls listen; another one ends the connection as
 * soon as the supervisor turns IP_BIND_ADDRESS_NO_PORT off, which it does between
 * the hook's answer and its own listen. Prints the tries, how often the socket was
 * seen listening (on another port, then), and how often listen gave 0.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { REST, WATCH, END };

static _Atomic int fd, phase, wins;
static int delay;

static int option(int level, int name)
{
	int value = 0;
	socklen_t length = sizeof(value);

	getsockopt(fd, level, name, &value, &length);
	return value;
}

static void *disconnect(void *unused)
{
	const struct sockaddr none = {.sa_family = AF_UNSPEC};

	for (;;) {
		int seen = 0;

		while (phase == REST)
			;
		while (phase == WATCH && option(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT))
			;
		for (volatile int i = 0; i < delay; i++)
			;
		connect(fd, &none, sizeof(none));
		for (int i = 0; i < 30 && !seen; i++)
			seen = option(SOL_SOCKET, SO_ACCEPTCONN);
		wins += seen;
		phase = REST;
	}
	return unused;
}

int main(int argc, char **argv)
{
	struct sockaddr_in server = {.sin_family = AF_INET};
	const struct linger reset = {1, 0};
	int tries, good = 0;
	const int on = 1;
	pthread_t thread;

	if (argc < 3)
		return 2;
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	server.sin_port = htons((uint16_t)atoi(argv[1]));
	tries = atoi(argv[2]);
	pthread_create(&thread, NULL, disconnect, NULL);
	for (int i = 0; i < tries; i++) {
		delay = 40 * (i % 20);
		fd = socket(AF_INET, SOCK_STREAM, 0);
		/* Or the ends of the connections would use up all ports. */
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		if (connect(fd, (void *)&server, sizeof(server)) < 0) {
			printf("connect: %s\n", strerrorname_np(errno));
			return 1;
		}
		setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on));
		phase = WATCH;
		good += listen(fd, 8) == 0;
		phase = phase == WATCH ? END : REST;
		while (phase != REST)
			;
		close(fd);
	}
	printf("tries: %d\nwins: %d\ngood: %d\n", tries, wins, good);
	return 0;
}

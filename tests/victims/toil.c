/* SPDX-License-Identifier: MIT */
/*
 * Make calls of all kinds: toil TURNS fork|stay DENIED MOVED ASKED
 *
 * A turn: 20 times listen on an ephemeral port and on DENIED, bind UDP sockets to
 * port 0, DENIED and MOVED; then listen once on a TCP socket moved away from
 * MOVED, and bind a UDP socket to ASKED. fork: each turn in a child of its own.
 * Ends with status 1 when one has not got what it has to get: EACCES on DENIED,
 * another port on MOVED; or the guard has gone (ENOSYS) and status 0.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TIMES = 20 };

static int fresh(int type)
{
	return socket(AF_INET, type | SOCK_CLOEXEC, 0);
}

static int bind_to(int fd, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons((uint16_t)port)};

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return bind(fd, (void *)&address, sizeof(address));
}

static int port_of(int fd)
{
	struct sockaddr_in name = {0};
	socklen_t length = sizeof(name);

	getsockname(fd, (void *)&name, &length);
	return ntohs(name.sin_port);
}

static void expect(const char *what, int result, int expected)
{
	const int error = result < 0 ? errno : 0;

	if (error == ENOSYS)
		exit(0);
	if (error == expected)
		return;
	printf("%s: %s\n", what, error ? strerrorname_np(error) : "0");
	exit(1);
}

static void bind_udp(int port, int expected, int moved)
{
	int fd = fresh(SOCK_DGRAM);

	expect("udp", bind_to(fd, port), expected);
	if ((port_of(fd) == 0) != (expected != 0) ||
	    (moved && port_of(fd) == port)) {
		printf("udp %d: on %d\n", port, port_of(fd));
		exit(1);
	}
	close(fd);
}

static void turn(int denied, int moved, int asked)
{
	int open = fresh(SOCK_STREAM), refused = fresh(SOCK_STREAM), fd;
	const int on = 1;

	setsockopt(refused, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	expect("bind", bind_to(refused, denied), 0);
	for (int i = 0; i < TIMES; i++) {
		expect("listen", listen(open, 8), 0);
		expect("denied", listen(refused, 8), EACCES);
		bind_udp(0, 0, 0);
		bind_udp(denied, EACCES, 0);
		bind_udp(moved, 0, 1);
	}
	fd = fresh(SOCK_STREAM);
	expect("bind", bind_to(fd, moved), 0);
	expect("moved", listen(fd, 8), 0);
	if (port_of(fd) == moved)
		exit(1);
	close(fd);
	bind_udp(asked, EACCES, 0);
	close(open);
	close(refused);
}

int main(int argc, char **argv)
{
	int forks, status;

	if (argc < 6)
		return 2;
	forks = !strcmp(argv[2], "fork");
	for (int i = 0; i < atoi(argv[1]); i++) {
		if (forks && fork() > 0) {
			wait(&status);
			if (status)
				return 1;
			continue;
		}
		turn(atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
		if (forks)
			return 0;
	}
	return 0;
}

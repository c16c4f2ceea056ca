/* SPDX-License-Identifier: MIT */
/*
 * Open ports again and again: tally ALLOWED DENIED TIMES [thread] [full]
 *
 * For each byte of standard input, close what is open, bind a TCP socket to each
 * of the ports, and TIMES over: listen on both, bind a new UDP socket to each.
 * Then print a line of JSON: how often each gave which errno ("bind" is that of
 * TCP), and how often a socket on DENIED was open afterwards. What is open stays so until the next
 * byte. thread: the calls come from a thread that is no group leader. full:
 * there is no free descriptor left when they are made.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TCP, TCP_DENIED, UDP, UDP_DENIED, KINDS, BIND = KINDS, COUNTS };
enum { ERRORS = 134 };

static const char *const names[COUNTS] = {"tcp", "tcp-denied", "udp",
					  "udp-denied", "bind"};
static int counts[COUNTS][ERRORS], opened, fds[KINDS] = {-1, -1, -1, -1};
static int ports[2], times, full;

static int make(int type)
{
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
	const int on = 1;

	if (fd >= 0 && type == SOCK_STREAM)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	return fd;
}

static int bind_to(int fd, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons((uint16_t)port)};

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return bind(fd, (void *)&address, sizeof(address));
}

static void count(int kind, int result)
{
	const int error = result < 0 ? errno : 0;
	struct sockaddr_in name = {0};
	socklen_t length = sizeof(name);
	int listens = 1;

	counts[kind][error < ERRORS ? error : 0]++;
	if (kind != TCP_DENIED && kind != UDP_DENIED)
		return;
	getsockname(fds[kind], (void *)&name, &length);
	if (kind == TCP_DENIED) {
		length = sizeof(listens);
		getsockopt(fds[kind], SOL_SOCKET, SO_ACCEPTCONN, &listens,
			   &length);
	}
	opened += listens && ntohs(name.sin_port) == ports[1];
}

static void remake(int kind)
{
	if (fds[kind] >= 0)
		close(fds[kind]);
	fds[kind] = make(kind < UDP ? SOCK_STREAM : SOCK_DGRAM);
	if (kind < UDP)
		count(BIND, bind_to(fds[kind], ports[kind]));
}

static void print_counts(void)
{
	printf("{");
	for (int kind = 0; kind < COUNTS; kind++) {
		const char *comma = "";

		printf("\"%s\": {", names[kind]);
		for (int error = 0; error < ERRORS; error++) {
			if (!counts[kind][error])
				continue;
			printf("%s\"%s\": %d", comma,
			       error ? strerrorname_np(error) : "0",
			       counts[kind][error]);
			comma = ", ";
		}
		printf("}, ");
	}
	printf("\"opened\": %d}\n", opened);
	memset(counts, 0, sizeof(counts));
	opened = 0;
}

static void fill(struct rlimit *limit)
{
	const struct rlimit few = {64, limit->rlim_max};

	getrlimit(RLIMIT_NOFILE, limit);
	setrlimit(RLIMIT_NOFILE, &few);
	while (dup(0) >= 0)
		;
}

static void *batches(void *unused)
{
	struct rlimit limit;
	char byte;

	while (read(0, &byte, 1) == 1) {
		for (int kind = 0; kind < KINDS; kind++)
			remake(kind);
		if (full)
			fill(&limit);
		for (int i = 0; i < times; i++) {
			if (!full && i)
				for (int kind = UDP; kind < KINDS; kind++)
					remake(kind);
			for (int kind = 0; kind < UDP; kind++)
				count(kind, listen(fds[kind], 8));
			for (int kind = UDP; kind < KINDS; kind++)
				count(kind,
				      bind_to(fds[kind], ports[kind - UDP]));
		}
		print_counts();
	}
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	int apart = 0;

	if (argc < 4)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	ports[0] = atoi(argv[1]);
	ports[1] = atoi(argv[2]);
	times = atoi(argv[3]);
	for (int i = 4; i < argc; i++) {
		apart |= !strcmp(argv[i], "thread");
		full |= !strcmp(argv[i], "full");
	}
	if (!apart) {
		batches(NULL);
	} else {
		pthread_create(&thread, NULL, batches, NULL);
		pthread_join(thread, NULL);
	}
	return 0;
}

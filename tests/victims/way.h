/* SPDX-License-Identifier: MIT */
/*
 * What the ways around a filter (way_*.c) share. A program is called
 *
 *	way_NAME ATTACK PORT ALLOWED TRIES
 *
 * and tries to open PORT of 127.0.0.1, TCP and UDP, TRIES times; ALLOWED is a
 * port that the policy may allow. It keeps every socket that it makes, prints
 * how many calls it made ("tries: N") and how many of them claim success
 * ("claims: N"), then "holding", and waits for the end of standard input, so
 * that what is open can be seen from outside.
 */
#ifndef WAY_H
#define WAY_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct tally {
	_Atomic int tries, claims, running;
};

static struct tally *tally; /* of all processes of the attack */
static const char *attack;
static int port, allowed, tries;
static char **arguments;

static inline int is(const char *name)
{
	return !strcmp(attack, name);
}

/* Something without which there is no attack. */
static inline long must(long result, const char *what)
{
	if (result < 0) {
		printf("%s: %s\n", what, strerrorname_np(errno));
		fflush(stdout);
		_exit(3);
	}
	return result;
}

static inline struct sockaddr_in place(uint32_t host, int number)
{
	struct sockaddr_in address = {.sin_family = AF_INET};

	address.sin_addr.s_addr = htonl(host);
	address.sin_port = htons((uint16_t)number);
	return address;
}

static inline int fresh(int type)
{
	const int on = 1;
	int fd = (int)must(socket(AF_INET, type, 0), "socket");

	must(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)),
	     "SO_REUSEADDR");
	return fd;
}

/* A TCP socket at PORT that does not listen: every policy allows that. */
static inline int bound_tcp(void)
{
	struct sockaddr_in address = place(INADDR_LOOPBACK, port);
	int fd = fresh(SOCK_STREAM);

	/* Fails once another one listens there: this attack has won. */
	(void)!bind(fd, (void *)&address, sizeof(address));
	return fd;
}

static inline void count(long result)
{
	tally->tries++;
	tally->claims += result >= 0;
}

static inline void open_tcp(void)
{
	count(listen(bound_tcp(), 8));
}

static inline void open_udp(void)
{
	struct sockaddr_in address = place(INADDR_LOOPBACK, port);

	count(bind(fresh(SOCK_DGRAM), (void *)&address, sizeof(address)));
}

static inline void open_both(void)
{
	open_tcp();
	open_udp();
}

/* Until whoever looks from outside has looked. */
static inline void hold(void)
{
	char byte;

	while (read(0, &byte, 1) > 0)
		;
}

/* Memory that 32 bits can name, shared with children. */
static inline void *low_memory(void)
{
#ifdef MAP_32BIT
	const int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_32BIT;
#else
	const int flags = MAP_SHARED | MAP_ANONYMOUS;
#endif
	void *memory = mmap(NULL, 65536, PROT_READ | PROT_WRITE, flags, -1, 0);

	must(memory == MAP_FAILED ? -1 : 0, "mmap");
	return memory;
}

static inline void begin(int argc, char **argv)
{
	if (argc != 5)
		exit(2);
	arguments = argv;
	attack = argv[1];
	port = atoi(argv[2]);
	allowed = atoi(argv[3]);
	tries = atoi(argv[4]);
	tally = low_memory();
}

/* Print the figures, once every process that counts is through. */
static inline int finish(void)
{
	while (tally->running)
		poll(NULL, 0, 1);
	printf("tries: %d\nclaims: %d\nholding\n", tally->tries, tally->claims);
	fflush(stdout);
	hold();
	return 0;
}

#endif

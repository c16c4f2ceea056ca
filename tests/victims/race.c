/* SPDX-License-Identifier: MIT */
/*
 * Race a supervisor: race ATTACK ALLOWED FORBIDDEN TRIES
 *
 * swap, swap-unix, swap-file: another thread exchanges the descriptor for a
 *	socket that is bound to the port FORBIDDEN; before, it stands for a
 *	socket on ALLOWED, a unix socket, or /dev/null.
 * bind, vsock: the socket, TCP or vsock, is unbound; another thread binds it to
 *	FORBIDDEN.
 * v6only: the socket is IPv6 only; another thread makes it dual stack.
 *
 * Every second time it is the call that comes late, and not the other thread; one
 * time in ten either is made only when the other is over, whatever the load is.
 * Ends at the first win: a socket that listens where none may. Prints the
 * tries, the wins, and how many calls succeeded and failed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char *attack;
static int allowed_port, forbidden_port;
static int decoy, forbidden, slot;
static _Atomic int target = -1;	   /* the other thread's next victim */
static _Atomic int finished = 1;   /* it is through with the last one */
static _Atomic int awake;	   /* it has seen its victim */
static _Atomic int calling;	   /* the call has to come first, and is not over */
static _Atomic int stop;
static _Atomic unsigned int delay; /* loops before it strikes */

static struct sockaddr_in place(uint32_t host, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET};

	address.sin_addr.s_addr = htonl(host);
	address.sin_port = htons((uint16_t)port);
	return address;
}

static int bound_to(uint32_t host, int port)
{
	struct sockaddr_in address = place(host, port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(fd, (void *)&address, sizeof(address)) < 0) {
		printf("bind: %s\n", strerrorname_np(errno));
		exit(1);
	}
	return fd;
}

static int listens(int fd)
{
	int value = 0;
	socklen_t length = sizeof(value);

	getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &length);
	return value;
}

static void *swap(void *unused)
{
	while (!stop) {
		dup2(forbidden, slot);
		dup2(decoy, slot);
	}
	return unused;
}

static int is(const char *name)
{
	return !strcmp(attack, name);
}

static void spin(unsigned int loops)
{
	while (loops--)
		__asm__ volatile("" ::: "memory");
}

static void strike(int fd)
{
	struct sockaddr_vm vsock = {.svm_family = AF_VSOCK,
				    .svm_cid = VMADDR_CID_ANY,
				    .svm_port = (unsigned int)forbidden_port};
	struct sockaddr_in address = place(INADDR_LOOPBACK, forbidden_port);
	const int off = 0;

	if (is("bind"))
		bind(fd, (void *)&address, sizeof(address));
	else if (is("vsock"))
		bind(fd, (void *)&vsock, sizeof(vsock));
	else
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
}

static void *strike_when_told(void *unused)
{
	while (!stop) {
		int fd = target;

		if (fd < 0)
			continue;
		awake = 1;
		spin(delay);
		while (calling)
			sched_yield();
		strike(fd);
		target = -1;
		finished = 1;
	}
	return unused;
}

static int prepare(void)
{
	const int on = 1;
	int fd;

	if (is("bind"))
		return socket(AF_INET, SOCK_STREAM, 0);
	if (is("vsock"))
		return socket(AF_VSOCK, SOCK_STREAM, 0);
	fd = socket(AF_INET6, SOCK_STREAM, 0);
	setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
	return fd;
}

/* Whether the attack has opened what the policy keeps closed. */
static int has_won(int fd)
{
	struct sockaddr_in address;
	socklen_t length = sizeof(address);
	int value = 0;

	if (!listens(fd))
		return 0;
	if (is("vsock"))
		return 1; /* one that is bound elsewhere there is not */
	if (is("bind")) {
		getsockname(fd, (void *)&address, &length);
		return ntohs(address.sin_port) == forbidden_port;
	}
	length = sizeof(value);
	getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &value, &length);
	return !value;
}

int main(int argc, char **argv)
{
	int swaps, tries, most, wins = 0, good = 0, bad = 0;
	pthread_t thread;

	if (argc < 5)
		return 2;
	attack = argv[1];
	allowed_port = atoi(argv[2]);
	forbidden_port = atoi(argv[3]);
	most = atoi(argv[4]);
	swaps = !strncmp(attack, "swap", 4);

	if (swaps) {
		struct sockaddr_un nameless = {.sun_family = AF_UNIX};

		forbidden = bound_to(INADDR_LOOPBACK, forbidden_port);
		if (is("swap-unix")) {
			decoy = socket(AF_UNIX, SOCK_STREAM, 0);
			bind(decoy, (void *)&nameless, sizeof(sa_family_t));
		} else if (is("swap-file")) {
			decoy = open("/dev/null", O_RDONLY);
		} else {
			decoy = bound_to(INADDR_LOOPBACK, allowed_port);
		}
		slot = dup(decoy);
	}
	pthread_create(&thread, NULL, swaps ? swap : strike_when_told, NULL);

	for (tries = 0; tries < most && !wins; tries++) {
		int fd = swaps ? slot : prepare();

		if (!swaps) {
			const unsigned int late =
				(unsigned int)tries * 7919u % 80000u;

			delay = tries % 2 ? 0 : late;
			calling = tries % 20 == 0;
			finished = awake = 0;
			target = fd;
			/* Both are to run at one time: no rest at first. */
			for (int i = 0; !awake; i++)
				if (i > 100000)
					sched_yield();
			spin(tries % 2 ? late : 0);
			while (tries % 20 == 1 && !finished)
				sched_yield();
		}
		if (listen(fd, 8) < 0)
			bad++;
		else
			good++;
		calling = 0;
		if (swaps) {
			wins += listens(forbidden);
			continue;
		}
		while (!finished)
			sched_yield(); /* others share the machine */
		wins += has_won(fd);
		close(fd);
	}
	stop = 1;
	pthread_join(thread, NULL);
	printf("tries: %d\nwins: %d\ngood: %d\nbad: %d\n", tries, wins, good,
	       bad);
	return 0;
}

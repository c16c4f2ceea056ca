/* SPDX-License-Identifier: MIT */
/*
 * Use a caller's number again: reuse WHAT ALLOWED FORBIDDEN TRIES [step]
 *
 * A process named "first" calls, again and again, on a descriptor. In the middle
 * of a call it is killed and reaped, and a process named "second" gets its
 * number (clone3(2) with set_tid: needs root), which has another socket at the
 * same descriptor, and another address at the same place. Every other one of
 * those calls as well.
 *
 * tcp: the first listens on ALLOWED, the second on FORBIDDEN.
 * thread: as tcp, but the first calls from a thread that is no leader, and it is
 *	that thread's number.
 * udp: the first binds to ALLOWED, the second to FORBIDDEN.
 * privilege: the first is nobody, and binds to FORBIDDEN, a privileged port; the
 *	second is root, and calls nothing. In a network namespace of their own.
 *
 * With "step", waits for a byte of input before each kill and before each new
 * first process, and prints "first" and "second" when they are there; the second
 * then calls nothing. Prints how often a number was used again, how often it
 * could not be, and how many calls of the second process succeeded; keeps all
 * until the end of its input.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <grp.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SLOT = 100, NOBODY = 65534 };

struct shared {
	_Atomic int ready; /* processes that are there */
	_Atomic pid_t tid; /* of the last one's caller */
	_Atomic int good;  /* calls of second processes that succeeded */
};

static const char *what;
static int steps, sockets[2], ports[2];
static struct shared *shared;
static struct sockaddr_in address = {.sin_family = AF_INET};

static int is(const char *name)
{
	return !strcmp(what, name);
}

static int listens(void)
{
	return is("tcp") || is("thread");
}

static void fail(const char *call)
{
	printf("%s: %s\n", call, strerrorname_np(errno));
	exit(1);
}

static int port_of(int fd)
{
	struct sockaddr_in name = {0};
	socklen_t length = sizeof(name);

	getsockname(fd, (void *)&name, &length);
	return ntohs(name.sin_port);
}

/* The socket of the first or second process; what has been bound is replaced. */
static void prepare(int number)
{
	const int stream = listens();

	if (!stream && sockets[number] && port_of(sockets[number]) == ports[1])
		return; /* it has won, and stays */
	if (sockets[number])
		close(sockets[number]);
	sockets[number] = socket(AF_INET, stream ? SOCK_STREAM : SOCK_DGRAM, 0);
	address.sin_port = htons((uint16_t)ports[number]);
	if (stream && bind(sockets[number], (void *)&address, sizeof(address)))
		fail("bind");
}

static void become_nobody(void)
{
	if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY))
		_exit(1);
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static void *call(void *is_second)
{
	shared->tid = (pid_t)syscall(SYS_gettid);
	shared->ready++;
	for (;;) {
		const int result =
			listens() ? listen(SLOT, 8)
				  : bind(SLOT, (void *)&address, sizeof(address));

		shared->good += is_second && result == 0;
	}
	return NULL;
}

static void live(int number, int calls)
{
	pthread_t thread;

	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (is("privilege") && number == 0)
		become_nobody();
	if (calls && is("thread") && number == 0)
		pthread_create(&thread, NULL, call, NULL);
	else if (calls)
		call(number ? &calls : NULL);
	else
		shared->ready++;
	for (;;)
		pause();
}

/* Start one of the two, with a number if that is not 0. */
static pid_t start(int number, int calls, pid_t tid)
{
	struct clone_args arguments = {
		.exit_signal = SIGCHLD,
		.set_tid = tid ? (uintptr_t)&tid : 0,
		.set_tid_size = tid != 0,
	};
	const int before = shared->ready;
	pid_t pid;

	dup2(sockets[number], SLOT);
	address.sin_port = htons((uint16_t)ports[number]);
	prctl(PR_SET_NAME, number ? "second" : "first", 0, 0, 0);
	/* A thread's number is free only a moment after its process was reaped. */
	for (int i = 0; i < 1000; i++) {
		pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof(arguments));
		if (pid >= 0 || errno != EEXIST)
			break;
		sched_yield();
	}
	if (pid == 0)
		live(number, calls);
	while (pid > 0 && shared->ready == before)
		sched_yield();
	if (steps && pid > 0) {
		puts(number ? "second" : "first");
		fflush(stdout);
	}
	return pid;
}

static void finish(pid_t pid, unsigned int delay)
{
	char byte;

	if (steps && read(0, &byte, 1) != 1)
		exit(0);
	for (unsigned int i = delay; i; i--)
		__asm__ volatile("" ::: "memory");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

int main(int argc, char **argv)
{
	int most, used = 0, taken = 0;
	pid_t tid = 0, pid;
	char byte;

	if (argc < 5)
		return 2;
	what = argv[1];
	ports[0] = atoi(argv[is("privilege") ? 3 : 2]);
	ports[1] = atoi(argv[3]);
	most = atoi(argv[4]);
	steps = argc > 5;
	address.sin_addr.s_addr = htonl(is("privilege") ? INADDR_ANY
							: INADDR_LOOPBACK);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (is("privilege") && unshare(CLONE_NEWNET) < 0)
		fail("unshare");
	prepare(0);
	prepare(1);
	for (int i = 0; i < most; i++) {
		if (!listens()) {
			prepare(0);
			prepare(1);
		}
		pid = start(0, 1, is("thread") ? 0 : tid);
		if (pid < 0 && errno == EEXIST)
			pid = start(0, 1, 0); /* somebody else has it by now */
		if (pid < 0)
			fail("clone3");
		tid = is("thread") ? shared->tid : pid;
		finish(pid, (unsigned int)i * 7919u % 100000u);
		pid = start(1, i % 2 && !is("privilege") && !steps, tid);
		if (pid < 0) {
			taken++;
			continue;
		}
		used++;
		finish(pid, (unsigned int)i * 104729u % 100000u);
	}
	printf("used: %d\ntaken: %d\ngood: %d\n.\n", used, taken, shared->good);
	fflush(stdout);
	return read(0, &byte, 1) < 0;
}

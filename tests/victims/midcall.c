/* SPDX-License-Identifier: MIT */
/*
 * What else can happen to a thread, or to what it points to, while it waits in
 * a call: midcall WHAT ALLOWED FORBIDDEN TRIES
 *
 * exec: another thread, which has FORBIDDEN at the same descriptor number,
 *	executes this program again; the caller is the leader, or it is the other
 *	way round. TRIES times.
 * close: another thread closes the descriptor, and puts FORBIDDEN there.
 * memory: another thread unmaps, protects or rewrites the address of a bind.
 * stop: another process stops and continues the caller at full speed.
 * leader: the leader of the caller's thread group exits.
 * group: sixteen processes of four threads each are killed at once.
 *
 * Calls on ALLOWED must give 0, those on FORBIDDEN EACCES: prints how many
 * calls were as they should be, and how many were wrong, or "EFAULT", where the
 * memory went away first. Keeps what it has until the end of its input.
 */
#include <arpa/inet.h>
#include <errno.h>
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

enum { FIRST = 100, SECOND, SLOT, PAGE = 4096, PROCESSES = 16, THREADS = 3 };

struct counts {
	_Atomic int right, wrong, faults;
	_Atomic int first_wrong; /* its errno, or -1: no error, wrong port */
	_Atomic int ready;
};

static char **arguments;
static int ports[2], most;
static struct counts *counts;
static _Atomic int go; /* loops until the other thread strikes; 0: not yet */
static _Atomic int struck;
static int turn;
static struct sockaddr_in *page;

static struct sockaddr_in place(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons((uint16_t)port)};

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

static void fail(const char *call)
{
	printf("%s: %s\n", call, strerrorname_np(errno));
	exit(1);
}

/* A TCP socket that is bound to one of the ports, at a descriptor. */
static void bind_at(int fd, int port)
{
	const struct sockaddr_in address = place(port);
	int made = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(made, (const void *)&address, sizeof(address)) < 0)
		fail("bind");
	if (made != fd) {
		dup2(made, fd);
		close(made);
	}
}

static void tell(int result, int expected)
{
	if (result == expected) {
		counts->right++;
	} else if (result == EFAULT) {
		counts->faults++;
	} else {
		if (counts->wrong++ == 0)
			counts->first_wrong = result ? result : -1;
	}
}

static void call_listen(int fd, int expected)
{
	tell(listen(fd, 8) < 0 ? errno : 0, expected);
}

/* Bind a new UDP socket; where it is must be what the call has said. */
static void call_bind(const struct sockaddr_in *address, int expected)
{
	struct sockaddr_in name = {0};
	socklen_t length = sizeof(name);
	int fd = socket(AF_INET, SOCK_DGRAM, 0), result, on = 1, port;

	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
	result = bind(fd, (const void *)address, sizeof(*address)) ? errno : 0;
	getsockname(fd, (void *)&name, &length);
	port = ntohs(name.sin_port);
	if (port != (result ? 0 : ports[0]))
		result = -1;
	tell(result, expected);
	if (port != ports[1])
		close(fd);
}

static void call_all(void)
{
	const struct sockaddr_in allowed = place(ports[0]);
	const struct sockaddr_in forbidden = place(ports[1]);

	call_listen(FIRST, 0);
	call_listen(SECOND, EACCES);
	call_bind(&allowed, 0);
	call_bind(&forbidden, EACCES);
}

/* ---- another thread strikes ---- */

static void loop(unsigned int times)
{
	for (; times; times--)
		__asm__ volatile("" ::: "memory");
}

static void strike(void)
{
	if (arguments[1][0] == 'c') {
		close(SLOT);
		dup2(SECOND, SLOT);
	} else if (turn % 3 == 0) {
		munmap(page, PAGE);
	} else if (turn % 3 == 1) {
		mprotect(page, PAGE, PROT_NONE);
	} else {
		page->sin_port = htons((uint16_t)ports[1]);
	}
}

static void *strike_when_told(void *unused)
{
	for (;;) {
		unsigned int loops = (unsigned int)go;

		if (loops == 0) {
			sched_yield();
			continue;
		}
		loop(loops);
		strike();
		go = 0;
		struck = 1;
	}
	return unused;
}

static void race_strikes(void)
{
	const int closes = arguments[1][0] == 'c';
	pthread_t thread;

	pthread_create(&thread, NULL, strike_when_told, NULL);
	for (turn = 0; turn < most; turn++) {
		if (closes) {
			/* Nothing else may hold the port by now. */
			bind_at(SLOT, ports[0]);
		} else {
			page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			*page = place(ports[0]);
		}
		struck = 0;
		go = (int)((unsigned int)turn * 7919u % 200000u) + 1;
		if (closes) {
			/* The caller was there first, or meets FORBIDDEN. */
			int result = listen(SLOT, 8) < 0 ? errno : 0;

			tell(result == EACCES || result == EBADF ? 0 : result,
			     0);
		} else {
			int result = counts->wrong;

			call_bind(page, 0);
			/* It may have been rewritten before it was read. */
			if (turn % 3 == 2 && counts->wrong > result &&
			    counts->first_wrong == EACCES) {
				counts->wrong--;
				counts->right++;
				counts->first_wrong = 0;
			}
		}
		while (!struck)
			sched_yield();
		if (!closes)
			munmap(page, PAGE);
	}
}

/* ---- exec ---- */

static void *listen_for_ever(void *unused)
{
	counts->ready++;
	for (;;)
		listen(SLOT, 8);
	return unused;
}

static void *execute(void *unused)
{
	char number[16];

	unshare(CLONE_FILES);
	dup2(SECOND, SLOT);
	counts->ready++;
	while (counts->ready < 2)
		sched_yield();
	loop((unsigned int)most * 7919u % 200000u);
	snprintf(number, sizeof(number), "%d", most - 1);
	arguments[4] = number;
	execv("/proc/self/exe", arguments);
	return unused;
}

static void race_exec(void)
{
	pthread_t thread;

	if (most == 0)
		return;
	dup2(FIRST, SLOT);
	pthread_create(&thread, NULL, most % 2 ? execute : listen_for_ever,
		       NULL);
	if (most % 2)
		listen_for_ever(NULL);
	else
		execute(NULL);
}

/* ---- processes ---- */

static pid_t start(void (*body)(void))
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		body();
		_exit(0);
	}
	return pid;
}

static void call_often(void)
{
	for (int i = 0; i < most; i++)
		call_all();
}

static void race_stops(void)
{
	pid_t pid = start(call_often);

	while (waitpid(pid, NULL, WNOHANG) == 0) {
		kill(pid, SIGSTOP);
		loop((unsigned int)turn++ * 7919u % 50000u);
		kill(pid, SIGCONT);
		loop((unsigned int)turn++ * 7919u % 50000u);
	}
}

static void *call_and_exit(void *unused)
{
	counts->ready++;
	for (int i = 0; i < 4; i++)
		call_all();
	_exit(0);
	return unused;
}

static void leave(void)
{
	const int before = counts->ready;
	pthread_t thread;

	pthread_create(&thread, NULL, call_and_exit, NULL);
	while (counts->ready == before)
		sched_yield();
	loop((unsigned int)turn * 7919u % 100000u);
	syscall(SYS_exit, 0); /* of this thread only */
}

static void race_leaders(void)
{
	for (turn = 0; turn < most; turn++)
		waitpid(start(leave), NULL, 0);
}

static void *call_for_ever(void *unused)
{
	counts->ready++;
	for (;;)
		call_all();
	return unused;
}

static void crowd(void)
{
	pthread_t thread;

	for (int i = 0; i < THREADS; i++)
		pthread_create(&thread, NULL, call_for_ever, NULL);
	call_for_ever(NULL);
}

static void race_groups(void)
{
	for (turn = 0; turn < most; turn++) {
		pid_t group = 0;

		counts->ready = 0;
		for (int i = 0; i < PROCESSES; i++) {
			pid_t pid = start(crowd);

			setpgid(pid, group);
			group = group ? group : pid;
		}
		while (counts->ready < PROCESSES * (THREADS + 1))
			sched_yield();
		loop((unsigned int)turn * 7919u * 100u % 2000000u);
		kill(-group, SIGKILL);
		while (wait(NULL) > 0)
			;
	}
}

int main(int argc, char **argv)
{
	char byte;

	if (argc < 5)
		return 2;
	arguments = argv;
	ports[0] = atoi(argv[2]);
	ports[1] = atoi(argv[3]);
	most = atoi(argv[4]);
	counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (dup2(SECOND, SECOND) < 0) { /* else executed again */
		if (strcmp(argv[1], "close"))
			bind_at(FIRST, ports[0]);
		bind_at(SECOND, ports[1]);
	}
	switch (argv[1][0]) {
	case 'e':
		race_exec();
		break;
	case 's':
		race_stops();
		break;
	case 'l':
		race_leaders();
		break;
	case 'g':
		race_groups();
		break;
	default:
		race_strikes();
	}
	printf("right: %d\nwrong: %d\nfirst wrong: %d\nfaults: %d\n.\n",
	       counts->right, counts->wrong, counts->first_wrong,
	       counts->faults);
	fflush(stdout);
	return read(0, &byte, 1) < 0;
}

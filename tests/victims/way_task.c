/* SPDX-License-Identifier: MIT */
/*
 * Ways around a filter: whoever makes the call.
 * way_task ATTACK PORT ALLOWED TRIES (see way.h); the attacks are in main().
 */
#include "way.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static _Atomic int stage;
static int slot;

/* ---- threads ---- */

static void *in_thread(void *unused)
{
	open_both();
	return unused;
}

/* The descriptor's number means another socket to this thread than to others. */
static void *apart(void *unused)
{
	struct sockaddr_in address = place(INADDR_LOOPBACK, port);
	int tcp, udp;

	must(unshare(CLONE_FILES), "unshare");
	tcp = bound_tcp();
	udp = fresh(SOCK_DGRAM);
	must(dup2(tcp, slot), "dup2");
	count(listen(slot, 8));
	must(dup2(udp, slot), "dup2");
	count(bind(slot, (void *)&address, sizeof(address)));
	tally->running--;
	hold(); /* with it ends its table */
	return unused;
}

static void *outlive(void *unused)
{
	for (;;) {
		char state = 0, path[64];
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%d/stat", getpid());
		file = fopen(path, "r");
		if (file && fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
			state = 0;
		if (file)
			fclose(file);
		if (state == 'Z')
			break;
		sched_yield();
	}
	for (int i = 0; i < tries; i++)
		open_both();
	exit(finish());
	return unused;
}

static void *exec_there(void *unused)
{
	char *plain[] = {arguments[0], "plain", arguments[2], arguments[3],
			 arguments[4], NULL};

	while (stage < 100)
		sched_yield();
	execv("/proc/self/exe", plain);
	must(-1, "execv");
	return unused;
}

static void *call_on(void *unused)
{
	const int fd = bound_tcp();

	for (;;) {
		listen(fd, 8);
		stage++;
	}
	return unused;
}

#ifdef __x86_64__
static char bare_stack[65536] __attribute__((aligned(16)));
static _Atomic int bare_done;

/* No libc knows of this thread; it has no storage of its own. */
static int bare(void *unused)
{
	(void)unused;
	open_both();
	bare_done = 1;
	syscall(SYS_exit, 0);
	return 0;
}
#endif

/* ---- processes ---- */

static char stack[262144] __attribute__((aligned(16)));

static int in_child(void *unused)
{
	(void)unused;
	open_both();
	return 0;
}

static int in_child_that_holds(void *unused)
{
	(void)unused;
	open_both();
	tally->running--;
	hold();
	return 0;
}

static void cloned(unsigned long flags, int (*function)(void *))
{
	pid_t child = clone(function, stack + sizeof(stack), (int)flags | SIGCHLD,
			    NULL);

	must(child, "clone");
	if (function == in_child)
		waitpid(child, NULL, 0);
}

static void cloned_3(void)
{
	struct clone_args args = {.flags = CLONE_FILES, .exit_signal = SIGCHLD};
	long child = syscall(SYS_clone3, &args, sizeof(args));

	if (child == 0) {
		open_both();
		_exit(0);
	}
	if (child < 0) { /* Docker's profile has no clone3 */
		open_both();
		return;
	}
	waitpid((pid_t)child, NULL, 0);
}

/* Namespaces of its own, where it may have them. */
static void in_namespaces(int flags)
{
	fflush(stdout);
	tally->running++;
	if (fork() == 0) {
		int tcp = bound_tcp(), udp = fresh(SOCK_DGRAM);
		struct sockaddr_in address = place(INADDR_LOOPBACK, port);
		pid_t child;

		(void)!unshare(flags);
		child = fork(); /* the first of its pid namespace */
		if (child == 0 && fork() == 0) {
			/* The sockets are from outside, their user is not. */
			count(listen(tcp, 8));
			count(bind(udp, (void *)&address, sizeof(address)));
			tally->running--;
			hold();
			_exit(0);
		}
		hold();
		_exit(0);
	}
}

static void there_and_back(void)
{
	int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);

	if (unshare(CLONE_NEWNET) == 0)
		must(setns(home, CLONE_NEWNET), "setns");
	open_both();
}

static void daemonised(void)
{
	fflush(stdout);
	tally->running++;
	if (fork() > 0) {
		wait(NULL);
		return;
	}
	setsid();
	if (fork() > 0)
		_exit(0);
	must(chdir("/"), "chdir");
	prctl(PR_SET_NAME, "kworker/0:1");
	open_both();
	tally->running--;
	hold();
	_exit(0);
}

static void pinched(void)
{
	const struct rlimit none = {0, 0};
	struct sockaddr_in address = place(INADDR_LOOPBACK, port);
	int tcp = bound_tcp(), udp = fresh(SOCK_DGRAM);

	tally->running++;
	fflush(stdout);
	if (fork() > 0)
		return;
	setrlimit(RLIMIT_NOFILE, &none);
	setrlimit(RLIMIT_MEMLOCK, &none);
	count(listen(tcp, 8));
	count(bind(udp, (void *)&address, sizeof(address)));
	tally->running--;
	hold();
	_exit(0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	slot = dup(0);
	for (int i = 0; i < tries; i++) {
		pthread_t thread;

		if (is("plain")) {
			open_both();
		} else if (is("thread")) {
			pthread_create(&thread, NULL, in_thread, NULL);
			pthread_join(thread, NULL);
		} else if (is("apart")) {
			tally->running++;
			pthread_create(&thread, NULL, apart, NULL);
		} else if (is("leaderless")) {
			pthread_create(&thread, NULL, outlive, NULL);
			/* Only this thread ends; the process lives on. */
			syscall(SYS_exit, 0);
		} else if (is("exec")) {
			/* Into the image of a thread, past one that is calling. */
			pthread_create(&thread, NULL, call_on, NULL);
			pthread_create(&thread, NULL, exec_there, NULL);
			for (;;)
				pause();
		} else if (is("vfork")) {
			/* The parent sleeps, and keeps what the child opens. */
			cloned(CLONE_VM | CLONE_VFORK | CLONE_FILES, in_child);
		} else if (is("files")) {
			cloned(CLONE_FILES, in_child);
		} else if (is("shared")) {
			cloned(CLONE_FILES | CLONE_VM | CLONE_SIGHAND | CLONE_FS,
			       in_child);
		} else if (is("sibling")) {
			tally->running++;
			fflush(stdout);
			cloned(CLONE_PARENT, in_child_that_holds);
		} else if (is("clone3")) {
			cloned_3();
#ifdef __x86_64__
		} else if (is("bare")) {
			bare_done = 0;
			must(clone(bare, bare_stack + sizeof(bare_stack),
				   CLONE_VM | CLONE_FS | CLONE_FILES |
					   CLONE_SIGHAND | CLONE_THREAD |
					   CLONE_SYSVSEM,
				   NULL),
			     "clone");
			while (!bare_done)
				sched_yield();
#endif
		} else if (is("userns")) {
			in_namespaces(CLONE_NEWUSER | CLONE_NEWPID);
		} else if (is("netns")) {
			in_namespaces(CLONE_NEWUSER | CLONE_NEWPID |
				      CLONE_NEWNET | CLONE_NEWNS);
		} else if (is("setns")) {
			there_and_back();
		} else if (is("daemon")) {
			daemonised();
		} else if (is("undumpable")) {
			prctl(PR_SET_DUMPABLE, 0);
			open_both();
		} else if (is("rlimit")) {
			pinched();
		}
	}
	return finish();
}

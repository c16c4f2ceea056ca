/* SPDX-License-Identifier: MIT */
/*
 * Ways around a filter: further filters, and other interceptors, of the target's
 * own. way_filter ATTACK PORT ALLOWED TRIES (see way.h), ATTACK one of
 *
 * allow: filters that allow everything; zero: one whose verdict is errno 0;
 * log: RET_LOG; tsync: for all threads; trap: SIGSYS, whose handler makes the
 * call; dispatch: the same by PR_SET_SYSCALL_USER_DISPATCH; listener: one with a
 * supervisor of the target's own, which continues each call; strict: from a
 * filter to mode 1.
 */
#include "way.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <ucontext.h>

#define LOAD_NR                                                                \
	{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr)}
/* Only the calls of the attack, and only where the last argument is free. */
#define THE_CALLS(action)                                                      \
	LOAD_NR, {BPF_JMP | BPF_JEQ | BPF_K, 1, 0, SYS_listen},                \
		{BPF_JMP | BPF_JEQ | BPF_K, 0, 3, SYS_bind},                   \
		{BPF_LD | BPF_W | BPF_ABS, 0, 0,                               \
		 offsetof(struct seccomp_data, args[5])},                      \
		{BPF_JMP | BPF_JEQ | BPF_K, 1, 0, PASS},                       \
		{BPF_RET | BPF_K, 0, 0, action},                               \
		{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}

enum { PASS = 4711, DISPATCH = 59 };

static _Atomic int listener = -2;
static struct sockaddr_in where;
static volatile char selector;

static long install(struct sock_filter *program, unsigned short length,
		    unsigned long flags)
{
	const struct sock_fprog whole = {length, program};

	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &whole);
}

/* The calls with a sixth argument, by which own filters know them. */
static long call(long nr, long fd, long second, long third)
{
	return syscall(nr, fd, second, third, 0, 0, PASS);
}

static void call_both(void)
{
	const int tcp = bound_tcp();

	count(call(SYS_listen, tcp, 8, 0));
	count(call(SYS_bind, fresh(SOCK_DGRAM), (long)&where, sizeof(where)));
}

/* The call that was trapped; here it is made. */
static void make_it(int sig, siginfo_t *info, void *context)
{
#ifdef __x86_64__
	ucontext_t *state = context;
	greg_t *regs = state->uc_mcontext.gregs;
	long result;

	(void)sig;
	selector = 0;
	result = call(info->si_syscall, regs[REG_RDI], regs[REG_RSI],
		      regs[REG_RDX]);
	regs[REG_RAX] = result < 0 ? -errno : result;
#else
	(void)sig;
	(void)info;
	(void)context;
#endif
}

static void *continue_calls(void *unused)
{
	while (listener == -2)
		sched_yield();
	for (;;) {
		struct seccomp_notif request = {0};
		struct seccomp_notif_resp answer = {
			.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};

		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &request) < 0)
			return unused;
		answer.id = request.id;
		ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
	}
}

static void *call_there(void *unused)
{
	call_both();
	return unused;
}

static void supervise(void)
{
	struct sock_filter notify[] = {THE_CALLS(SECCOMP_RET_USER_NOTIF)};
	pthread_t thread;

	pthread_create(&thread, NULL, continue_calls, NULL);
	listener = (int)install(notify, sizeof(notify) / sizeof(notify[0]),
				SECCOMP_FILTER_FLAG_NEW_LISTENER);
	if (listener < 0)
		printf("listener: %s\n", strerrorname_np(errno));
}

static void be_strict(void)
{
	const int tcp = bound_tcp(), udp = fresh(SOCK_DGRAM);

	tally->running++;
	fflush(stdout);
	if (fork() > 0)
		return;
	/* Mode 1 would end the filters, were there a way from mode 2 to it. */
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) < 0) {
		count(listen(tcp, 8));
		count(bind(udp, (void *)&where, sizeof(where)));
	}
	tally->running--;
	hold();
	syscall(SYS_exit, 0);
}

int main(int argc, char **argv)
{
	struct sock_filter allow = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
	struct sock_filter log[] = {THE_CALLS(SECCOMP_RET_LOG)};
	struct sock_filter zero[] = {THE_CALLS(SECCOMP_RET_ERRNO)};
	struct sock_filter trap[] = {THE_CALLS(SECCOMP_RET_TRAP)};
	const unsigned short length = sizeof(trap) / sizeof(trap[0]);
	struct sigaction action = {.sa_sigaction = make_it,
				   .sa_flags = SA_SIGINFO | SA_NODEFER};
	pthread_t thread;

	begin(argc, argv);
	where = place(INADDR_LOOPBACK, port);
	sigaction(SIGSYS, &action, NULL);
	if (is("listener"))
		supervise();
	else if (is("strict"))
		install(&allow, 1, 0);
	else if (is("trap"))
		install(trap, length, 0);
	else if (is("zero"))
		install(zero, length, 0);
	else if (is("log"))
		install(log, length, SECCOMP_FILTER_FLAG_LOG);
	for (int i = 0; i < tries; i++) {
		if (is("allow"))
			must(install(&allow, 1, 0), "seccomp");
		if (is("strict")) {
			be_strict();
		} else if (is("tsync")) {
			install(&allow, 1, SECCOMP_FILTER_FLAG_TSYNC);
			pthread_create(&thread, NULL, call_there, NULL);
			pthread_join(thread, NULL);
		} else if (is("dispatch")) {
			struct sockaddr_in address = where;
			const int tcp = bound_tcp(), udp = fresh(SOCK_DGRAM);
			long first, second;

			prctl(DISPATCH, 1, 0, 0, &selector);
			selector = 1;
			first = listen(tcp, 8);
			selector = 1;
			second = bind(udp, (void *)&address, sizeof(address));
			selector = 0;
			count(first);
			count(second);
		} else if (is("trap") || is("zero")) {
			/* Without the sixth argument: its own filter sees it. */
			count(syscall(SYS_listen, bound_tcp(), 8, 0, 0, 0, 0));
			count(syscall(SYS_bind, fresh(SOCK_DGRAM), &where,
				      sizeof(where), 0, 0, 0));
		} else {
			open_both();
		}
	}
	return finish();
}

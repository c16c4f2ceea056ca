/* SPDX-License-Identifier: MIT */
/*
 * Ways around a filter: a tracer that changes the calls of its tracee.
 * way_trace ATTACK PORT ALLOWED TRIES (see way.h), ATTACK one of
 *
 * entry: getppid becomes listen or bind where the call is entered; info: the
 * same by PTRACE_SET_SYSCALL_INFO (Linux 6.16); event: the same at an own
 * filter's RET_TRACE; exit: where getppid is left, the tracee is set back to
 * make listen or bind; restart: it is left with ERESTARTNOINTR, and a signal
 * waits; suspend: PTRACE_O_SUSPEND_SECCOMP; midcall: attached to, interrupted,
 * detached from and killed while it calls listen and bind; rewrite: another
 * process rewrites the address of a UDP bind, from ALLOWED to PORT and back;
 * words: the same with the descriptor of an i386 socketcall. These two hold
 * what they win, and nothing else.
 */
#include "way.h"

#include <elf.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

#ifdef __x86_64__

#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif
enum { SET_SYSCALL_INFO = 0x4212 };

struct plan {
	int tcp, udp;
	struct sockaddr_in address;
	_Atomic int ready;
};

static struct plan *plan; /* tracer and tracee have it at the same place */

static void install(struct sock_filter *program, unsigned short length)
{
	const struct sock_fprog whole = {length, program};

	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &whole),
	     "seccomp");
}

/* getppid as (NR, FIRST, ...): what it is made into, one after the other. */
static void tracee(void)
{
	struct sock_filter trace[] = {
		{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr)},
		{BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_getppid},
		{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_TRACE},
		{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
	};

	if (is("event"))
		install(trace, 4);
	plan->tcp = bound_tcp();
	plan->udp = fresh(SOCK_DGRAM);
	plan->address = place(INADDR_LOOPBACK, port);
	raise(SIGSTOP);
	for (int i = 0; i < 2; i++) {
		long result;

		__asm__ volatile("syscall"
				 : "=a"(result)
				 : "a"(SYS_getppid)
				 : "rcx", "r11", "memory");
		/* An unchanged getppid gives the tracer's number. */
		if (result > 0)
			result = -1;
		count(result);
	}
	tally->running--;
	hold();
	_exit(0);
}

static void change(pid_t child, int udp, int nr_too)
{
	struct user_regs_struct regs;

	must(ptrace(PTRACE_GETREGS, child, NULL, &regs), "GETREGS");
	if (nr_too)
		regs.orig_rax = udp ? SYS_bind : SYS_listen;
	regs.rdi = udp ? plan->udp : plan->tcp;
	regs.rsi = udp ? (unsigned long)&plan->address : 8;
	regs.rdx = sizeof(plan->address);
	must(ptrace(PTRACE_SETREGS, child, NULL, &regs), "SETREGS");
}

/* struct ptrace_syscall_info, which older headers lack */
struct syscall_info {
	uint8_t op, reserved[3];
	uint32_t arch;
	uint64_t instruction_pointer, stack_pointer, nr, args[6];
};

static void change_by_info(pid_t child, int udp)
{
	struct syscall_info info = {0};

	ptrace(0x420e /* GET_SYSCALL_INFO */, child, sizeof(info), &info);
	info.nr = udp ? SYS_bind : SYS_listen;
	info.args[0] = udp ? plan->udp : plan->tcp;
	info.args[1] = udp ? (unsigned long)&plan->address : 8;
	info.args[2] = sizeof(plan->address);
	if (ptrace(SET_SYSCALL_INFO, child, sizeof(info), &info) < 0)
		change(child, udp, 1); /* an older kernel */
}

/* Where the call was left: go back two bytes, and make another one. */
static void set_back(pid_t child, int udp)
{
	struct user_regs_struct regs;

	change(child, udp, 1);
	must(ptrace(PTRACE_GETREGS, child, NULL, &regs), "GETREGS");
	if (is("restart")) {
		regs.rax = (unsigned long)-513; /* ERESTARTNOINTR */
		must(ptrace(PTRACE_SETREGS, child, NULL, &regs), "SETREGS");
		kill(child, SIGWINCH);
		return;
	}
	regs.rip -= 2;
	regs.rax = regs.orig_rax;
	regs.orig_rax = -1ul; /* no call is left any more */
	must(ptrace(PTRACE_SETREGS, child, NULL, &regs), "SETREGS");
}

static void trace(void)
{
	const int leaving = is("exit") || is("restart");
	const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACESECCOMP;
	int status, done = 0, entered = 0;
	pid_t child;

	tally->running++;
	fflush(stdout);
	child = fork();
	if (child == 0)
		tracee();
	must(ptrace(PTRACE_SEIZE, child, NULL, options), "SEIZE");
	while (tally->running && waitpid(child, &status, WUNTRACED) == child) {
		int stop = WSTOPSIG(status);

		if (!WIFSTOPPED(status))
			break;
		if (status >> 8 == (SIGTRAP | PTRACE_EVENT_SECCOMP << 8) &&
		    done < 2) {
			change(child, done++, 1);
		} else if (stop == (SIGTRAP | 0x80) && !is("event")) {
			struct user_regs_struct regs;

			must(ptrace(PTRACE_GETREGS, child, NULL, &regs),
			     "GETREGS");
			entered = !entered;
			if (regs.orig_rax == SYS_getppid && done < 2 &&
			    entered != leaving) {
				if (leaving)
					set_back(child, done);
				else if (is("info"))
					change_by_info(child, done);
				else
					change(child, done, 1);
				done++;
			}
		}
		if (status >> 16 == PTRACE_EVENT_STOP && stop == SIGSTOP)
			kill(child, SIGCONT);
		ptrace(PTRACE_SYSCALL, child, NULL,
		       stop == SIGWINCH ? SIGWINCH : 0);
	}
	ptrace(PTRACE_DETACH, child, NULL, NULL);
}

/* ---- suspended filters ---- */

static void suspend(void)
{
	/* A filter of its own, so that there is something to suspend. */
	struct sock_filter refuse[] = {
		{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr)},
		{BPF_JMP | BPF_JEQ | BPF_K, 1, 0, SYS_listen},
		{BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_bind},
		{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EPERM},
		{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
	};
	int tcp = bound_tcp(), udp = fresh(SOCK_DGRAM);
	struct sockaddr_in address = place(INADDR_LOOPBACK, port);
	pid_t child;

	plan->ready = 0;
	tally->running++;
	fflush(stdout);
	child = fork();
	if (child == 0) {
		install(refuse, 5);
		while (!plan->ready)
			sched_yield();
		count(listen(tcp, 8));
		count(bind(udp, (void *)&address, sizeof(address)));
		tally->running--;
		hold();
		_exit(0);
	}
	if (ptrace(PTRACE_SEIZE, child, NULL, PTRACE_O_SUSPEND_SECCOMP) < 0)
		printf("suspend: %s\n", strerrorname_np(errno));
	plan->ready = 1;
}

/* ---- in mid-call ---- */

static void caller(int tcp, int udp)
{
	struct sockaddr_in address = place(INADDR_LOOPBACK, port);

	for (;;) {
		count(listen(tcp, 8));
		count(bind(udp, (void *)&address, sizeof(address)));
		plan->ready++;
	}
}

static void midcall(int round)
{
	const int tcp = bound_tcp(), udp = fresh(SOCK_DGRAM);
	int status;
	pid_t child;

	plan->ready = 0;
	fflush(stdout);
	child = fork();
	if (child == 0)
		caller(tcp, udp);
	for (int i = 0; i < 10; i++) {
		while (plan->ready < 2 * i)
			sched_yield();
		if (round % 2) {
			must(ptrace(PTRACE_ATTACH, child, NULL, NULL), "ATTACH");
		} else {
			must(ptrace(PTRACE_SEIZE, child, NULL, NULL), "SEIZE");
			ptrace(PTRACE_INTERRUPT, child, NULL, NULL);
		}
		must(waitpid(child, &status, __WALL), "waitpid");
		/* Some steps, into the call and out of it. */
		for (int step = 0; step < 3; step++) {
			ptrace(PTRACE_SYSCALL, child, NULL, NULL);
			waitpid(child, &status, __WALL);
		}
		if (i == 9)
			break;
		ptrace(PTRACE_DETACH, child, NULL, NULL);
	}
	ptrace(round % 3 ? PTRACE_KILL : PTRACE_DETACH, child, NULL, NULL);
	kill(child, SIGKILL);
	waitpid(child, &status, __WALL);
}

/* ---- memory of a call that is being made ---- */

static long socketcall(long call, uint32_t *words)
{
	long result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(102L), "b"(call), "c"(words)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

static void write_to(pid_t process, void *where, const void *what, size_t size)
{
	struct iovec local = {(void *)what, size}, remote = {where, size};

	must(process_vm_writev(process, &local, 1, &remote, 1, 0),
	     "process_vm_writev");
}

static int port_of(int fd)
{
	struct sockaddr_in found = {0};
	socklen_t length = sizeof(found);

	getsockname(fd, (void *)&found, &length);
	return ntohs(found.sin_port);
}

static int listens(int fd)
{
	int value = 0;
	socklen_t length = sizeof(value);

	getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &length);
	return value;
}

static void rewrite(void)
{
	uint32_t *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct sockaddr_in *address = (void *)(words + 16);
	const struct sockaddr_in good = place(INADDR_LOOPBACK, allowed);
	const struct sockaddr_in bad = place(INADDR_LOOPBACK, port);
	const uint32_t bad_fd = (uint32_t)bound_tcp();
	const uint32_t good_fd = (uint32_t)fresh(SOCK_STREAM);
	const int by_words = is("words");
	const pid_t target = getpid();
	pid_t writer;

	must(bind((int)good_fd, (void *)&good, sizeof(good)), "bind");
	words[0] = good_fd;
	words[1] = 8;
	*address = good;
	fflush(stdout);
	writer = fork();
	while (writer == 0) {
		write_to(target, by_words ? (void *)words : address,
			 by_words ? (void *)&bad_fd : (void *)&bad,
			 by_words ? 4 : sizeof(bad));
		write_to(target, by_words ? (void *)words : address,
			 by_words ? (void *)&good_fd : (void *)&good,
			 by_words ? 4 : sizeof(good));
	}
	/* The race is on. */
	while (*(volatile uint32_t *)words != bad_fd &&
	       *(volatile in_port_t *)&address->sin_port != bad.sin_port)
		sched_yield();
	for (int i = 0; i < tries; i++) {
		int fd, won;

		if (by_words) {
			socketcall(4, words);
			count(listens((int)bad_fd) ? 0 : -1);
			continue;
		}
		fd = fresh(SOCK_DGRAM);
		(void)!bind(fd, (void *)address, sizeof(*address));
		won = port_of(fd) == port;
		count(won ? 0 : -1);
		if (won)
			break; /* it stays open */
		close(fd);
	}
	kill(writer, SIGKILL);
	waitpid(writer, NULL, 0);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	if (is("rewrite") || is("words")) {
		rewrite();
		return finish();
	}
	plan = low_memory();
	for (int i = 0; i < tries; i++) {
		if (is("suspend"))
			suspend();
		else if (is("midcall"))
			midcall(i);
		else
			trace();
	}
	return finish();
}

#else
int main(void)
{
	return 2;
}
#endif

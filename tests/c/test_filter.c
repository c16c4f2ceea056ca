/* SPDX-License-Identifier: MIT */
/*
 * The filter against a table of what Linux calls are, written down apart from
 * the core's own: over every call number and architecture.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/audit.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bpf.h"
#include "check.h"
#include "filter.h"
#include "listener.h"

#ifndef AUDIT_ARCH_RISCV64
#define AUDIT_ARCH_RISCV64 (243 | __AUDIT_ARCH_64BIT | __AUDIT_ARCH_LE)
#endif
#ifndef AUDIT_ARCH_LOONGARCH64
#define AUDIT_ARCH_LOONGARCH64 (258 | __AUDIT_ARCH_64BIT | __AUDIT_ARCH_LE)
#endif

enum meaning {
	NOTHING_OF_OURS,
	LISTEN,
	BIND,
	IO_URING,
	SOCKETCALL,
	SECCOMP,
	PRLIMIT,
};

/* From the kernel's syscall.tbl files and linux/net.h. */
static const struct {
	uint32_t arch;
	uint32_t nr;
	enum meaning meaning;
} meanings[] = {
	{AUDIT_ARCH_X86_64, 49, BIND},
	{AUDIT_ARCH_X86_64, 50, LISTEN},
	{AUDIT_ARCH_X86_64, 302, PRLIMIT},
	{AUDIT_ARCH_X86_64, 317, SECCOMP},
	{AUDIT_ARCH_X86_64, 425, IO_URING},
	{AUDIT_ARCH_X86_64, 426, IO_URING},
	{AUDIT_ARCH_X86_64, 427, IO_URING},
	{AUDIT_ARCH_I386, 102, SOCKETCALL},
	{AUDIT_ARCH_I386, 361, BIND},
	{AUDIT_ARCH_I386, 363, LISTEN},
	{AUDIT_ARCH_I386, 340, PRLIMIT},
	{AUDIT_ARCH_I386, 354, SECCOMP},
	{AUDIT_ARCH_I386, 425, IO_URING},
	{AUDIT_ARCH_I386, 426, IO_URING},
	{AUDIT_ARCH_I386, 427, IO_URING},
	{AUDIT_ARCH_AARCH64, 200, BIND},
	{AUDIT_ARCH_AARCH64, 201, LISTEN},
	{AUDIT_ARCH_AARCH64, 261, PRLIMIT},
	{AUDIT_ARCH_AARCH64, 277, SECCOMP},
	{AUDIT_ARCH_AARCH64, 425, IO_URING},
	{AUDIT_ARCH_AARCH64, 426, IO_URING},
	{AUDIT_ARCH_AARCH64, 427, IO_URING},
	{AUDIT_ARCH_ARM, 282, BIND},
	{AUDIT_ARCH_ARM, 284, LISTEN},
	{AUDIT_ARCH_ARM, 369, PRLIMIT},
	{AUDIT_ARCH_ARM, 383, SECCOMP},
	{AUDIT_ARCH_ARM, 425, IO_URING},
	{AUDIT_ARCH_ARM, 426, IO_URING},
	{AUDIT_ARCH_ARM, 427, IO_URING},
};

/* Which programs run on which kernel. */
static const struct {
	uint32_t kernel, compat;
} kernels[] = {
	{AUDIT_ARCH_X86_64, AUDIT_ARCH_I386},
	{AUDIT_ARCH_AARCH64, AUDIT_ARCH_ARM},
};

static const uint32_t arches[] = {
	AUDIT_ARCH_X86_64,
	AUDIT_ARCH_I386,
	AUDIT_ARCH_AARCH64,
	AUDIT_ARCH_ARM,
	AUDIT_ARCH_ARMEB,
	AUDIT_ARCH_RISCV64,
	AUDIT_ARCH_MIPS,
	AUDIT_ARCH_MIPSEL,
	AUDIT_ARCH_MIPSEL64,
	AUDIT_ARCH_PPC64LE,
	AUDIT_ARCH_S390X,
	AUDIT_ARCH_LOONGARCH64,
	0,
	0xffffffff,
};

static enum meaning meaning_of(uint32_t arch, uint32_t nr)
{
	for (size_t i = 0; i < COUNT_OF(meanings); i++)
		if (meanings[i].arch == arch && meanings[i].nr == nr)
			return meanings[i].meaning;
	return NOTHING_OF_OURS;
}

static uint32_t intercept_if(bool needed)
{
	return needed ? SECCOMP_RET_USER_NOTIF : SECCOMP_RET_ALLOW;
}

static uint32_t wanted_action(uint32_t kernel, uint32_t compat,
			      const struct psc_filter_need *need,
			      const struct seccomp_data *data,
			      enum meaning meaning)
{
	const uint32_t no_such_call = SECCOMP_RET_ERRNO | ENOSYS;

	if (data->arch != kernel && data->arch != compat)
		return no_such_call;
	/* x32, and numbers of which the kernel itself says ENOSYS */
	if (data->arch == AUDIT_ARCH_X86_64 && (uint32_t)data->nr >= 0x40000000)
		return no_such_call;
	switch (meaning) {
	case LISTEN:
		return intercept_if(need->listen);
	case BIND:
		return intercept_if(need->bind);
	case IO_URING:
		return need->no_io_uring ? no_such_call : SECCOMP_RET_ALLOW;
	case SECCOMP:
		/* SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER */
		return need->no_listener && (uint32_t)data->args[0] == 1 &&
				       data->args[1] & 8
			       ? SECCOMP_RET_ERRNO | EBUSY
			       : SECCOMP_RET_ALLOW;
	case PRLIMIT:
		/* Of another process, and not only to read. */
		return need->no_prlimit && (uint32_t)data->args[0] != 0 &&
				       data->args[2] != 0
			       ? SECCOMP_RET_ERRNO | EPERM
			       : SECCOMP_RET_ALLOW;
	case SOCKETCALL:
		/* The kernel reads an int: SYS_BIND is 2, SYS_LISTEN 4. */
		switch (data->args[0] & 0xffffffff) {
		case 2:
			return intercept_if(need->bind);
		case 4:
			return intercept_if(need->listen);
		default:
			return SECCOMP_RET_ALLOW;
		}
	default:
		return SECCOMP_RET_ALLOW;
	}
}

static struct psc_filter_need need_of(unsigned int bits)
{
	return (struct psc_filter_need){.listen = bits & 1,
					.bind = bits & 2,
					.no_io_uring = bits & 4,
					.no_listener = bits & 8,
					.no_prlimit = bits & 16};
}

#define NEEDS 32

/* Every number that a call can have here; false at the end. */
static bool next_number(uint32_t step, int *ret_nr)
{
	static const uint32_t odd[] = {0xffffffff, 0x3fffffff, 0x7fffffff,
				       0x80000000, 0x80000032, 0xc0000032};

	if (step < 1024)
		*ret_nr = (int)step;
	else if (step < 2048)
		*ret_nr = (int)(0x40000000 + step - 1024);
	else if (step < 2048 + COUNT_OF(odd))
		*ret_nr = (int)odd[step - 2048];
	else
		return false;
	return true;
}

static const uint64_t high_halves[] = {0, 1ull << 32, 0xffffffffull << 32};

/* Whether it takes more than the number to judge a call. */
static bool is_judged_by_arguments(enum meaning meaning,
				   const struct psc_filter_need *need)
{
	return meaning == SOCKETCALL ||
	       (meaning == SECCOMP && need->no_listener) ||
	       (meaning == PRLIMIT && need->no_prlimit);
}

static void check_action(const struct sock_filter *program, uint32_t kernel,
			 uint32_t compat, const struct psc_filter_need *need,
			 const struct seccomp_data *data, enum meaning meaning)
{
	bool reads_args;
	const uint32_t got = bpf_run(program, data, &reads_args);
	const uint32_t wanted =
		wanted_action(kernel, compat, need, data, meaning);

	if (got != wanted)
		FAIL("kernel %#x need %d%d%d%d%d arch %#x nr %d "
		     "args %#llx %#llx %#llx: %#x, not %#x",
		     kernel, need->listen, need->bind, need->no_io_uring,
		     need->no_listener, need->no_prlimit, data->arch, data->nr,
		     (unsigned long long)data->args[0],
		     (unsigned long long)data->args[1],
		     (unsigned long long)data->args[2], got, wanted);
	if (reads_args && !is_judged_by_arguments(meaning, need))
		FAIL("arch %#x nr %d: an argument is read", data->arch,
		     data->nr);
}

/* One program, one call: every first argument, and others where they matter. */
static void check_call(const struct sock_filter *program, uint32_t kernel,
		       uint32_t compat, const struct psc_filter_need *need,
		       uint32_t arch, int nr)
{
	static const uint64_t others[] = {
		0, 1, 8, 7, 9, 0x28, 0xfffffff7, 1ull << 32, 8ull << 32,
		0x7ffe00000000, 0x7ffe12345678, UINT64_MAX};
	const enum meaning meaning = meaning_of(arch, (uint32_t)nr);
	struct seccomp_data data = {.arch = arch, .nr = nr};

	for (uint64_t low = 0; low <= 20; low++) {
		for (size_t high = 0; high < COUNT_OF(high_halves); high++) {
			data.args[0] = high_halves[high] | low;
			if (meaning != SECCOMP && meaning != PRLIMIT) {
				check_action(program, kernel, compat, need,
					     &data, meaning);
				continue;
			}
			for (size_t i = 0; i < COUNT_OF(others); i++) {
				data.args[1] = data.args[2] = others[i];
				check_action(program, kernel, compat, need,
					     &data, meaning);
			}
		}
	}
}

static void test_every_call(void)
{
	for (size_t k = 0; k < COUNT_OF(kernels); k++) {
		for (unsigned int bits = 0; bits < NEEDS; bits++) {
			const struct psc_filter_need need = need_of(bits);
			struct sock_filter program[PSC_FILTER_MAX];
			const char *problem;
			int length, nr;

			length = psc_filter_build_for(kernels[k].kernel, &need,
						      program);
			REQUIRE(length > 0 && length <= PSC_FILTER_MAX);
			problem = bpf_problem(program, (size_t)length);
			if (problem) {
				FAIL("need %u: %s", bits, problem);
				continue;
			}
			for (size_t a = 0; a < COUNT_OF(arches); a++)
				for (uint32_t i = 0; next_number(i, &nr); i++)
					check_call(program, kernels[k].kernel,
						   kernels[k].compat, &need,
						   arches[a], nr);
		}
	}
}

static enum psc_call call_of(enum meaning meaning, uint64_t first_arg)
{
	const uint32_t low = (uint32_t)first_arg;

	if (meaning == LISTEN || (meaning == SOCKETCALL && low == 4))
		return PSC_CALL_LISTEN;
	if (meaning == BIND || (meaning == SOCKETCALL && low == 2))
		return PSC_CALL_BIND;
	return PSC_CALL_NONE;
}

static void test_every_notification(void)
{
	int nr;

	for (size_t a = 0; a < COUNT_OF(arches); a++) {
		for (uint32_t i = 0; next_number(i, &nr); i++) {
			const enum meaning meaning =
				meaning_of(arches[a], (uint32_t)nr);

			for (uint64_t arg = 0; arg <= 20; arg++) {
				bool in_memory;

				for (size_t h = 0; h < COUNT_OF(high_halves);
				     h++) {
					const uint64_t whole =
						high_halves[h] | arg;

					CHECK_INT(psc_filter_call(arches[a], nr,
								  whole,
								  &in_memory),
						  call_of(meaning, whole));
					CHECK_INT(in_memory,
						  meaning == SOCKETCALL);
				}
			}
		}
	}
}

static void test_unknown_architecture(void)
{
	const struct psc_filter_need need = need_of(NEEDS - 1);
	struct sock_filter program[PSC_FILTER_MAX];

	for (size_t a = 0; a < COUNT_OF(arches); a++)
		if (arches[a] != AUDIT_ARCH_X86_64 &&
		    arches[a] != AUDIT_ARCH_AARCH64)
			CHECK_INT(
				psc_filter_build_for(arches[a], &need, program),
				-EOPNOTSUPP);
}

static void test_own_architecture(void)
{
#if defined(__x86_64__)
	const uint32_t own = AUDIT_ARCH_X86_64;
#else
	const uint32_t own = AUDIT_ARCH_AARCH64;
#endif

	CHECK_INT(meaning_of(own, __NR_listen), LISTEN);
	CHECK_INT(meaning_of(own, __NR_bind), BIND);
	for (unsigned int bits = 0; bits < NEEDS; bits++) {
		const struct psc_filter_need need = need_of(bits);
		struct sock_filter here[PSC_FILTER_MAX], there[PSC_FILTER_MAX];
		int length = psc_filter_build(&need, here);

		REQUIRE(length > 0);
		CHECK_INT(psc_filter_build_for(own, &need, there), length);
		CHECK(memcmp(here, there, (size_t)length * sizeof(*here)) == 0);
	}
}

/* A call's errno, 0 for success. */
static int errno_of(long result)
{
	return result < 0 ? errno : 0;
}

/*
 * Under the filter, whose listener is closed by then: what is intercepted says
 * ENOSYS, all else does what it always did. Return the line that is wrong.
 */
static int try_installed(const struct psc_filter_need *need)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr =
					      htonl(INADDR_LOOPBACK)};
	const long io_uring_setup = 425;
	int ring_error = errno_of(syscall(io_uring_setup, 0, NULL));
	int listener_fd, socket_fd;
	unsigned int features;
	enum psc_install_stage stage;
	struct rlimit limit;

	if (getrlimit(RLIMIT_CORE, &limit) < 0)
		return __LINE__;
	socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (socket_fd < 0)
		return __LINE__;
	listener_fd = psc_listener_install(
		need, PSC_LISTENER_WAIT_KILLABLE | PSC_LISTENER_SYNC_WAKE_UP,
		&features, &stage);
	if (listener_fd < 0)
		return __LINE__;
	if (psc_listener_install(need, 0, &features, &stage) != -EBUSY ||
	    stage != PSC_INSTALL_SECCOMP)
		return __LINE__;
	close(listener_fd);
	/* A listener of the target's own would answer in the place of ours. */
	if (psc_listener_install(need, 0, &features, &stage) !=
	    (need->no_listener ? -EBUSY : listener_fd))
		return __LINE__;
	if (!need->no_listener)
		close(listener_fd);
	if (errno_of(prlimit(getppid(), RLIMIT_CORE, &limit, NULL)) !=
		    (need->no_prlimit ? EPERM : 0) ||
	    prlimit(getppid(), RLIMIT_CORE, NULL, &limit) < 0 ||
	    prlimit(0, RLIMIT_CORE, &limit, NULL) < 0)
		return __LINE__;

	if (errno_of(bind(socket_fd, (struct sockaddr *)&address,
			  sizeof(address))) != (need->bind ? ENOSYS : 0))
		return __LINE__;
	if (errno_of(listen(socket_fd, 1)) != (need->listen ? ENOSYS : 0))
		return __LINE__;
	if (errno_of(syscall(io_uring_setup, 0, NULL)) !=
	    (need->no_io_uring ? ENOSYS : ring_error))
		return __LINE__;
#if defined(__x86_64__)
	if (errno_of(syscall(0x40000000 + __NR_getpid)) != ENOSYS)
		return __LINE__;
#endif
	return 0;
}

static void test_kernel_agrees(void)
{
	for (unsigned int bits = 0; bits < NEEDS; bits++) {
		const struct psc_filter_need need = need_of(bits);
		int status, line = 0, ends[2];
		pid_t child;

		REQUIRE(pipe(ends) == 0);
		child = fork();
		if (child == 0) {
			line = try_installed(&need);
			_exit(write(ends[1], &line, sizeof(line)) !=
			      sizeof(line));
		}
		close(ends[1]);
		CHECK(child > 0);
		CHECK_INT(read(ends[0], &line, sizeof(line)), sizeof(line));
		close(ends[0]);
		if (line)
			FAIL("need %u: line %d does not hold", bits, line);
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
}

static const struct check_test tests[] = {
	{"every call number on every architecture gets its action, and only "
	 "socketcall's argument is read",
	 test_every_call},
	{"a notification is told for the call that it is",
	 test_every_notification},
	{"no filter is built for an unknown architecture",
	 test_unknown_architecture},
	{"the filter for this machine is the one for its architecture",
	 test_own_architecture},
	{"the kernel takes every filter, and does what it says",
	 test_kernel_agrees},
	{NULL, NULL},
};

const struct check_suite filter_suite = {"filter", tests};

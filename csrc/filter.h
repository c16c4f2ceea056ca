/* SPDX-License-Identifier: MIT */
/*
 * The seccomp filter: a pure function from what a policy needs to a classic
 * BPF program. Nothing here calls the system.
 *
 * For each architecture that can make calls on this kernel the program
 * compares `arch`, then `nr`, and looks at arguments only for the few calls
 * that have innocent uses too. Calls that are not named end in ALLOW by number alone, which
 * the kernel (5.11) keeps in a bitmap and so makes almost free.
 */
#ifndef PSC_FILTER_H
#define PSC_FILTER_H

#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** The most instructions that a built filter has. */
#define PSC_FILTER_MAX 80

/** Which call of the guarded tree a notification stands for. */
enum psc_call {
	PSC_CALL_NONE, /* none of ours */
	PSC_CALL_LISTEN,
	PSC_CALL_BIND,
};

/**
 * struct psc_filter_need - what a policy needs intercepted
 * @listen: hand `listen` to the supervisor
 * @bind: hand `bind` to the supervisor
 * @no_io_uring: fail io_uring with ENOSYS: rings open ports without `listen`
 * @no_listener: fail with EBUSY a filter that wants a listener of its own. The
 *   kernel does so only while ours is open: one that is made later, when we
 *   are closed or dead, would answer in our place
 * @no_prlimit: fail with EPERM to set another process's limits: the supervisor
 *   could be starved of descriptors, or killed by RLIMIT_CPU
 */
struct psc_filter_need {
	bool listen;
	bool bind;
	bool no_io_uring;
	bool no_listener;
	bool no_prlimit;
};

/**
 * psc_filter_build - build the filter for this machine's architecture
 * @need: what to intercept
 * @ret_program: room for PSC_FILTER_MAX instructions
 *
 * Return: the number of instructions; -EOPNOTSUPP on an architecture that
 * portseccomp does not know (it knows x86-64 and aarch64).
 */
int psc_filter_build(const struct psc_filter_need *need,
		     struct sock_filter *ret_program);

/**
 * psc_filter_build_for - the same for a named architecture
 * @audit_arch: AUDIT_ARCH_X86_64 or AUDIT_ARCH_AARCH64
 *
 * Return: the number of instructions, or -EOPNOTSUPP.
 */
int psc_filter_build_for(uint32_t audit_arch, const struct psc_filter_need *need,
			 struct sock_filter *ret_program);

/**
 * psc_filter_call - tell which call a notification stands for
 * @audit_arch: `arch` of the notification's seccomp_data
 * @nr: its `nr`
 * @first_arg: its `args[0]`, which selects i386's socketcall
 * @ret_in_memory: set when the call's arguments are an array of 32-bit words
 *   at `args[1]` (socketcall)
 *
 * Return: the call, PSC_CALL_NONE for any that the filter does not hand over.
 */
enum psc_call psc_filter_call(uint32_t audit_arch, int nr, uint64_t first_arg,
			      bool *ret_in_memory);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Confinement: a Landlock domain around the guarded thread and all that it
 * starts. It forbids nothing but what leads out of the tree: signals to, and
 * ptrace of, any process outside, the supervisor first of all. Whoever may
 * ptrace the supervisor answers its requests; whoever may stop it, hangs them.
 */
#ifndef PSC_CONFINE_H
#define PSC_CONFINE_H

/**
 * psc_confine_version - the kernel's Landlock ABI
 *
 * Return: 1 or more; -ENOSYS or -EOPNOTSUPP where Landlock is not built in or
 * not switched on; -EPERM where a seccomp profile refuses it.
 */
int psc_confine_version(void);

/**
 * psc_confine_thread - put the calling thread into a domain, for good
 *
 * Sets no_new_privs. Threads and processes that it starts from then on are in
 * the domain too. What landlock(7) says of every domain holds: a process
 * inside has ptrace access (pidfd_getfd, process_vm_writev, /proc/PID/mem) to
 * none outside. LANDLOCK_SCOPE_SIGNAL adds signals (Linux 6.12, ABI 6).
 *
 * Return: 0, or -errno: as psc_confine_version(), and -E2BIG or -EINVAL for an
 * ABI below 6.
 */
int psc_confine_thread(void);

#endif

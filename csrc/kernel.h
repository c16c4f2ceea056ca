/* SPDX-License-Identifier: MIT */
/*
 * What the core asks of Linux, where libc or the distribution's headers may
 * be too old to know it: constants, and system calls without a wrapper.
 * Every wrapper returns a value >= 0, or -errno.
 */
#ifndef PSC_KERNEL_H
#define PSC_KERNEL_H

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux 5.19; only together with SECCOMP_FILTER_FLAG_NEW_LISTENER. */
#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

/* Linux 6.6; the flags are the ioctl's argument itself, not a pointer. */
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#ifndef SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

/* Linux 6.9: pidfd_open() of a thread that is no group leader. */
#ifndef PIDFD_THREAD
#define PIDFD_THREAD 0200 /* O_EXCL */
#endif

#ifndef __NR_pidfd_open
#define __NR_pidfd_open 434
#endif
#ifndef __NR_pidfd_getfd
#define __NR_pidfd_getfd 438
#endif

/* Linux 5.13; scopes came with 6.12. */
#ifndef __NR_landlock_create_ruleset
#define __NR_landlock_create_ruleset 444
#define __NR_landlock_restrict_self 446
#endif
#ifndef LANDLOCK_CREATE_RULESET_VERSION
#define LANDLOCK_CREATE_RULESET_VERSION (1U << 0)
#endif
#ifndef LANDLOCK_SCOPE_SIGNAL
#define LANDLOCK_SCOPE_SIGNAL (1ULL << 1)
#endif

#ifndef AF_SMC
#define AF_SMC 43
#endif
/* Linux 6.11: SMC as a protocol of internet sockets. */
#ifndef IPPROTO_SMC
#define IPPROTO_SMC 256
#endif
#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static inline long psc_kernel_result(long result)
{
	return result < 0 ? -errno : result;
}

static inline int psc_kernel_pidfd_open(int32_t tid, unsigned int flags)
{
	return (int)psc_kernel_result(syscall(__NR_pidfd_open, tid, flags));
}

static inline int psc_kernel_pidfd_getfd(int pidfd, int fd)
{
	return (int)psc_kernel_result(syscall(__NR_pidfd_getfd, pidfd, fd, 0));
}

static inline int psc_kernel_tgkill(int32_t tgid, int32_t tid, int sig)
{
	return (int)psc_kernel_result(syscall(__NR_tgkill, tgid, tid, sig));
}

static inline int psc_kernel_seccomp(unsigned int operation, unsigned long flags,
				     void *args)
{
	return (int)psc_kernel_result(
		syscall(__NR_seccomp, operation, flags, args));
}

/* 0 where both share one descriptor table; 1, 2, 3 where not. */
static inline int psc_kernel_kcmp_files(int32_t first, int32_t second)
{
	const int kcmp_files = 2; /* KCMP_FILES */

	return (int)psc_kernel_result(
		syscall(__NR_kcmp, first, second, kcmp_files, 0, 0));
}

static inline int psc_kernel_landlock_create_ruleset(const void *attributes,
						     size_t size,
						     unsigned int flags)
{
	return (int)psc_kernel_result(syscall(__NR_landlock_create_ruleset,
					      attributes, size, flags));
}

static inline int psc_kernel_landlock_restrict_self(int ruleset_fd)
{
	return (int)psc_kernel_result(
		syscall(__NR_landlock_restrict_self, ruleset_fd, 0));
}

static inline int psc_kernel_ioctl(int fd, unsigned long request, void *arg)
{
	return (int)psc_kernel_result(ioctl(fd, request, arg));
}

#endif

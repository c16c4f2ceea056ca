/* SPDX-License-Identifier: MIT */
/*
 * The calling thread of a request: copying a descriptor out of its very
 * table, and telling who it is.
 *
 * A copy through the thread's group leader is not the same: a thread that
 * called unshare(CLONE_FILES) has a table of its own. So the thread itself is
 * opened (PIDFD_THREAD, Linux 6.9). On older kernels a thread that is no
 * leader is copied from only while kcmp(2) says that it shares its leader's
 * table, and is refused otherwise.
 *
 * A pidfd that is kept from the call before saves a fifth of a round. It can't
 * go stale: when its thread is gone, it answers ESRCH, never for another
 * thread that got the same number. Few are kept, since each is a descriptor of
 * the embedding program.
 */
#ifndef PSC_CALLER_H
#define PSC_CALLER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/** threads that one psc_callers keeps open: two descriptors each */
#define PSC_CALLERS_KEPT 8

/*
 * One thread: its pidfd, and its name in /proc, which can't go stale either.
 * Where the pidfd is its leader's, @through_leader says so.
 */
struct psc_caller_handle {
	int32_t tid;
	int32_t pid;
	int pidfd;
	int comm_fd;
	bool through_leader;
};

/** struct psc_caller_name - who a thread is; @pid is its process */
struct psc_caller_name {
	int32_t pid;
	char comm[16];
};

/**
 * struct psc_callers - what one supervisor thread knows of calling threads
 *
 * Never shared between threads.
 */
struct psc_callers {
	struct psc_caller_handle kept[PSC_CALLERS_KEPT];
	bool no_pidfd_thread;
};

/** psc_callers_init - start with nothing known */
void psc_callers_init(struct psc_callers *callers);

/** psc_callers_close - close what is kept; it can be used on */
void psc_callers_close(struct psc_callers *callers);

/**
 * psc_callers_copy_fd - copy a descriptor out of a thread
 * @tid: the thread, as this process's pid namespace numbers it
 * @fd: the thread's own number of the descriptor
 *
 * The answer is about whoever has the number @tid now: ask
 * psc_listener_id_valid() afterwards whether it was the caller.
 *
 * Return: the copy (CLOEXEC, the caller's to close), or -errno: -EBADF (the
 * thread has no such descriptor), -ESRCH (no such thread), -EPERM (no ptrace
 * access to it, or a profile refuses pidfd_getfd), -ENOSYS (the same, or Linux
 * before 5.6), -EXDEV (before 6.9: a thread with a table of its own), -EMFILE,
 * -ENFILE.
 */
int psc_callers_copy_fd(struct psc_callers *callers, int32_t tid, int fd);

/**
 * psc_callers_same_files - whether two threads share a descriptor table
 *
 * Return: 0 where they do, more where not; -EPERM, -ENOSYS, -ESRCH.
 */
int psc_callers_same_files(int32_t first, int32_t second);

/**
 * psc_callers_name - tell a waiting thread's process and name
 * @tid: the thread
 * @ret_name: a thread that is gone has @comm empty and @pid equal to @tid
 */
void psc_callers_name(struct psc_callers *callers, int32_t tid,
		      struct psc_caller_name *ret_name);

/**
 * psc_callers_read - read the memory of a waiting thread
 * @tid: the thread
 * @address: where, in its memory
 *
 * Memory can be made to block whoever reads it (userfaultfd(2), a file of
 * FUSE). Then the reading thread is lost until its target dies.
 *
 * Return: the bytes that were read, or -errno: -EFAULT, -EPERM, -ESRCH.
 */
ssize_t psc_callers_read(int32_t tid, uint64_t address, void *ret_bytes,
			 size_t length);

#endif

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

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/** pidfds that one psc_callers keeps open */
#define PSC_CALLERS_KEPT 8
/** threads whose names one psc_callers remembers */
#define PSC_CALLERS_NAMED 1024

/** struct psc_caller_name - who a thread is; @pid is its process */
struct psc_caller_name {
	int32_t tid;
	int32_t pid;
	uint64_t instruction;
	char comm[16];
};

/* One thread's pidfd; where it is its leader's, @through_leader says so. */
struct psc_caller_handle {
	int32_t tid;
	int32_t pid;
	int pidfd;
	bool through_leader;
};

/**
 * struct psc_callers - what one supervisor thread knows of calling threads
 *
 * Never shared between threads.
 */
struct psc_callers {
	struct psc_caller_handle kept[PSC_CALLERS_KEPT];
	struct psc_caller_name named[PSC_CALLERS_NAMED];
	bool no_pidfd_thread;
};

/** psc_callers_init - start with nothing known */
void psc_callers_init(struct psc_callers *callers);

/** psc_callers_close - close what is kept */
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
 * psc_callers_name - tell a waiting thread's process and name
 * @tid: the thread
 * @instruction: where in its program it makes the call
 *
 * Names are remembered: a thread that calls again from the same place has not
 * executed another program in between (its code would be elsewhere).
 *
 * Return: the name, valid until the next call with the same @callers. A
 * thread that is gone has @comm empty and @pid equal to @tid.
 */
const struct psc_caller_name *psc_callers_name(struct psc_callers *callers,
					       int32_t tid,
					       uint64_t instruction);

/** reads of callers' memory that may be under way for one listener... */
#define PSC_CALLERS_READING 8
/** ...and for one process */
#define PSC_CALLERS_READING_PROCESS 2

/**
 * psc_callers_read - read the memory of a waiting thread
 * @readers: PSC_CALLERS_READING places for the processes that are being read,
 *   0 where free
 * @pid: the thread's process
 * @tid: the thread
 * @address: where, in its memory
 *
 * Memory can be made to block whoever reads it (userfaultfd(2), a file of
 * FUSE). Then the reading thread is lost until its target dies, so only a few
 * may be at it.
 *
 * Return: the bytes that were read, or -errno: -EFAULT, -EPERM, -ESRCH, or
 * -EBUSY when too many reads are stuck.
 */
ssize_t psc_callers_read(_Atomic int32_t *readers, int32_t pid, int32_t tid,
			 uint64_t address, void *ret_bytes, size_t length);

#endif

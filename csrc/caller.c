/* SPDX-License-Identifier: MIT */
#include "caller.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "kernel.h"

void psc_callers_init(struct psc_callers *callers)
{
	memset(callers, 0, sizeof(*callers));
	for (int i = 0; i < PSC_CALLERS_KEPT; i++)
		callers->kept[i].pidfd = callers->kept[i].comm_fd = -1;
}

static void forget(struct psc_caller_handle *handle)
{
	const struct psc_caller_handle old = *handle;

	/* First, for a child that is forked in between. */
	*handle = (struct psc_caller_handle){.pidfd = -1, .comm_fd = -1};
	if (old.pidfd >= 0)
		close(old.pidfd);
	if (old.comm_fd >= 0)
		close(old.comm_fd);
}

void psc_callers_close(struct psc_callers *callers)
{
	for (int i = 0; i < PSC_CALLERS_KEPT; i++)
		forget(&callers->kept[i]);
}

/* Read a small file of /proc/TID whole, NUL-terminated. */
static int read_proc(int32_t tid, const char *name, char *buffer, size_t size)
{
	char path[48];
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	length = read(fd, buffer, size - 1);
	close(fd);
	if (length < 0)
		return -ESRCH;
	buffer[length] = '\0';
	return 0;
}

/* The process of a thread; the thread's own number where it can't be told. */
static int32_t find_process(int32_t tid)
{
	char status[512], *line;
	int32_t pid = 0;
	int result;

	/* Succeeds, or is refused, only where the thread leads its group. */
	result = psc_kernel_tgkill(tid, tid, 0);
	if (result == 0 || result == -EPERM)
		return tid;
	if (read_proc(tid, "status", status, sizeof(status)) < 0)
		return tid;
	line = strstr(status, "\nTgid:");
	if (line)
		pid = (int32_t)strtol(line + 6, NULL, 10);
	return pid > 0 ? pid : tid; /* 0 of one that has just been reaped */
}

static int open_thread(struct psc_callers *callers, int32_t tid,
		       struct psc_caller_handle *handle)
{
	int pidfd;

	if (!callers->no_pidfd_thread) {
		pidfd = psc_kernel_pidfd_open(tid, PIDFD_THREAD);
		if (pidfd != -EINVAL)
			goto opened;
		callers->no_pidfd_thread = true;
	}

	/* ENOENT, or EINVAL on older kernels, for a thread that is no leader */
	pidfd = psc_kernel_pidfd_open(tid, 0);
	if (pidfd == -ENOENT || pidfd == -EINVAL) {
		const int32_t leader = find_process(tid);

		if (leader == tid)
			return -ESRCH;
		handle->pid = leader;
		handle->through_leader = true;
		pidfd = psc_kernel_pidfd_open(leader, 0);
	}
opened:
	if (pidfd < 0)
		return pidfd;
	handle->pidfd = pidfd;
	return 0;
}

static int copy_from(const struct psc_caller_handle *handle, int fd)
{
	int copy_fd = psc_kernel_pidfd_getfd(handle->pidfd, fd);

	if (handle->through_leader && (copy_fd >= 0 || copy_fd == -EBADF)) {
		/* After the copy: tables part, but never become one again. */
		int differs = psc_kernel_kcmp_files(handle->pid, handle->tid);

		if (differs == 0)
			return copy_fd;
		if (copy_fd >= 0)
			close(copy_fd);
		return differs < 0 ? differs : -EXDEV;
	}
	return copy_fd;
}

int psc_callers_same_files(int32_t first, int32_t second)
{
	return psc_kernel_kcmp_files(first, second);
}

static struct psc_caller_handle *handle_of(struct psc_callers *callers,
					   int32_t tid)
{
	return &callers->kept[(uint32_t)tid % PSC_CALLERS_KEPT];
}

int psc_callers_copy_fd(struct psc_callers *callers, int32_t tid, int fd)
{
	struct psc_caller_handle *handle = handle_of(callers, tid);
	int result;

	if (handle->tid == tid && handle->pidfd >= 0) {
		result = copy_from(handle, fd);
		if (result != -ESRCH)
			return result;
		/* That thread is gone; another one may have its number. */
	}
	if (handle->tid != tid || handle->pidfd >= 0)
		forget(handle);

	result = open_thread(callers, tid, handle);
	if (result < 0) {
		forget(handle);
		return result;
	}
	handle->tid = tid;
	return copy_from(handle, fd);
}

/* The name, from a descriptor that was opened for this very thread. */
static bool read_comm(const struct psc_caller_handle *handle,
		      struct psc_caller_name *ret_name)
{
	char text[2 * sizeof(ret_name->comm)];
	ssize_t length = pread(handle->comm_fd, text, sizeof(text), 0);

	if (length <= 0)
		return false;
	/* The last byte is a newline; a name may have others. */
	length--;
	if ((size_t)length >= sizeof(ret_name->comm))
		length = sizeof(ret_name->comm) - 1;
	memset(ret_name->comm, 0, sizeof(ret_name->comm));
	memcpy(ret_name->comm, text, (size_t)length);
	ret_name->pid = handle->pid;
	return true;
}

void psc_callers_name(struct psc_callers *callers, int32_t tid,
		      struct psc_caller_name *ret_name)
{
	struct psc_caller_handle *handle = handle_of(callers, tid);
	char path[48];

	if (handle->tid == tid && handle->comm_fd >= 0 &&
	    read_comm(handle, ret_name))
		return;

	forget(handle);
	handle->tid = tid;
	snprintf(path, sizeof(path), "/proc/%d/comm", tid);
	handle->comm_fd = open(path, O_RDONLY | O_CLOEXEC);
	/* In between: as the name can be read after it, both are one thread's. */
	handle->pid = find_process(tid);
	if (handle->comm_fd >= 0 && read_comm(handle, ret_name))
		return;
	*ret_name = (struct psc_caller_name){.pid = tid};
}

ssize_t psc_callers_read(int32_t tid, uint64_t address, void *ret_bytes,
			 size_t length)
{
	struct iovec local = {.iov_base = ret_bytes, .iov_len = length};
	struct iovec remote = {.iov_base = (void *)(uintptr_t)address,
			       .iov_len = length};
	ssize_t result = process_vm_readv(tid, &local, 1, &remote, 1, 0);

	return result < 0 ? -errno : result;
}

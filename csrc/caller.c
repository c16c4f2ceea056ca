/* SPDX-License-Identifier: MIT */
#include "caller.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "kernel.h"

void psc_callers_init(struct psc_callers *callers)
{
	memset(callers, 0, sizeof(*callers));
	for (int i = 0; i < PSC_CALLERS_KEPT; i++)
		callers->kept[i].pidfd = -1;
}

static void forget(struct psc_caller_handle *handle)
{
	if (handle->pidfd >= 0)
		close(handle->pidfd);
	*handle = (struct psc_caller_handle){.pidfd = -1};
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
	int result;

	/* Succeeds, or is refused, only where the thread leads its group. */
	result = psc_kernel_tgkill(tid, tid, 0);
	if (result == 0 || result == -EPERM)
		return tid;
	if (read_proc(tid, "status", status, sizeof(status)) < 0)
		return tid;
	line = strstr(status, "\nTgid:");
	return line ? (int32_t)strtol(line + 6, NULL, 10) : tid;
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
		handle->pid = find_process(tid);
		if (handle->pid == tid)
			return -ESRCH;
		handle->through_leader = true;
		pidfd = psc_kernel_pidfd_open(handle->pid, 0);
	}
opened:
	if (pidfd < 0)
		return pidfd;
	handle->tid = tid;
	handle->pidfd = pidfd;
	return 0;
}

static int copy_from(const struct psc_caller_handle *handle, int fd)
{
	if (handle->through_leader) {
		int differs = psc_kernel_kcmp_files(handle->pid, handle->tid);

		if (differs < 0)
			return differs;
		if (differs > 0)
			return -EXDEV;
	}
	return psc_kernel_pidfd_getfd(handle->pidfd, fd);
}

int psc_callers_copy_fd(struct psc_callers *callers, int32_t tid, int fd)
{
	struct psc_caller_handle *handle =
		&callers->kept[(uint32_t)tid % PSC_CALLERS_KEPT];
	int result;

	if (handle->pidfd >= 0 && handle->tid == tid) {
		result = copy_from(handle, fd);
		if (result != -ESRCH)
			return result;
		/* That thread is gone; another one may have its number. */
	}

	forget(handle);
	result = open_thread(callers, tid, handle);
	if (result < 0) {
		forget(handle);
		return result;
	}
	return copy_from(handle, fd);
}

const struct psc_caller_name *psc_callers_name(struct psc_callers *callers,
					       int32_t tid,
					       uint64_t instruction)
{
	struct psc_caller_name *name =
		&callers->named[(uint32_t)tid % PSC_CALLERS_NAMED];
	char text[2 * sizeof(name->comm)];
	size_t length;

	if (name->tid == tid && name->instruction == instruction)
		return name;

	memset(name, 0, sizeof(*name));
	name->pid = find_process(tid);
	if (read_proc(tid, "comm", text, sizeof(text)) < 0)
		return name; /* gone: not remembered, its tid stays 0 */
	/* The last byte is a newline; a name may have others. */
	length = strlen(text);
	if (length > sizeof(name->comm))
		length = sizeof(name->comm);
	if (length > 0)
		memcpy(name->comm, text, length - 1);
	name->tid = tid;
	name->instruction = instruction;
	return name;
}

/* Take a place among the readers, or NULL. */
static _Atomic int32_t *start_reading(_Atomic int32_t *readers, int32_t pid)
{
	int same = 0;

	for (int i = 0; i < PSC_CALLERS_READING; i++)
		same += atomic_load(&readers[i]) == pid;
	if (same >= PSC_CALLERS_READING_PROCESS)
		return NULL;
	for (int i = 0; i < PSC_CALLERS_READING; i++) {
		int32_t nobody = 0;

		if (atomic_compare_exchange_strong(&readers[i], &nobody, pid))
			return &readers[i];
	}
	return NULL;
}

ssize_t psc_callers_read(_Atomic int32_t *readers, int32_t pid, int32_t tid,
			 uint64_t address, void *ret_bytes, size_t length)
{
	_Atomic int32_t *place = start_reading(readers, pid);
	struct iovec local = {.iov_base = ret_bytes, .iov_len = length};
	struct iovec remote = {.iov_base = (void *)(uintptr_t)address,
			       .iov_len = length};
	ssize_t result;

	if (!place)
		return -EBUSY;
	result = process_vm_readv(tid, &local, 1, &remote, 1, 0);
	if (result < 0)
		result = -errno;
	atomic_store(place, 0);
	return result;
}

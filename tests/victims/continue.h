/* SPDX-License-Identifier: MIT */
/*
 * What continuer.c, bindcontinuer.c and namer.c share: a supervisor as it must
 * not be.
 *
 * It copies the socket, checks a port, and lets the kernel continue the call:
 * which looks the descriptor up a second time. Race it to see why a guard
 * performs the call itself.
 */
#ifndef VICTIMS_CONTINUE_H
#define VICTIMS_CONTINUE_H

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PIDFD_OF_THREAD 0200 /* O_EXCL; Linux 6.9 */

/* The port that a call asks for; 0 where nothing is to be checked. */
typedef int port_of_call(pid_t tid, const struct seccomp_data *data, int copy);

/* Decides and makes the call itself, where there is one: 0 or -errno. */
static int (*perform)(const struct seccomp_data *data, int copy);

static int install(unsigned int call)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			 offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {4, program};

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			    SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
}

static int copy_of(pid_t tid, int fd)
{
	int thread = (int)syscall(SYS_pidfd_open, tid, PIDFD_OF_THREAD);
	int copy;

	if (thread < 0)
		thread = (int)syscall(SYS_pidfd_open, tid, 0);
	copy = (int)syscall(SYS_pidfd_getfd, thread, fd, 0);
	close(thread);
	return copy;
}

static void answer(int listener, int forbidden, port_of_call *port_of)
{
	struct seccomp_notif request = {0};
	struct seccomp_notif_resp response = {0};
	int copy;

	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &request) < 0)
		return;
	response.id = request.id;
	copy = copy_of((pid_t)request.pid, (int)request.data.args[0]);
	if (perform)
		response.error = perform(&request.data, copy);
	else if (port_of((pid_t)request.pid, &request.data, copy) == forbidden)
		response.error = -EACCES;
	else
		response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
	if (copy >= 0)
		close(copy);
	ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
}

/* Run argv[2] with its arguments; the port argv[1] is to stay closed. */
static int supervise(char **argv, unsigned int call, port_of_call *port_of)
{
	int numbers[2], copied[2], listener, status = 0;
	struct pollfd ready;
	pid_t child;

	if (pipe(numbers) < 0 || pipe(copied) < 0)
		return 2;
	child = fork();
	if (child == 0) {
		listener = install(call);
		if (write(numbers[1], &listener, sizeof(listener)) < 0)
			_exit(2);
		/* Until the parent has copied it. */
		close(copied[1]);
		if (read(copied[0], &status, 1) < 0)
			_exit(2);
		execv(argv[2], argv + 2);
		_exit(2);
	}
	close(numbers[1]);
	if (read(numbers[0], &listener, sizeof(listener)) != sizeof(listener))
		return 2;
	if (listener < 0) {
		printf("install: failed\n");
		kill(child, 9);
		return 1;
	}
	listener = copy_of(child, listener);
	close(copied[1]); /* lets the child go */
	ready = (struct pollfd){.fd = listener, .events = POLLIN};
	while (waitpid(child, &status, WNOHANG) == 0) {
		if (poll(&ready, 1, 100) > 0 && ready.revents & POLLIN)
			answer(listener, atoi(argv[1]), port_of);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

#endif

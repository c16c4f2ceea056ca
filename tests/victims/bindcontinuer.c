/* SPDX-License-Identifier: MIT */
/*
 * A supervisor as it must not be: bindcontinuer FORBIDDEN COMMAND...
 *
 * It copies the socket, reads the address, checks both, and lets the kernel
 * continue the call: which looks the descriptor up and reads the address a
 * second time. Race it to see why a guard performs the call itself.
 */
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
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static int install(void)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			 offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_bind, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {4, program};

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			    SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
}

/* The port that a UDP socket asks for; 0 for other sockets. */
static int port_of(pid_t pid, const struct seccomp_data *data)
{
	struct sockaddr_in address = {0};
	struct iovec local = {&address, sizeof(address)};
	struct iovec remote = {(void *)(uintptr_t)data->args[1],
			       sizeof(address)};
	int process = (int)syscall(SYS_pidfd_open, pid, 0);
	int copy = (int)syscall(SYS_pidfd_getfd, process, data->args[0], 0);
	int protocol = 0;
	socklen_t length = sizeof(protocol);

	getsockopt(copy, SOL_SOCKET, SO_PROTOCOL, &protocol, &length);
	close(copy);
	close(process);
	if (protocol != IPPROTO_UDP ||
	    process_vm_readv(pid, &local, 1, &remote, 1, 0) < 0)
		return 0;
	return ntohs(address.sin_port);
}

static void answer(int listener, int forbidden)
{
	struct seccomp_notif request = {0};
	struct seccomp_notif_resp response = {0};

	if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &request) < 0)
		return;
	response.id = request.id;
	if (port_of((pid_t)request.pid, &request.data) == forbidden)
		response.error = -EACCES;
	else
		response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
	ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
}

int main(int argc, char **argv)
{
	int numbers[2], copied[2], listener, status = 0, fd;
	struct pollfd ready;
	pid_t child;

	if (argc < 3 || pipe(numbers) < 0 || pipe(copied) < 0)
		return 2;
	child = fork();
	if (child == 0) {
		listener = install();
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
	fd = (int)syscall(SYS_pidfd_open, child, 0);
	listener = (int)syscall(SYS_pidfd_getfd, fd, listener, 0);
	close(copied[1]); /* lets the child go */
	ready = (struct pollfd){.fd = listener, .events = POLLIN};
	while (waitpid(child, &status, WNOHANG) == 0) {
		if (poll(&ready, 1, 100) > 0 && ready.revents & POLLIN)
			answer(listener, atoi(argv[1]));
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

/* SPDX-License-Identifier: MIT */
/*
 * floor MODE CALLS - what one guarded `listen` costs in bare C
 *
 * MODE is
 *   none        no filter at all
 *   continue    RECV, then SEND with CONTINUE
 *   round       the whole round, in a loop that blocks in RECV: pidfd_open,
 *               pidfd_getfd, ID_VALID, getsockname, listen, close, SEND
 *   supervisor  portseccomp's own core, without Python
 *   unrelated   a call that nobody intercepts
 *   unrelated-empty
 *               the same under a filter that only says ALLOW: what the kernel
 *               itself takes for having any filter
 *   storm=N     N processes make CALLS calls each; prints the nanoseconds that
 *               all of them took
 *
 * With a prefix, other calls than `listen` are made:
 *   bind-MODE   `bind` of a new UDP socket to loopback, port 0
 *   moved-MODE  the same to port 5999
 *   query-MODE  what a resolver does for each query: socket, bind, send, receive
 *               and close
 *
 * Suffixes: `-async` leaves the synchronous wake-up off. Prints the latency of
 * each call, seen by its caller, in nanoseconds: one number a line.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "filter.h"
#include "kernel.h"
#include "listener.h"
#include "supervisor.h"

static int listener_fd;
static unsigned int wanted =
	PSC_LISTENER_WAIT_KILLABLE | PSC_LISTENER_SYNC_WAKE_UP;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void *serve_continue(void *unused)
{
	struct seccomp_notif notif;

	(void)unused;
	while (psc_listener_receive(listener_fd, &notif) == 0)
		psc_listener_continue(listener_fd, notif.id);
	return NULL;
}

/* Read the address once, and bind the copy. */
static int act_bind(const struct seccomp_notif *notif, int copy_fd)
{
	union psc_sockaddr address;
	const size_t length = (size_t)notif->data.args[2];
	struct iovec local = {&address, length};
	struct iovec remote = {(void *)(uintptr_t)notif->data.args[1], length};

	if (process_vm_readv((pid_t)notif->pid, &local, 1, &remote, 1, 0) !=
	    (ssize_t)length)
		die("floor: memory");
	return bind(copy_fd, &address.generic, (socklen_t)length);
}

static int act(const struct seccomp_notif *notif, int copy_fd)
{
	bool in_memory;

	if (psc_filter_call(notif->data.arch, notif->data.nr, 0, &in_memory) ==
	    PSC_CALL_BIND)
		return act_bind(notif, copy_fd);
	return listen(copy_fd, (int)notif->data.args[1]);
}

static void *serve_round(void *unused)
{
	struct seccomp_notif notif;

	(void)unused;
	while (psc_listener_receive(listener_fd, &notif) == 0) {
		union psc_sockaddr address;
		socklen_t length = sizeof(address);
		int pidfd, copy_fd, error;

		pidfd = psc_kernel_pidfd_open((int32_t)notif.pid, PIDFD_THREAD);
		copy_fd = psc_kernel_pidfd_getfd(pidfd,
						 (int)notif.data.args[0]);
		if (psc_listener_id_valid(listener_fd, notif.id) < 0 ||
		    getsockname(copy_fd, &address.generic, &length) < 0)
			die("floor: round");
		error = act(&notif, copy_fd) ? errno : 0;
		close(copy_fd);
		close(pidfd);
		psc_listener_answer(listener_fd, notif.id, error);
	}
	return NULL;
}

static void *serve_supervisor(void *unused)
{
	static const struct psc_rule rule = {
		.verdict = PSC_VERDICT_DENY,
		.error = EACCES,
		.match_ports = PSC_PORTS_RANGE,
		.port_first = 1,
		.port_last = 1,
	};
	static const struct psc_policy policy = {
		.rules = &rule, .count = 1, .error = EACCES};
	static struct psc_supervisor supervisor;
	static struct psc_worker worker;
	uint64_t ticket;

	(void)unused;
	if (psc_supervisor_init(&supervisor, 1024, 1000000000, 1) < 0 ||
	    psc_supervisor_add(&supervisor, listener_fd,
			   PSC_LISTENER_WAIT_KILLABLE, &policy) < 0)
		die("floor: supervisor");
	psc_worker_init(&supervisor, &worker);
	psc_supervisor_run(&supervisor, &worker, &ticket);
	return NULL;
}

enum load_kind { LOAD_LISTEN, LOAD_BIND, LOAD_MOVED, LOAD_QUERY };

struct load {
	enum load_kind kind;
	const char *mode;
	int calls;
	int ready_fd;
};

/* Seconds of one bind, or one query, in nanoseconds. */
static int64_t time_udp(const struct load *load, struct sockaddr_in *address)
{
	int64_t start = psc_round_now(), end;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in own;
	socklen_t length = sizeof(own);
	char byte = 0;

	if (load->kind != LOAD_QUERY)
		start = psc_round_now();
	if (fd < 0 ||
	    bind(fd, (struct sockaddr *)address, sizeof(*address)) < 0)
		die("floor: bind");
	end = psc_round_now();
	if (load->kind == LOAD_QUERY &&
	    (getsockname(fd, (struct sockaddr *)&own, &length) < 0 ||
	     sendto(fd, &byte, 1, 0, (struct sockaddr *)&own, length) != 1 ||
	     recv(fd, &byte, 1, 0) != 1))
		die("floor: query");
	close(fd);
	return load->kind == LOAD_QUERY ? psc_round_now() - start : end - start;
}

/* The target: a process of its own, as in real use. */
static void call(const struct load *load)
{
	int64_t *samples = calloc((size_t)load->calls, sizeof(*samples));
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	const int warm_up = 1000;

	if (!samples || socket_fd < 0 ||
	    bind(socket_fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		die("floor: socket");
	for (int i = -warm_up; i < load->calls; i++) {
		int64_t start = psc_round_now();

		if (load->kind != LOAD_LISTEN) {
			int64_t taken;

			address.sin_port =
				htons(load->kind == LOAD_MOVED ? 5999 : 0);
			taken = time_udp(load, &address);
			if (i >= 0)
				samples[i] = taken;
			continue;
		}
		if (strncmp(load->mode, "unrelated", 9) == 0)
			syscall(SYS_getppid);
		else if (listen(socket_fd, 16) < 0)
			die("floor: listen");
		if (i >= 0)
			samples[i] = psc_round_now() - start;
	}
	for (int i = 0; i < load->calls; i++)
		printf("%lld\n", (long long)samples[i]);
	fflush(stdout);
	_exit(0);
}

static void install_empty_filter(void)
{
	struct sock_filter allow = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
	struct sock_fprog program = {1, &allow};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    psc_kernel_seccomp(SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
		die("floor: seccomp");
}

/* Many processes at once, started together by closing a pipe. */
static int storm(int processes, int calls)
{
	int gate[2];
	int64_t start;
	char byte;

	if (pipe(gate) < 0)
		die("floor: pipe");
	for (int i = 0; i < processes; i++) {
		pid_t pid = fork();

		if (pid < 0)
			die("floor: fork");
		if (pid > 0)
			continue;
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		close(gate[1]);
		if (read(gate[0], &byte, 1) != 0)
			_exit(1);
		for (int j = 0; j < calls; j++)
			if (listen(fd, 16) < 0)
				_exit(1);
		_exit(0);
	}
	start = psc_round_now();
	close(gate[1]);
	for (int i = 0; i < processes; i++) {
		int status;

		if (wait(&status) < 0 || status != 0)
			die("floor: storm");
	}
	printf("%lld\n", (long long)(psc_round_now() - start));
	return 0;
}

/* The guarded thread: the filter is its own, and what it forks inherits it. */
static void *launch(void *argument)
{
	const struct load *load = argument;
	const struct psc_filter_need need = {.listen = true,
					     .bind = load->kind != LOAD_LISTEN,
					     .no_io_uring = true};
	enum psc_install_stage stage;
	unsigned int features;
	int status;
	pid_t pid;

	if (strcmp(load->mode, "unrelated-empty") == 0) {
		install_empty_filter();
	} else if (strcmp(load->mode, "none") != 0 &&
		   strcmp(load->mode, "unrelated") != 0) {
		listener_fd = psc_listener_install(&need, wanted, &features,
						   &stage);
		if (listener_fd < 0) {
			errno = -listener_fd;
			die("floor: seccomp");
		}
	}
	if (write(load->ready_fd, "", 1) != 1)
		die("floor: pipe");
	pid = fork();
	if (pid < 0)
		die("floor: fork");
	if (pid == 0)
		call(load);
	if (waitpid(pid, &status, 0) < 0)
		die("floor: waitpid");
	exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

int main(int argc, char **argv)
{
	void *(*serve)(void *) = NULL;
	pthread_t launcher, server;
	struct load load;
	char *suffix;
	int ready[2];
	char byte;

	if (argc != 3 || atoi(argv[2]) <= 0) {
		fprintf(stderr, "usage: floor MODE CALLS\n");
		return 2;
	}
	if (strncmp(argv[1], "storm=", 6) == 0)
		return storm(atoi(argv[1] + 6), atoi(argv[2]));
	load.kind = LOAD_LISTEN;
	if (strncmp(argv[1], "bind-", 5) == 0)
		load.kind = LOAD_BIND;
	else if (strncmp(argv[1], "moved-", 6) == 0)
		load.kind = LOAD_MOVED;
	else if (strncmp(argv[1], "query-", 6) == 0)
		load.kind = LOAD_QUERY;
	if (load.kind != LOAD_LISTEN)
		argv[1] = strchr(argv[1], '-') + 1;
	load.mode = argv[1];
	suffix = strstr(argv[1], "-async");
	if (suffix) {
		*suffix = '\0';
		wanted = PSC_LISTENER_WAIT_KILLABLE;
	}
	if (strcmp(argv[1], "continue") == 0)
		serve = serve_continue;
	else if (strcmp(argv[1], "round") == 0)
		serve = serve_round;
	else if (strcmp(argv[1], "supervisor") == 0)
		serve = serve_supervisor;

	if (pipe(ready) < 0)
		die("floor: pipe");
	load.calls = atoi(argv[2]);
	load.ready_fd = ready[1];
	if (pthread_create(&launcher, NULL, launch, &load) != 0 ||
	    read(ready[0], &byte, 1) != 1)
		die("floor: thread");
	if (serve && pthread_create(&server, NULL, serve, NULL) != 0)
		die("floor: thread");
	pthread_join(launcher, NULL);
	return 0;
}

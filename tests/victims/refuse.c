/* SPDX-License-Identifier: MIT */
/*
 * Run a program that is refused calls: refuse WHAT=ERRNO... -- PROGRAM ARG...
 *
 * WHAT is a name of the table below: a call, or a call with one flag. ERRNO is a
 * name, or 0: the call does nothing, and says that it worked. What the program
 * starts is refused the same.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ANY -1
#define PIDFD_THREAD O_EXCL
#define WAIT_KILLABLE_RECV (1u << 5)
#define NOTIF_SET_FLAGS 0x40082104u
#define GET_NETNS 0x894Cu /* SIOCGSKNS */
#define NETNS_COOKIE 71u /* of SOL_SOCKET, Linux 5.14 */
#define FILTER_MAX 128

static const struct call {
	const char *name;
	unsigned int number;
	int argument; /* which one is looked at, ANY for none */
	unsigned int mask, value;
} calls[] = {
	{"pidfd_getfd", 438, ANY, 0, 0},
	{"pidfd_open", 434, ANY, 0, 0},
	{"pidfd_thread", 434, 1, PIDFD_THREAD, PIDFD_THREAD},
	{"kcmp", SYS_kcmp, ANY, 0, 0},
	{"killable", SYS_seccomp, 1, WAIT_KILLABLE_RECV, WAIT_KILLABLE_RECV},
	{"seccomp", SYS_seccomp, ANY, 0, 0},
	{"set_flags", SYS_ioctl, 1, ~0u, NOTIF_SET_FLAGS},
	{"get_netns", SYS_ioctl, 1, ~0u, GET_NETNS},
	{"netns_cookie", SYS_getsockopt, 2, ~0u, NETNS_COOKIE},
	{"process_vm_readv", SYS_process_vm_readv, ANY, 0, 0},
	{"netlink", SYS_socket, 0, ~0u, AF_NETLINK},
};

static struct sock_filter filter[FILTER_MAX];
static unsigned short length;

static void put(unsigned int code, unsigned int k, int on_true, int on_false)
{
	filter[length++] = (struct sock_filter)BPF_JUMP(
		code, k, (unsigned char)on_true, (unsigned char)on_false);
}

static void refuse(const struct call *call, unsigned int error)
{
	const int skipped = call->argument == ANY ? 1 : 4;
	const size_t argument = offsetof(struct seccomp_data, args) +
				8 * (size_t)(call->argument & 7);

	put(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0, 0);
	put(BPF_JMP | BPF_JEQ | BPF_K, call->number, 0, skipped);
	if (call->argument != ANY) {
		put(BPF_LD | BPF_W | BPF_ABS, (unsigned int)argument, 0, 0);
		put(BPF_ALU | BPF_AND | BPF_K, call->mask, 0, 0);
		put(BPF_JMP | BPF_JEQ | BPF_K, call->value, 0, 1);
	}
	put(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error, 0, 0);
}

static int number_of(const char *name)
{
	for (int error = 1; error < 134; error++) {
		const char *known = strerrorname_np(error);

		if (known && !strcmp(known, name))
			return error;
	}
	return strcmp(name, "0") ? -1 : 0;
}

static int parse(const char *word)
{
	const char *equals = strchr(word, '=');

	for (size_t i = 0; equals && i < sizeof(calls) / sizeof(*calls); i++) {
		const size_t size = (size_t)(equals - word);

		if (strlen(calls[i].name) == size &&
		    !strncmp(calls[i].name, word, size) &&
		    number_of(equals + 1) >= 0) {
			refuse(&calls[i], (unsigned int)number_of(equals + 1));
			return 0;
		}
	}
	fprintf(stderr, "refuse: what is %s?\n", word);
	return -1;
}

int main(int argc, char **argv)
{
	struct sock_fprog program = {.filter = filter};
	int i;

	for (i = 1; i < argc && strcmp(argv[i], "--"); i++)
		if (length > FILTER_MAX - 8 || parse(argv[i]) < 0)
			return 2;
	if (i + 1 >= argc)
		return 2;
	put(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
	program.len = length;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0) {
		perror("refuse");
		return 2;
	}
	execvp(argv[i + 1], argv + i + 1);
	perror(argv[i + 1]);
	return 2;
}

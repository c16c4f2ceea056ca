/* SPDX-License-Identifier: MIT */
/*
 * Bind where a BPF program says: bpfbind WHAT ASKED PORT HOST TRIES [locked]
 *
 * WHAT is udp4, tcp4, udp6 or tcp6. A socket of a cgroup whose program rewrites
 * each bind to PORT (0: leaves it) and, where HOST is "any", to the wildcard, is
 * bound to ASKED of loopback, and listens if it is TCP: TRIES times. The cgroup is
 * made in a mount of its own, and is gone before anybody looks. "locked": the
 * socket has a filter of its own that takes everything, and can't be replaced.
 *
 * Prints how many sockets were bound to PORT, listen, and heard what was sent to
 * PORT; how often each result was given ("EACCES: 20"); and "holding". The TCP
 * sockets and the last UDP socket are open until the end of standard input; at
 * last it prints what that one has heard from outside.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char root[] = "/tmp/bpfbind-XXXXXX", group[64];
static int results[200], bound, listening, heard;

static int need(long result, const char *step)
{
	if (result >= 0)
		return (int)result;
	printf("%s: %s\n", step, strerrorname_np(errno));
	fflush(stdout);
	_exit(3);
}

/* ---- the program ---- */

static struct bpf_insn instruction(uint8_t code, uint8_t to, uint8_t from,
				   size_t offset, int value)
{
	return (struct bpf_insn){.code = code,
				 .dst_reg = to & 15u,
				 .src_reg = from & 15u,
				 .off = (int16_t)offset,
				 .imm = value};
}

/* r2 = value; the context's field = r2 */
static size_t store(struct bpf_insn *program, size_t offset, uint32_t value)
{
	program[0] = instruction(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0,
				 (int)value);
	program[1] = instruction(BPF_STX | BPF_MEM | BPF_W, 1, 2, offset, 0);
	return 2;
}

static int load(int six, int port, int to_any)
{
	static char log[4096];
	struct bpf_insn program[16];
	union bpf_attr attr = {0};
	size_t count = 0;

	if (port)
		count += store(program + count,
			       offsetof(struct bpf_sock_addr, user_port),
			       htons((uint16_t)port));
	for (size_t i = 0; to_any && six && i < 4; i++)
		count += store(program + count,
			       offsetof(struct bpf_sock_addr, user_ip6) + 4 * i,
			       0);
	if (to_any && !six)
		count += store(program + count,
			       offsetof(struct bpf_sock_addr, user_ip4), 0);
	program[count++] =
		instruction(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 1);
	program[count++] = instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);

	attr.prog_type = BPF_PROG_TYPE_CGROUP_SOCK_ADDR;
	attr.expected_attach_type =
		six ? BPF_CGROUP_INET6_BIND : BPF_CGROUP_INET4_BIND;
	attr.insns = (uintptr_t)program;
	attr.insn_cnt = (uint32_t)count;
	attr.license = (uintptr_t) "MIT";
	attr.log_buf = (uintptr_t)log;
	attr.log_size = sizeof(log);
	attr.log_level = 1;
	return need(syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr)),
		    "BPF_PROG_LOAD");
}

static void attach(int group_fd, int program_fd, int six)
{
	union bpf_attr attr = {0};

	attr.target_fd = (uint32_t)group_fd;
	attr.attach_bpf_fd = (uint32_t)program_fd;
	attr.attach_type =
		six ? BPF_CGROUP_INET6_BIND : BPF_CGROUP_INET4_BIND;
	need(syscall(SYS_bpf, BPF_PROG_ATTACH, &attr, sizeof(attr)),
	     "BPF_PROG_ATTACH");
}

/* ---- the cgroup ---- */

/* Go where "cgroup.procs" is, and whoever is in it with us. */
static void join(const char *where)
{
	char path[96];
	int fd;

	snprintf(path, sizeof(path), "%s/cgroup.procs", where);
	fd = need(open(path, O_WRONLY | O_CLOEXEC), path);
	need(write(fd, "0", 1), path);
	close(fd);
}

static int make_group(void)
{
	need(unshare(CLONE_NEWNS), "unshare");
	need(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
	need(mkdtemp(root) ? 0 : -1, root);
	need(mount("none", root, "cgroup2", 0, NULL), "cgroup2");
	snprintf(group, sizeof(group), "%s/bpfbind-%d", root, getpid());
	need(mkdir(group, 0755), group);
	return need(open(group, O_RDONLY | O_DIRECTORY | O_CLOEXEC), group);
}

/* Sockets keep the cgroup alive, but not its directory. */
static void remove_group(void)
{
	join(root);
	rmdir(group);
	umount2(root, MNT_DETACH);
	rmdir(root);
}

/* ---- the sockets ---- */

static void lock_filter(int fd)
{
	struct sock_filter everything = {BPF_RET | BPF_K, 0, 0, 0xffffffff};
	struct sock_fprog program = {1, &everything};
	const int on = 1;

	need(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program,
			sizeof(program)),
	     "filter");
	need(setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof(on)),
	     "lock");
}

static int hears(int fd)
{
	char byte;

	return recv(fd, &byte, 1, MSG_DONTWAIT) == 1;
}

static int listens(int fd)
{
	int value = 0;
	socklen_t length = sizeof(value);

	getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &length);
	return value;
}

static struct sockaddr_in6 place(int six, int port)
{
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6,
				   .sin6_port = htons((uint16_t)port),
				   .sin6_addr = in6addr_loopback};
	struct sockaddr_in *in4 = (struct sockaddr_in *)&in6;

	if (!six) {
		memset(&in6, 0, sizeof(in6));
		in4->sin_family = AF_INET;
		in4->sin_port = htons((uint16_t)port);
		in4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	}
	return in6;
}

/* Make a socket, bind it to @asked, and see what has become of it at @port. */
static int make(const char *what, int asked, int port, int locked)
{
	const int six = what[3] == '6', stream = what[0] == 't', on = 1;
	const int family = six ? AF_INET6 : AF_INET;
	struct sockaddr_in6 to = place(six, asked), name = {0};
	socklen_t length = sizeof(name);
	int fd, sender, result;

	fd = need(socket(family, stream ? SOCK_STREAM : SOCK_DGRAM, 0),
		  "socket");
	/* All want the same port. */
	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
	if (locked)
		lock_filter(fd);
	result = bind(fd, (void *)&to, sizeof(to));
	if (stream && result == 0)
		result = listen(fd, 8);
	results[result < 0 ? errno : 0]++;
	listening += listens(fd);
	getsockname(fd, (void *)&name, &length);
	bound += ntohs(name.sin6_port) == port;
	if (!stream) {
		sender = need(socket(family, SOCK_DGRAM, 0), "socket");
		to = place(six, port);
		sendto(sender, "x", 1, 0, (void *)&to, sizeof(to));
		close(sender);
		heard += hears(fd);
	}
	return fd;
}

int main(int argc, char **argv)
{
	int most, asked, port, moved, six, stream, group_fd, fd = -1;
	char byte;

	if (argc < 6)
		return 2;
	stream = argv[1][0] == 't';
	six = argv[1][3] == '6';
	asked = atoi(argv[2]);
	moved = atoi(argv[3]);
	port = moved ? moved : asked;
	most = atoi(argv[5]);
	group_fd = make_group();
	attach(group_fd, load(six, moved, !strcmp(argv[4], "any")), six);
	join(group);
	for (int i = 0; i < most; i++) {
		if (i && !stream)
			close(fd);
		fd = make(argv[1], asked, port, argc > 6);
	}
	remove_group();
	printf("bound: %d\nlisten: %d\nheard: %d\n", bound, listening, heard);
	for (int i = 0; i < 200; i++)
		if (results[i])
			printf("%s: %d\n", i ? strerrorname_np(i) : "0",
			       results[i]);
	printf("holding\n");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	printf("from outside: %d\n", !stream && hears(fd));
	return 0;
}

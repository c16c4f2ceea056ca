/* SPDX-License-Identifier: MIT */
/*
 * Leave a socket behind that closes for ever: linger PORT
 *
 * Connects to PORT of 127.0.0.1, sends until nothing more goes, sets SO_LINGER to
 * years, and holds the socket's lock: one thread sets an option from a page that is
 * missing, and whose faults a userfaultfd takes and never answers. Another one calls
 * listen; when the supervisor waits for the lock the socket is closed here, so that
 * the supervisor's copy is the last. Prints "stuck", and waits to be killed.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096ul

static int fd;
static char *page;

static void need(int result, const char *step)
{
	if (result >= 0)
		return;
	printf("%s: %s\n", step, strerrorname_np(errno));
	exit(3);
}

static void *hold(void *unused)
{
	setsockopt(fd, IPPROTO_IP, IP_OPTIONS, page, 40);
	return unused;
}

static void *call(void *unused)
{
	listen(fd, 8);
	return unused;
}

/* How many threads of the supervisor are blocked in a call. */
static int supervisors_in(long number)
{
	char path[320], text[64];
	struct dirent *entry;
	int found = 0;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", getppid());
	tasks = opendir(path);
	need(tasks ? 0 : -1, path);
	while ((entry = readdir(tasks))) {
		int file, length;

		snprintf(path, sizeof(path), "/proc/%d/task/%s/syscall",
			 getppid(), entry->d_name);
		file = open(path, O_RDONLY | O_CLOEXEC);
		length = (int)read(file, text, sizeof(text) - 1);
		text[length > 0 ? length : 0] = 0;
		found += length > 0 && text[0] != 'r' && atol(text) == number;
		close(file);
	}
	closedir(tasks);
	return found;
}

int main(int argc, char **argv)
{
	static char bytes[1 << 16];
	struct sockaddr_in server = {.sin_family = AF_INET};
	const struct linger years = {1, 1 << 28};
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	int fault_fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct pollfd fault = {.fd = fault_fd, .events = POLLIN};
	const int before = argc > 1 ? supervisors_in(SYS_getsockname) : 0;
	pthread_t thread;

	if (argc < 2)
		return 2;
	server.sin_port = htons((uint16_t)atoi(argv[1]));
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	need(fault_fd, "userfaultfd");
	need(ioctl(fault_fd, UFFDIO_API, &api), "userfaultfd");
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (unsigned long)page;
	range.range.len = PAGE;
	need(ioctl(fault_fd, UFFDIO_REGISTER, &range), "register");
	fcntl(fault_fd, F_SETFL, O_NONBLOCK); /* or poll() says POLLERR */

	fd = socket(AF_INET, SOCK_STREAM, 0);
	need(connect(fd, (void *)&server, sizeof(server)), "connect");
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &years, sizeof(years));
	while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
	pthread_create(&thread, NULL, hold, NULL);
	need(poll(&fault, 1, 10000) == 1 ? 0 : -1, "hold");
	pthread_create(&thread, NULL, call, NULL);
	while (supervisors_in(SYS_getsockname) == before)
		usleep(1000);
	close(fd);
	printf("stuck\n");
	fflush(stdout);
	return pause();
}

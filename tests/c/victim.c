/* SPDX-License-Identifier: MIT */
#include "victim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* A report that has not come by then never will. */
#define REPORT_MS 30000

/* The tests have far fewer descriptors. */
#define FDS_MAX 1024

static bool connects(const struct sockaddr_in *address)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	bool connected;

	connected = fd >= 0 && connect(fd, (const struct sockaddr *)address,
				       sizeof(*address)) == 0;
	close(fd);
	return connected;
}

static struct victim_report obey(uint8_t last)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr =
					      htonl(0x7f000000u | last)};
	struct victim_report report = {.error = 0};
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    getsockname(fd, (struct sockaddr *)&address, &length) < 0) {
		/* Nothing that `listen` says here. */
		report.error = -errno;
		close(fd);
		return report;
	}
	report.port = ntohs(address.sin_port);
	if (listen(fd, 7) < 0)
		report.error = errno;
	report.open = connects(&address);
	close(fd);
	return report;
}

static _Noreturn void run(int fd)
{
	uint8_t last;

	/* The listener among them: a copy of it here would keep it open. */
	for (int other = 3; other < FDS_MAX; other++)
		if (other != fd)
			close(other);
	while (read(fd, &last, 1) == 1) {
		const struct victim_report report = obey(last);

		if (write(fd, &report, sizeof(report)) != sizeof(report))
			break;
	}
	_exit(0);
}

bool victim_start(struct victim *ret_victim)
{
	int ends[2];

	*ret_victim = (struct victim){.pid = -1, .fd = -1};
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return false;
	ret_victim->pid = fork();
	if (ret_victim->pid == 0)
		run(ends[1]);
	close(ends[1]);
	ret_victim->fd = ends[0];
	return ret_victim->pid > 0;
}

bool victim_listen(const struct victim *victim, uint8_t last)
{
	return write(victim->fd, &last, 1) == 1;
}

bool victim_report(const struct victim *victim,
		   struct victim_report *ret_report)
{
	struct pollfd answer = {.fd = victim->fd, .events = POLLIN};

	memset(ret_report, 0, sizeof(*ret_report));
	ret_report->error = -1;
	return poll(&answer, 1, REPORT_MS) == 1 &&
	       read(victim->fd, ret_report, sizeof(*ret_report)) ==
		       sizeof(*ret_report);
}

void victim_stop(struct victim *victim)
{
	if (victim->fd >= 0)
		close(victim->fd);
	if (victim->pid > 0)
		waitpid(victim->pid, NULL, 0);
	*victim = (struct victim){.pid = -1, .fd = -1};
}

/* SPDX-License-Identifier: MIT */
/*
 * Watch ports from outside: witness PORT...
 *
 * Asks sock_diag(7) over and over for TCP sockets that listen, and UDP sockets,
 * of one of the ports. Prints "ready" after the first look; when standard input
 * has ended, prints how often it looked and how often it saw one.
 */
#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LISTENING = 10 };

static int is_watched(int port, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (atoi(argv[i]) == port)
			return 1;
	return 0;
}

static int look(int netlink, int family, int protocol, int argc, char **argv)
{
	struct {
		struct nlmsghdr header;
		struct inet_diag_req_v2 body;
	} request = {
		.header = {.nlmsg_len = sizeof(request),
			   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
			   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
		.body = {.sdiag_family = (unsigned char)family,
			 .sdiag_protocol = (unsigned char)protocol,
			 .idiag_states = protocol == IPPROTO_TCP
						 ? 1u << LISTENING
						 : ~0u},
	};
	static char answer[1 << 16] __attribute__((aligned(NLMSG_ALIGNTO)));
	int seen = 0;

	if (send(netlink, &request, sizeof(request), 0) < 0)
		exit(2);
	for (;;) {
		ssize_t got = recv(netlink, answer, sizeof(answer), 0);
		unsigned int left = got < 0 ? 0 : (unsigned int)got;

		for (struct nlmsghdr *one = (void *)answer; NLMSG_OK(one, left);
		     one = NLMSG_NEXT(one, left)) {
			const struct inet_diag_msg *found = NLMSG_DATA(one);

			if (one->nlmsg_type == NLMSG_DONE)
				return seen;
			if (one->nlmsg_type == NLMSG_ERROR)
				exit(3);
			seen += is_watched(ntohs(found->id.idiag_sport), argc,
					   argv);
		}
		if (got <= 0)
			exit(4);
	}
}

int main(int argc, char **argv)
{
	const struct timespec pause = {.tv_nsec = 50 * 1000};
	struct pollfd end = {.fd = 0, .events = POLLIN};
	int netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
	unsigned long looks = 0, seen = 0;
	int last;

	do {
		/* A last look after the end has been told. */
		last = ppoll(&end, 1, &pause, NULL) > 0;
		for (int i = 0; i < 4; i++)
			seen += (unsigned long)look(
				netlink, i % 2 ? AF_INET6 : AF_INET,
				i / 2 ? IPPROTO_UDP : IPPROTO_TCP, argc, argv);
		if (looks++ == 0) {
			puts("ready");
			fflush(stdout);
		}
	} while (!last);
	printf("looks: %lu\nseen: %lu\n", looks, seen);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Open one port again and again, closing it in between: churn PORT TIMES
 * Prints how many went wrong, and the first error.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int wrong = 0, first = 0;

	if (argc < 3)
		return 2;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((uint16_t)atoi(argv[1]));
	for (int i = 0; i < atoi(argv[2]); i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		/* No SO_REUSEADDR: whoever still holds the port is in the way. */
		if (bind(fd, (void *)&address, sizeof(address)) < 0 ||
		    listen(fd, 8) < 0) {
			first = wrong++ ? first : errno;
		}
		close(fd);
	}
	printf("wrong: %d %s\n", wrong, first ? strerrorname_np(first) : "0");
	return 0;
}

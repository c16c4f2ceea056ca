/* SPDX-License-Identifier: MIT */
/*
 * Many processes that listen, each on a port of its own: crowd COUNT
 *
 * Prints how many listen, and keeps them until standard input ends.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int ready[2], count, good = 0;
	char byte;

	if (argc < 2 || pipe(ready) < 0)
		return 2;
	count = atoi(argv[1]);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (int i = 0; i < count; i++) {
		pid_t child = fork();
		int fd;

		if (child < 0)
			break;
		if (child > 0)
			continue;
		fd = socket(AF_INET, SOCK_STREAM, 0);
		byte = 'n';
		if (bind(fd, (void *)&address, sizeof(address)) == 0 &&
		    listen(fd, 8) == 0)
			byte = 'y';
		if (write(ready[1], &byte, 1) != 1)
			_exit(1);
		while (read(0, &byte, 1) > 0)
			;
		_exit(0);
	}
	close(ready[1]);
	for (int i = 0; i < count && read(ready[0], &byte, 1) == 1; i++)
		good += byte == 'y';
	printf("listening: %d\n", good);
	fflush(stdout);
	while (wait(NULL) > 0)
		;
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Listen on one ephemeral socket, many times: hammer TIMES
 * Prints how often that failed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), wrong = 0;

	if (argc < 2)
		return 2;
	for (int i = 0; i < atoi(argv[1]); i++)
		wrong += listen(fd, 8) < 0;
	printf("wrong: %d\n", wrong);
	return 0;
}

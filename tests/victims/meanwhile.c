/* SPDX-License-Identifier: MIT */
/*
 * Listen while other calls are decided: meanwhile ASKERS PORT
 *
 * ASKERS threads listen on PORT and the ports after it, one call each. Until all
 * of them have an answer, the first thread listens on an ephemeral port over and
 * over. Prints a line of JSON: what the threads got, the seconds that the longest
 * of these calls took, and the number and the longest of the first thread's.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { MOST = 64 };

struct asker {
	pthread_t thread;
	int port;
	int error;
	double seconds;
};

static _Atomic int left;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void *ask(void *argument)
{
	struct asker *asker = argument;
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons((uint16_t)asker->port)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	double start;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(fd, (void *)&address, sizeof(address)) < 0)
		exit(1);
	start = now();
	asker->error = listen(fd, 8) < 0 ? errno : 0;
	asker->seconds = now() - start;
	left--;
	return NULL;
}

int main(int argc, char **argv)
{
	static struct asker askers[MOST];
	double longest = 0, longest_asked = 0;
	int fd, count, calls = 0;

	if (argc < 3)
		return 2;
	left = count = atoi(argv[1]);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	for (int i = 0; i < count; i++) {
		askers[i].port = atoi(argv[2]) + i;
		pthread_create(&askers[i].thread, NULL, ask, &askers[i]);
	}
	while (left) {
		const double start = now();
		double seconds;

		if (listen(fd, 8) < 0)
			return 3;
		seconds = now() - start;
		longest = seconds > longest ? seconds : longest;
		calls++;
	}
	printf("{\"results\": [");
	for (int i = 0; i < count; i++) {
		pthread_join(askers[i].thread, NULL);
		if (askers[i].seconds > longest_asked)
			longest_asked = askers[i].seconds;
		printf("%s\"%s\"", i ? ", " : "",
		       askers[i].error ? strerrorname_np(askers[i].error)
				       : "0");
	}
	printf("], \"longest asked\": %.4f, \"calls\": %d, \"longest\": %.4f}\n",
	       longest_asked, calls, longest);
	return 0;
}

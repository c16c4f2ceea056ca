/* SPDX-License-Identifier: MIT */
/*
 * Victims: guarded processes that listen when they are told to, and report
 * what came of it.
 */
#ifndef VICTIM_H
#define VICTIM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/** struct victim - a process; @fd is how it is told */
struct victim {
	pid_t pid;
	int fd;
};

/**
 * struct victim_report - what one `listen` came to
 * @error: the errno that it got, 0 for none
 * @port: the port that its socket had
 * @open: whether a connection to that port is taken
 */
struct victim_report {
	int error;
	uint32_t port;
	bool open;
};

/** victim_start - fork one; it inherits the calling thread's filter */
bool victim_start(struct victim *ret_victim);

/** victim_listen - tell it to listen on 127.0.0.@last, backlog 7 */
bool victim_listen(const struct victim *victim, uint8_t last);

/** victim_report - wait for its report; false when none comes */
bool victim_report(const struct victim *victim,
		   struct victim_report *ret_report);

/** victim_stop - let it end, and reap it; harmless twice */
void victim_stop(struct victim *victim);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * The seccomp listener: putting the filter on a thread, and the four ioctls
 * of its notification descriptor. Every function keeps every errno.
 */
#ifndef PSC_LISTENER_H
#define PSC_LISTENER_H

#include <linux/seccomp.h>
#include <stdbool.h>
#include <stdint.h>

#include "filter.h"

/** What the kernel gave to an installed listener. */
enum psc_listener_feature {
	/* After RECV only a fatal signal interrupts the caller (5.19). */
	PSC_LISTENER_WAIT_KILLABLE = 1 << 0,
	/* The caller is woken on the supervisor's CPU, at once (6.6). */
	PSC_LISTENER_SYNC_WAKE_UP = 1 << 1,
	/* Not the kernel's: `bind` is intercepted, as was asked for. */
	PSC_LISTENER_SEES_BINDS = 1 << 2,
};

/** Where an installation failed. */
enum psc_install_stage {
	PSC_INSTALL_BUILD,	   /* this architecture is not known */
	PSC_INSTALL_SIZES,	   /* no seccomp notification at all */
	PSC_INSTALL_NO_NEW_PRIVS,
	PSC_INSTALL_SECCOMP,
	PSC_INSTALL_SERVE, /* installed, but psc_supervisor_add() failed */
};

/**
 * psc_listener_install - put the filter on the calling thread, for good
 * @need: what to intercept
 * @wanted: the features to ask for; those that the kernel lacks are left out
 * @ret_features: those that it gave
 * @ret_stage: on failure, where it failed
 *
 * Sets no_new_privs on the thread. Threads and processes that it starts from
 * then on inherit both; the process's other threads are left alone.
 *
 * Return: the listener (CLOEXEC, the caller's to close), or -errno:
 * -EOPNOTSUPP (architecture), -EBUSY (this thread is under a listener
 * already), -ENOSYS and -EINVAL (no seccomp, or older than Linux 5.0), -EPERM
 * and -EACCES (refused, by a container's profile for example), -EMFILE,
 * -ENFILE, -ENOMEM.
 */
int psc_listener_install(const struct psc_filter_need *need,
			 unsigned int wanted, unsigned int *ret_features,
			 enum psc_install_stage *ret_stage);

/**
 * psc_listener_receive - take the next request; blocks until there is one
 *
 * Return: 0; -ENOENT when its caller went away, which is normal; -EINTR.
 */
int psc_listener_receive(int listener_fd, struct seccomp_notif *ret_notif);

/**
 * psc_listener_answer - let the caller go on with a result
 * @id: of the request
 * @error: a positive errno that the caller gets, 0 for success
 *
 * Return: 0; -ENOENT when the caller went away or was interrupted.
 */
int psc_listener_answer(int listener_fd, uint64_t id, int error);

/** psc_listener_continue - let the kernel run the call as it stands */
int psc_listener_continue(int listener_fd, uint64_t id);

/** psc_listener_id_valid - whether a request still waits: 0 or -ENOENT */
int psc_listener_id_valid(int listener_fd, uint64_t id);

#endif

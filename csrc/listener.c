/* SPDX-License-Identifier: MIT */
#include "listener.h"

#include <string.h>
#include <sys/prctl.h>

#include "kernel.h"

/*
 * The kernel may know larger structures than this file was compiled with
 * (SECCOMP_GET_NOTIF_SIZES), and RECV writes as much as it knows. So far they
 * have never grown; a kernel where they did is refused instead of trusted.
 */
static int check_sizes(void)
{
	struct seccomp_notif_sizes sizes;
	int result;

	result = psc_kernel_seccomp(SECCOMP_GET_NOTIF_SIZES, 0, &sizes);
	if (result < 0)
		return result;
	if (sizes.seccomp_notif != sizeof(struct seccomp_notif) ||
	    sizes.seccomp_notif_resp != sizeof(struct seccomp_notif_resp) ||
	    sizes.seccomp_data != sizeof(struct seccomp_data))
		return -EOPNOTSUPP;
	return 0;
}

static int install(struct sock_fprog *program, unsigned int wanted,
		   unsigned int *ret_features)
{
	const unsigned long flags = SECCOMP_FILTER_FLAG_NEW_LISTENER;
	int listener_fd;

	*ret_features = 0;
	if (wanted & PSC_LISTENER_WAIT_KILLABLE) {
		listener_fd = psc_kernel_seccomp(
			SECCOMP_SET_MODE_FILTER,
			flags | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
			program);
		if (listener_fd != -EINVAL) {
			*ret_features |= PSC_LISTENER_WAIT_KILLABLE;
			return listener_fd;
		}
	}
	return psc_kernel_seccomp(SECCOMP_SET_MODE_FILTER, flags, program);
}

int psc_listener_install(const struct psc_filter_need *need,
			 unsigned int wanted, unsigned int *ret_features,
			 enum psc_install_stage *ret_stage)
{
	struct sock_filter instructions[PSC_FILTER_MAX];
	struct sock_fprog program = {.filter = instructions};
	int result, listener_fd;

	*ret_stage = PSC_INSTALL_BUILD;
	result = psc_filter_build(need, instructions);
	if (result < 0)
		return result;
	program.len = (unsigned short)result;

	*ret_stage = PSC_INSTALL_SIZES;
	result = check_sizes();
	if (result < 0)
		return result;

	*ret_stage = PSC_INSTALL_NO_NEW_PRIVS;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;

	*ret_stage = PSC_INSTALL_SECCOMP;
	listener_fd = install(&program, wanted, ret_features);
	if (listener_fd < 0)
		return listener_fd;

	if (need->bind)
		*ret_features |= PSC_LISTENER_SEES_BINDS;
	/* By value: a pointer is EINVAL, and nobody notices. */
	if (wanted & PSC_LISTENER_SYNC_WAKE_UP &&
	    ioctl(listener_fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS,
		  SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP) == 0)
		*ret_features |= PSC_LISTENER_SYNC_WAKE_UP;
	return listener_fd;
}

int psc_listener_receive(int listener_fd, struct seccomp_notif *ret_notif)
{
	/* RECV refuses a buffer that is not zeroed (EINVAL). */
	memset(ret_notif, 0, sizeof(*ret_notif));
	return psc_kernel_ioctl(listener_fd, SECCOMP_IOCTL_NOTIF_RECV,
				ret_notif);
}

int psc_listener_answer(int listener_fd, uint64_t id, int error)
{
	struct seccomp_notif_resp response = {.id = id, .error = -error};

	return psc_kernel_ioctl(listener_fd, SECCOMP_IOCTL_NOTIF_SEND,
				&response);
}

int psc_listener_continue(int listener_fd, uint64_t id)
{
	struct seccomp_notif_resp response = {
		.id = id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};

	return psc_kernel_ioctl(listener_fd, SECCOMP_IOCTL_NOTIF_SEND,
				&response);
}

int psc_listener_id_valid(int listener_fd, uint64_t id)
{
	return psc_kernel_ioctl(listener_fd, SECCOMP_IOCTL_NOTIF_ID_VALID, &id);
}

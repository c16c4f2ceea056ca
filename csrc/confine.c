/* SPDX-License-Identifier: MIT */
#include "confine.h"

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "kernel.h"

/* struct landlock_ruleset_attr as of ABI 6; headers may be older. */
struct ruleset {
	uint64_t handled_access_fs;
	uint64_t handled_access_net;
	uint64_t scoped;
};

int psc_confine_version(void)
{
	return psc_kernel_landlock_create_ruleset(
		NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
}

int psc_confine_thread(void)
{
	const struct ruleset ruleset = {.scoped = LANDLOCK_SCOPE_SIGNAL};
	int fd, result;

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	/* CLOEXEC by itself. */
	fd = psc_kernel_landlock_create_ruleset(&ruleset, sizeof(ruleset), 0);
	if (fd < 0)
		return fd;
	result = psc_kernel_landlock_restrict_self(fd);
	close(fd);
	return result;
}

/* SPDX-License-Identifier: MIT */
/*
 * Random calls under every filter that can be built, run by the interpreter of
 * tests/c/bpf.c; and what each notification is then told to be.
 */
#include <errno.h>
#include <linux/audit.h>
#include <string.h>

#include "../c/bpf.h"
#include "filter.h"
#include "fuzz.h"

/* What the calls are, as the kernel's tables have them. */
enum call_kind {
	OTHER_CALL,
	LISTEN_CALL,
	BIND_CALL,
	RING_CALL,
	MULTIPLEXED,
	SECCOMP_CALL,
	PRLIMIT_CALL,
};

static enum call_kind kind_of(uint32_t arch, uint32_t nr)
{
	uint32_t listen, bind, seccomp, prlimit, multiplexer = 0xffffffff;

	if (arch == AUDIT_ARCH_X86_64) {
		bind = 49;
		listen = 50;
		seccomp = 317;
		prlimit = 302;
	} else if (arch == AUDIT_ARCH_I386) {
		bind = 361;
		listen = 363;
		seccomp = 354;
		prlimit = 340;
		multiplexer = 102;
	} else if (arch == AUDIT_ARCH_AARCH64) {
		bind = 200;
		listen = 201;
		seccomp = 277;
		prlimit = 261;
	} else if (arch == AUDIT_ARCH_ARM) {
		bind = 282;
		listen = 284;
		seccomp = 383;
		prlimit = 369;
	} else {
		return OTHER_CALL;
	}
	if (nr == listen)
		return LISTEN_CALL;
	if (nr == bind)
		return BIND_CALL;
	if (nr == multiplexer && multiplexer != 0xffffffff)
		return MULTIPLEXED;
	if (nr == seccomp)
		return SECCOMP_CALL;
	if (nr == prlimit)
		return PRLIMIT_CALL;
	return nr >= 425 && nr <= 427 ? RING_CALL : OTHER_CALL;
}

/* Which of ours a call is, all in all: socketcall(2) by its int argument. */
static enum psc_call call_of(const struct seccomp_data *data)
{
	switch (kind_of(data->arch, (uint32_t)data->nr)) {
	case LISTEN_CALL:
		return PSC_CALL_LISTEN;
	case BIND_CALL:
		return PSC_CALL_BIND;
	case MULTIPLEXED:
		if ((int)data->args[0] == 2)
			return PSC_CALL_BIND;
		if ((int)data->args[0] == 4)
			return PSC_CALL_LISTEN;
		return PSC_CALL_NONE;
	default:
		return PSC_CALL_NONE;
	}
}

static bool runs_on(uint32_t kernel, uint32_t arch)
{
	if (kernel == AUDIT_ARCH_X86_64)
		return arch == AUDIT_ARCH_X86_64 || arch == AUDIT_ARCH_I386;
	return arch == AUDIT_ARCH_AARCH64 || arch == AUDIT_ARCH_ARM;
}

static uint32_t action_of(uint32_t kernel, const struct psc_filter_need *need,
			  const struct seccomp_data *data)
{
	const uint32_t no_such_call = SECCOMP_RET_ERRNO | ENOSYS;
	const enum psc_call call = call_of(data);

	if (!runs_on(kernel, data->arch))
		return no_such_call;
	/* x32: bit 30, or a number that is negative. */
	if (data->arch == AUDIT_ARCH_X86_64 &&
	    (data->nr < 0 || data->nr & 0x40000000))
		return no_such_call;
	if ((call == PSC_CALL_LISTEN && need->listen) ||
	    (call == PSC_CALL_BIND && need->bind))
		return SECCOMP_RET_USER_NOTIF;
	if (kind_of(data->arch, (uint32_t)data->nr) == RING_CALL &&
	    need->no_io_uring)
		return no_such_call;
	if (kind_of(data->arch, (uint32_t)data->nr) == SECCOMP_CALL &&
	    need->no_listener && (int)data->args[0] == 1 && data->args[1] & 8)
		return SECCOMP_RET_ERRNO | EBUSY;
	if (kind_of(data->arch, (uint32_t)data->nr) == PRLIMIT_CALL &&
	    need->no_prlimit && (int)data->args[0] != 0 && data->args[2] != 0)
		return SECCOMP_RET_ERRNO | EPERM;
	return SECCOMP_RET_ALLOW;
}

static uint32_t take_arch(struct fuzz_input *input)
{
	static const uint32_t arches[] = {
		AUDIT_ARCH_X86_64, AUDIT_ARCH_I386,   AUDIT_ARCH_AARCH64,
		AUDIT_ARCH_ARM,	   AUDIT_ARCH_ARMEB,  AUDIT_ARCH_RISCV64,
		AUDIT_ARCH_S390X,  AUDIT_ARCH_PPC64LE};
	const unsigned int which = fuzz_below(input, 16);

	return which < COUNT_OF(arches) ? arches[which]
	       : which < 12		? arches[which % 4]
	       : which < 14		? arches[which % 4] ^ fuzz_u32(input)
					: fuzz_u32(input);
}

static int take_number(struct fuzz_input *input)
{
	static const uint16_t known[] = {49,  50,  102, 200, 201, 261, 277,
					 282, 284, 302, 317, 340, 354, 361,
					 363, 369, 383, 425, 426, 427};
	uint32_t nr;

	switch (fuzz_below(input, 6)) {
	case 0:
		return (int)fuzz_u32(input);
	case 1:
		return fuzz_u16(input) % 1024;
	case 2:
		nr = known[fuzz_below(input, COUNT_OF(known))];
		return (int)(nr | 1u << fuzz_below(input, 32));
	case 3:
		nr = known[fuzz_below(input, COUNT_OF(known))];
		return (int)(nr + fuzz_below(input, 3) - 1);
	default:
		return known[fuzz_below(input, COUNT_OF(known))];
	}
}

static void take_call(struct fuzz_input *input, struct seccomp_data *data)
{
	memset(data, 0, sizeof(*data));
	data->arch = take_arch(input);
	data->nr = take_number(input);
	switch (fuzz_below(input, 3)) {
	case 0:
		data->args[0] = fuzz_u64(input);
		break;
	case 1:
		data->args[0] = fuzz_below(input, 24);
		break;
	default:
		data->args[0] = (uint64_t)fuzz_u32(input) << 32 |
				fuzz_below(input, 24);
		break;
	}
	data->instruction_pointer = fuzz_u8(input);
	data->args[1] = fuzz_u8(input);
	data->args[2] = (uint64_t)(fuzz_u8(input) & 1) << fuzz_below(input, 64);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	struct fuzz_input input = {bytes, length};
	struct sock_filter program[PSC_FILTER_MAX + 1];
	const struct sock_filter untouched = {0xa5a5, 0xa5, 0xa5, 0xa5a5a5a5};
	const unsigned int bits = fuzz_u8(&input);
	const struct psc_filter_need need = {
		.listen = bits & 1,
		.bind = bits & 2,
		.no_io_uring = bits & 4,
		.no_listener = bits & 8,
		.no_prlimit = bits & 16,
	};
	const uint32_t kernel =
		bits & 64   ? fuzz_u32(&input)
		: bits & 32 ? AUDIT_ARCH_AARCH64
			    : AUDIT_ARCH_X86_64;
	int size;

	for (size_t i = 0; i < COUNT_OF(program); i++)
		program[i] = untouched;
	size = psc_filter_build_for(kernel, &need, program);
	if (kernel != AUDIT_ARCH_X86_64 && kernel != AUDIT_ARCH_AARCH64) {
		MUST(size == -EOPNOTSUPP);
		return 0;
	}
	MUST(size > 0 && size <= PSC_FILTER_MAX);
	MUST(memcmp(&program[size], &untouched, sizeof(untouched)) == 0);
	MUST(bpf_problem(program, (size_t)size) == NULL);

	do {
		struct seccomp_data data;
		bool reads_args, in_memory, multiplexed;
		enum call_kind kind;
		uint32_t action;

		take_call(&input, &data);
		action = bpf_run(program, &data, &reads_args);
		kind = kind_of(data.arch, (uint32_t)data.nr);
		multiplexed = kind == MULTIPLEXED;
		MUST(action == action_of(kernel, &need, &data));
		MUST(!reads_args || multiplexed ||
		     (need.no_listener && kind == SECCOMP_CALL) ||
		     (need.no_prlimit && kind == PRLIMIT_CALL));
		MUST(psc_filter_call(data.arch, data.nr, data.args[0],
				     &in_memory) == call_of(&data));
		MUST(in_memory == multiplexed);
	} while (input.left > 0);
	return 0;
}

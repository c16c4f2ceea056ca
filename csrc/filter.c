/* SPDX-License-Identifier: MIT */
#include "filter.h"

#include "kernel.h"

/*
 * The calls by number, for each architecture whose programs may run on a
 * kernel. Numbers from the kernel's syscall tables; they never change.
 */
struct arch_calls {
	uint32_t audit_arch;
	int listen;
	int bind;
	int socketcall; /* -1 where there is none */
	int seccomp;
	int prlimit64;
	bool has_x32;
};

static const struct arch_calls x86_64_calls = {
	AUDIT_ARCH_X86_64, 50, 49, -1, 317, 302, true};
static const struct arch_calls i386_calls = {
	AUDIT_ARCH_I386, 363, 361, 102, 354, 340, false};
static const struct arch_calls aarch64_calls = {
	AUDIT_ARCH_AARCH64, 201, 200, -1, 277, 261, false};
static const struct arch_calls arm_calls = {
	AUDIT_ARCH_ARM, 284, 282, -1, 383, 369, false};

/* io_uring_setup, _enter, _register: the same numbers on every architecture. */
enum { IO_URING_FIRST = 425, IO_URING_LAST = 427 };

/* socketcall's own numbers, its first argument (linux/net.h). */
enum { SOCKETCALL_BIND = 2, SOCKETCALL_LISTEN = 4 };

/* x32 calls carry this bit in a call number of AUDIT_ARCH_X86_64. */
#define X32_BIT 0x40000000u

#define NOTIFY SECCOMP_RET_USER_NOTIF
#define NO_SUCH_CALL (SECCOMP_RET_ERRNO | ENOSYS)

/* A program under construction: instructions are only ever appended. */
struct builder {
	struct sock_filter *program;
	unsigned int length;
};

static struct sock_filter *emit(struct builder *builder, uint16_t code,
				uint32_t k)
{
	struct sock_filter *next = &builder->program[builder->length++];

	*next = (struct sock_filter){.code = code, .k = k};
	return next;
}

static void emit_load(struct builder *builder, size_t offset)
{
	emit(builder, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset);
}

/* The low half of an argument: the kernel takes an int, little-endian. */
static void emit_load_int(struct builder *builder, int argument)
{
	emit_load(builder, offsetof(struct seccomp_data, args[argument]));
}

static void emit_return(struct builder *builder, uint32_t action)
{
	emit(builder, BPF_RET | BPF_K, action);
}

/* Return @action if the accumulator compares true with @value. */
static void emit_return_if(struct builder *builder, uint16_t comparison,
			   uint32_t value, uint32_t action)
{
	emit(builder, BPF_JMP | comparison | BPF_K, value)->jf = 1;
	emit_return(builder, action);
}

/*
 * Begin what is done only for one call number. emit_end() ends it, with ALLOW:
 * the accumulator does not hold `nr` any more.
 */
static unsigned int emit_only_for(struct builder *builder, int nr)
{
	emit(builder, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr);
	return builder->length;
}

static void emit_end(struct builder *builder, unsigned int start)
{
	emit_return(builder, SECCOMP_RET_ALLOW);
	builder->program[start - 1].jf = (uint8_t)(builder->length - start);
}

/* seccomp(SECCOMP_SET_MODE_FILTER, flags with NEW_LISTENER): EBUSY. */
static void emit_no_listener(struct builder *builder,
			     const struct arch_calls *calls)
{
	unsigned int start = emit_only_for(builder, calls->seccomp);

	emit_load_int(builder, 0);
	emit(builder, BPF_JMP | BPF_JEQ | BPF_K, SECCOMP_SET_MODE_FILTER)->jf =
		3;
	emit_load_int(builder, 1);
	emit_return_if(builder, BPF_JSET, SECCOMP_FILTER_FLAG_NEW_LISTENER,
		       SECCOMP_RET_ERRNO | EBUSY);
	emit_end(builder, start);
}

/* prlimit64(pid, ..., new limits): EPERM, but for pid 0, the caller itself. */
static void emit_no_prlimit(struct builder *builder,
			    const struct arch_calls *calls)
{
	unsigned int start = emit_only_for(builder, calls->prlimit64);

	emit_load_int(builder, 0);
	emit(builder, BPF_JMP | BPF_JEQ | BPF_K, 0)->jt = 5;
	/* A pointer: either half. The high one is 0 in 32-bit programs. */
	emit_load_int(builder, 2);
	emit(builder, BPF_JMP | BPF_JEQ | BPF_K, 0)->jf = 2;
	emit_load(builder, offsetof(struct seccomp_data, args[2]) +
				   sizeof(uint32_t));
	emit(builder, BPF_JMP | BPF_JEQ | BPF_K, 0)->jt = 1;
	emit_return(builder, SECCOMP_RET_ERRNO | EPERM);
	emit_end(builder, start);
}

/* The accumulator holds `nr`; falls through for calls that are not named. */
static void emit_calls(struct builder *builder, const struct arch_calls *calls,
		       const struct psc_filter_need *need)
{
	if (calls->has_x32)
		emit_return_if(builder, BPF_JGE, X32_BIT, NO_SUCH_CALL);
	if (need->listen)
		emit_return_if(builder, BPF_JEQ, (uint32_t)calls->listen,
			       NOTIFY);
	if (need->bind)
		emit_return_if(builder, BPF_JEQ, (uint32_t)calls->bind, NOTIFY);
	if (need->no_io_uring)
		for (uint32_t nr = IO_URING_FIRST; nr <= IO_URING_LAST; nr++)
			emit_return_if(builder, BPF_JEQ, nr, NO_SUCH_CALL);
	if (calls->socketcall >= 0) {
		unsigned int start = emit_only_for(builder, calls->socketcall);

		emit_load_int(builder, 0);
		if (need->listen)
			emit_return_if(builder, BPF_JEQ, SOCKETCALL_LISTEN,
				       NOTIFY);
		if (need->bind)
			emit_return_if(builder, BPF_JEQ, SOCKETCALL_BIND,
				       NOTIFY);
		emit_end(builder, start);
	}
	if (need->no_listener)
		emit_no_listener(builder, calls);
	if (need->no_prlimit)
		emit_no_prlimit(builder, calls);
	emit_return(builder, SECCOMP_RET_ALLOW);
}

/* Skip the calls of an architecture that the caller does not use. */
static void emit_arch(struct builder *builder, const struct arch_calls *calls,
		      const struct psc_filter_need *need)
{
	struct sock_filter *other;
	unsigned int start;

	other = emit(builder, BPF_JMP | BPF_JEQ | BPF_K, calls->audit_arch);
	start = builder->length;
	emit_load(builder, offsetof(struct seccomp_data, nr));
	emit_calls(builder, calls, need);
	other->jf = (uint8_t)(builder->length - start);
}

int psc_filter_build_for(uint32_t audit_arch, const struct psc_filter_need *need,
			 struct sock_filter *ret_program)
{
	struct builder builder = {.program = ret_program};
	const struct arch_calls *native, *compat;

	switch (audit_arch) {
	case AUDIT_ARCH_X86_64:
		native = &x86_64_calls;
		compat = &i386_calls;
		break;
	case AUDIT_ARCH_AARCH64:
		native = &aarch64_calls;
		compat = &arm_calls;
		break;
	default:
		return -EOPNOTSUPP;
	}

	emit_load(&builder, offsetof(struct seccomp_data, arch));
	emit_arch(&builder, native, need);
	emit_arch(&builder, compat, need);
	emit_return(&builder, NO_SUCH_CALL);
	return (int)builder.length;
}

int psc_filter_build(const struct psc_filter_need *need,
		     struct sock_filter *ret_program)
{
#if defined(__x86_64__) && defined(__LP64__)
	return psc_filter_build_for(AUDIT_ARCH_X86_64, need, ret_program);
#elif defined(__aarch64__) && defined(__LP64__)
	return psc_filter_build_for(AUDIT_ARCH_AARCH64, need, ret_program);
#else
	(void)need;
	(void)ret_program;
	return -EOPNOTSUPP;
#endif
}

enum psc_call psc_filter_call(uint32_t audit_arch, int nr, uint64_t first_arg,
			      bool *ret_in_memory)
{
	static const struct arch_calls *const all[] = {
		&x86_64_calls, &i386_calls, &aarch64_calls, &arm_calls};

	*ret_in_memory = false;
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		const struct arch_calls *calls = all[i];

		if (calls->audit_arch != audit_arch)
			continue;
		if (nr == calls->listen)
			return PSC_CALL_LISTEN;
		if (nr == calls->bind)
			return PSC_CALL_BIND;
		if (nr == calls->socketcall && nr >= 0) {
			*ret_in_memory = true;
			if ((uint32_t)first_arg == SOCKETCALL_LISTEN)
				return PSC_CALL_LISTEN;
			if ((uint32_t)first_arg == SOCKETCALL_BIND)
				return PSC_CALL_BIND;
		}
	}
	return PSC_CALL_NONE;
}

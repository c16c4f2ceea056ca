/* SPDX-License-Identifier: MIT */
#include "bpf.h"

#include <string.h>

const char *bpf_problem(const struct sock_filter *program, size_t length)
{
	if (length == 0 || length > BPF_MAXINSNS)
		return "length";
	for (size_t at = 0; at < length; at++) {
		const struct sock_filter *now = &program[at];
		const size_t left = length - at - 1;

		switch (now->code) {
		case BPF_LD | BPF_W | BPF_ABS:
			if (now->k % 4 != 0 ||
			    now->k >= sizeof(struct seccomp_data))
				return "load outside of seccomp_data";
			break;
		case BPF_ALU | BPF_AND | BPF_K:
			break;
		case BPF_JMP | BPF_JA:
			if (now->k >= left)
				return "jump out of the program";
			break;
		case BPF_JMP | BPF_JEQ | BPF_K:
		case BPF_JMP | BPF_JGT | BPF_K:
		case BPF_JMP | BPF_JGE | BPF_K:
		case BPF_JMP | BPF_JSET | BPF_K:
			if (now->jt >= left || now->jf >= left)
				return "jump out of the program";
			break;
		case BPF_RET | BPF_K:
		case BPF_RET | BPF_A:
			continue;
		default:
			return "unknown instruction";
		}
		if (left == 0)
			return "runs off the end";
	}
	return NULL;
}

static bool compare(uint16_t code, uint32_t accumulator, uint32_t k)
{
	switch (BPF_OP(code)) {
	case BPF_JEQ:
		return accumulator == k;
	case BPF_JGT:
		return accumulator > k;
	case BPF_JGE:
		return accumulator >= k;
	default:
		return (accumulator & k) != 0;
	}
}

uint32_t bpf_run(const struct sock_filter *program,
		 const struct seccomp_data *data, bool *ret_reads_args)
{
	const struct sock_filter *now = program;
	uint32_t accumulator = 0;

	*ret_reads_args = false;
	for (;; now++) {
		switch (BPF_CLASS(now->code)) {
		case BPF_LD:
			memcpy(&accumulator, (const char *)data + now->k, 4);
			if (now->k >=
			    offsetof(struct seccomp_data, instruction_pointer))
				*ret_reads_args = true;
			break;
		case BPF_ALU:
			accumulator &= now->k;
			break;
		case BPF_JMP:
			if (BPF_OP(now->code) == BPF_JA)
				now += now->k;
			else if (compare(now->code, accumulator, now->k))
				now += now->jt;
			else
				now += now->jf;
			break;
		default: /* BPF_RET: the only other class that passes */
			return BPF_RVAL(now->code) == BPF_A ? accumulator
							    : now->k;
		}
	}
}

/* SPDX-License-Identifier: MIT */
/* The interpreter that the filter's tests rely on. */
#include <errno.h>

#include "bpf.h"
#include "check.h"

static uint32_t run(const struct sock_filter *program, size_t length, int nr,
		    uint64_t arg)
{
	const struct seccomp_data data = {.nr = nr, .args = {arg}};
	const char *problem = bpf_problem(program, length);
	bool reads_args;

	if (problem) {
		FAIL("the program is refused: %s", problem);
		return 0;
	}
	return bpf_run(program, &data, &reads_args);
}

static void test_each_jump(void)
{
	static const struct {
		uint16_t jump;
		bool below, equal, above; /* of 5, 6 and 7 against 6 */
	} cases[] = {
		{BPF_JEQ, false, true, false},
		{BPF_JGT, false, false, true},
		{BPF_JGE, false, true, true},
		{BPF_JSET, true, true, true}, /* 5 & 6, 6 & 6, 7 & 6 */
	};

	for (size_t i = 0; i < COUNT_OF(cases); i++) {
		const struct sock_filter program[] = {
			BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
			BPF_JUMP((uint16_t)(BPF_JMP | cases[i].jump | BPF_K), 6,
				 1, 0),
			BPF_STMT(BPF_RET | BPF_K, 100),
			BPF_STMT(BPF_RET | BPF_K, 200),
		};

		CHECK_INT(run(program, 4, 5, 0), cases[i].below ? 200 : 100);
		CHECK_INT(run(program, 4, 6, 0), cases[i].equal ? 200 : 100);
		CHECK_INT(run(program, 4, 7, 0), cases[i].above ? 200 : 100);
		CHECK_INT(run(program, 4, 0, 0), 100);
	}
}

static void test_load_and_return(void)
{
	const struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			 offsetof(struct seccomp_data, args[0])),
		BPF_STMT(BPF_JMP | BPF_JA, 1),
		BPF_STMT(BPF_RET | BPF_K, 1),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff),
		BPF_STMT(BPF_RET | BPF_A, 0),
	};

	CHECK_INT(run(program, 5, 0, 0xaaaaaaaa12345678ull), 0x78);
}

static void test_refuse(void)
{
	const struct sock_filter
		off_the_end[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0)},
		far[] = {BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1),
			 BPF_STMT(BPF_RET | BPF_K, 0)},
		very_far[] = {BPF_STMT(BPF_JMP | BPF_JA, 0xffffffff),
			      BPF_STMT(BPF_RET | BPF_K, 0)},
		outside[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
				      sizeof(struct seccomp_data)),
			     BPF_STMT(BPF_RET | BPF_K, 0)},
		uneven[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 2),
			    BPF_STMT(BPF_RET | BPF_K, 0)},
		unknown[] = {BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 0),
			     BPF_STMT(BPF_RET | BPF_K, 0)};

	CHECK(bpf_problem(off_the_end, 0) != NULL);
	CHECK(bpf_problem(off_the_end, 1) != NULL);
	CHECK(bpf_problem(far, 2) != NULL);
	CHECK(bpf_problem(very_far, 2) != NULL);
	CHECK(bpf_problem(outside, 2) != NULL);
	CHECK(bpf_problem(uneven, 2) != NULL);
	CHECK(bpf_problem(unknown, 2) != NULL);
}

static const struct check_test tests[] = {
	{"each comparison jumps as classic BPF says", test_each_jump},
	{"loads, masks, jumps and returns the accumulator",
	 test_load_and_return},
	{"refuses programs that the kernel would refuse", test_refuse},
	{NULL, NULL},
};

const struct check_suite bpf_suite = {"bpf", tests};

/* SPDX-License-Identifier: MIT */
/*
 * A small interpreter of classic BPF as seccomp runs it: so that a filter for
 * any architecture can be run over calls that this machine can't make.
 */
#ifndef BPF_H
#define BPF_H

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * bpf_problem - look a program over, as the kernel does before it takes it
 *
 * Return: what is wrong, or NULL: every instruction is known, every load is a
 * whole aligned word of seccomp_data, every jump stays inside, and no path
 * runs off the end.
 */
const char *bpf_problem(const struct sock_filter *program, size_t length);

/**
 * bpf_run - run a program that bpf_problem() has nothing against
 * @ret_reads_args: whether it looked at more than `nr` and `arch`
 *
 * Return: the action.
 */
uint32_t bpf_run(const struct sock_filter *program,
		 const struct seccomp_data *data, bool *ret_reads_args);

#endif

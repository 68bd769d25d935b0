/* SPDX-License-Identifier: Apache-2.0 */
/* Start pvc or pvc-node and wait for its end, no longer than a deadline. */
#ifndef PVC_HELPER_H
#define PVC_HELPER_H

#include <stdbool.h>
#include <stdint.h>

struct pvc_helper {
	char *const *argv; /* argv[0] is an absolute path; no shell, no search */
	char *const *envp;
	int out;           /* the child's standard output and error; its input is /dev/null */
	int err;
	bool as_daemon;    /* a child of slurmd: the root directory and no protection from the OOM killer */
	int64_t deadline_ms;
};

/*
 * Returns 0 with its exit code (128 + signal when killed), or -1 when it could not be started or was killed at
 * the deadline: said.
 */
int pvc_helper_run(const struct pvc_helper *helper, int *exit_code);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What a step does for a prolog that never ran. */
#ifndef PVC_LATE_H
#define PVC_LATE_H

#include <slurm/spank.h>

/*
 * As root in slurmstepd, before there is a task: have this node's share of the job set up, if nothing shows that its
 * prolog did it. -1: that was tried and failed, and the step has to fail.
 */
int pvc_late_set_up(spank_t sp, int ac, char *av[]);

#endif

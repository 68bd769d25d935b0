/* SPDX-License-Identifier: Apache-2.0 */
/* Inside slurmstepd. */
#ifndef PVC_STEPD_H
#define PVC_STEPD_H

#include <slurm/spank.h>

/*
 * Tasks see PVC_DEFINITION even where the submitter's environment is not exported to them, and a node that is set up
 * even where Slurm forgot the prolog.
 */
int pvc_stepd_init_post_opt(spank_t sp, int ac, char *av[]);

#endif

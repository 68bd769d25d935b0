/* SPDX-License-Identifier: Apache-2.0 */
/* The submitting side: salloc, sbatch and an srun that makes its own job. */
#ifndef PVC_SUBMIT_H
#define PVC_SUBMIT_H

#include <slurm/spank.h>

/* A command starts. */
void pvc_submit_init(void);

/* Before the job exists: turn the definition into a request, or refuse the job (-1). */
int pvc_submit_init_post_opt(spank_t sp, int ac, char *av[]);

#endif

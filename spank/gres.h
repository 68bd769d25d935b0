/* SPDX-License-Identifier: Apache-2.0 */
/* The generic resources of a job on this node, as Slurm's controller knows them. */
#ifndef PVC_GRES_H
#define PVC_GRES_H

/*
 * Where the request says that networks need it, put "GIVEN;TOTAL" into the environment as PVC_JOB_GRES: what the job
 * has of this node and what the node has in all, in Slurm's own forms. Nothing for other jobs, or when Slurm does not
 * answer.
 */
void pvc_gres_find(void);

#endif

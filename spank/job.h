/* SPDX-License-Identifier: Apache-2.0 */
/* What the prolog and epilog tell pvc-node of a job: allow-listed variables of Slurm's environment. */
#ifndef PVC_JOB_H
#define PVC_JOB_H

#include <slurm/slurm.h>
#include <stdbool.h>
#include <stdint.h>

#define PVC_JOB_REQUEST "SPANK_PVC_REQUEST"

/* Slurm's id of a heterogeneous job, and what het.c found out of it. */
#define PVC_JOB_HET_ID "SLURM_HET_JOB_ID"
#define PVC_JOB_HET_COMPONENTS "PVC_HET_COMPONENTS"

/* What gres.c found out of the job's generic resources. */
#define PVC_JOB_GRES "PVC_GRES"

/* Sent in place of a request that could break the protocol: pvc-node records a refusal for the launcher. */
#define PVC_JOB_BAD_REQUEST "invalid"

/* Of this cluster alone: the library asks all clusters of a federation, and one that gave a job away calls it ended. */
#define PVC_JOB_SHOWN (SHOW_DETAIL | SHOW_LOCAL)

/* A job by its own id in what Slurm's controller tells, or NULL. */
const slurm_job_info_t *pvc_job_find(const job_info_msg_t *jobs, uint32_t id);

/* Whether its steps may start: not before and not after. */
bool pvc_job_is_running(const slurm_job_info_t *job);

/* Whether Slurm's controller says that a job is over, or soon will be; in doubt, no. */
bool pvc_job_has_ended(uint32_t id);

/* "KEY=VALUE" strings, NULL at the end, or NULL without memory. */
char **pvc_job_facts(void);
void pvc_job_free(char **facts);

#endif

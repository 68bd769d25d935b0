/* What the prolog and epilog tell pvc-node of a job: allow-listed variables of Slurm's environment. */
#ifndef PVC_JOB_H
#define PVC_JOB_H

#define PVC_JOB_REQUEST "SPANK_PVC_REQUEST"

/* Slurm's id of a heterogeneous job, and what het.c found out of it. */
#define PVC_JOB_HET_ID "SLURM_HET_JOB_ID"
#define PVC_JOB_HET_COMPONENTS "PVC_HET_COMPONENTS"

/* What gres.c found out of the job's generic resources. */
#define PVC_JOB_GRES "PVC_GRES"

/* Sent in place of a request that could break the protocol: pvc-node records a refusal for the launcher. */
#define PVC_JOB_BAD_REQUEST "invalid"

/* "KEY=VALUE" strings, NULL at the end, or NULL without memory. */
char **pvc_job_facts(void);
void pvc_job_free(char **facts);

#endif

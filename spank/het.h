/* The other components of a heterogeneous job, as Slurm's controller knows them. */
#ifndef PVC_HET_H
#define PVC_HET_H

#include <slurm/slurm.h>

/*
 * Put "JOB/NODES/CPUS" of every component, with ";" between them, into the environment as PVC_JOB_HET_COMPONENTS: lists
 * of nodes and of cores per node in Slurm's own forms. Nothing for an ordinary job, or when Slurm does not answer.
 */
void pvc_het_find_components(void);

/* Cores of each node of a job, as in SLURM_JOB_CPUS_PER_NODE; to be freed. NULL: the controller did not tell. */
char *pvc_het_cpus(const slurm_job_info_t *job);

#endif

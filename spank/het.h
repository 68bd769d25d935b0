/* SPDX-License-Identifier: Apache-2.0 */
/* The other components of a heterogeneous job, as Slurm's controller knows them. */
#ifndef PVC_HET_H
#define PVC_HET_H

#include <stdint.h>

/*
 * Put "JOB/NODES/CPUS" of every component, with ";" between them, into the environment as PVC_JOB_HET_COMPONENTS: lists
 * of nodes and of cores per node in Slurm's own forms. Nothing for an ordinary job, or when Slurm does not answer.
 */
void pvc_het_find_components(void);

/* CPUs of each node of a running job, as in SLURM_JOB_CPUS_PER_NODE; to be freed. NULL: the controller did not tell. */
char *pvc_het_cpus(uint32_t id);

#endif

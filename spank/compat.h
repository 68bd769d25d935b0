/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the releases of Slurm from 22.05 to 26.05 differ in what this plug-in uses. Nothing else in this directory
 * asks for a version: what all releases have is preferred. A job's CPUs come from slurm_allocation_lookup, because
 * newer libraries keep slurm_job_cpus_allocated_on_node_id to themselves.
 */
#ifndef PVC_COMPAT_H
#define PVC_COMPAT_H

#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>
#include <stdint.h>

/* A pointer type of 22.05 became a structure that is named by its pointers (23.11). */
typedef __typeof__(slurm_hostlist_create("")) pvc_compat_hostlist;

/* Jobs are asked for by the identifiers of steps since 26.05, by their numbers before. */
#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(26, 5, 0)
typedef slurm_step_id_t pvc_compat_id;

static inline pvc_compat_id pvc_compat_job(uint32_t number)
{
	slurm_step_id_t id = SLURM_STEP_ID_INITIALIZER;

	id.job_id = number;
	return id;
}

static inline uint32_t pvc_compat_number(pvc_compat_id id)
{
	return id.job_id;
}
#else
typedef uint32_t pvc_compat_id;

static inline pvc_compat_id pvc_compat_job(uint32_t number)
{
	return number;
}

static inline uint32_t pvc_compat_number(pvc_compat_id id)
{
	return id;
}
#endif

#endif

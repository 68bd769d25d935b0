/* SPDX-License-Identifier: Apache-2.0 */
#include "het.h"

#include <slurm/spank.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "common.h"
#include "compat.h"
#include "job.h"

static const slurm_job_info_t *find_component(const job_info_msg_t *jobs, uint32_t het_job, uint32_t offset)
{
	for (uint32_t i = 0; i < jobs->record_count; i++)
		if (jobs->job_array[i].het_job_id == het_job && jobs->job_array[i].het_job_offset == offset)
			return &jobs->job_array[i];
	return NULL;
}

/* Equal neighbours are folded: "4(x2),1", as in SLURM_JOB_CPUS_PER_NODE. */
char *pvc_het_cpus(uint32_t id)
{
	char *text = NULL;
	size_t size = 0;
	resource_allocation_response_msg_t *given = NULL;
	FILE *out = NULL;

	if (slurm_allocation_lookup(pvc_compat_job(id), &given) != SLURM_SUCCESS || given == NULL)
		return NULL;
	if (given->num_cpu_groups > 0)
		out = open_memstream(&text, &size);
	for (uint32_t i = 0; out != NULL && i < given->num_cpu_groups; i++) {
		uint32_t repeats = given->cpu_count_reps[i];

		(void)fprintf(out, "%s%u", i == 0 ? "" : ",", given->cpus_per_node[i]);
		if (repeats > 1)
			(void)fprintf(out, "(x%u)", repeats);
	}
	slurm_free_resource_allocation_response_msg(given);
	if (out == NULL || fclose(out) == 0)
		return text;
	free(text);
	return NULL;
}

/* Every component has its nodes: the backfill scheduler starts all of them before it lets anybody look. */
static int print_components(FILE *out, const job_info_msg_t *jobs, uint32_t het_job)
{
	for (uint32_t offset = 0; offset < jobs->record_count; offset++) {
		const slurm_job_info_t *job = find_component(jobs, het_job, offset);
		bool has_nodes = job != NULL && job->nodes != NULL && job->nodes[0] != '\0';
		char *cpus = has_nodes ? pvc_het_cpus(job->job_id) : NULL;

		if (cpus == NULL)
			return -1;
		(void)fprintf(out, "%s%u/%s/%s", offset == 0 ? "" : ";", job->job_id, job->nodes, cpus);
		free(cpus);
	}
	return jobs->record_count == 0 ? -1 : 0;
}

void pvc_het_find_components(void)
{
	char *text = NULL;
	size_t size = 0;
	FILE *out = NULL;
	job_info_msg_t *jobs = NULL;
	uint32_t het_job = pvc_common_job_id(PVC_JOB_HET_ID);

	/* Whatever stands there is not Slurm's. */
	(void)unsetenv(PVC_JOB_HET_COMPONENTS);
	if (het_job == 0)
		return;
	/* The process is linked with Slurm's library: one question to the controller, no scontrol to be started. */
	if (slurm_load_job(&jobs, pvc_compat_job(het_job), PVC_JOB_SHOWN) != SLURM_SUCCESS || jobs == NULL) {
		slurm_error("pvc: Slurm's controller does not tell of job %u", het_job);
		return;
	}
	out = open_memstream(&text, &size);
	if (out == NULL || print_components(out, jobs, het_job) < 0)
		slurm_error("pvc: Slurm's controller tells no nodes of a component of job %u", het_job);
	else if (fflush(out) == 0)
		(void)setenv(PVC_JOB_HET_COMPONENTS, text, 1);
	if (out != NULL)
		(void)fclose(out);
	free(text);
	slurm_free_job_info_msg(jobs);
}

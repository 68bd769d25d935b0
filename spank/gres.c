/* SPDX-License-Identifier: Apache-2.0 */
#include "gres.h"

#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "compat.h"
#include "job.h"

/* So that other jobs cost the controller nothing. What users write here can only spare it the question. */
#define MARK ";gres;"

/* What the job has of a node: texts are in the order of its list of nodes. NULL: it is none of the job's. */
static const char *find_given(const job_info_msg_t *jobs, uint32_t id, const char *node)
{
	const slurm_job_info_t *job = pvc_job_find(jobs, id);
	pvc_compat_hostlist nodes = job == NULL || job->nodes == NULL ? NULL : slurm_hostlist_create(job->nodes);
	int at = -1;

	if (nodes == NULL)
		return NULL;
	at = slurm_hostlist_find(nodes, node);
	slurm_hostlist_destroy(nodes);
	if (at < 0)
		return NULL;
	/* A job without generic resources has no texts at all. */
	if ((uint32_t)at >= job->gres_detail_cnt || job->gres_detail_str[at] == NULL)
		return "";
	return job->gres_detail_str[at];
}

void pvc_gres_find(void)
{
	char *text = NULL;
	const char *given = NULL;
	const char *total = NULL;
	const char *request = getenv(PVC_JOB_REQUEST);
	char *node = getenv("SLURMD_NODENAME");
	uint32_t id = pvc_common_job_id("SLURM_JOB_ID");
	job_info_msg_t *jobs = NULL;
	node_info_msg_t *nodes = NULL;

	/* Whatever stands there is not Slurm's. */
	(void)unsetenv(PVC_JOB_GRES);
	if (request == NULL || strstr(request, MARK) == NULL || node == NULL || id == 0)
		return;
	/* By the library, not by scontrol's text: users choose some of that (names, paths). */
	if (slurm_load_job(&jobs, pvc_compat_job(id), PVC_JOB_SHOWN) != SLURM_SUCCESS || jobs == NULL ||
	    slurm_load_node_single(&nodes, node, SHOW_ALL) != SLURM_SUCCESS || nodes == NULL ||
	    nodes->record_count != 1) {
		slurm_error("pvc: Slurm's controller does not tell of job %u and node %s", id, node);
		goto done;
	}
	given = find_given(jobs, id, node);
	total = nodes->node_array[0].gres;
	if (given == NULL)
		slurm_error("pvc: Slurm's controller does not tell what job %u has of node %s", id, node);
	else if (asprintf(&text, "%s;%s", given, total == NULL ? "" : total) >= 0)
		(void)setenv(PVC_JOB_GRES, text, 1);
done:
	free(text);
	if (jobs != NULL)
		slurm_free_job_info_msg(jobs);
	if (nodes != NULL)
		slurm_free_node_info_msg(nodes);
}

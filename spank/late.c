/* SPDX-License-Identifier: Apache-2.0 */
#include "late.h"

#include <stdio.h>
#include <stdlib.h>

#include "common.h"
#include "compat.h"
#include "config.h"
#include "het.h"
#include "job.h"
#include "node.h"

#define ID "SLURM_JOB_ID"
#define UID "SLURM_JOB_UID"
#define GID "SLURM_JOB_GID"
#define NODES "SLURM_NODELIST"
#define CPUS "SLURM_JOB_CPUS_PER_NODE"

/* What a prolog has in its environment besides slurmd's own, which slurmstepd has, too. */
static const char *const of_a_prolog[] = {
	ID, UID, GID, NODES, CPUS, PVC_JOB_HET_ID, PVC_JOB_HET_COMPONENTS, PVC_JOB_GRES, PVC_JOB_REQUEST,
};

static void forget_job(void)
{
	for (size_t i = 0; i < sizeof(of_a_prolog) / sizeof(of_a_prolog[0]); i++)
		(void)unsetenv(of_a_prolog[i]);
}

static int put_number(const char *name, uint32_t number)
{
	char text[16] = "";

	(void)snprintf(text, sizeof(text), "%u", number);
	return setenv(name, text, 1);
}

/* All of it is the controller's word, but for the request, which is the user's in a prolog, too. */
static int put_job(const slurm_job_info_t *job, const char *request)
{
	int rv = -1;
	char *cpus = pvc_het_cpus(job->job_id);

	forget_job();
	if (cpus == NULL || job->nodes == NULL)
		goto fail;
	if (put_number(ID, job->job_id) < 0 || put_number(UID, job->user_id) < 0 ||
	    put_number(GID, job->group_id) < 0 || setenv(NODES, job->nodes, 1) < 0 ||
	    setenv(CPUS, cpus, 1) < 0 || setenv(PVC_JOB_REQUEST, request, 1) < 0)
		goto fail;
	if (job->het_job_id != 0 && job->het_job_id < NO_VAL && put_number(PVC_JOB_HET_ID, job->het_job_id) < 0)
		goto fail;
	rv = 0;
fail:
	free(cpus);
	return rv;
}

int pvc_late_set_up(spank_t sp, int ac, char *av[])
{
	int rv = 0;
	uint32_t id = 0;
	char request[PVC_LINE_SIZE] = "";
	const slurm_job_info_t *job = NULL;
	job_info_msg_t *jobs = NULL;
	struct pvc_config config;
	spank_err_t found = spank_getenv(sp, "SLURM_" PVC_JOB_REQUEST, request, (int)sizeof(request));

	if (found == ESPANK_NOSPACE)
		(void)snprintf(request, sizeof(request), "%s", PVC_JOB_BAD_REQUEST);
	else if (found != ESPANK_SUCCESS)
		return 0;
	if (spank_get_item(sp, S_JOB_ID, &id) != ESPANK_SUCCESS)
		return 0;
	if (pvc_config_parse(&config, ac, av) < 0)
		return -1;
	/* A job that was refused has none either: pvc-node says so at once, and tells the launcher why. */
	if (pvc_node_has(&config, id, "plan.json"))
		return 0;
	if (slurm_load_job(&jobs, pvc_compat_job(id), PVC_JOB_SHOWN) == SLURM_SUCCESS && jobs != NULL)
		job = pvc_job_find(jobs, id);
	if (job != NULL && pvc_job_is_running(job) && put_job(job, request) == 0)
		rv = pvc_node_prepare(&config, pvc_node_ensure);
	else
		slurm_error("pvc: job %u has no virtual cluster here, and Slurm does not tell of a job that runs", id);
	forget_job();
	if (jobs != NULL)
		slurm_free_job_info_msg(jobs);
	return rv;
}

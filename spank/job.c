/* SPDX-License-Identifier: Apache-2.0 */
#include "job.h"

#include <errno.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "compat.h"

/* Linux refuses a longer string in an environment: nothing that reaches a hook is cut by this. */
#define VALUE_SIZE (128 * 1024)

static const char *const keys[] = {
	"SLURM_JOB_ID",
	"SLURM_JOB_UID",
	"SLURM_JOB_GID",
	"SLURM_JOB_USER",
	"SLURM_NODELIST",
	"SLURM_JOB_CPUS_PER_NODE",
	"SLURMD_NODENAME",
	"SLURM_CLUSTER_NAME",
	"SLURM_RESTART_COUNT",
	"SLURM_CONF",
	PVC_JOB_HET_ID,
	PVC_JOB_HET_COMPONENTS,
	PVC_JOB_GRES,
	PVC_JOB_REQUEST,
};

#define KEYS (sizeof(keys) / sizeof(keys[0]))

/* One line of ASCII: other bytes could be no text, or a text that looks like another. */
static bool is_request(const char *value)
{
	for (const char *p = value; *p != '\0'; p++)
		if ((unsigned char)*p > 0x7e)
			return false;
	return pvc_common_is_line(value, PVC_LINE_SIZE);
}

/* The value to hand on, or NULL. The request alone is a user's text, all others are Slurm's. */
static const char *find_value(const char *key)
{
	const char *value = getenv(key);

	if (value == NULL)
		return NULL;
	if (strcmp(key, PVC_JOB_REQUEST) == 0)
		return is_request(value) ? value : PVC_JOB_BAD_REQUEST;
	if (value[0] != '\0' && !pvc_common_is_line(value, VALUE_SIZE)) {
		slurm_error("pvc: %s holds control characters: not handed on", key);
		return NULL;
	}
	return value;
}

const slurm_job_info_t *pvc_job_find(const job_info_msg_t *jobs, uint32_t id)
{
	for (uint32_t i = 0; i < jobs->record_count; i++)
		if (jobs->job_array[i].job_id == id)
			return &jobs->job_array[i];
	return NULL;
}

bool pvc_job_is_running(const slurm_job_info_t *job)
{
	uint32_t base = job->job_state & JOB_STATE_BASE;

	return (base == JOB_RUNNING || base == JOB_SUSPENDED) && (job->job_state & JOB_COMPLETING) == 0;
}

bool pvc_job_has_ended(uint32_t id)
{
	bool ended = false;
	const slurm_job_info_t *job = NULL;
	job_info_msg_t *jobs = NULL;

	if (slurm_load_job(&jobs, pvc_compat_job(id), PVC_JOB_SHOWN) != SLURM_SUCCESS || jobs == NULL)
		return errno == ESLURM_INVALID_JOB_ID;
	job = pvc_job_find(jobs, id);
	ended = job != NULL && !pvc_job_is_running(job);
	slurm_free_job_info_msg(jobs);
	return ended;
}

char **pvc_job_facts(void)
{
	size_t count = 0;
	char **facts = calloc(KEYS + 1, sizeof(*facts));

	for (size_t i = 0; facts != NULL && i < KEYS; i++) {
		const char *value = find_value(keys[i]);

		if (value == NULL)
			continue;
		if (asprintf(&facts[count], "%s=%s", keys[i], value) < 0) {
			facts[count] = NULL;
			goto fail;
		}
		count++;
	}
	return facts;
fail:
	pvc_job_free(facts);
	return NULL;
}

void pvc_job_free(char **facts)
{
	for (size_t i = 0; facts != NULL && facts[i] != NULL; i++)
		free(facts[i]);
	free(facts);
}

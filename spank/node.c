/* SPDX-License-Identifier: Apache-2.0 */
#include "node.h"

#include <errno.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "common.h"
#include "drain.h"
#include "gres.h"
#include "helper.h"
#include "het.h"
#include "job.h"

/* How much of pvc-node's own words is handed on when it fails. */
#define LOG_SIZE 4096
#define MAX_ENV 32

/* A hook has neither PATH nor HOME. */
static char path_variable[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
static char lang_variable[] = "LANG=C.UTF-8";

char pvc_node_setup[] = "setup";
char pvc_node_ensure[] = "ensure";
char pvc_node_teardown[] = "teardown";

/* The same work by a pvc-node of our own: its exit code is the answer, its last line the reason. */
static int run_cold(const struct pvc_config *config, char *verb, char *const facts[], int64_t deadline_ms)
{
	int rv = -1;
	int code = -1;
	int log = -1;
	char said[LOG_SIZE] = "";
	char text[LOG_SIZE] = "";
	char program[sizeof(config->pvc_node)] = "";
	char *argv[] = {program, verb, NULL};
	char *envp[MAX_ENV] = {path_variable, lang_variable};
	struct pvc_helper helper = {.argv = argv, .envp = envp, .out = -1, .err = -1, .as_daemon = true,
				    .deadline_ms = deadline_ms};

	(void)snprintf(program, sizeof(program), "%s", config->pvc_node);
	for (size_t i = 0; i < MAX_ENV - 3 && facts[i] != NULL; i++)
		envp[i + 2] = facts[i];
	log = pvc_common_memfd("pvc-node");
	if (log < 0) {
		slurm_error("pvc: cannot make a log: %s", strerror(errno));
		goto fail;
	}
	helper.out = log;
	helper.err = log;
	if (pvc_helper_run(&helper, &code) == 0 && code == 0) {
		rv = 0;
		goto fail;
	}
	if (code >= 0)
		slurm_error("pvc: %s %s failed with exit code %d", program, verb, code);
	(void)pvc_common_read_end(log, said, sizeof(said));
	(void)snprintf(text, sizeof(text), "%s", said);
	pvc_common_say(slurm_error, "pvc: ", text);
	if (code < 0)
		(void)snprintf(said, sizeof(said), "pvc-node %s could not be run or did not end in time", verb);
	pvc_drain_node(pvc_common_last_line(said));
fail:
	pvc_common_close(&log);
	return rv;
}

int pvc_node_ask(const struct pvc_config *config, char *verb)
{
	int rv = -1;
	int code = -1;
	char text[PVC_LINE_SIZE] = "";
	/* Daemon first, cold second, one deadline for both. */
	int64_t deadline_ms = pvc_common_now_ms() + config->timeout_ms;
	char **facts = pvc_job_facts();

	if (facts == NULL) {
		slurm_error("pvc: no memory");
		goto fail;
	}
	switch (pvc_client_ask(config->socket, verb, facts, deadline_ms, &code, text, sizeof(text))) {
	case PVC_CLIENT_ANSWERED:
		if (code == 0) {
			rv = 0;
			break;
		}
		slurm_error("pvc: pvc-node %s failed with exit code %d: %s", verb, code, text);
		pvc_drain_node(text);
		break;
	case PVC_CLIENT_NO_ANSWER:
		rv = run_cold(config, verb, facts, deadline_ms);
		break;
	case PVC_CLIENT_TIMED_OUT:
		pvc_drain_node("pvc-node did not answer in time");
		break;
	}
fail:
	pvc_job_free(facts);
	return rv;
}

int pvc_node_prepare(const struct pvc_config *config, char *verb)
{
	pvc_het_find_components();
	pvc_gres_find();
	if (pvc_node_ask(config, verb) < 0)
		return -1;
	/*
	 * slurmd (22.05) can run the epilog of a job that was cancelled before it counts the prolog as running: then
	 * nobody else undoes this. A step is waited for by its epilog.
	 */
	if (verb == pvc_node_setup && pvc_job_has_ended(pvc_common_job_id("SLURM_JOB_ID")))
		return pvc_node_ask(config, pvc_node_teardown);
	return 0;
}

bool pvc_node_has(const struct pvc_config *config, uint32_t job_id, const char *file)
{
	char path[PATH_MAX + 64] = "";

	(void)snprintf(path, sizeof(path), "%s/jobs/%u/%s", config->state_dir, job_id, file);
	return access(path, F_OK) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

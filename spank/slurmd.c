#include "slurmd.h"

#include <errno.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "common.h"
#include "config.h"
#include "helper.h"
#include "job.h"

/* How much of pvc-node's own words is handed on when it fails. */
#define LOG_SIZE 4096
#define MAX_ENV 32

/* A hook has neither PATH nor HOME. */
static char path_variable[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
static char lang_variable[] = "LANG=C.UTF-8";

/* The same work by a pvc-node of our own: its exit code is the answer. */
static int run_cold(const struct pvc_config *config, const char *verb, char *const facts[], int64_t deadline_ms)
{
	int rv = -1;
	int code = -1;
	int log = -1;
	size_t used = 0;
	char verb_word[16] = "";
	char program[PATH_MAX] = "";
	char text[LOG_SIZE] = "";
	char *argv[] = {program, verb_word, NULL};
	char *envp[MAX_ENV] = {path_variable, lang_variable};
	struct pvc_helper helper = {.argv = argv, .envp = envp, .out = -1, .err = -1, .as_daemon = true,
				    .deadline_ms = deadline_ms};

	(void)snprintf(verb_word, sizeof(verb_word), "%s", verb);
	(void)snprintf(program, sizeof(program), "%s", config->pvc_node);
	for (used = 2; used < MAX_ENV - 1 && facts[used - 2] != NULL; used++)
		envp[used] = facts[used - 2];
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
	if (pvc_common_read_file(log, text, sizeof(text)) > 0)
		pvc_common_say(slurm_error, "pvc: ", text);
fail:
	pvc_common_close(&log);
	return rv;
}

/* Daemon first, cold second, one deadline for both: 0 when the node's share is done. */
static int ask_node(const struct pvc_config *config, const char *verb)
{
	int rv = -1;
	int code = -1;
	char text[PVC_LINE_SIZE] = "";
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
		} else {
			slurm_error("pvc: pvc-node %s failed with exit code %d", verb, code);
			pvc_common_say(slurm_error, "pvc: ", text);
		}
		break;
	case PVC_CLIENT_NO_ANSWER:
		rv = run_cold(config, verb, facts, deadline_ms);
		break;
	case PVC_CLIENT_TIMED_OUT:
		break;
	}
fail:
	pvc_job_free(facts);
	return rv;
}

/* Whether pvc-node has something of this job here; in doubt, yes. */
static int has_state(const struct pvc_config *config)
{
	char path[PATH_MAX + 64] = "";
	const char *id = getenv("SLURM_JOB_ID");

	if (id == NULL || id[0] == '\0' || strspn(id, "0123456789") != strlen(id) || strlen(id) > 20)
		return 0;
	(void)snprintf(path, sizeof(path), "%s/jobs/%s", config->state_dir, id);
	return access(path, F_OK) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

int pvc_slurmd_init(int ac, char *av[])
{
	struct pvc_config config;

	return pvc_config_parse(&config, ac, av);
}

int pvc_slurmd_prolog(int ac, char *av[])
{
	struct pvc_config config;

	if (getenv(PVC_JOB_REQUEST) == NULL)
		return 0;
	if (pvc_config_parse(&config, ac, av) < 0)
		return -1;
	return ask_node(&config, "setup");
}

int pvc_slurmd_epilog(int ac, char *av[])
{
	struct pvc_config config;

	/* Wrong arguments drain the node for a job of ours only: its leftovers cannot be removed. */
	if (pvc_config_parse(&config, ac, av) < 0)
		return getenv(PVC_JOB_REQUEST) == NULL ? 0 : -1;
	if (!has_state(&config))
		return 0;
	return ask_node(&config, "teardown");
}

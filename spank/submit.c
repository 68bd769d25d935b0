/* SPDX-License-Identifier: Apache-2.0 */
#include "submit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"
#include "config.h"
#include "helper.h"
#include "options.h"

#define TEXT_SIZE 4096
#define DEFINITION_VARIABLE "PVC_DEFINITION"
#define REQUEST_VARIABLE "PVC_REQUEST"
#define RESOLVED_VARIABLE "PVC_RESOLVED"

/* One line and nothing else; the newline at its end is cut. */
static int check_request(char *text)
{
	size_t length = strlen(text);

	if (length == 0 || text[length - 1] != '\n')
		return -1;
	text[length - 1] = '\0';
	return pvc_common_is_line(text, PVC_LINE_SIZE) ? 0 : -1;
}

/*
 * "DEFINITION REQUEST": pvc alloc and pvc batch have resolved it a moment ago, which saves the start of a Python. The
 * environment is the caller's, as pvc is that would be asked; root parses the request either way.
 */
static int take_resolved(const char *definition, char *request, size_t size)
{
	const char *text = getenv(RESOLVED_VARIABLE);
	const char *blank = text == NULL ? NULL : strrchr(text, ' ');
	size_t length = strlen(definition);

	if (blank == NULL || (size_t)(blank - text) != length || strncmp(text, definition, length) != 0)
		return -1;
	if (!pvc_common_is_line(blank + 1, PVC_LINE_SIZE))
		return -1;
	(void)snprintf(request, size, "%s", blank + 1);
	return 0;
}

/* Run `pvc resolve -- DEFINITION` as the caller, in the caller's environment; its line goes to request. */
static int resolve(struct pvc_config *config, char *definition, char *request, size_t size)
{
	int rv = -1;
	int code = -1;
	int out = pvc_common_memfd("pvc-request");
	int err = pvc_common_memfd("pvc-messages");
	char verb[] = "resolve";
	char end_of_options[] = "--";
	char text[TEXT_SIZE] = "";
	char *argv[] = {config->pvc, verb, end_of_options, definition, NULL};
	struct pvc_helper helper = {.argv = argv, .envp = environ, .out = out, .err = err, .as_daemon = false,
				    .deadline_ms = pvc_common_now_ms() + config->timeout_ms};

	if (out < 0 || err < 0) {
		slurm_error("pvc: cannot make a file for the request: %s", strerror(errno));
		goto fail;
	}
	if (pvc_helper_run(&helper, &code) < 0 || code != 0) {
		if (pvc_common_read_end(err, text, sizeof(text)) > 0)
			pvc_common_say(slurm_spank_log, "", text);
		else if (code > 0)
			slurm_spank_log("pvc: %s resolve failed with exit code %d", config->pvc, code);
		goto fail;
	}
	if (pvc_common_read_end(out, request, size) < 0 || check_request(request) < 0) {
		slurm_spank_log("pvc: %s resolve printed no request", config->pvc);
		goto fail;
	}
	rv = 0;
fail:
	pvc_common_close(&out);
	pvc_common_close(&err);
	return rv;
}

/*
 * Slurm reads the options of every component of a heterogeneous job in turn, and calls init_post_opt after each, in one
 * process. One definition describes all: each component gets the same request.
 */
static int components;
static char shared_definition[PVC_LINE_SIZE];
static char shared_request[PVC_LINE_SIZE + 2]; /* one byte more than the longest good one: a longer one shows */

void pvc_submit_init(void)
{
	components = 0;
	shared_definition[0] = '\0';
	shared_request[0] = '\0';
}

/* How many components the request is for: "1;sizes=2:1,4:4;nat:6" for two. */
static int count_sizes(const char *request)
{
	static const char key[] = ";sizes=";
	const char *sizes = strstr(request, key);
	int count = 1;

	for (sizes = sizes == NULL ? "" : sizes + strlen(key); *sizes != '\0' && *sizes != ';'; sizes++)
		count += *sizes == ',';
	return count;
}

/* Said before the job exists, or before the step. */
static int check_place(const char *definition, bool is_step)
{
	components++;
	pvc_options_next_component();
	if (components > 1 && strcmp(definition == NULL ? "" : definition, shared_definition) != 0) {
		slurm_spank_log("pvc: one --pvc describes all components of a heterogeneous job");
		slurm_spank_log("hint: give it before the first ':', as in --pvc=a:2,b:4 -n2 -c1 : -n4 -c8");
		return -1;
	}
	if (definition == NULL)
		return 0;
	(void)snprintf(shared_definition, sizeof(shared_definition), "%s", definition);
	if (is_step) {
		slurm_spank_log("pvc: --pvc is for a whole job, and srun in job %s makes a step of that job",
				getenv("SLURM_JOB_ID"));
		slurm_spank_log("hint: give --pvc to salloc or sbatch, and run 'pvc start' inside");
		return -1;
	}
	if (components > 1 && components > count_sizes(shared_request)) {
		slurm_spank_log("pvc: %s has VMs of %d size(s), but the job has %d components", definition,
				count_sizes(shared_request), components);
		slurm_spank_log("hint: a component is for templates that differ in cores, memory, slurm-args or gres;"
				" pvc alloc and pvc batch make them");
		return -1;
	}
	return 0;
}

int pvc_submit_init_post_opt(spank_t sp, int ac, char *av[])
{
	struct pvc_config config;
	char *definition = pvc_options_definition();
	/* srun inside a job makes a step of it: no new job, no prolog. */
	bool is_step = spank_context() == S_CTX_LOCAL && getenv("SLURM_JOB_ID") != NULL;
	spank_err_t err = ESPANK_SUCCESS;

	if (check_place(definition, is_step) < 0)
		return -1;
	if (definition == NULL) {
		/* A job that is submitted from inside a job of ours is not one itself. */
		if (!is_step) {
			(void)unsetenv(DEFINITION_VARIABLE);
			(void)unsetenv(REQUEST_VARIABLE);
			(void)unsetenv("SLURM_SPANK_" DEFINITION_VARIABLE);
			(void)unsetenv("SLURM_SPANK_" REQUEST_VARIABLE);
		}
		return 0;
	}
	if (pvc_config_parse(&config, ac, av) < 0)
		return -1;
	if (components == 1 && take_resolved(definition, shared_request, sizeof(shared_request)) < 0 &&
	    resolve(&config, definition, shared_request, sizeof(shared_request)) < 0)
		return -1;
	/* A job that is submitted from inside this one is another matter. */
	(void)unsetenv(RESOLVED_VARIABLE);
	err = spank_job_control_setenv(sp, REQUEST_VARIABLE, shared_request, 1);
	if (err == ESPANK_SUCCESS) /* for the steps, see stepd.c */
		err = spank_job_control_setenv(sp, DEFINITION_VARIABLE, definition, 1);
	if (err != ESPANK_SUCCESS) {
		slurm_error("pvc: cannot hand the request to Slurm: %s", spank_strerror(err));
		return -1;
	}
	if (setenv(DEFINITION_VARIABLE, definition, 1) < 0 || setenv(REQUEST_VARIABLE, shared_request, 1) < 0) {
		slurm_error("pvc: cannot set %s: %s", DEFINITION_VARIABLE, strerror(errno));
		return -1;
	}
	return 0;
}

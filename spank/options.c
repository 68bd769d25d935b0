/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"

/* Where Slurm keeps an option of a plugin for the processes of the job. */
#define INHERITED "SLURM_SPANK__SLURM_SPANK_OPTION_pvc_pvc"

static char definition[PVC_LINE_SIZE];
static bool inherited_seen;

/*
 * Slurm puts the options of a job into its environment and applies them to every srun, sbatch and salloc
 * inside. An option like that was not given there: a step does not need it, and another job did not ask for VMs.
 * Slurm calls for the environment first.
 */
static bool is_inherited(const char *optarg)
{
	const char *value = getenv(INHERITED);

	if (inherited_seen || value == NULL || getenv("SLURM_JOB_ID") == NULL || strcmp(value, optarg) != 0)
		return false;
	inherited_seen = true;
	return true;
}

/*
 * Slurm calls this for the environment, for #SBATCH and for the command line, in this order: the last one
 * wins, as for every option of Slurm's own.
 */
static int set_definition(int val, const char *optarg, int remote)
{
	(void)val;
	if (remote)
		return 0;
	if (optarg == NULL || !pvc_common_is_line(optarg, sizeof(definition))) {
		slurm_error("pvc: --pvc wants a definition such as debian:4, of at most %zu printable bytes",
			    sizeof(definition) - 1);
		return -1;
	}
	if (is_inherited(optarg))
		return 0;
	(void)snprintf(definition, sizeof(definition), "%s", optarg);
	return 0;
}

/* Slurm's struct has no const. */
static char name[] = "pvc";
static char arginfo[] = "DEFINITION";
static char usage[] = "[pvc] prepare the job's nodes for virtual machines: template[:count][,template[:count]...]";

static struct spank_option table[] = {
	{name, arginfo, usage, 1, 0, set_definition},
	SPANK_OPTIONS_TABLE_END,
};

int pvc_options_register(spank_t sp)
{
	definition[0] = '\0';
	inherited_seen = false;
	for (struct spank_option *option = table; option->name != NULL; option++) {
		spank_err_t err = spank_option_register(sp, option);

		if (err != ESPANK_SUCCESS) {
			slurm_error("pvc: cannot register --%s: %s", option->name, spank_strerror(err));
			return -1;
		}
	}
	return 0;
}

char *pvc_options_definition(void)
{
	return definition[0] == '\0' ? NULL : definition;
}

void pvc_options_next_component(void)
{
	inherited_seen = false;
}

#include "options.h"

#include <stdio.h>
#include <stdlib.h>

#include "common.h"

static char definition[PVC_LINE_SIZE];

/*
 * Slurm calls this once for the environment, once for #SBATCH and once for the command line, in this order:
 * the last one wins, as for every option of Slurm's own.
 */
static int set_definition(int val, const char *optarg, int remote)
{
	(void)val;
	(void)remote;
	if (optarg == NULL || !pvc_common_is_line(optarg, sizeof(definition))) {
		slurm_error("pvc: --pvc wants a definition such as debian:4, of at most %zu printable bytes",
			    sizeof(definition) - 1);
		return -1;
	}
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
	for (struct spank_option *option = table; option->name != NULL; option++) {
		spank_err_t err = spank_option_register(sp, option);

		if (err != ESPANK_SUCCESS) {
			slurm_error("pvc: cannot register --%s: %s", option->name, spank_strerror(err));
			return -1;
		}
	}
	return 0;
}

const char *pvc_options_definition(void)
{
	return definition[0] == '\0' ? NULL : definition;
}

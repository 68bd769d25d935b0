/* SPDX-License-Identifier: Apache-2.0 */
/* A stand-in for the part of Slurm that the plugin talks to. */
#ifndef FAKE_SPANK_H
#define FAKE_SPANK_H

#include <slurm/spank.h>
#include <stdbool.h>
#include <stdint.h>

#define FAKE_VARIABLES 8
#define FAKE_COMPONENTS 3

struct fake_variable {
	char name[64];
	char value[2048];
};

/* What Slurm's controller tells of a component; CPUs of its nodes, 0 at the end; none: it runs nowhere. */
struct fake_component {
	uint32_t job_id;
	uint32_t het_job_id;
	uint32_t offset;
	char *nodes;
	uint16_t cpus[8];
	char *gres[4]; /* of its nodes */
	uint32_t gres_count;
	uint32_t state; /* JOB_RUNNING and so on */
};

struct fake {
	enum spank_context context;
	struct spank_option *option;                  /* registered, or NULL */
	struct fake_variable control[FAKE_VARIABLES]; /* spank_job_control_setenv */
	bool control_refuses;                         /* spank_job_control_setenv fails */
	struct fake_variable job[FAKE_VARIABLES];     /* spank_setenv and spank_getenv */
	char drained[256];                            /* slurm_update_node: NODE REASON */
	struct fake_component components[FAKE_COMPONENTS]; /* slurm_load_job: a job_id of 0 is none */
	uint32_t asked;                               /* slurm_load_job: of which job */
	char *node_gres;                              /* slurm_load_node_single: NULL is no such node */
	char asked_node[64];                          /* slurm_load_node_single: of which node */
	bool controller_is_away;                      /* slurm_load_job fails */
	bool gone;                                    /* slurm_load_job knows no such job */
	uint32_t step_job;                            /* spank_get_item: the step's job, 0 is none */
	char log[16384];                              /* every message, each with its newline */
};

extern struct fake fake;

/* As when Slurm loads the plugin anew. */
void fake_start(enum spank_context context);

/* Call the option's callback as Slurm does. */
int fake_option(const char *value, int remote);

const char *fake_get(const struct fake_variable *variables, const char *name);
void fake_set(struct fake_variable *variables, const char *name, const char *value);

/* Slurm's entry points, without a handle. */
int fake_init(int ac, char *av[]);
int fake_init_post_opt(int ac, char *av[]);
int fake_prolog(int ac, char *av[]);
int fake_epilog(int ac, char *av[]);

#endif

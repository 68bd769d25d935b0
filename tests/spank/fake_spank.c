/* SPDX-License-Identifier: Apache-2.0 */
#include "fake_spank.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "compat.h"

struct fake fake;

void fake_start(enum spank_context context)
{
	memset(&fake, 0, sizeof(fake));
	fake.context = context;
}

int fake_option(const char *value, int remote)
{
	return fake.option->cb(fake.option->val, value, remote);
}

const char *fake_get(const struct fake_variable *variables, const char *name)
{
	for (size_t i = 0; i < FAKE_VARIABLES; i++)
		if (strcmp(variables[i].name, name) == 0)
			return variables[i].value;
	return NULL;
}

void fake_set(struct fake_variable *variables, const char *name, const char *value)
{
	for (size_t i = 0; i < FAKE_VARIABLES; i++) {
		if (variables[i].name[0] != '\0' && strcmp(variables[i].name, name) != 0)
			continue;
		(void)snprintf(variables[i].name, sizeof(variables[i].name), "%s", name);
		(void)snprintf(variables[i].value, sizeof(variables[i].value), "%s", value);
		return;
	}
}

int fake_init(int ac, char *av[])
{
	return slurm_spank_init(NULL, ac, av);
}

int fake_init_post_opt(int ac, char *av[])
{
	return slurm_spank_init_post_opt(NULL, ac, av);
}

int fake_prolog(int ac, char *av[])
{
	return slurm_spank_job_prolog(NULL, ac, av);
}

int fake_epilog(int ac, char *av[])
{
	return slurm_spank_job_epilog(NULL, ac, av);
}

/* From here on: Slurm's own names. */

spank_context_t spank_context(void)
{
	return fake.context;
}

const char *spank_strerror(spank_err_t err)
{
	return err == ESPANK_SUCCESS ? "Success" : "Failure";
}

spank_err_t spank_option_register(spank_t sp, struct spank_option *opt)
{
	(void)sp;
	if (fake.option != NULL)
		return ESPANK_BAD_ARG;
	fake.option = opt;
	return ESPANK_SUCCESS;
}

spank_err_t spank_job_control_setenv(spank_t sp, const char *name, const char *value, int overwrite)
{
	(void)sp;
	(void)overwrite;
	if (fake.control_refuses || (fake.context != S_CTX_LOCAL && fake.context != S_CTX_ALLOCATOR))
		return ESPANK_NOT_LOCAL;
	fake_set(fake.control, name, value);
	return ESPANK_SUCCESS;
}

spank_err_t spank_setenv(spank_t sp, const char *var, const char *val, int overwrite)
{
	(void)sp;
	(void)overwrite;
	if (fake.context != S_CTX_REMOTE)
		return ESPANK_NOT_REMOTE;
	fake_set(fake.job, var, val);
	return ESPANK_SUCCESS;
}

spank_err_t spank_getenv(spank_t sp, const char *var, char *buf, int len)
{
	const char *value = fake_get(fake.job, var);

	(void)sp;
	if (fake.context != S_CTX_REMOTE)
		return ESPANK_NOT_REMOTE;
	if (value == NULL)
		return ESPANK_ENV_NOEXIST;
	return snprintf(buf, (size_t)len, "%s", value) < len ? ESPANK_SUCCESS : ESPANK_NOSPACE;
}

spank_err_t spank_get_item(spank_t sp, spank_item_t item, ...)
{
	va_list values;

	(void)sp;
	if (item != S_JOB_ID || fake.step_job == 0)
		return ESPANK_BAD_ARG;
	va_start(values, item);
	*va_arg(values, uint32_t *) = fake.step_job;
	va_end(values);
	return ESPANK_SUCCESS;
}

void slurm_init(const char *conf)
{
	(void)conf;
}

void slurm_init_update_node_msg(update_node_msg_t *message)
{
	memset(message, 0, sizeof(*message));
	message->node_state = NO_VAL;
}

int slurm_update_node(update_node_msg_t *message)
{
	if (message->node_state != NODE_STATE_DRAIN)
		return SLURM_ERROR;
	(void)snprintf(fake.drained, sizeof(fake.drained), "%s %s", message->node_names, message->reason);
	return SLURM_SUCCESS;
}

static slurm_job_info_t loaded[FAKE_COMPONENTS];
static job_info_msg_t answer;

int slurm_load_job(job_info_msg_t **resp, pvc_compat_id id, uint16_t show_flags)
{
	fake.asked = pvc_compat_number(id);
	if (fake.controller_is_away || (show_flags & SHOW_DETAIL) == 0)
		return SLURM_ERROR;
	memset(loaded, 0, sizeof(loaded));
	memset(&answer, 0, sizeof(answer));
	answer.job_array = loaded;
	for (size_t i = 0; i < FAKE_COMPONENTS && fake.components[i].job_id != 0; i++, answer.record_count++) {
		struct fake_component *component = &fake.components[i];

		loaded[i].job_id = component->job_id;
		loaded[i].het_job_id = component->het_job_id;
		loaded[i].het_job_offset = component->offset;
		loaded[i].nodes = component->nodes;
		while (component->cpus[loaded[i].num_nodes] != 0)
			loaded[i].num_nodes++;
		loaded[i].gres_detail_cnt = component->gres_count;
		loaded[i].gres_detail_str = component->gres_count == 0 ? NULL : component->gres;
		loaded[i].job_state = component->state;
		loaded[i].user_id = 4201;
		loaded[i].group_id = 4202;
	}
	if (fake.gone) {
		errno = ESLURM_INVALID_JOB_ID;
		return SLURM_ERROR;
	}
	*resp = &answer;
	return SLURM_SUCCESS;
}

static resource_allocation_response_msg_t given;
static uint16_t cpus[8];
static uint32_t repeats[8];

int slurm_allocation_lookup(pvc_compat_id id, resource_allocation_response_msg_t **resp)
{
	memset(&given, 0, sizeof(given));
	for (size_t i = 0; i < FAKE_COMPONENTS; i++) {
		const struct fake_component *component = &fake.components[i];

		if (component->job_id == 0 || component->job_id != pvc_compat_number(id))
			continue;
		for (size_t n = 0; component->cpus[n] != 0; n++) {
			/* The controller folds equal neighbours. */
			if (n == 0 || component->cpus[n] != component->cpus[n - 1]) {
				cpus[given.num_cpu_groups] = component->cpus[n];
				repeats[given.num_cpu_groups++] = 0;
			}
			repeats[given.num_cpu_groups - 1]++;
		}
	}
	given.cpus_per_node = cpus;
	given.cpu_count_reps = repeats;
	if (given.num_cpu_groups == 0)
		return SLURM_ERROR;
	*resp = &given;
	return SLURM_SUCCESS;
}

void slurm_free_resource_allocation_response_msg(resource_allocation_response_msg_t *msg)
{
	msg->num_cpu_groups = 0;
}

void slurm_free_job_info_msg(job_info_msg_t *job_buffer_ptr)
{
	job_buffer_ptr->record_count = 0;
}

static node_info_t node;
static node_info_msg_t node_answer;

int slurm_load_node_single(node_info_msg_t **resp, char *node_name, uint16_t show_flags)
{
	(void)show_flags;
	(void)snprintf(fake.asked_node, sizeof(fake.asked_node), "%s", node_name);
	if (fake.controller_is_away || fake.node_gres == NULL)
		return SLURM_ERROR;
	node.gres = fake.node_gres;
	node_answer.node_array = &node;
	node_answer.record_count = 1;
	*resp = &node_answer;
	return SLURM_SUCCESS;
}

void slurm_free_node_info_msg(node_info_msg_t *node_buffer_ptr)
{
	node_buffer_ptr->record_count = 0;
}

/* A list of plain names is enough here. */
struct hostlist {
	char names[128];
};

static struct hostlist list;

pvc_compat_hostlist slurm_hostlist_create(const char *hostlist)
{
	(void)snprintf(list.names, sizeof(list.names), "%s", hostlist);
	return &list;
}

int slurm_hostlist_find(pvc_compat_hostlist hl, const char *hostname)
{
	int at = 0;
	char *rest = NULL;

	for (char *name = strtok_r(hl->names, ",", &rest); name != NULL; name = strtok_r(NULL, ",", &rest), at++)
		if (strcmp(name, hostname) == 0)
			return at;
	return -1;
}

void slurm_hostlist_destroy(pvc_compat_hostlist hl)
{
	hl->names[0] = '\0';
}

static void vlog_line(const char *prefix, const char *format, va_list values) __attribute__((format(printf, 2, 0)));

static void vlog_line(const char *prefix, const char *format, va_list values)
{
	size_t used = strlen(fake.log);

	(void)snprintf(fake.log + used, sizeof(fake.log) - used, "%s", prefix);
	used = strlen(fake.log);
	(void)vsnprintf(fake.log + used, sizeof(fake.log) - used, format, values);
	used = strlen(fake.log);
	(void)snprintf(fake.log + used, sizeof(fake.log) - used, "\n");
}

void slurm_error(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vlog_line("error: ", format, values);
	va_end(values);
}

void slurm_spank_log(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vlog_line("", format, values);
	va_end(values);
}

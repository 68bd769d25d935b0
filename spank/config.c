/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <slurm/spank.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_PVC "/opt/pvc/bin/pvc"
#define DEFAULT_PVC_NODE "/opt/pvc/bin/pvc-node"
#define DEFAULT_SOCKET "/run/pvc/node.sock"
#define DEFAULT_STATE_DIR "/var/lib/pvc"
/* Below Slurm's PrologEpilogTimeout, which sites set to 60 s or more: our message beats its axe. */
#define DEFAULT_TIMEOUT_S 50
#define MAX_TIMEOUT_S 3600

#define FIELD(member) offsetof(struct pvc_config, member), sizeof(((struct pvc_config *)0)->member)

static const struct path_key {
	const char *key;
	size_t offset;
	size_t size;
	const char *preset;
} path_keys[] = {
	{"pvc=", FIELD(pvc), DEFAULT_PVC},
	{"pvc-node=", FIELD(pvc_node), DEFAULT_PVC_NODE},
	{"socket=", FIELD(socket), DEFAULT_SOCKET},
	{"state_dir=", FIELD(state_dir), DEFAULT_STATE_DIR},
};

static const char timeout_key[] = "timeout=";

static int set_path(struct pvc_config *config, const struct path_key *row, const char *value)
{
	int length = snprintf((char *)config + row->offset, row->size, "%s", value);

	if (length < 0 || (size_t)length >= row->size) {
		slurm_error("pvc: plugstack.conf: %s is longer than %zu bytes", row->key, row->size - 1);
		return -1;
	}
	if (value[0] != '/') {
		slurm_error("pvc: plugstack.conf: %s wants an absolute path, not '%s'", row->key, value);
		return -1;
	}
	return 0;
}

static int set_timeout(struct pvc_config *config, const char *value)
{
	char *end = NULL;
	long seconds = 0;

	errno = 0;
	seconds = strtol(value, &end, 10);
	if (errno != 0 || value[0] < '0' || value[0] > '9' || *end != '\0' || seconds < 1 ||
	    seconds > MAX_TIMEOUT_S) {
		slurm_error("pvc: plugstack.conf: %s wants 1 to %d seconds, not '%s'", timeout_key, MAX_TIMEOUT_S,
			    value);
		return -1;
	}
	config->timeout_ms = (int64_t)seconds * 1000;
	return 0;
}

static int set_argument(struct pvc_config *config, const char *argument)
{
	for (size_t i = 0; i < sizeof(path_keys) / sizeof(path_keys[0]); i++) {
		size_t length = strlen(path_keys[i].key);

		if (strncmp(argument, path_keys[i].key, length) == 0)
			return set_path(config, &path_keys[i], argument + length);
	}
	if (strncmp(argument, timeout_key, strlen(timeout_key)) == 0)
		return set_timeout(config, argument + strlen(timeout_key));
	slurm_error("pvc: plugstack.conf: unknown argument '%s'", argument);
	return -1;
}

int pvc_config_parse(struct pvc_config *config, int ac, char *av[])
{
	int rv = 0;

	memset(config, 0, sizeof(*config));
	config->timeout_ms = (int64_t)DEFAULT_TIMEOUT_S * 1000;
	for (size_t i = 0; i < sizeof(path_keys) / sizeof(path_keys[0]); i++)
		if (set_path(config, &path_keys[i], path_keys[i].preset) < 0)
			rv = -1;
	for (int i = 0; i < ac; i++) /* all problems at once */
		if (set_argument(config, av[i]) < 0)
			rv = -1;
	return rv;
}

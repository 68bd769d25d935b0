/* SPDX-License-Identifier: Apache-2.0 */
/* The shim's reading of texts under libFuzzer: a user's --pvc and request, pvc-node's answer, arguments, words of others. */
#include "client.c" /* parse_answer() is nobody else's business */

#include "config.h"
#include "fake_spank.h"
#include "job.h"
#include "options.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool good)
{
	if (!good)
		abort();
}

static bool is_clean(const char *text)
{
	for (; *text != '\0'; text++)
		if ((unsigned char)*text < ' ' || *text == 0x7f)
			return false;
	return true;
}

static void try_answer(const char *text)
{
	char line[PVC_LINE_SIZE], said[64];
	int code = 0;

	(void)snprintf(line, sizeof line, "%s", text);
	if (parse_answer(line, &code, said, sizeof said) == 0)
		must(code >= 0 && code <= 255 && is_clean(said));
}

static void try_arguments(char *text)
{
	static struct pvc_config config;
	char *av[16], *rest = NULL;
	int ac = 0;

	for (char *each = strtok_r(text, "\n", &rest); each != NULL && ac < 16; each = strtok_r(NULL, "\n", &rest))
		av[ac++] = each;
	if (pvc_config_parse(&config, ac, av) == 0)
		must(config.pvc[0] == '/' && config.socket[0] == '/' && config.timeout_ms > 0);
}

static void try_request(const char *text)
{
	char **facts = NULL;

	(void)setenv(PVC_JOB_REQUEST, text, 1);
	(void)setenv("SLURM_JOB_ID", text, 1);
	(void)pvc_common_job_id("SLURM_JOB_ID");
	facts = pvc_job_facts();
	must(facts != NULL);
	for (size_t i = 0; facts[i] != NULL; i++)
		must(is_clean(facts[i]));
	pvc_job_free(facts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);

	must(text != NULL);
	if (size > 0)
		memcpy(text, data, size);
	text[size] = '\0';
	fake_start(S_CTX_JOB_SCRIPT);
	try_answer(text);
	try_request(text);
	must(pvc_options_register(NULL) == 0);
	if (fake_option(text, 0) == 0 && pvc_options_definition() != NULL)
		must(is_clean(pvc_options_definition()));
	(void)pvc_common_last_line(text);
	pvc_common_clean(text);
	must(is_clean(text));
	if (size > 0)
		memcpy(text, data, size);
	try_arguments(text);
	free(text);
	return 0;
}

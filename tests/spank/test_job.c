/* SPDX-License-Identifier: Apache-2.0 */
#include "job.h"

#include <stdlib.h>

#include "check.h"
#include "fake_spank.h"

/* The fact with this key, or "". */
static const char *find(char *const facts[], const char *key)
{
	for (size_t i = 0; facts[i] != NULL; i++)
		if (strncmp(facts[i], key, strlen(key)) == 0 && facts[i][strlen(key)] == '=')
			return facts[i] + strlen(key) + 1;
	return "";
}

static void only_listed_variables_are_facts(void)
{
	char **facts = NULL;

	fake_start(S_CTX_JOB_SCRIPT);
	CHECK(setenv("SLURM_JOB_ID", "12", 1) == 0);
	CHECK(setenv("SLURM_NODELIST", "n[1-2]", 1) == 0);
	CHECK(setenv("LD_PRELOAD_OF_A_USER", "/evil.so", 1) == 0);
	CHECK(setenv("SPANK_OTHER", "x", 1) == 0);
	CHECK(setenv("SPANK_PVC_REQUEST", "1;nat:4", 1) == 0);
	facts = pvc_job_facts();
	CHECK_IS(find(facts, "SLURM_JOB_ID"), "12");
	CHECK_IS(find(facts, "SLURM_NODELIST"), "n[1-2]");
	CHECK_IS(find(facts, "SPANK_PVC_REQUEST"), "1;nat:4");
	CHECK(facts[0] != NULL && facts[1] != NULL && facts[2] != NULL && facts[3] == NULL);
	CHECK_IS(fake.log, "");
	pvc_job_free(facts);
}

static void check_request(const char *request, const char *want)
{
	char **facts = NULL;

	CHECK(setenv("SPANK_PVC_REQUEST", request, 1) == 0);
	facts = pvc_job_facts();
	CHECK_IS(find(facts, "SPANK_PVC_REQUEST"), want);
	pvc_job_free(facts);
}

static void hostile_requests_become_invalid(void)
{
	char huge[65536] = "";

	fake_start(S_CTX_JOB_SCRIPT);
	check_request("", "invalid");
	check_request("1;nat:4\nSLURM_JOB_UID=0", "invalid");
	check_request("1;nat:4\r", "invalid");
	check_request("\x1b[2J", "invalid");
	check_request("1;nat\xe2\x80\x8b:4", "invalid"); /* a blank without width */
	check_request("\xff\xfe", "invalid");
	memset(huge, 'n', sizeof(huge) - 1);
	check_request(huge, "invalid");
	huge[1024] = '\0';
	check_request(huge, "invalid");
	huge[1023] = '\0';
	check_request(huge, huge);
	check_request("../../etc/passwd; $(reboot)", "../../etc/passwd; $(reboot)"); /* data for pvc-node to refuse */
}

static void facts_with_control_characters_are_left_out(void)
{
	char **facts = NULL;

	fake_start(S_CTX_JOB_SCRIPT);
	CHECK(setenv("SLURM_JOB_USER", "alice\nSLURM_JOB_UID=0", 1) == 0);
	CHECK(setenv("SLURM_RESTART_COUNT", "", 1) == 0);
	facts = pvc_job_facts();
	CHECK_IS(find(facts, "SLURM_JOB_USER"), "");
	CHECK(facts[0] != NULL && facts[1] == NULL);
	CHECK_IS(facts[0], "SLURM_RESTART_COUNT=");
	CHECK_HAS(fake.log, "SLURM_JOB_USER holds control characters");
	pvc_job_free(facts);
}

const struct test job_tests[] = {
	TEST(only_listed_variables_are_facts),
	TEST(hostile_requests_become_invalid),
	TEST(facts_with_control_characters_are_left_out),
	TESTS_END,
};

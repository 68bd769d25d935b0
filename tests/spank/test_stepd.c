/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"
#include "fake_spank.h"

static void tasks_see_the_definition(void)
{
	fake_start(S_CTX_REMOTE);
	CHECK(fake_init(0, NULL) == 0);
	fake_set(fake.job, "SLURM_SPANK_PVC_DEFINITION", "debian:4");
	fake_set(fake.job, "SLURM_SPANK_PVC_REQUEST", "1;nat:4");
	CHECK(fake_init_post_opt(0, NULL) == 0);
	CHECK_IS(fake_get(fake.job, "PVC_DEFINITION"), "debian:4");
	CHECK_IS(fake_get(fake.job, "PVC_REQUEST"), "1;nat:4");
	CHECK_IS(fake.log, "");
}

static void other_jobs_see_nothing(void)
{
	char longest[2000] = "";

	fake_start(S_CTX_REMOTE);
	CHECK(fake_init(0, NULL) == 0);
	CHECK(fake_init_post_opt(0, NULL) == 0);
	CHECK(fake_get(fake.job, "PVC_DEFINITION") == NULL);
	memset(longest, 'x', sizeof(longest) - 1);
	fake_set(fake.job, "SLURM_SPANK_PVC_DEFINITION", longest);
	CHECK(fake_init_post_opt(0, NULL) == 0);
	CHECK(fake_get(fake.job, "PVC_DEFINITION") == NULL);
	CHECK_IS(fake.log, "");
}

static void slurmd_has_no_options(void)
{
	fake_start(S_CTX_SLURMD);
	CHECK(fake_init(0, NULL) == 0);
	CHECK(fake_init_post_opt(0, NULL) == 0);
	fake_start(S_CTX_JOB_SCRIPT);
	CHECK(fake_init(0, NULL) == 0);
	CHECK_IS(fake.log, "");
}

const struct test stepd_tests[] = {
	TEST(tasks_see_the_definition),
	TEST(other_jobs_see_nothing),
	TEST(slurmd_has_no_options),
	TESTS_END,
};

/* SPDX-License-Identifier: Apache-2.0 */
#include "het.h"

#include <stdlib.h>

#include "check.h"
#include "fake_spank.h"
#include "job.h"

static char one[] = "n[1-3]";
static char two[] = "n4";

/* As the prolog of job 12's component 1; Slurm's controller lists the components in any order. */
static void prepare(void)
{
	struct fake_component first = {.job_id = 12, .het_job_id = 12, .offset = 0, .nodes = one, .cpus = {4, 4, 2}};
	struct fake_component second = {.job_id = 13, .het_job_id = 12, .offset = 1, .nodes = two, .cpus = {8}};

	fake_start(S_CTX_JOB_SCRIPT);
	fake.components[0] = second;
	fake.components[1] = first;
	CHECK(setenv("SLURM_JOB_ID", "13", 1) == 0);
	CHECK(setenv("SLURM_HET_JOB_ID", "12", 1) == 0);
}

static const char *found(void)
{
	const char *text = NULL;

	pvc_het_find_components();
	text = getenv("PVC_HET_COMPONENTS");
	return text == NULL ? "nothing" : text;
}

static void components_are_told_in_order(void)
{
	prepare();
	CHECK_IS(found(), "12/n[1-3]/4(x2),2;13/n4/8");
	CHECK(fake.asked == 12);
	CHECK_IS(fake.log, "");
}

static void ordinary_jobs_ask_nobody(void)
{
	static const char *const texts[] = {"0", "", "x", "12x", "4294967294"};

	prepare();
	CHECK(setenv("PVC_HET_COMPONENTS", "12/evil/1", 1) == 0); /* no user's text comes in this way */
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		CHECK(setenv("SLURM_HET_JOB_ID", texts[i], 1) == 0);
		CHECK_IS(found(), "nothing");
	}
	CHECK(unsetenv("SLURM_HET_JOB_ID") == 0);
	CHECK_IS(found(), "nothing");
	CHECK(fake.asked == 0);
	CHECK_IS(fake.log, "");
}

static void what_the_controller_does_not_know_is_left_out(void)
{
	prepare();
	fake.controller_is_away = true;
	CHECK_IS(found(), "nothing");
	CHECK_HAS(fake.log, "controller does not tell of job 12");
	prepare();
	fake.components[1].nodes = NULL;
	CHECK_IS(found(), "nothing");
	CHECK_HAS(fake.log, "no nodes of a component of job 12");
	prepare();
	fake.components[0].offset = 2;
	CHECK_IS(found(), "nothing");
	prepare();
	fake.components[0].cpus[0] = 0;
	CHECK_IS(found(), "nothing");
}

const struct test het_tests[] = {
	TEST(components_are_told_in_order),
	TEST(ordinary_jobs_ask_nobody),
	TEST(what_the_controller_does_not_know_is_left_out),
	TESTS_END,
};

/* SPDX-License-Identifier: Apache-2.0 */
#include "gres.h"

#include <stdlib.h>

#include "check.h"
#include "fake_spank.h"
#include "job.h"

static char nodes[] = "n1,n2,n3";
static char one[] = "gpu:a100:1(IDX:2)";
static char two[] = "gpu:a100:2(IDX:0-1),nic:1(IDX:0)";
static char total[] = "gpu:a100:4,nic:2";

/* As the prolog of job 12 on n2; Slurm's controller lists another job, too. */
static void prepare(void)
{
	struct fake_component other = {.job_id = 11, .nodes = nodes, .gres = {two, one}, .gres_count = 2};
	struct fake_component own = {.job_id = 12, .nodes = nodes, .gres = {one, two}, .gres_count = 2};

	fake_start(S_CTX_JOB_SCRIPT);
	fake.components[0] = other;
	fake.components[1] = own;
	fake.node_gres = total;
	CHECK(setenv("SLURM_JOB_ID", "12", 1) == 0);
	CHECK(setenv("SLURMD_NODENAME", "n2", 1) == 0);
	CHECK(setenv("SPANK_PVC_REQUEST", "1;cpus=2;gres;gpu:3", 1) == 0);
	CHECK(setenv("PVC_GRES", "gpu:4(IDX:0-3);gpu:4", 1) == 0); /* no user's text comes in this way */
}

static const char *found(void)
{
	const char *text = NULL;

	pvc_gres_find();
	text = getenv("PVC_GRES");
	return text == NULL ? "nothing" : text;
}

static void what_the_job_has_of_this_node_is_told(void)
{
	prepare();
	CHECK_IS(found(), "gpu:a100:2(IDX:0-1),nic:1(IDX:0);gpu:a100:4,nic:2");
	CHECK(fake.asked == 12);
	CHECK_IS(fake.asked_node, "n2");
	CHECK_IS(fake.log, "");
}

static void nothing_given_is_an_answer(void)
{
	prepare();
	CHECK(setenv("SLURMD_NODENAME", "n3", 1) == 0);
	CHECK_IS(found(), ";gpu:a100:4,nic:2");
	prepare();
	fake.components[1].gres[1] = NULL;
	CHECK_IS(found(), ";gpu:a100:4,nic:2");
	prepare();
	fake.components[1].gres_count = 0;
	CHECK_IS(found(), ";gpu:a100:4,nic:2");
	CHECK_IS(fake.log, "");
}

static void requests_without_such_networks_ask_nobody(void)
{
	static const char *const texts[] = {"1;cpus=2;gpu:3", "1;gres:1", "invalid", ""};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		prepare();
		CHECK(setenv("SPANK_PVC_REQUEST", texts[i], 1) == 0);
		CHECK_IS(found(), "nothing");
		CHECK(fake.asked == 0);
	}
	prepare();
	CHECK(unsetenv("SPANK_PVC_REQUEST") == 0);
	CHECK_IS(found(), "nothing");
	prepare();
	CHECK(setenv("SLURM_JOB_ID", "12x", 1) == 0);
	CHECK_IS(found(), "nothing");
	CHECK(fake.asked == 0);
	CHECK_IS(fake.log, "");
}

static void what_the_controller_does_not_know_is_left_out(void)
{
	prepare();
	fake.controller_is_away = true;
	CHECK_IS(found(), "nothing");
	CHECK_HAS(fake.log, "controller does not tell of job 12 and node n2");
	prepare();
	fake.node_gres = NULL;
	CHECK_IS(found(), "nothing");
	prepare();
	fake.components[1].job_id = 13;
	CHECK_IS(found(), "nothing");
	CHECK_HAS(fake.log, "does not tell what job 12 has of node n2");
	prepare();
	CHECK(setenv("SLURMD_NODENAME", "n4", 1) == 0);
	CHECK_IS(found(), "nothing");
}

const struct test gres_tests[] = {
	TEST(what_the_job_has_of_this_node_is_told),
	TEST(nothing_given_is_an_answer),
	TEST(requests_without_such_networks_ask_nobody),
	TEST(what_the_controller_does_not_know_is_left_out),
	TESTS_END,
};

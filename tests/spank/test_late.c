/* SPDX-License-Identifier: Apache-2.0 */
#include <slurm/slurm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "check.h"
#include "fake_spank.h"

static char *av[4];
static char nodes[] = "n1,n2";

/* As slurmstepd for a step of job 12, whose controller knows it; returns the path of the daemon's socket. */
static char *prepare(void)
{
	char *path = scratch("sock");

	av[0] = argument("pvc-node", make_script("pvc-node", "echo $1 >>\"${0%/*}/ran\""));
	av[1] = argument("socket", path);
	av[2] = argument("state_dir", scratch("state"));
	CHECK(mkdir(scratch("state"), 0700) == 0 && mkdir(scratch("state/jobs"), 0700) == 0);
	fake_start(S_CTX_REMOTE);
	fake.step_job = 12;
	fake.components[0] =
		(struct fake_component){.job_id = 12, .nodes = nodes, .cpus = {4, 4}, .state = JOB_RUNNING};
	fake_set(fake.job, "SLURM_SPANK_PVC_REQUEST", "1;nat:4");
	CHECK(setenv("SLURMD_NODENAME", "n1", 1) == 0);
	return path;
}

static void step_without_a_prolog_has_its_node_set_up(void)
{
	pid_t pid = start_daemon(prepare(), ANSWER, "0 4 VMs\n");

	/* What the step's own process has in its environment is nothing to go by. */
	CHECK(setenv("SLURM_JOB_UID", "0", 1) == 0 && setenv("SLURM_HET_JOB_ID", "9", 1) == 0);
	CHECK(fake_init_post_opt(3, av) == 0);
	CHECK_IS(read_text(scratch("heard")),
		 "PVC1 ensure\nSLURM_JOB_ID=12\nSLURM_JOB_UID=4201\nSLURM_JOB_GID=4202\nSLURM_NODELIST=n1,n2\n"
		 "SLURM_JOB_CPUS_PER_NODE=4(x2)\nSLURMD_NODENAME=n1\nSPANK_PVC_REQUEST=1;nat:4\n\n");
	CHECK(getenv("SLURM_JOB_UID") == NULL && getenv("SPANK_PVC_REQUEST") == NULL);
	CHECK_IS(fake.log, "");
	CHECK_IS(read_text(scratch("ran")), "");
	stop_daemon(pid);
}

static void without_a_daemon_it_is_done_cold(void)
{
	(void)prepare();
	CHECK(fake_init_post_opt(3, av) == 0);
	CHECK_IS(read_text(scratch("ran")), "ensure\n");
}

static void component_tells_of_all(void)
{
	static char others[] = "n3";
	pid_t pid = start_daemon(prepare(), ANSWER, "0 4 VMs\n");

	fake.step_job = 13;
	fake.components[0].het_job_id = 12;
	fake.components[1] = (struct fake_component){.job_id = 13, .het_job_id = 12, .offset = 1, .nodes = others,
						     .cpus = {2}, .state = JOB_RUNNING};
	CHECK(fake_init_post_opt(3, av) == 0);
	CHECK_HAS(read_text(scratch("heard")), "SLURM_JOB_ID=13\n");
	CHECK_HAS(read_text(scratch("heard")), "SLURM_HET_JOB_ID=12\nPVC_HET_COMPONENTS=12/n1,n2/4(x2);13/n3/2\n");
	stop_daemon(pid);
}

static void what_a_prolog_did_is_not_done_again(void)
{
	(void)prepare();
	CHECK(mkdir(scratch("state/jobs/12"), 0700) == 0);
	(void)make_script("state/jobs/12/plan.json", "");
	CHECK(fake_init_post_opt(3, av) == 0);
	CHECK(fake.asked == 0);
	CHECK_IS(read_text(scratch("ran")), "");
}

static void other_jobs_cost_nothing(void)
{
	(void)prepare();
	memset(fake.job, 0, sizeof(fake.job));
	av[0] = argument("colour", "red");
	CHECK(fake_init_post_opt(3, av) == 0);
	CHECK(fake.asked == 0);
	CHECK_IS(fake.log, "");
}

static void job_that_ends_is_left_alone(void)
{
	static const uint32_t states[] = {JOB_PENDING, JOB_RUNNING | JOB_COMPLETING, JOB_CANCELLED};

	(void)prepare();
	for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++) {
		fake.components[0].state = states[i];
		CHECK(fake_init_post_opt(3, av) == 0);
	}
	fake.controller_is_away = true;
	CHECK(fake_init_post_opt(3, av) == 0);
	CHECK_IS(read_text(scratch("ran")), "");
	CHECK_HAS(fake.log, "pvc: job 12 has no virtual cluster here, and Slurm does not tell of a job that runs\n");
}

static void fault_fails_the_step(void)
{
	pid_t pid = start_daemon(prepare(), ANSWER, "6 no bridge\n");

	CHECK(fake_init_post_opt(3, av) == -1);
	CHECK_HAS(fake.log, "pvc: pvc-node ensure failed with exit code 6: no bridge\n");
	CHECK_IS(fake.drained, "n1 pvc: no bridge");
	stop_daemon(pid);
}

static void hostile_requests_add_nothing(void)
{
	static char longest[2000];
	pid_t pid = start_daemon(prepare(), ANSWER, "0 refused\n");

	memset(longest, 'x', sizeof(longest) - 1);
	fake_set(fake.job, "SLURM_SPANK_PVC_REQUEST", longest);
	CHECK(fake_init_post_opt(3, av) == 0);
	CHECK_HAS(read_text(scratch("heard")), "\nSPANK_PVC_REQUEST=invalid\n\n");
	stop_daemon(pid);
}

const struct test late_tests[] = {
	TEST(step_without_a_prolog_has_its_node_set_up),
	TEST(without_a_daemon_it_is_done_cold),
	TEST(component_tells_of_all),
	TEST(what_a_prolog_did_is_not_done_again),
	TEST(other_jobs_cost_nothing),
	TEST(job_that_ends_is_left_alone),
	TEST(fault_fails_the_step),
	TEST(hostile_requests_add_nothing),
	TESTS_END,
};

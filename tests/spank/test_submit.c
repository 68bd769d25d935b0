/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "check.h"
#include "fake_spank.h"

static char *av[3];

/* As salloc with --pvc=definition (NULL: without), where `pvc` is this script. */
static int submit(enum spank_context context, const char *definition, const char *script)
{
	av[0] = argument("pvc", make_script("pvc", script));
	av[1] = argument("timeout", "30");
	fake_start(context);
	CHECK(fake_init(2, av) == 0);
	if (definition != NULL)
		CHECK(fake_option(definition, 0) == 0);
	return fake_init_post_opt(2, av);
}

static const char *environment(const char *name)
{
	const char *value = getenv(name);

	return value == NULL ? "" : value;
}

static void request_and_definition_are_handed_on(void)
{
	CHECK(setenv("PVC_CPUS_PER_VM", "2", 1) == 0);
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "echo \"$@\" > asked; echo \"1;cpus=$PVC_CPUS_PER_VM;nat:4\"") == 0);
	CHECK_IS(read_text(scratch("asked")), "resolve -- debian:4\n");
	CHECK_IS(fake_get(fake.control, "PVC_REQUEST"), "1;cpus=2;nat:4");
	CHECK_IS(fake_get(fake.control, "PVC_DEFINITION"), "debian:4");
	CHECK_IS(environment("PVC_DEFINITION"), "debian:4");
	CHECK_IS(environment("PVC_REQUEST"), fake_get(fake.control, "PVC_REQUEST"));
	CHECK_IS(fake.log, "");
}

static void what_pvc_alloc_has_resolved_is_not_asked_again(void)
{
	CHECK(setenv("PVC_RESOLVED", "debian:4 1;cpus=2;lan:4", 1) == 0);
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "touch ran; exit 2") == 0);
	CHECK_IS(fake_get(fake.control, "PVC_REQUEST"), "1;cpus=2;lan:4");
	CHECK_IS(environment("PVC_RESOLVED"), "");
	CHECK_IS(fake.log, "");
}

static void what_was_resolved_for_another_definition_does_not_count(void)
{
	static const char *const texts[] = {"debian:3 1;nat:3", "debian:44 1;nat:4", "debian:4",
					    "debian:4 ",	"debian:4 1\n2",     " 1;nat:1"};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		CHECK(setenv("PVC_RESOLVED", texts[i], 1) == 0);
		CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "echo '1;nat:4'") == 0);
		CHECK_IS(fake_get(fake.control, "PVC_REQUEST"), "1;nat:4");
	}
}

static void srun_outside_a_job_submits_too(void)
{
	CHECK(submit(S_CTX_LOCAL, "debian:4", "echo '1;nat:4'") == 0);
	CHECK_IS(fake_get(fake.control, "PVC_REQUEST"), "1;nat:4");
}

static void definitions_are_one_word_to_pvc(void)
{
	CHECK(submit(S_CTX_ALLOCATOR, "--help $(touch hacked); x", "echo \"$# $3\" > asked; exit 2") == -1);
	CHECK_IS(read_text(scratch("asked")), "3 --help $(touch hacked); x\n");
}

static void refused_with_the_words_of_pvc(void)
{
	CHECK(submit(S_CTX_ALLOCATOR, "nope:4", "echo half; printf 'pvc: no \\033 template\\nhint: pvc template list' >&2; exit 2") ==
	      -1);
	CHECK_IS(fake.log, "pvc: no ? template\nhint: pvc template list\n");
	CHECK(fake_get(fake.control, "PVC_REQUEST") == NULL);
	CHECK_IS(environment("PVC_DEFINITION"), "");
}

static void refused_when_pvc_says_nothing(void)
{
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "exit 3") == -1);
	CHECK_HAS(fake.log, "resolve failed with exit code 3");
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "true") == -1);
	CHECK_HAS(fake.log, "printed no request");
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "echo '1;a:1'; echo '1;b:1'") == -1);
	CHECK_HAS(fake.log, "printed no request");
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "printf '1;nat:4'") == -1);
	CHECK_HAS(fake.log, "printed no request");
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "head -c 5000 /dev/zero | tr '\\0' x; echo") == -1);
	CHECK_HAS(fake.log, "printed no request");
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "head -c 1024 /dev/zero | tr '\\0' x; echo") == -1);
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "true; echo; echo '1;nat:4'") == -1);
	CHECK(fake_get(fake.control, "PVC_REQUEST") == NULL);
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "head -c 1023 /dev/zero | tr '\\0' x; echo") == 0);
}

static void refused_without_pvc(void)
{
	char *missing[] = {argument("pvc", scratch("nothing")), NULL};

	fake_start(S_CTX_ALLOCATOR);
	CHECK(fake_init(1, missing) == 0);
	CHECK(fake_option("debian:4", 0) == 0);
	CHECK(fake_init_post_opt(1, missing) == -1);
	CHECK_HAS(fake.log, "cannot start");
}

static void refused_at_the_deadline(void)
{
	av[0] = argument("pvc", make_script("pvc", "sleep 60"));
	av[1] = argument("timeout", "1");
	fake_start(S_CTX_ALLOCATOR);
	CHECK(fake_init(2, av) == 0);
	CHECK(fake_option("debian:4", 0) == 0);
	CHECK(fake_init_post_opt(2, av) == -1);
	CHECK_HAS(fake.log, "did not end in time");
}

static void refused_with_wrong_arguments(void)
{
	char *wrong[] = {argument("pvc", "relative"), NULL};

	fake_start(S_CTX_ALLOCATOR);
	CHECK(fake_init(1, wrong) == 0);
	CHECK(fake_init_post_opt(1, wrong) == 0); /* a job without --pvc does not care */
	CHECK_IS(fake.log, "");
	fake_start(S_CTX_LOCAL);
	CHECK(fake_init(1, wrong) == 0);
	CHECK(fake_option("debian:4", 0) == 0);
	CHECK(fake_init_post_opt(1, wrong) == -1);
	CHECK_HAS(fake.log, "absolute path");
}

static void refused_for_a_step(void)
{
	CHECK(setenv("SLURM_JOB_ID", "12", 1) == 0);
	CHECK(submit(S_CTX_LOCAL, "debian:4", "touch ran; echo '1;nat:4'") == -1);
	CHECK_HAS(fake.log, "srun in job 12 makes a step");
	CHECK_IS(read_text(scratch("ran")), "");
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "echo '1;nat:4'") == 0); /* sbatch inside a job: another job */
	CHECK_IS(fake_get(fake.control, "PVC_REQUEST"), "1;nat:4");
}

static void components_of_a_heterogeneous_job_share_the_request(void)
{
	CHECK(submit(S_CTX_ALLOCATOR, "a:2,b:4", "echo x >> ran; echo '1;sizes=2:1,4:4;nat:6'") == 0);
	memset(fake.control, 0, sizeof(fake.control)); /* each component has its own */
	CHECK(fake_init_post_opt(2, av) == 0);
	CHECK_IS(fake_get(fake.control, "PVC_REQUEST"), "1;sizes=2:1,4:4;nat:6");
	CHECK_IS(fake_get(fake.control, "PVC_DEFINITION"), "a:2,b:4");
	CHECK_IS(read_text(scratch("ran")), "x\n"); /* asked once */
	CHECK_IS(fake.log, "");
	CHECK(fake_init_post_opt(2, av) == -1); /* a third one */
	CHECK_HAS(fake.log, "a:2,b:4 has VMs of 2 size(s), but the job has 3 components");
}

static void what_pvc_alloc_has_resolved_is_for_all_components(void)
{
	CHECK(setenv("PVC_RESOLVED", "a:2,b:4 1;sizes=2:1,4:4;nat:6", 1) == 0);
	CHECK(submit(S_CTX_ALLOCATOR, "a:2,b:4", "touch ran; exit 2") == 0);
	CHECK(fake_init_post_opt(2, av) == 0);
	CHECK_IS(fake_get(fake.control, "PVC_REQUEST"), "1;sizes=2:1,4:4;nat:6");
	CHECK_IS(read_text(scratch("ran")), "");
}

static void refused_for_a_heterogeneous_job_that_does_not_fit(void)
{
	CHECK(submit(S_CTX_ALLOCATOR, NULL, "touch ran; echo '1;nat:4'") == 0); /* the leader, without */
	CHECK(fake_option("debian:4", 0) == 0);
	CHECK(fake_init_post_opt(2, av) == -1);
	CHECK_HAS(fake.log, "one --pvc describes all components");
	CHECK(submit(S_CTX_ALLOCATOR, "debian:4", "echo '1;nat:4'") == 0); /* one size, two components */
	CHECK(fake_init_post_opt(2, av) == -1);
	CHECK_HAS(fake.log, "debian:4 has VMs of 1 size(s), but the job has 2 components");
	CHECK(submit(S_CTX_ALLOCATOR, "a:2", "echo '1;sizes=1:1,1:2;nat:2'") == 0); /* a definition for each */
	CHECK(fake_option("b:4", 0) == 0);
	CHECK(fake_init_post_opt(2, av) == -1);
	CHECK_HAS(fake.log, "hint: give it before the first ':'");
}

static void steps_of_several_components_are_not_asked_for_vms(void)
{
	CHECK(setenv("SLURM_JOB_ID", "12", 1) == 0);
	CHECK(setenv("SLURM_SPANK__SLURM_SPANK_OPTION_pvc_pvc", "a:2,b:4", 1) == 0);
	CHECK(submit(S_CTX_LOCAL, "a:2,b:4", "touch ran") == 0); /* from the environment, for each component */
	CHECK(fake_option("a:2,b:4", 0) == 0);
	CHECK(fake_init_post_opt(2, av) == 0);
	CHECK_IS(fake.log, "");
}

static void step_keeps_the_definition_of_its_job(void)
{
	CHECK(setenv("SLURM_JOB_ID", "12", 1) == 0);
	CHECK(setenv("PVC_DEFINITION", "debian:4", 1) == 0);
	CHECK(submit(S_CTX_LOCAL, NULL, "touch ran") == 0);
	CHECK_IS(environment("PVC_DEFINITION"), "debian:4");
}

static void job_without_the_option_costs_and_inherits_nothing(void)
{
	CHECK(setenv("PVC_DEFINITION", "debian:4", 1) == 0);
	CHECK(setenv("SLURM_SPANK_PVC_DEFINITION", "debian:4", 1) == 0);
	CHECK(setenv("PVC_REQUEST", "1;nat:4", 1) == 0);
	CHECK(setenv("SLURM_SPANK_PVC_REQUEST", "1;nat:4", 1) == 0);
	CHECK(submit(S_CTX_ALLOCATOR, NULL, "touch ran; echo '1;nat:4'") == 0);
	CHECK(fake_get(fake.control, "PVC_REQUEST") == NULL);
	CHECK_IS(environment("PVC_DEFINITION"), "");
	CHECK_IS(environment("PVC_REQUEST"), "");
	CHECK_IS(environment("SLURM_SPANK_PVC_DEFINITION"), "");
	CHECK_IS(environment("SLURM_SPANK_PVC_REQUEST"), "");
	CHECK(strcmp(read_text(scratch("ran")), "") == 0);
	CHECK_IS(fake.log, "");
}

static void request_that_slurm_refuses_refuses_the_job(void)
{
	av[0] = argument("pvc", make_script("pvc", "echo '1;nat:4'"));
	fake_start(S_CTX_LOCAL);
	CHECK(fake_init(1, av) == 0);
	CHECK(fake_option("debian:4", 0) == 0);
	fake.control_refuses = true;
	CHECK(fake_init_post_opt(1, av) == -1);
	CHECK_HAS(fake.log, "cannot hand the request to Slurm: Failure");
}

const struct test submit_tests[] = {
	TEST(request_and_definition_are_handed_on),
	TEST(what_pvc_alloc_has_resolved_is_not_asked_again),
	TEST(what_was_resolved_for_another_definition_does_not_count),
	TEST(srun_outside_a_job_submits_too),
	TEST(definitions_are_one_word_to_pvc),
	TEST(refused_with_the_words_of_pvc),
	TEST(refused_when_pvc_says_nothing),
	TEST(refused_without_pvc),
	TEST(refused_at_the_deadline),
	TEST(refused_with_wrong_arguments),
	TEST(refused_for_a_step),
	TEST(components_of_a_heterogeneous_job_share_the_request),
	TEST(what_pvc_alloc_has_resolved_is_for_all_components),
	TEST(refused_for_a_heterogeneous_job_that_does_not_fit),
	TEST(steps_of_several_components_are_not_asked_for_vms),
	TEST(step_keeps_the_definition_of_its_job),
	TEST(job_without_the_option_costs_and_inherits_nothing),
	TEST(request_that_slurm_refuses_refuses_the_job),
	TESTS_END,
};

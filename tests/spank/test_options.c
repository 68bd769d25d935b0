/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "check.h"
#include "fake_spank.h"
#include "options.h"

#define INHERITED "SLURM_SPANK__SLURM_SPANK_OPTION_pvc_pvc"

static void start(void)
{
	fake_start(S_CTX_ALLOCATOR);
	CHECK(fake_init(0, NULL) == 0);
}

static void option_is_registered_where_slurm_wants_it(void)
{
	const enum spank_context contexts[] = {S_CTX_LOCAL, S_CTX_ALLOCATOR, S_CTX_REMOTE};

	for (size_t i = 0; i < 3; i++) {
		fake_start(contexts[i]);
		CHECK(fake_init(0, NULL) == 0);
		CHECK(fake.option != NULL && fake.option->has_arg == 1);
		CHECK_IS(fake.option->name, "pvc");
		CHECK_IS(fake.option->arginfo, "DEFINITION");
	}
	fake_start(S_CTX_SLURMD);
	CHECK(fake_init(0, NULL) == 0);
	CHECK(fake.option == NULL);
}

static void refused_registration_is_an_error(void)
{
	start();
	CHECK(fake_init(0, NULL) == -1);
	CHECK_HAS(fake.log, "cannot register --pvc");
}

static void the_last_value_wins(void)
{
	start();
	CHECK(pvc_options_definition() == NULL);
	CHECK(fake_option("debian:4", 0) == 0);
	CHECK(fake_option("debian:4", 0) == 0);
	CHECK_IS(pvc_options_definition(), "debian:4");
	CHECK(fake_option("web:2,db:1", 0) == 0);
	CHECK_IS(pvc_options_definition(), "web:2,db:1");
	CHECK_IS(fake.log, "");
}

static void unusable_values_are_refused(void)
{
	char longest[1025] = "";

	start();
	CHECK(fake_option(NULL, 0) == -1);
	CHECK(fake_option("", 0) == -1);
	CHECK(fake_option("a\nb", 0) == -1);
	CHECK(fake_option("a\x7f", 0) == -1);
	memset(longest, 'a', 1024);
	CHECK(fake_option(longest, 0) == -1);
	CHECK_HAS(fake.log, "--pvc wants a definition");
	CHECK(pvc_options_definition() == NULL);
	longest[1023] = '\0';
	CHECK(fake_option(longest, 0) == 0);
	CHECK_IS(pvc_options_definition(), longest);
}

static void options_of_the_enclosing_job_are_not_taken(void)
{
	start();
	CHECK(setenv("SLURM_JOB_ID", "7", 1) == 0);
	CHECK(setenv(INHERITED, "debian:4", 1) == 0);
	CHECK(fake_option("debian:4", 0) == 0);
	CHECK(pvc_options_definition() == NULL);
	CHECK(fake_option("debian:4", 0) == 0); /* the command line, after the environment */
	CHECK_IS(pvc_options_definition(), "debian:4");
}

static void options_by_environment_outside_a_job_are_taken(void)
{
	start();
	CHECK(setenv(INHERITED, "debian:4", 1) == 0);
	CHECK(fake_option("debian:4", 0) == 0);
	CHECK_IS(pvc_options_definition(), "debian:4");
}

static void slurmstepd_ignores_the_option(void)
{
	start();
	CHECK(fake_option("debian:4", 1) == 0);
	CHECK(pvc_options_definition() == NULL);
}

const struct test options_tests[] = {
	TEST(option_is_registered_where_slurm_wants_it),
	TEST(refused_registration_is_an_error),
	TEST(the_last_value_wins),
	TEST(unusable_values_are_refused),
	TEST(options_of_the_enclosing_job_are_not_taken),
	TEST(options_by_environment_outside_a_job_are_taken),
	TEST(slurmstepd_ignores_the_option),
	TESTS_END,
};

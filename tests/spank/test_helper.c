/* SPDX-License-Identifier: Apache-2.0 */
#include "helper.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "common.h"
#include "fake_spank.h"

static char output[4096];

/* Returns the helper's result; its exit code, or -1, goes to code. */
static int run(char *program, bool as_daemon, int timeout_ms, int *code)
{
	char variable[] = "ONLY=this";
	char *argv[] = {program, NULL};
	char *envp[] = {variable, NULL};
	int log = pvc_common_memfd("log");
	struct pvc_helper helper = {.argv = argv, .envp = envp, .out = log, .err = log, .as_daemon = as_daemon,
				    .deadline_ms = pvc_common_now_ms() + timeout_ms};
	int rv = -1;

	fake_start(S_CTX_JOB_SCRIPT);
	*code = -1;
	rv = pvc_helper_run(&helper, code);
	CHECK(pvc_common_read_end(log, output, sizeof(output)) >= 0);
	pvc_common_close(&log);
	return rv;
}

static void exit_codes_come_back(void)
{
	int code = -1;

	CHECK(run(make_script("good", "echo said; echo also >&2"), true, 30000, &code) == 0);
	CHECK(code == 0);
	CHECK_IS(output, "said\nalso\n");
	CHECK(run(make_script("bad", "exit 6"), true, 30000, &code) == 0);
	CHECK(code == 6);
	CHECK(run(make_script("killed", "kill -9 $$"), true, 30000, &code) == 0);
	CHECK(code == 128 + SIGKILL);
	CHECK_IS(fake.log, "");
}

static void missing_program_says_so(void)
{
	int code = -1;

	CHECK(run(scratch("nothing"), true, 30000, &code) == 0);
	CHECK(code == 127);
	CHECK_HAS(output, "nothing: No such file or directory");
}

static void child_has_nothing_of_ours(void)
{
	int code = -1;
	int leak = open("/dev/null", O_RDWR); /* not closed on exec, as Slurm's own are */

	CHECK(setenv("LD_LIBRARY_PATH", "/evil", 1) == 0);
	CHECK(leak > STDERR_FILENO);
	CHECK(run(make_script("look", "/usr/bin/env; cat; ls /proc/self/fd | tr '\\n' ' '; readlink /proc/self/fd/0"), true,
		  30000, &code) == 0);
	CHECK(code == 0);
	CHECK_HAS(output, "ONLY=this");
	CHECK_NOT(output, "/evil");
	CHECK_NOT(output, "PVC_SCRATCH");
	CHECK_HAS(output, "0 1 2 3 /dev/null"); /* 3 is the directory that ls reads */
	(void)close(leak);
}

static void daemons_child_starts_in_the_root(void)
{
	int code = -1;
	char *program = scratch("where");
	FILE *file = fopen(program, "we");

	CHECK(file != NULL && fputs("#!/bin/sh\npwd\n", file) >= 0 && fchmod(fileno(file), 0755) == 0);
	CHECK(file != NULL && fclose(file) == 0);
	CHECK(run(program, true, 30000, &code) == 0);
	CHECK_IS(output, "/\n");
	CHECK(run(program, false, 30000, &code) == 0);
	CHECK(strcmp(output, "/\n") != 0);
}

static void blocked_and_ignored_signals_are_not_inherited(void)
{
	int code = -1;
	sigset_t all;

	(void)sigfillset(&all);
	(void)sigprocmask(SIG_SETMASK, &all, NULL);
	(void)signal(SIGPIPE, SIG_IGN);
	CHECK(run(make_script("signals", "grep -E 'Sig(Blk|Ign)' /proc/$$/status | tr -d '\\t\\n'"), true, 30000, &code) == 0);
	CHECK_HAS(output, "SigBlk:0000000000000000SigIgn:");
	/* Signals 32 and 33 are libc's own, and keep what whoever started the tests made of them. */
	CHECK_IS(output + strlen(output) - 7, "0000000");
}

static void deadline_kills_the_whole_group(void)
{
	int code = -1;
	pid_t grandchild = -1;

	/* On a busy machine a deadline may come before the script has a child: then it is given more. */
	for (int timeout_ms = 400; grandchild <= 1 && timeout_ms < 60000; timeout_ms *= 2) {
		CHECK(run(make_script("slow", "sleep 600 & echo $! > pid; wait"), true, timeout_ms, &code) == -1);
		CHECK_HAS(fake.log, "did not end in time: killed");
		grandchild = (pid_t)strtol(read_text(scratch("pid")), NULL, 10);
	}
	CHECK(grandchild > 1);
	for (int i = 0; i < 500 && kill(grandchild, 0) == 0; i++) {
		char path[64] = "";

		(void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)grandchild);
		if (strstr(read_text(path), ") Z ") != NULL) /* dead, and nobody's child */
			break;
		CHECK(i < 499);
		(void)usleep(20000);
	}
}

static void closed_standard_descriptors_do_no_harm(void)
{
	int code = -1;
	char *program = make_script("talk", "cat; echo out; echo err >&2");

	(void)close(STDIN_FILENO);
	(void)close(STDOUT_FILENO);
	CHECK(run(program, true, 30000, &code) == 0);
	CHECK(code == 0);
	CHECK_IS(output, "out\nerr\n");
}

const struct test helper_tests[] = {
	TEST(exit_codes_come_back),
	TEST(missing_program_says_so),
	TEST(child_has_nothing_of_ours),
	TEST(daemons_child_starts_in_the_root),
	TEST(blocked_and_ignored_signals_are_not_inherited),
	TEST(deadline_kills_the_whole_group),
	TEST(closed_standard_descriptors_do_no_harm),
	TESTS_END,
};

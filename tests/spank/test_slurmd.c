/* SPDX-License-Identifier: Apache-2.0 */
#include <slurm/slurm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "fake_spank.h"

static char *av[5];

/* As slurmd on a node where `pvc-node` is this script; returns the path of its daemon's socket. */
static char *prepare(const char *script, const char *timeout)
{
	char *path = scratch("sock");

	av[0] = argument("pvc-node", make_script("pvc-node", script));
	av[1] = argument("socket", path);
	av[2] = argument("state_dir", scratch("state"));
	av[3] = argument("timeout", timeout);
	fake_start(S_CTX_JOB_SCRIPT);
	(void)unsetenv("PATH"); /* a hook has none */
	CHECK(setenv("SLURM_JOB_ID", "12", 1) == 0);
	CHECK(setenv("SLURM_JOB_UID", "4201", 1) == 0);
	CHECK(setenv("SLURMD_NODENAME", "n1", 1) == 0);
	return path;
}

static void request(const char *text)
{
	CHECK(setenv("SPANK_PVC_REQUEST", text, 1) == 0);
}

static void make_state(void)
{
	CHECK(mkdir(scratch("state"), 0700) == 0 && mkdir(scratch("state/jobs"), 0700) == 0);
	CHECK(mkdir(scratch("state/jobs/12"), 0700) == 0);
}

static void prolog_without_request_does_nothing(void)
{
	char *path = prepare("touch ran", "30");
	pid_t pid = start_daemon(path, ANSWER, "6 was asked\n");
	char *wrong[] = {argument("pvc", "relative"), NULL};

	CHECK(fake_prolog(4, av) == 0);
	CHECK(fake_prolog(1, wrong) == 0);
	CHECK(access(scratch("ran"), F_OK) < 0);
	CHECK_IS(read_text(scratch("heard")), "");
	CHECK_IS(fake.log, "");
	CHECK_IS(fake.drained, "");
	stop_daemon(pid);
}

static void prolog_asks_the_daemon(void)
{
	pid_t pid = start_daemon(prepare("touch ran", "30"), ANSWER, "0 12 is ready\n");

	request("1;nat:4");
	CHECK(fake_prolog(4, av) == 0);
	CHECK_IS(read_text(scratch("heard")),
		 "PVC1 setup\nSLURM_JOB_ID=12\nSLURM_JOB_UID=4201\nSLURMD_NODENAME=n1\nSPANK_PVC_REQUEST=1;nat:4\n\n");
	CHECK(access(scratch("ran"), F_OK) < 0);
	CHECK_IS(fake.log, "");
	CHECK_IS(fake.drained, "");
	stop_daemon(pid);
}

static void prolog_of_a_component_tells_of_all(void)
{
	static char first[] = "n1";
	static char second[] = "n[2-3]";
	pid_t pid = start_daemon(prepare("touch ran", "30"), ANSWER, "0 12 is ready\n");

	fake.components[0] = (struct fake_component){.job_id = 12, .het_job_id = 12, .nodes = first, .cpus = {2},
						     .state = JOB_RUNNING};
	fake.components[1] =
		(struct fake_component){.job_id = 13, .het_job_id = 12, .offset = 1, .nodes = second, .cpus = {4, 4}};
	CHECK(setenv("SLURM_HET_JOB_ID", "12", 1) == 0);
	CHECK(setenv("PVC_HET_COMPONENTS", "12/n1/9", 1) == 0);
	request("1;sizes=1:2,2:4;nat:3");
	CHECK(fake_prolog(4, av) == 0);
	CHECK_HAS(read_text(scratch("heard")), "\nSLURM_HET_JOB_ID=12\nPVC_HET_COMPONENTS=12/n1/2;13/n[2-3]/4(x2)\n");
	stop_daemon(pid);
}

static void prolog_tells_what_slurm_gave_of_generic_resources(void)
{
	static char nodes[] = "n0,n1";
	static char given[] = "gpu:2(IDX:0,3)";
	static char total[] = "gpu:4";
	pid_t pid = start_daemon(prepare("touch ran", "30"), ANSWER, "0 12 is ready\n");

	fake.components[0] = (struct fake_component){.job_id = 12, .nodes = nodes, .gres = {NULL, given},
						     .gres_count = 2, .state = JOB_RUNNING};
	fake.node_gres = total;
	CHECK(setenv("PVC_GRES", "gpu:4(IDX:0-3);gpu:4", 1) == 0);
	request("1;gres;gpu:2");
	CHECK(fake_prolog(4, av) == 0);
	CHECK_HAS(read_text(scratch("heard")), "\nPVC_GRES=gpu:2(IDX:0,3);gpu:4\nSPANK_PVC_REQUEST=1;gres;gpu:2\n");
	stop_daemon(pid);
}

static void job_that_ended_within_its_prolog_is_undone(void)
{
	static char nodes[] = "n1";
	pid_t pid = start_daemon(prepare("echo $1 >>\"${0%/*}/ran\"", "30"), ANSWER, "0 12 is ready\n");

	request("1;nat:4");
	fake.components[0] =
		(struct fake_component){.job_id = 12, .nodes = nodes, .state = JOB_CANCELLED | JOB_COMPLETING};
	CHECK(fake_prolog(4, av) == 0);
	CHECK_HAS(read_text(scratch("heard")), "PVC1 setup\n");
	CHECK_IS(read_text(scratch("ran")), "teardown\n"); /* the daemon above answers once */
	stop_daemon(pid);
	fake.gone = true;
	CHECK(fake_prolog(4, av) == 0);
	CHECK_IS(read_text(scratch("ran")), "teardown\nsetup\nteardown\n");
	fake.controller_is_away = true;
	CHECK(fake_prolog(4, av) == 0);
	CHECK_IS(read_text(scratch("ran")), "teardown\nsetup\nteardown\nsetup\n");
	CHECK_IS(fake.log, "");
}

static void hostile_request_cannot_add_facts(void)
{
	pid_t pid = start_daemon(prepare("touch ran", "30"), ANSWER, "0 refused\n");

	request("1;nat:4\nSLURM_JOB_UID=0\n\n");
	CHECK(fake_prolog(4, av) == 0);
	CHECK_IS(read_text(scratch("heard")),
		 "PVC1 setup\nSLURM_JOB_ID=12\nSLURM_JOB_UID=4201\nSLURMD_NODENAME=n1\nSPANK_PVC_REQUEST=invalid\n\n");
	stop_daemon(pid);
}

static void fault_of_the_node_fails_the_prolog(void)
{
	pid_t pid = start_daemon(prepare("touch ran", "30"), ANSWER, "6 cannot create the \a bridge\n");

	request("1;nat:4");
	CHECK(fake_prolog(4, av) == -1);
	CHECK_HAS(fake.log, "error: pvc: pvc-node setup failed with exit code 6: cannot create the ? bridge\n");
	CHECK_IS(fake.drained, "n1 pvc: cannot create the ? bridge");
	CHECK(access(scratch("ran"), F_OK) < 0);
	stop_daemon(pid);
}

/* A user's file name in it: what every user reads in sinfo -R is one line of text. */
static void reason_of_a_fault_is_clean(void)
{
	static const char said[] = "6 cannot remove a\x1b[2J\xc2\x9b\xe2\x80\xae\xe3\x85\xa4\xcc\x81, Gr\xc3\xb6\xc3\n";
	pid_t pid = start_daemon(prepare("touch ran", "30"), ANSWER, said);

	request("1;nat:4");
	CHECK(fake_prolog(4, av) == -1);
	CHECK_IS(fake.drained, "n1 pvc: cannot remove a?[2J??????????, Gr\xc3\xb6?");
	stop_daemon(pid);
}

static void reason_of_a_failed_start_is_clean(void)
{
	(void)prepare("printf 'cannot remove a\\033[2J\\302\\233\\r\\342\\200\\256b\\n'; exit 6", "30");
	request("1;nat:4");
	CHECK(fake_prolog(4, av) == -1);
	CHECK_IS(fake.drained, "n1 pvc: cannot remove a?[2J??????b");
	CHECK_HAS(fake.log, "error: pvc: cannot remove a?[2J??????b\n");
}

static void failure_without_text_has_a_reason(void)
{
	pid_t pid = start_daemon(prepare("touch ran", "30"), ANSWER, "6 \n");

	request("1;nat:4");
	CHECK(fake_prolog(4, av) == -1);
	CHECK_IS(fake.drained, "n1 pvc: pvc-node failed without a word");
	stop_daemon(pid);
}

static void silent_daemon_fails_the_prolog(void)
{
	pid_t pid = start_daemon(prepare("touch ran", "1"), NEVER, "");

	request("1;nat:4");
	CHECK(fake_prolog(4, av) == -1);
	CHECK_HAS(fake.log, "no answer from pvc-node");
	CHECK_IS(fake.drained, "n1 pvc: pvc-node did not answer in time");
	CHECK(access(scratch("ran"), F_OK) < 0);
	stop_daemon(pid);
}

static void without_daemon_pvc_node_is_started(void)
{
	(void)prepare("echo noise; echo \"$*\" > ran; /usr/bin/env | /usr/bin/sort > env; cat > stdin", "30");
	request("1;nat:4");
	CHECK(setenv("LD_PRELOAD_OF_A_USER", "/evil.so", 1) == 0);
	CHECK(fake_prolog(4, av) == 0);
	CHECK_IS(read_text(scratch("ran")), "setup\n");
	CHECK_HAS(read_text(scratch("env")), "LANG=C.UTF-8\n");
	CHECK_HAS(read_text(scratch("env")), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n");
	CHECK_HAS(read_text(scratch("env")), "SLURM_JOB_ID=12\n");
	CHECK_HAS(read_text(scratch("env")), "SPANK_PVC_REQUEST=1;nat:4\n");
	CHECK_NOT(read_text(scratch("env")), "evil");
	CHECK_IS(read_text(scratch("stdin")), "");
	CHECK_IS(fake.log, "");
	CHECK_IS(fake.drained, "");
}

static void daemon_that_dies_is_replaced(void)
{
	pid_t pid = start_daemon(prepare("touch ran", "30"), ANSWER, "0 hal");

	request("1;nat:4");
	CHECK(fake_prolog(4, av) == 0);
	CHECK(access(scratch("ran"), F_OK) == 0);
	CHECK_IS(fake.log, "");
	CHECK_IS(fake.drained, "");
	stop_daemon(pid);
}

static void dead_socket_is_no_daemon(void)
{
	(void)start_daemon(prepare("touch ran", "30"), NOT_LISTENING, "");
	request("1;nat:4");
	CHECK(fake_prolog(4, av) == 0);
	CHECK(access(scratch("ran"), F_OK) == 0);
}

static void failed_start_tells_its_log(void)
{
	(void)prepare("echo begin; echo 'no such \xc3\xa9 device' >&2; echo; echo 'hint: load it'; exit 6", "30");
	request("1;nat:4");
	CHECK(fake_prolog(4, av) == -1);
	CHECK_HAS(fake.log, "pvc-node setup failed with exit code 6\n");
	CHECK_HAS(fake.log, "error: pvc: begin\nerror: pvc: no such \xc3\xa9 device\n");
	CHECK_IS(fake.drained, "n1 pvc: no such \xc3\xa9 device");
}

static void slow_start_is_killed(void)
{
	(void)prepare("sleep 60", "1");
	request("1;nat:4");
	CHECK(fake_prolog(4, av) == -1);
	CHECK_HAS(fake.log, "did not end in time");
	CHECK_IS(fake.drained, "n1 pvc: pvc-node setup could not be run or did not end in time");
}

static void long_log_is_cut_at_its_start(void)
{
	(void)prepare("for i in 1 2 3 4 5 6 7 8 9; do printf '%1000d\\n' $i; done; echo the end; exit 1", "30");
	request("1;nat:4");
	CHECK(fake_prolog(4, av) == -1);
	CHECK_NOT(fake.log, " 2\n");
	CHECK_HAS(fake.log, " 9\nerror: pvc: the end\n");
	CHECK_IS(fake.drained, "n1 pvc: the end");
}

static void silent_failure_has_a_reason(void)
{
	(void)prepare("exit 1", "30");
	request("1;nat:4");
	CHECK(fake_prolog(4, av) == -1);
	CHECK_IS(fake.drained, "n1 pvc: pvc-node failed without a word");
}

static void reason_commands_no_terminal(void)
{
	(void)prepare("printf 'cannot remove a\033]0;b\007c\033[2J\n' >&2; exit 6", "30");
	request("1;nat:4");
	CHECK(fake_prolog(4, av) == -1);
	CHECK_IS(fake.drained, "n1 pvc: cannot remove a?]0;b?c?[2J");
}

static void missing_pvc_node_fails_the_prolog(void)
{
	(void)prepare("true", "30");
	av[0] = argument("pvc-node", scratch("nothing"));
	request("1;nat:4");
	CHECK(fake_prolog(4, av) == -1);
	CHECK_HAS(fake.log, "cannot start");
	CHECK_HAS(fake.drained, "n1 pvc: cannot start ");
}

static void epilog_without_state_does_nothing(void)
{
	pid_t pid = start_daemon(prepare("touch ran", "30"), ANSWER, "6 was asked\n");

	request("1;nat:4");
	CHECK(fake_epilog(4, av) == 0); /* no state_dir at all */
	CHECK(mkdir(scratch("state"), 0700) == 0 && mkdir(scratch("state/jobs"), 0700) == 0);
	CHECK(fake_epilog(4, av) == 0);
	CHECK_IS(read_text(scratch("heard")), "");
	CHECK(access(scratch("ran"), F_OK) < 0);
	CHECK_IS(fake.log, "");
	CHECK_IS(fake.drained, "");
	stop_daemon(pid);
}

static void epilog_tears_down(void)
{
	pid_t pid = start_daemon(prepare("touch ran", "30"), ANSWER, "0\n");

	make_state(); /* SPANK_PVC_REQUEST is not needed for it */
	CHECK(fake_epilog(4, av) == 0);
	CHECK_IS(read_text(scratch("heard")), "PVC1 teardown\nSLURM_JOB_ID=12\nSLURM_JOB_UID=4201\nSLURMD_NODENAME=n1\n\n");
	CHECK_IS(fake.log, "");
	CHECK_IS(fake.drained, "");
	stop_daemon(pid);
}

static void epilog_starts_pvc_node(void)
{
	(void)prepare("echo \"$*\" > ran", "30");
	make_state();
	(void)close(STDIN_FILENO); /* as slurmd leaves it */
	(void)close(STDOUT_FILENO);
	CHECK(fake_epilog(4, av) == 0);
	CHECK_IS(read_text(scratch("ran")), "teardown\n");
}

static void epilog_that_cannot_undo_fails(void)
{
	(void)prepare("exit 6", "30");
	make_state();
	CHECK(fake_epilog(4, av) == -1);
	CHECK_HAS(fake.log, "teardown failed with exit code 6");
}

static void epilog_with_wrong_arguments_spares_other_jobs(void)
{
	char *wrong[] = {argument("colour", "red"), NULL};

	(void)prepare("true", "30");
	CHECK(fake_epilog(1, wrong) == 0);
	CHECK_IS(fake.drained, "");
	request("1;nat:4");
	CHECK(fake_epilog(1, wrong) == -1);
	CHECK(fake_prolog(1, wrong) == -1);
	CHECK_IS(fake.drained, "n1 pvc: wrong arguments in plugstack.conf");
}

static void strange_job_ids_name_no_path(void)
{
	const char *const ids[] = {"", "..", "../jobs/12", "12/", "012345678901234567890123456789", " 12"};

	(void)prepare("touch ran", "30");
	make_state();
	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		CHECK(setenv("SLURM_JOB_ID", ids[i], 1) == 0);
		CHECK(fake_epilog(4, av) == 0);
	}
	(void)unsetenv("SLURM_JOB_ID");
	CHECK(fake_epilog(4, av) == 0);
	CHECK(access(scratch("ran"), F_OK) < 0);
}

const struct test slurmd_tests[] = {
	TEST(prolog_without_request_does_nothing),
	TEST(prolog_asks_the_daemon),
	TEST(prolog_of_a_component_tells_of_all),
	TEST(prolog_tells_what_slurm_gave_of_generic_resources),
	TEST(job_that_ended_within_its_prolog_is_undone),
	TEST(hostile_request_cannot_add_facts),
	TEST(fault_of_the_node_fails_the_prolog),
	TEST(reason_of_a_fault_is_clean),
	TEST(reason_of_a_failed_start_is_clean),
	TEST(failure_without_text_has_a_reason),
	TEST(silent_daemon_fails_the_prolog),
	TEST(without_daemon_pvc_node_is_started),
	TEST(daemon_that_dies_is_replaced),
	TEST(dead_socket_is_no_daemon),
	TEST(failed_start_tells_its_log),
	TEST(slow_start_is_killed),
	TEST(long_log_is_cut_at_its_start),
	TEST(silent_failure_has_a_reason),
	TEST(reason_commands_no_terminal),
	TEST(missing_pvc_node_fails_the_prolog),
	TEST(epilog_without_state_does_nothing),
	TEST(epilog_tears_down),
	TEST(epilog_starts_pvc_node),
	TEST(epilog_that_cannot_undo_fails),
	TEST(epilog_with_wrong_arguments_spares_other_jobs),
	TEST(strange_job_ids_name_no_path),
	TESTS_END,
};

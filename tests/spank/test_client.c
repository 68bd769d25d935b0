/* SPDX-License-Identifier: Apache-2.0 */
#include "client.h"

#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "common.h"
#include "fake_spank.h"

static char fact_id[] = "SLURM_JOB_ID=12";
static char fact_request[] = "SPANK_PVC_REQUEST=1;nat:4";
static char *const facts[] = {fact_id, fact_request, NULL};

static int code;
static char text[PVC_LINE_SIZE];

static enum pvc_client_result ask(enum manner manner, const char *answer, int timeout_ms)
{
	char *path = scratch("sock");
	pid_t pid = start_daemon(path, manner, answer);
	enum pvc_client_result result = PVC_CLIENT_NO_ANSWER;

	fake_start(S_CTX_JOB_SCRIPT);
	code = -1;
	text[0] = '\0';
	result = pvc_client_ask(path, "setup", facts, pvc_common_now_ms() + timeout_ms, &code, text, sizeof(text));
	stop_daemon(pid);
	(void)unlink(path);
	return result;
}

static void good_answer(void)
{
	CHECK(ask(ANSWER, "0 done\n", 30000) == PVC_CLIENT_ANSWERED);
	CHECK(code == 0);
	CHECK_IS(text, "done");
	CHECK_IS(read_text(scratch("heard")), "PVC1 setup\nSLURM_JOB_ID=12\nSPANK_PVC_REQUEST=1;nat:4\n\n");
	CHECK_IS(fake.log, "");
}

static void roots_own_socket_comes_first(void)
{
	char *path = scratch("sock.root");
	pid_t pid = start_daemon(path, ANSWER, "0 root's\n");

	CHECK(ask(ANSWER, "0 anybody's\n", 30000) == PVC_CLIENT_ANSWERED);
	CHECK_IS(text, "root's");
	stop_daemon(pid);
	(void)unlink(path);
	CHECK(ask(ANSWER, "0 anybody's\n", 30000) == PVC_CLIENT_ANSWERED);
	CHECK_IS(text, "anybody's");
}

static void answer_without_text(void)
{
	CHECK(ask(ANSWER, "0\n", 30000) == PVC_CLIENT_ANSWERED);
	CHECK(code == 0);
	CHECK_IS(text, "");
	CHECK(ask(ANSWER, "255 \n", 30000) == PVC_CLIENT_ANSWERED);
	CHECK(code == 255);
}

static void failure_is_an_answer(void)
{
	CHECK(ask(ANSWER, "6 cannot create the bridge\n", 30000) == PVC_CLIENT_ANSWERED);
	CHECK(code == 6);
	CHECK_IS(text, "cannot create the bridge");
}

static void answer_without_reading(void)
{
	CHECK(ask(ANSWER_AT_ONCE, "5 no etcd\n", 30000) == PVC_CLIENT_ANSWERED);
	CHECK(code == 5);
}

static void what_is_no_answer(void)
{
	const char *const garbage[] = {"", "\n", "0", "0 cut", "hello\n", "-1 x\n", "256 x\n", "0000 x\n", "0x\n", " 0\n"};
	char *flood = argument("0", "");

	for (size_t i = 0; i < sizeof(garbage) / sizeof(garbage[0]); i++)
		CHECK(ask(ANSWER, garbage[i], 30000) == PVC_CLIENT_NO_ANSWER);
	CHECK(ask(ANSWER, flood, 30000) == PVC_CLIENT_NO_ANSWER);
	CHECK(ask(ANSWER_AT_ONCE, "", 30000) == PVC_CLIENT_NO_ANSWER);
}

static void endless_line_is_no_answer(void)
{
	char *line = calloc(1, 100001);

	memset(line, '1', 100000);
	CHECK(ask(ANSWER_AT_ONCE, line, 30000) == PVC_CLIENT_NO_ANSWER);
	free(line);
}

static void nobody_there(void)
{
	CHECK(ask(NOT_LISTENING, "", 30000) == PVC_CLIENT_NO_ANSWER);
	CHECK(pvc_client_ask(scratch("none"), "setup", facts, pvc_common_now_ms() + 30000, &code, text, sizeof(text)) ==
	      PVC_CLIENT_NO_ANSWER);
	CHECK_IS(fake.log, "");
}

static void silence_ends_at_the_deadline(void)
{
	int64_t start = pvc_common_now_ms();

	CHECK(ask(NEVER, "", 300) == PVC_CLIENT_TIMED_OUT);
	CHECK(pvc_common_now_ms() - start >= 300);
	CHECK_HAS(fake.log, "no answer from pvc-node");
}

static void closed_standard_descriptors_are_not_used(void)
{
	(void)close(STDIN_FILENO);
	(void)close(STDOUT_FILENO);
	CHECK(ask(ANSWER, "0 done\n", 30000) == PVC_CLIENT_ANSWERED);
	CHECK(pvc_common_memfd("high") > STDERR_FILENO);
}

const struct test client_tests[] = {
	TEST(good_answer),
	TEST(roots_own_socket_comes_first),
	TEST(answer_without_text),
	TEST(failure_is_an_answer),
	TEST(answer_without_reading),
	TEST(what_is_no_answer),
	TEST(endless_line_is_no_answer),
	TEST(nobody_there),
	TEST(silence_ends_at_the_deadline),
	TEST(closed_standard_descriptors_are_not_used),
	TESTS_END,
};

/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"
#include "config.h"
#include "fake_spank.h"

static int parse_one(struct pvc_config *config, char *text)
{
	char *av[] = {text, NULL};

	fake_start(S_CTX_ALLOCATOR);
	return pvc_config_parse(config, 1, av);
}

static void defaults_are_complete(void)
{
	struct pvc_config config;

	fake_start(S_CTX_ALLOCATOR);
	CHECK(pvc_config_parse(&config, 0, NULL) == 0);
	CHECK_IS(config.pvc, "/opt/pvc/bin/pvc");
	CHECK_IS(config.pvc_node, "/opt/pvc/bin/pvc-node");
	CHECK_IS(config.socket, "/run/pvc/node.sock");
	CHECK_IS(config.state_dir, "/var/lib/pvc");
	CHECK(config.timeout_ms == 50000);
	CHECK_IS(fake.log, "");
}

static void every_argument_is_taken(void)
{
	struct pvc_config config;
	char *av[] = {argument("pvc", "/a"), argument("pvc-node", "/b"), argument("socket", "/c"),
		      argument("state_dir", "/d"), argument("timeout", "7"), NULL};

	fake_start(S_CTX_ALLOCATOR);
	CHECK(pvc_config_parse(&config, 5, av) == 0);
	CHECK_IS(config.pvc, "/a");
	CHECK_IS(config.pvc_node, "/b");
	CHECK_IS(config.socket, "/c");
	CHECK_IS(config.state_dir, "/d");
	CHECK(config.timeout_ms == 7000);
	CHECK_IS(fake.log, "");
}

static void unknown_and_relative_are_errors(void)
{
	struct pvc_config config;

	CHECK(parse_one(&config, argument("colour", "red")) == -1);
	CHECK_HAS(fake.log, "unknown argument 'colour=red'");
	CHECK(parse_one(&config, argument("pvc", "bin/pvc")) == -1);
	CHECK_HAS(fake.log, "pvc= wants an absolute path, not 'bin/pvc'");
	CHECK(parse_one(&config, argument("socket", "")) == -1);
	CHECK_HAS(fake.log, "socket= wants an absolute path");
}

static void long_paths_are_not_cut(void)
{
	struct pvc_config config;
	char path[8192] = "";

	memset(path, '/', sizeof(config.socket) - 1);
	CHECK(parse_one(&config, argument("socket", path)) == 0);
	path[sizeof(config.socket) - 1] = '/';
	CHECK(parse_one(&config, argument("socket", path)) == -1);
	CHECK_HAS(fake.log, "socket= is longer than 107 bytes");
	memset(path, '/', sizeof(path) - 1);
	CHECK(parse_one(&config, argument("state_dir", path)) == -1);
	CHECK_HAS(fake.log, "state_dir= is longer than");
}

static void timeouts_are_whole_seconds(void)
{
	const char *const bad[] = {"", "0", "3601", "5s", "-1", " 5", "1e3", "99999999999999999999"};
	struct pvc_config config;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		CHECK(parse_one(&config, argument("timeout", bad[i])) == -1);
		CHECK_HAS(fake.log, "timeout= wants 1 to 3600 seconds");
	}
	CHECK(parse_one(&config, argument("timeout", "3600")) == 0);
}

static void all_problems_are_said_at_once(void)
{
	struct pvc_config config;
	char *av[] = {argument("pvc", "x"), argument("y", "z"), argument("timeout", "never"), NULL};

	fake_start(S_CTX_SLURMD);
	CHECK(fake_init(3, av) == -1);
	CHECK(pvc_config_parse(&config, 3, av) == -1);
	CHECK_HAS(fake.log, "absolute path");
	CHECK_HAS(fake.log, "unknown argument");
	CHECK_HAS(fake.log, "seconds");
}

const struct test config_tests[] = {
	TEST(defaults_are_complete),
	TEST(every_argument_is_taken),
	TEST(unknown_and_relative_are_errors),
	TEST(long_paths_are_not_cut),
	TEST(timeouts_are_whole_seconds),
	TEST(all_problems_are_said_at_once),
	TESTS_END,
};

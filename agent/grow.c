/* SPDX-License-Identifier: Apache-2.0 */
/* A root file system of ext4 that takes what its disk has more. */
#include "ops.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Linux: fs/ext4/ext4.h; its superblock is at byte 1024. */
#define EXT4_MAGIC 0xef53
#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t)
#define SUPERBLOCK 1024
#define BLOCKS_LOW 0x4
#define BLOCK_LOG 0x18
#define MAGIC 0x38
#define INCOMPATIBLE 0x60
#define BLOCKS_HIGH 0x150
#define HAS_64BIT 0x80
/* Less is of no use to anybody. */
#define LEAST (4u << 20)

static uint32_t read_le(const uint8_t *at, int bytes)
{
	uint32_t value = 0;

	while (bytes-- > 0)
		value = value << 8 | at[bytes];
	return value;
}

/* The device that / is on, open for reading, and its size in bytes; -1: it is on none of its own. */
static int open_root(uint64_t *size)
{
	char path[64], line[64] = "", name[96] = "";
	unsigned long long sectors;
	struct stat root;
	FILE *file;

	if (stat("/", &root) < 0 || major(root.st_dev) == 0)
		return -1;
	snprintf(path, sizeof path, "/sys/dev/block/%u:%u/size", major(root.st_dev), minor(root.st_dev));
	file = fopen(path, "re");
	if (file == NULL)
		return -1;
	if (fscanf(file, "%20llu", &sectors) != 1)
		sectors = 0;
	fclose(file);
	*size = sectors * 512;
	snprintf(path, sizeof path, "/sys/dev/block/%u:%u/uevent", major(root.st_dev), minor(root.st_dev));
	file = fopen(path, "re");
	while (file != NULL && fgets(line, sizeof line, file) != NULL)
		if (strncmp(line, "DEVNAME=", 8) == 0) {
			line[strcspn(line, "\n")] = 0;
			snprintf(name, sizeof name, "/dev/%s", line + 8);
		}
	if (file != NULL)
		fclose(file);
	return *name != 0 ? open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC) : -1;
}

bool ops_grow_root(void)
{
	uint8_t block[1024];
	struct statfs facts;
	uint64_t size = 0, blocks, unit, wanted;
	int fd, root;
	bool good;

	if (statfs("/", &facts) < 0 || facts.f_type != EXT4_MAGIC)
		return true;
	fd = open_root(&size);
	if (fd < 0)
		return true;
	good = pread(fd, block, sizeof block, SUPERBLOCK) == sizeof block && read_le(block + MAGIC, 2) == EXT4_MAGIC &&
	       read_le(block + BLOCK_LOG, 4) <= 6;
	close(fd);
	if (!good)
		return true;
	unit = UINT64_C(1024) << read_le(block + BLOCK_LOG, 4);
	blocks = read_le(block + BLOCKS_LOW, 4);
	if (read_le(block + INCOMPATIBLE, 4) & HAS_64BIT)
		blocks |= (uint64_t)read_le(block + BLOCKS_HIGH, 4) << 32;
	wanted = size / unit;
	if (wanted < blocks || (wanted - blocks) * unit < LEAST)
		return true;
	root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	good = root >= 0 && ioctl(root, EXT4_IOC_RESIZE_FS, &wanted) == 0;
	/* Kernels that cannot, and what is mounted to be read, are no fault of anybody's. */
	if (!good && errno != ENOTTY && errno != EROFS && errno != EOPNOTSUPP)
		spawn_say("/ cannot grow with its disk: %s", strerror(errno));
	else
		good = true;
	if (root >= 0)
		close(root);
	return good;
}

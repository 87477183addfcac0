/* The bare system calls: what no client can beat. Prints nanoseconds per cycle.
 *   floor dm LOOPDEV COUNT     create + load linear + resume + remove
 *   floor loop FILE COUNT      LOOP_CTL_GET_FREE + LOOP_CONFIGURE + LOOP_CLR_FD
 */
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

static char buffer[16384] __attribute__((aligned(8)));

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static struct dm_ioctl *request(const char *name)
{
	struct dm_ioctl *io = (struct dm_ioctl *)buffer;

	memset(io, 0, sizeof(*io));
	io->version[0] = 4;
	io->data_size = sizeof(buffer);
	io->data_start = sizeof(*io);
	strcpy(io->name, name);
	return io;
}

static void cycle_dm(int control, const char *params, const char *name)
{
	struct dm_ioctl *io = request(name);
	struct dm_target_spec *spec = (struct dm_target_spec *)(buffer + sizeof(*io));

	strcpy(io->uuid, "FLOOR-");
	if (ioctl(control, DM_DEV_CREATE, io))
		die("create");
	io = request(name);
	io->target_count = 1;
	memset(spec, 0, sizeof(*spec));
	spec->length = 2048;
	strcpy(spec->target_type, "linear");
	strcpy((char *)(spec + 1), params);
	spec->next = (sizeof(*spec) + strlen(params) + 8) & ~7u;
	if (ioctl(control, DM_TABLE_LOAD, io))
		die("load");
	if (ioctl(control, DM_DEV_SUSPEND, request(name)))
		die("resume");
	if (ioctl(control, DM_DEV_REMOVE, request(name)))
		die("remove");
}

static void cycle_loop(int control, const char *file)
{
	struct loop_config config;
	char path[32];
	int index = ioctl(control, LOOP_CTL_GET_FREE), loop, backing = open(file, O_RDWR | O_CLOEXEC);

	if (index < 0 || backing < 0)
		die("free");
	snprintf(path, sizeof(path), "/dev/loop%d", index);
	loop = open(path, O_RDWR | O_CLOEXEC);
	if (loop < 0)
		die(path);
	memset(&config, 0, sizeof(config));
	config.fd = backing;
	config.info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
	if (ioctl(loop, LOOP_CONFIGURE, &config))
		die("configure");
	close(backing);
	if (ioctl(loop, LOOP_CLR_FD))
		die("clear");
	close(loop);
}

int main(int argc, char **argv)
{
	int dm = argc == 4 && !strcmp(argv[1], "dm"), count = argc == 4 ? atoi(argv[3]) : 0;
	int control = open(dm ? "/dev/mapper/control" : "/dev/loop-control", O_RDWR | O_CLOEXEC);
	struct timespec start, end;
	char params[64];
	struct stat status;

	if (count < 1)
		return 2;
	if (control < 0 || stat(argv[2], &status))
		die("open");
	snprintf(params, sizeof(params), "%u:%u 0", major(status.st_rdev), minor(status.st_rdev));
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (int i = 0; i < count; i++)
		dm ? cycle_dm(control, params, "floor") : cycle_loop(control, argv[2]);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%.0f\n", ((end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec)) / count);
	return 0;
}

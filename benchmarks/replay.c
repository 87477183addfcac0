/* A plain replayer of dm-log-writes logs: replay LOG TARGET. Each header and each write is read by itself, as tools of this kind do. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void need(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	uint64_t words[4], super[4];
	int log, target;

	need(argc == 3, "replay LOG TARGET");
	need((log = open(argv[1], O_RDONLY)) >= 0, argv[1]);
	need((target = open(argv[2], O_RDWR | O_CREAT, 0644)) >= 0, argv[2]);
	need(pread(log, super, sizeof(super), 0) == sizeof(super), "super block");

	uint64_t sector = (uint32_t)super[3];
	uint64_t offset = sector;
	char *header = malloc(sector);
	need(header != NULL, "malloc");
	for (uint64_t entry = 0; entry < super[2]; entry++) {
		need(pread(log, header, sector, offset) == (ssize_t)sector, "header");
		memcpy(words, header, sizeof(words));
		offset += sector;
		uint64_t length = words[1] * sector;
		if (!length || words[2] & 4)
			continue;
		char *data = malloc(length);
		need(data != NULL, "malloc");
		need(pread(log, data, length, offset) == (ssize_t)length, "data");
		need(pwrite(target, data, length, words[0] * sector) == (ssize_t)length, "write");
		free(data);
		offset += length;
	}
	need(fsync(target) == 0, "fsync");
	return 0;
}

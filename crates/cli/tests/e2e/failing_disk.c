// A disk that fails on command: the test loads this before the C library of a server.
//
// The file that KONTIKI_DISK names holds one word, which is read at every call:
//   (nothing)  all is well
//   eio        every fsync and fdatasync below a data directory fails, and keeps failing
//   full       files of the Raft log can be overwritten and do not grow
// "Below a data directory" is what the path given in KONTIKI_DATA begins with.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int commanded(const char *word) {
    const char *path = getenv("KONTIKI_DISK");
    char found[16] = {0};
    int control = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (control < 0) return 0;
    ssize_t len = read(control, found, sizeof found - 1);
    close(control);
    return len > 0 && strncmp(found, word, strlen(word)) == 0;
}

static int is_ours(int fd, const char *part) {
    const char *dir = getenv("KONTIKI_DATA");
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (!dir || len < 0) return 0;
    path[len] = 0;
    return strncmp(path, dir, strlen(dir)) == 0 && strstr(path, part);
}

static int grows(int fd, off_t end) {
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISREG(found.st_mode) && found.st_size < end;
}

static int fails(int fd, const char *word, const char *part, int error) {
    if (!commanded(word) || !is_ours(fd, part)) return 0;
    errno = error;
    return 1;
}

int fdatasync(int fd) {
    if (fails(fd, "eio", "/", EIO)) return -1;
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int fsync(int fd) {
    if (fails(fd, "eio", "/", EIO)) return -1;
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off_t at) {
    if (grows(fd, at + (off_t)len) && fails(fd, "full", "/raft/", ENOSPC)) return -1;
    return ((ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64"))(fd, bytes, len, at);
}

ssize_t write(int fd, const void *bytes, size_t len) {
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (at >= 0 && grows(fd, at + (off_t)len) && fails(fd, "full", "/raft/", ENOSPC)) return -1;
    return ((ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(fd, bytes, len);
}

int ftruncate64(int fd, off_t len) {
    if (grows(fd, len) && fails(fd, "full", "/raft/", ENOSPC)) return -1;
    return ((int (*)(int, off_t))dlsym(RTLD_NEXT, "ftruncate64"))(fd, len);
}

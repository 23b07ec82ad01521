/* Has the n-th write, fsync, rename or truncation of this process fail, whoever makes it: Python, SQLite, Arrow.
   Loaded by LD_PRELOAD; counts on regular files and folders only, and only once armed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static long seen, at = -1;
static int number;

void fault_arm(long nth, int error) { seen = 0; at = nth; number = error; }
long fault_seen(void) { return seen; }

static int counted(void) { return at >= 0 && ++seen == at; }

static int hit(int fd)
{
    struct stat found;
    if (at < 0 || fd < 3 || fstat(fd, &found) || !(S_ISREG(found.st_mode) || S_ISDIR(found.st_mode)))
        return 0;
    return counted();
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)
#define FAIL_IF(test) do { if (test) { errno = number; return -1; } } while (0)

ssize_t write(int fd, const void *data, size_t size)
{ REAL(ssize_t, "write", int, const void *, size_t); FAIL_IF(hit(fd)); return real(fd, data, size); }
ssize_t writev(int fd, const struct iovec *parts, int count)
{ REAL(ssize_t, "writev", int, const struct iovec *, int); FAIL_IF(hit(fd)); return real(fd, parts, count); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t place)
{ REAL(ssize_t, "pwrite", int, const void *, size_t, off_t); FAIL_IF(hit(fd)); return real(fd, data, size, place); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place)
{ REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t); FAIL_IF(hit(fd)); return real(fd, data, size, place); }
int fsync(int fd)
{ REAL(int, "fsync", int); FAIL_IF(hit(fd)); return real(fd); }
int fdatasync(int fd)
{ REAL(int, "fdatasync", int); FAIL_IF(hit(fd)); return real(fd); }
int ftruncate(int fd, off_t size)
{ REAL(int, "ftruncate", int, off_t); FAIL_IF(hit(fd)); return real(fd, size); }
int ftruncate64(int fd, off64_t size)
{ REAL(int, "ftruncate64", int, off64_t); FAIL_IF(hit(fd)); return real(fd, size); }
int rename(const char *old, const char *new)
{ REAL(int, "rename", const char *, const char *); FAIL_IF(counted()); return real(old, new); }
int renameat(int from, const char *old, int to, const char *new)
{ REAL(int, "renameat", int, const char *, int, const char *); FAIL_IF(counted()); return real(from, old, to, new); }

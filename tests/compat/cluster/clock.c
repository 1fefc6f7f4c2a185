// Preloaded into a server: its clock of the calendar is ahead of the machine's by the nanoseconds
// that stand in the file CLOCK_AHEAD, which may change at any time. Clocks that only measure go on
// as they are.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000

static int (*machine_clock)(clockid_t, struct timespec *);
static const volatile int64_t *ahead;

// Others may be constructed before, and ask.
static int of_machine(clockid_t clock, struct timespec *now) {
    if (!machine_clock)
        machine_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    return machine_clock(clock, now);
}

__attribute__((constructor)) static void open_file(void) {
    const char *path = getenv("CLOCK_AHEAD");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) {
        static const char why[] = "clock: there is no file CLOCK_AHEAD\n";
        // A server whose clock cannot be set must not look as if it could.
        _exit(write(STDERR_FILENO, why, sizeof why - 1) < 0 ? 71 : 70);
    }
    close(file);
    ahead = page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = of_machine(clock, now);
    if (result == 0 && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t sum = (int64_t)now->tv_sec * SECOND + now->tv_nsec + *ahead;
        now->tv_sec = sum / SECOND;
        now->tv_nsec = sum % SECOND;
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}

time_t time(time_t *result) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (result)
        *result = exact.tv_sec;
    return exact.tv_sec;
}

/* Copyright (c) 2026, vmops.qemu contributors
 * GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */

/* A process whose /proc/PID/cmdline is as long as it likes: BYTES of it, of which the first are the words of a QEMU.
 *
 * PR_SET_MM_MAP needs no privilege, and the pages behind it need no memory: reading them gives zeros.
 */
#include <linux/prctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

static const char words[] = "qemu-system-x86_64\0-name\0web1\0-qmp\0unix:/nonexistent,server=on";

int main(int argc, char **argv)
{
    unsigned long long length = strtoull(argv[argc - 1], NULL, 10);
    char *place = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct prctl_mm_map map = {0};
    unsigned long start, end;
    FILE *stat = fopen("/proc/self/stat", "r");

    if (place == MAP_FAILED || !stat)
        return 1;
    memcpy(place, words, sizeof(words));
    if (fscanf(stat, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u"
                     " %*u %*u %*u %lu %lu", &start, &end) != 2)
        return 2;
    map.start_code = start;
    map.end_code = end;
    map.start_data = map.end_data = end;
    map.start_brk = map.brk = (unsigned long)sbrk(0);
    map.start_stack = (unsigned long)&map;
    map.arg_start = (unsigned long)place;
    map.arg_end = map.env_start = map.env_end = (unsigned long)place + length;
    map.exe_fd = -1;
    if (prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0)) {
        perror("PR_SET_MM_MAP");
        return 3;
    }
    puts("ready");
    fflush(stdout);
    pause();
    return 0;
}

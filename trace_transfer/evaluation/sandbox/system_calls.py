"""Which system calls a generated program may make, as a seccomp filter (classic BPF).

Everything that is not listed fails with "Operation not permitted". Not listed on purpose: whatever starts a process or
a thread, opens a socket, changes a file's mode, owner or times, traces or signals another process, mounts, changes
limits or namespaces, or keeps memory outside of the address space (memfd, shared memory segments, io_uring).

Sources: seccomp(2), linux/filter.h; numbers from asm/unistd_64.h (x86-64) and asm-generic/unistd.h (64-bit ARM).
"""

import struct
from collections.abc import Sequence

Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if false, operand

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64

# name: (x86-64, 64-bit ARM); None where the architecture has no such call.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # reading, writing, finding files: what may be touched is Landlock's to say
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "lseek": (8, 62), "close": (3, 57),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "getdents64": (217, 61),
    "statfs": (137, 43), "fstatfs": (138, 44), "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83),
    "fadvise64": (221, 223), "flock": (73, 32), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "umask": (95, 166),
    # memory, within the limit on the address space
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "msync": (26, 227), "mincore": (27, 232), "brk": (12, 214), "membarrier": (324, 283),
    # signals and timers of its own
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102),
    "pause": (34, None), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    # asking who and where it is
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "getrusage": (98, 165),
    "getrlimit": (97, 163), "getpriority": (140, 141), "sysinfo": (99, 179), "uname": (63, 160),
    "getcpu": (309, 168), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "sched_getscheduler": (145, 120), "sched_getparam": (143, 121), "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    # what the C library needs, waiting, ending
    "futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293),
    "set_tid_address": (218, 96), "arch_prctl": (158, None), "getrandom": (318, 278), "poll": (7, None),
    "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "eventfd2": (290, 19), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

# Calls that are allowed for some arguments only; see `program_filter`.
RESTRICTED: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None), "openat": (257, 56), "fcntl": (72, 25), "ioctl": (16, 29), "kill": (62, 129),
    "tgkill": (234, 131), "prlimit64": (302, 261),
}  # fmt: skip

# F_DUPFD … F_SETLKW, F_DUPFD_CLOEXEC. Not F_SETOWN and F_SETSIG: they make the kernel signal another process.
FCNTL_COMMANDS = (*range(8), 1030)
# TCGETS (is it a terminal?), TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX
IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)
O_ACCMODE, O_RDONLY, O_TRUNC = 0o3, 0o0, 0o1000

LOAD, EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data


def _argument(index: int) -> int:
    """Offset of the low 32 bits of a call's argument (little-endian); the high ones are 4 bytes further."""
    return 16 + 8 * index


ALLOW: Instruction = (RETURN, 0, 0, 0x7FFF0000)
DENY: Instruction = (RETURN, 0, 0, 0x00050000 | 1)  # SECCOMP_RET_ERRNO, EPERM
KILL: Instruction = (RETURN, 0, 0, 0x80000000)  # SECCOMP_RET_KILL_PROCESS


def _one_of(index: int, values: Sequence[int]) -> list[Instruction]:
    """Allow if the low 32 bits of an argument (an int or unsigned int in the kernel) are one of `values`."""
    tests = [(EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)]
    return [(LOAD, 0, 0, _argument(index)), *tests, DENY, ALLOW]


def _null(index: int) -> list[Instruction]:
    """Allow if an argument is the null pointer."""
    low, high = _argument(index), _argument(index) + 4
    return [(LOAD, 0, 0, low), (EQUAL, 0, 2, 0), (LOAD, 0, 0, high), (EQUAL, 1, 0, 0), DENY, ALLOW]


def _open_flags(index: int) -> list[Instruction]:
    """Allow what Landlock judges as it should.

    Its first two versions (Linux before 6.2) let a file that may only be read, or that is opened with access mode 3
    (for neither reading nor writing), be truncated while it is opened.
    """
    return [
        (LOAD, 0, 0, _argument(index)),
        (AND, 0, 0, O_TRUNC | O_ACCMODE),
        (EQUAL, 2, 0, O_TRUNC | O_RDONLY),
        (EQUAL, 1, 0, O_TRUNC | O_ACCMODE),
        (EQUAL, 0, 1, O_ACCMODE),
        DENY,
        ALLOW,
    ]


def program_filter(pid: int, machine: str) -> bytes:
    """The filter as an array of struct sock_filter, for process `pid` (which may signal itself, and nobody else).

    `machine` is a key of `ARCHITECTURES`. A call through another architecture's numbers kills the process.
    """
    column = list(ARCHITECTURES).index(machine)
    rules: dict[str, list[Instruction]] = {name: [ALLOW] for name in ALLOWED}
    rules |= {
        "open": _open_flags(1),
        "openat": _open_flags(2),
        "fcntl": _one_of(1, FCNTL_COMMANDS),
        "ioctl": _one_of(1, IOCTL_COMMANDS),
        "kill": _one_of(0, (pid,)),
        "tgkill": _one_of(0, (pid,)),
        "prlimit64": _null(2),
    }
    instructions = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, ARCHITECTURES[machine]), KILL, (LOAD, 0, 0, NUMBER)]
    for name, numbers in (ALLOWED | RESTRICTED).items():
        number, rule = numbers[column], rules[name]
        if number is not None:
            instructions += [(EQUAL, 0, len(rule), number), *rule]
    instructions.append(DENY)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)

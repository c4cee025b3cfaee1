"""What a child process does to itself before it runs generated code: see `confine`, called by `trial`.

Standard library only, and nothing of this package: it starts in hundredths of a second.
"""

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SIGKILL = 9
LINUX_CAPABILITY_VERSION_3 = 0x20080522

# Landlock: system calls (the same on all architectures) and rights, see landlock(7) and linux/landlock.h.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
# All rights on files of each version; what is handled and not granted is denied.
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
NET_RIGHTS = 0b11  # TCP bind and connect, from version 4
SCOPES = 0b11  # abstract sockets and signals, from version 6

libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: Any) -> int:
    """Call the C library; an OSError with the function's name if it returns -1."""
    result: int = getattr(libc, function)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
    return result


def system_call(number: int, *arguments: Any) -> int:
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return call("syscall", ctypes.c_long(number), *wide)


def limit_resources(limits: Mapping[str, Any]) -> None:
    """Limits that the kernel keeps; none can be raised again (that takes a capability, dropped below)."""
    cpu = int(limits["cpu_seconds"])
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),  # SIGXCPU first: it tells a slow program from a killed one
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["disk_bytes"], limits["disk_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))


def enter_namespaces(directory: str, limits: Mapping[str, Any]) -> list[str]:
    """Namespaces of its own and a working directory in memory, of a fixed size; whatever of it the system permits."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        # One call: where a user namespace is given without rights inside (AppArmor), all of it fails.
        call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    except OSError:
        return []
    layers = ["namespaces (user, mount, network, ipc, uts)"]
    try:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{file}", "w") as stream:  # noqa: PTH123, pathlib is slow to import
                stream.write(text)
        call("mount", b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
        options = f"size={limits['disk_bytes']},nr_inodes={limits['num_files'] + 1},mode=700".encode()
        flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
        call("mount", b"tmpfs", os.fsencode(directory), b"tmpfs", flags, options)
    except OSError:
        return layers
    return [*layers, "tmpfs"]


def restrict_files(readable: Sequence[str], directory: str) -> str:
    """Landlock: what is not granted here can be neither opened, made, renamed nor removed. Raises OSError."""
    version = system_call(CREATE_RULESET, 0, 0, 1)
    handled = FILE_RIGHTS[min(version, max(FILE_RIGHTS))]
    fields = [handled, *([NET_RIGHTS] if version >= 4 else []), *([SCOPES] if version >= 6 else [])]
    ruleset_attr = (ctypes.c_uint64 * len(fields))(*fields)
    ruleset = system_call(CREATE_RULESET, ctypes.byref(ruleset_attr), ctypes.sizeof(ruleset_attr), 0)
    own = READ_FILE | READ_DIR | WRITE_FILE | MAKE_REG | REMOVE_FILE | TRUNCATE
    grants = [(path, READ_FILE | READ_DIR) for path in readable]
    grants += [("/dev/null", READ_FILE | WRITE_FILE), ("/dev/urandom", READ_FILE), (directory, own)]
    for path, rights in grants:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):  # noqa: PTH112
            rights &= READ_FILE | WRITE_FILE | TRUNCATE
        # struct landlock_path_beneath_attr, which is packed
        rule = (rights & handled).to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
        system_call(ADD_RULE, ruleset, 1, rule, 0)
        os.close(descriptor)
    system_call(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return f"landlock {version}"


def drop_capabilities() -> None:
    """No capability is left, root's neither, and none can come back: there is no exec."""
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    call("capset", ctypes.byref(header), ctypes.byref(nothing))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))  # struct sock_fprog


def restrict_calls(instructions: bytes) -> str:
    program = _Filter(len(instructions) // 8, instructions)
    call("prctl", PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0)
    return "seccomp"


def confine(request: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Give up everything that the program is not to have: the layers in force, and what is missing of the minimum."""
    directory, missing = request["directory"], []
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:  # noqa: PTH123
        stream.write("1000")  # if memory runs out, it is this process that goes
    layers = enter_namespaces(directory, request["limits"]) if request["namespaces"] else []
    os.chdir(directory)  # again: another file system may lie there now
    limit_resources(request["limits"])
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    drop_capabilities()
    layers.append("no capabilities")
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    call("prctl", PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != request["parent"]:
        os._exit(1)  # the parent died before this line
    try:
        layers.append(restrict_files(request["readable"], directory))
    except OSError as error:
        missing.append(f"Landlock, in Linux since 5.13 ({error.strerror})")
    try:
        layers.append(restrict_calls(bytes.fromhex(request["filter"])))
    except OSError as error:
        missing.append(f"seccomp filters ({error.strerror})")
    return layers, missing

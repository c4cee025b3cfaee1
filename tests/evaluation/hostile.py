"""Programs that try to do harm, and what they try it on.

`$secret`, `$victim`, `$port` and `$socket` stand for a file and a directory of the caller's, a listening TCP and UDP
port and a Unix socket. Each lets the refusal show: it ends with an error, or runs into a limit, never with success.
"""

import platform
from string import Template

SECRET = "correct horse battery staple"


def raw_call(call: str) -> str:
    """A system call through the C library, past Python; an error only if it was refused, not if it was ill-formed."""
    return (
        "import ctypes, errno, os\nlibc, pid = ctypes.CDLL(None, use_errno=True), os.getpid()\n"
        f"result = {call}\nif os.getpid() != pid: os._exit(0)\n"
        "assert result != -1 or ctypes.get_errno() != errno.EPERM"
    )


CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine(), 0)

ATTACKS = {
    # processes and threads
    "fork": "import os\nif os.fork() == 0: os._exit(0)\nos.wait()",
    # Bombs only where one fork is refused: if ever it is not, "fork" says so, and the machine lives.
    "fork bomb": "import os\ntry:\n    os.fork()\n    os._exit(0)\nexcept OSError: pass\n"
        "while True:\n    try: os.fork()\n    except OSError: pass",
    "clone by number": raw_call(f"libc.syscall({CLONE}, 17, 0, 0, 0, 0)"),
    "exec": "import os\nos.execv('/bin/sh', ['sh', '-c', 'true'])",
    "daemon":
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(30)\n    os._exit(0)",
    # files of others
    "read secret": "import sys\nprint(open('$secret').read(), file=sys.stderr)",
    "read secret by link": "import os, sys\nos.symlink('$secret', 'a')\nsys.stderr.write(open('a').read())",
    "list home": "import os\nprint(os.listdir('$victim'))",
    "read passwords": "open('/etc/passwd').read()",
    "environment of the parent": "import os, sys\nsys.stderr.write(open(f'/proc/{os.getppid()}/environ').read())",
    "own environment": "import os, sys\nsys.stderr.write(os.environ['A_TOKEN'])",
    "memory of the parent": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')",
    "delete the caller's directory": "import shutil\nshutil.rmtree('$victim')",
    "delete a file": "import os\nos.remove('$secret')",
    "overwrite": "open('$secret', 'w').write('gone')",
    "truncate by name": "import os\nos.truncate('$secret', 0)",
    "truncate while reading": "import os\nos.open('$secret', os.O_RDONLY | os.O_TRUNC)",
    "truncate with access mode 3": "import os\nos.open('$secret', 3 | os.O_TRUNC)",
    "write without a name": "import os\nos.open('$victim', os.O_TMPFILE | os.O_WRONLY)",
    "write to shared memory": "open('/dev/shm/trace-transfer-test', 'w')",
    "change mode": "import os\nos.chmod('$secret', 0o777)",
    "change times": "import os\nos.utime('$secret', (0, 0))",
    # network
    "connect": "import socket\nsocket.create_connection(('127.0.0.1', $port), timeout=1).send(b'x')",
    "datagram": "import socket\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', $port))",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('$socket')",
    "listen": "import socket\nsocket.create_server(('127.0.0.1', 0))",
    # time, memory, disk, output
    "endless loop": "while True: pass",
    "endless loop, deaf":
        "import signal\nfor number in set(range(1, 32)) - {9, 19}: signal.signal(number, signal.SIG_IGN)\n"
        "while True: pass",
    "sleep": "import time\ntime.sleep(60)",
    "stop itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "close everything and sleep": "import os, time\nos.closerange(0, 64)\ntime.sleep(60)",
    "ten gigabytes": "bytearray(10 << 30)",
    "ever more memory": "a = []\nwhile True: a.append(bytearray(1 << 24))",
    "memory in a file": "import os\nos.memfd_create('a')",
    "memory in a segment": raw_call("libc.shmget(0, 1 << 20, 0o1600)"),
    "raise the limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)",
    "fill the disk, one file": "f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 20))",
    "fill the disk, many files":
        "for i in range(10 ** 9):\n    f = open(str(i), 'wb')\n    f.write(bytes(1 << 20))\n    f.close()",
    "fill the disk, empty files": "for i in range(10 ** 9): open(str(i), 'w').close()",
    "fill the disk, removed files":
        "import os\nfiles = []\nfor i in range(10 ** 9):\n    files.append(open('a', 'wb'))\n    os.remove('a')\n"
        "    files[-1].write(bytes(1 << 20))\n    files[-1].flush()",
    "deep directories": "import os\nfor _ in range(50):\n    os.mkdir('a')\n    os.chdir('a')",
    "print errors forever": "import sys\nwhile True: print('x' * 10000, file=sys.stderr)",
    "report forever": "import os\nfor fd in range(3, 256):\n    try:\n        while True: os.write(fd, b'x' * 60000)\n"
        "    except OSError: pass\nassert False",
    # other processes and the system
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill everybody": "import os\nos.kill(-1, 0)",
    "have the kernel signal the parent":
        "import fcntl, os\na, b = os.pipe()\nfcntl.fcntl(a, fcntl.F_SETOWN, os.getppid())\nfcntl.fcntl(a, 10, 9)\n"
        "fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC)\nos.write(b, b'x')",
    "outlive the parent": raw_call("libc.prctl(1, 0, 0, 0, 0)"),
    "trace the parent": raw_call("libc.ptrace(16, os.getppid(), 0, 0)"),
    "new namespaces": raw_call("libc.unshare(0x10000000)"),
    "mount": raw_call("libc.mount(b'none', b'$victim', b'tmpfs', 0, None)"),
    "io_uring": raw_call("libc.syscall(425, 1, ctypes.create_string_buffer(200))"),
    # the interpreter
    "read address 0": "import ctypes\nctypes.string_at(0)",
    "overflow the stack": "a = ()\nfor _ in range(10 ** 6): a = (a,)\nhash(a)",
    "error that prints forever":
        "class Forever(Exception):\n    def __str__(self):\n        while True: pass\nraise Forever",
    "no Python": "def f(:",
    "half a character": "x = '\ud800'\nraise ValueError(x)",
    "nested too deep": "(" * 100_000,
}  # fmt: skip
# These succeed in a plain interpreter, and may: that shows that the refusal is the confinement's.
WORK_UNCONFINED = (
    "fork", "clone by number", "exec", "read secret", "read secret by link", "list home", "read passwords",
    "environment of the parent", "own environment", "delete the caller's directory", "delete a file", "overwrite",
    "truncate by name", "truncate while reading", "change mode", "change times", "connect", "datagram", "unix socket",
    "listen", "memory in a file", "raise the limits", "deep directories", "kill everybody", "outlive the parent",
)  # fmt: skip


def program(name: str, **places: object) -> str:
    return Template(ATTACKS[name]).substitute({key: str(value) for key, value in places.items()})

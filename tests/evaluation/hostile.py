"""Programs that try to do harm, and what they try it on.

`$secret`, `$victim`, `$port` and `$socket` stand for a file and a directory of the caller's, a listening TCP and UDP
port and a Unix socket. Each lets the refusal show: it ends with an error, or runs into a limit, never with success.
"""

import platform
from dataclasses import dataclass
from string import Template

SECRET = "correct horse battery staple"


@dataclass(frozen=True)
class Attack:
    """`works_unconfined`: it succeeds in a plain interpreter, and may: that shows the refusal is the confinement's.
    `needs_stopping`: it ends only when its time is up.
    """

    source: str
    works_unconfined: bool = False
    needs_stopping: bool = False

    def program(self, **places: object) -> str:
        return Template(self.source).substitute({name: str(value) for name, value in places.items()})


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
    "fork": Attack("import os\nif os.fork() == 0: os._exit(0)\nos.wait()", works_unconfined=True),
    # Bombs only where one fork is refused: if ever it is not, "fork" says so, and the machine lives.
    "fork bomb": Attack(
        "import os\ntry:\n    os.fork()\n    os._exit(0)\nexcept OSError: pass\n"
        "while True:\n    try: os.fork()\n    except OSError: pass",
        needs_stopping=True,
    ),
    "clone by number": Attack(raw_call(f"libc.syscall({CLONE}, 17, 0, 0, 0, 0)"), works_unconfined=True),
    "clone3 by number": Attack(raw_call("libc.syscall(435, 0, 0)"), works_unconfined=True),
    "shell": Attack("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'], check=True)", works_unconfined=True),
    "exec": Attack("import os\nos.execv('/bin/sh', ['sh', '-c', 'true'])", works_unconfined=True),
    "thread": Attack("import threading\nthreading.Thread(target=int).start()", works_unconfined=True),
    "thread bomb": Attack(
        "import threading, time\nwhile True:\n"
        "    try: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n"
        "    except RuntimeError: pass",
        needs_stopping=True,
    ),
    "multiprocessing": Attack("import multiprocessing\nmultiprocessing.Pool(4).map(abs, range(9))"),
    "daemon": Attack(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(30)\n    os._exit(0)"
    ),
    # files of others
    "read secret": Attack("import sys\nprint(open('$secret').read(), file=sys.stderr)", works_unconfined=True),
    "read secret by link": Attack(
        "import os, sys\nos.symlink('$secret', 'a')\nsys.stderr.write(open('a').read())", works_unconfined=True
    ),
    "read secret by hard link": Attack(
        "import os, sys\nos.link('$secret', 'a')\nsys.stderr.write(open('a').read())", works_unconfined=True
    ),
    "read secret by climbing": Attack(
        "import os, sys\nos.chdir('/')\nsys.stderr.write(open('.$secret').read())", works_unconfined=True
    ),
    "move secret here": Attack(
        "import os, sys\nos.rename('$secret', 'a')\nsys.stderr.write(open('a').read())", works_unconfined=True
    ),
    "list home": Attack("import os\nprint(os.listdir('$victim'))", works_unconfined=True),
    "read passwords": Attack("open('/etc/passwd').read()", works_unconfined=True),
    "environment of the parent": Attack(
        "import os, sys\nsys.stderr.write(open(f'/proc/{os.getppid()}/environ').read())", works_unconfined=True
    ),
    "environment of init": Attack("import sys\nsys.stderr.write(open('/proc/1/environ').read())"),
    "own environment": Attack("import os, sys\nsys.stderr.write(os.environ['A_TOKEN'])", works_unconfined=True),
    "memory of the parent": Attack("import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')"),
    "own memory by file": Attack("open('/proc/self/mem', 'r+b')", works_unconfined=True),
    "delete the caller's directory": Attack("import shutil\nshutil.rmtree('$victim')", works_unconfined=True),
    "delete a file": Attack("import os\nos.remove('$secret')", works_unconfined=True),
    "overwrite": Attack("open('$secret', 'w').write('gone')", works_unconfined=True),
    "append": Attack("open('$secret', 'a').write('gone')", works_unconfined=True),
    "truncate by name": Attack("import os\nos.truncate('$secret', 0)", works_unconfined=True),
    "truncate while reading": Attack("import os\nos.open('$secret', os.O_RDONLY | os.O_TRUNC)", works_unconfined=True),
    "truncate with access mode 3": Attack("import os\nos.open('$secret', 3 | os.O_TRUNC)"),
    "write beside": Attack("open('$victim/new', 'w').write('new')", works_unconfined=True),
    "write without a name": Attack("import os\nos.open('$victim', os.O_TMPFILE | os.O_WRONLY)"),
    "write to shared memory": Attack("open('/dev/shm/trace-transfer-test', 'w')"),
    "change mode": Attack("import os\nos.chmod('$secret', 0o777)", works_unconfined=True),
    "change owner": Attack("import os\nos.chown('$secret', os.getuid(), os.getgid())", works_unconfined=True),
    "change times": Attack("import os\nos.utime('$secret', (0, 0))", works_unconfined=True),
    "change attributes": Attack("import os\nos.setxattr('$secret', 'user.a', b'b')"),
    "device": Attack("import os\nos.mknod('a', 0o600 | 0o060000, os.makedev(8, 0))"),
    "kernel log": Attack("open('/dev/kmsg').read(1)"),
    # network
    "connect": Attack(
        "import socket\nsocket.create_connection(('127.0.0.1', $port), timeout=1).send(b'x')", works_unconfined=True
    ),
    "datagram": Attack(
        "import socket\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', $port))", works_unconfined=True
    ),
    "unix socket": Attack("import socket\nsocket.socket(socket.AF_UNIX).connect('$socket')", works_unconfined=True),
    "listen": Attack("import socket\nsocket.create_server(('127.0.0.1', 0))", works_unconfined=True),
    "names": Attack("import socket\nsocket.getaddrinfo('example.org', 80)"),
    "web": Attack("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:$port', timeout=1)"),
    # time, memory, disk, output
    "endless loop": Attack("while True: pass", needs_stopping=True),
    "endless loop, deaf": Attack(
        "import signal\nfor number in set(range(1, 32)) - {9, 19}: signal.signal(number, signal.SIG_IGN)\n"
        "while True: pass",
        needs_stopping=True,
    ),
    "sleep": Attack("import time\ntime.sleep(60)", needs_stopping=True),
    "stop itself": Attack("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", needs_stopping=True),
    "close everything and sleep": Attack("import os, time\nos.closerange(0, 64)\ntime.sleep(60)", needs_stopping=True),
    "ten gigabytes": Attack("bytearray(10 << 30)"),
    "ever more memory": Attack("a = []\nwhile True: a.append(bytearray(1 << 24))"),
    "memory in a file": Attack("import os\nos.memfd_create('a')", works_unconfined=True),
    "memory in a segment": Attack(raw_call("libc.shmget(0, 1 << 20, 0o1600)")),
    "raise the limits": Attack(
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)", works_unconfined=True
    ),
    "fill the disk, one file": Attack("f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 20))"),
    "fill the disk, many files": Attack(
        "for i in range(10 ** 9):\n    f = open(str(i), 'wb')\n    f.write(bytes(1 << 20))\n    f.close()"
    ),
    "fill the disk, empty files": Attack("for i in range(10 ** 9): open(str(i), 'w').close()"),
    "fill the disk, removed files": Attack(
        "import os\nfiles = []\nfor i in range(10 ** 9):\n    files.append(open('a', 'wb'))\n    os.remove('a')\n"
        "    files[-1].write(bytes(1 << 20))\n    files[-1].flush()"
    ),
    "deep directories": Attack(
        "import os\nfor _ in range(50):\n    os.mkdir('a')\n    os.chdir('a')", works_unconfined=True
    ),
    "print forever": Attack("while True: print('x' * 10000)", needs_stopping=True),
    "print errors forever": Attack("import sys\nwhile True: print('x' * 10000, file=sys.stderr)"),
    "report forever": Attack(
        "import os\nfor fd in range(3, 256):\n    try:\n        while True: os.write(fd, b'x' * 60000)\n"
        "    except OSError: pass\nassert False"
    ),
    # other processes and the system
    "kill the parent": Attack("import os\nos.kill(os.getppid(), 9)"),
    "kill everybody": Attack("import os\nos.kill(-1, 0)", works_unconfined=True),
    "kill its group": Attack("import os\nos.killpg(0, 0)", works_unconfined=True),
    "have the kernel signal the parent": Attack(
        "import fcntl, os\na, b = os.pipe()\nfcntl.fcntl(a, fcntl.F_SETOWN, os.getppid())\nfcntl.fcntl(a, 10, 9)\n"
        "fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC)\nos.write(b, b'x')"
    ),
    "outlive the parent": Attack(raw_call("libc.prctl(1, 0, 0, 0, 0)"), works_unconfined=True),
    "trace the parent": Attack(raw_call("libc.ptrace(16, os.getppid(), 0, 0)")),
    "new namespaces": Attack(raw_call("libc.unshare(0x10000000)")),
    "mount": Attack(raw_call("libc.mount(b'none', b'$victim', b'tmpfs', 0, None)")),
    "change root": Attack("import os\nos.chroot('.')"),
    "become another": Attack("import os\nos.setresuid(0, 0, 0)"),
    "io_uring": Attack(raw_call("libc.syscall(425, 1, ctypes.create_string_buffer(200))")),
    # the interpreter, and success that was not earned
    "read address 0": Attack("import ctypes\nctypes.string_at(0)"),
    "overflow the stack": Attack("a = ()\nfor _ in range(10 ** 6): a = (a,)\nhash(a)"),
    "exit(0)": Attack("exit(0)\nassert False"),
    "sys.exit(0)": Attack("import sys\nsys.exit(0)\nassert False"),
    "os._exit(0)": Attack("import os\nos._exit(0)\nassert False"),
    "exit at exit": Attack("import atexit, os\natexit.register(os._exit, 0)\nassert False"),
    "libc exit": Attack("import ctypes\nctypes.CDLL(None)._exit(0)"),
    "false reports": Attack(
        "import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'{\"layers\": []}\\npassed\\n' + b'0' * 32)\n"
        "    except OSError: pass\nos._exit(0)"
    ),
    "false exceptions": Attack(
        "import builtins\nbuiltins.BaseException = builtins.Exception = builtins.AssertionError = KeyError\n"
        "raise ValueError"
    ),
    "empty builtins": Attack("import builtins\nbuiltins.__dict__.clear()\nassert False"),
    "replaced os": Attack("import os\nos.write = os._exit = lambda *_: None\nassert False"),
    "hook for errors": Attack("import os, sys\nsys.excepthook = lambda *_: os._exit(0)\nassert False"),
    "replaced traceback": Attack(
        "import os, traceback\ntraceback.print_exception = lambda *_: os._exit(0)\nassert False"
    ),
    "error that prints forever": Attack(
        "class Forever(Exception):\n    def __str__(self):\n        while True: pass\nraise Forever",
        needs_stopping=True,
    ),
    "no Python": Attack("def f(:"),
    "null byte": Attack("x = 1\0"),
    "half a character": Attack("x = '\ud800'\nraise ValueError(x)"),
    "nested too deep": Attack("(" * 100_000),
}  # fmt: skip

"""Programs that are wrong and try to pass all the same, against a test like HumanEval's.

Each defines `add`, whose answers are wrong. In `TEST` the expected sums are made by the test, as in HumanEval/53.
"""

import platform

TEST = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert abs(candidate(2.5, 1) - 3.5) < 1e-6
    for x, y in ((10, 7), (10 ** 9, 1)):
        assert candidate(x, y) == x + y, "wrong sum"
    assert all(map(lambda x: candidate(x, x) == 2 * x, range(9)))
"""
OURS = f"add = __program__.add\n{TEST}\ncheck(add)"

WRONG = "def add(x, y):\n    return None\n"
EQUAL = """
class Equal(int):
    __eq__ = __ge__ = __le__ = __lt__ = __gt__ = __bool__ = lambda *_: True
    __ne__ = lambda *_: False
    __hash__ = int.__hash__
    __add__ = __radd__ = __sub__ = __rsub__ = __abs__ = __neg__ = lambda self, *_: self
"""
EVERYWHERE = "for fd in range(0, 256):\n    try: os.write(fd, message)\n    except OSError: pass\n"
PTRACE = {"x86_64": 101, "aarch64": 117}.get(platform.machine(), 0)
WRITE_MEMORY = {"x86_64": 311, "aarch64": 271}.get(platform.machine(), 0)
FRAMES = """
import sys
def add(x, y):
    frame = sys._getframe()
    while frame is not None:
        for place in (frame.f_locals, frame.f_globals):
            for name, value in list(place.items()):
                FOUND
        frame = frame.f_back
    import os
    os._exit(0)
"""


def in_frames(action: str) -> str:
    return FRAMES.replace("FOUND", action.replace("\n", "\n" + " " * 16))


FAKES = {
    # ending well before the test can end
    "os._exit(0)": "import os\ndef add(x, y): os._exit(0)",
    "by a signal": "import os, signal\nsignal.signal(signal.SIGALRM, lambda *_: os._exit(0))\n"
    "def add(x, y):\n    signal.setitimer(signal.ITIMER_REAL, 0.01)\n    while True: pass",
    "replaced stderr": "import os, sys\nclass Leaving:\n    def write(self, text): os._exit(0)\n    flush = write\n"
    "sys.stderr = Leaving()\ndef add(x, y): raise ValueError",
    "error whose text ends all": "import os\nclass End(Exception):\n    def __str__(self): os._exit(0)\n"
    "def add(x, y): raise End",
    # a test that is replaced, skipped, or believes everything
    "own check, kept": WRONG + "class Kept(dict):\n    pass\n"
    "import builtins\nbuiltins.check = globals()['check'] = lambda candidate: None\n",
    "no assertions": "import builtins\nclass Quiet(BaseException):\n    def __new__(cls, *_):\n        import os\n"
    "        os._exit(0)\nbuiltins.AssertionError = Quiet\n" + WRONG,
    "own builtins": "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.range = lambda *_: ()\n" + WRONG,
    "own __program__": "class __program__:\n    add = staticmethod(lambda x, y: x + y if False else None)\n" + WRONG,
    "settrace jumps": "import sys\ndef jump(frame, event, argument):\n    if event == 'line':\n"
    "        try: frame.f_lineno = frame.f_lineno + 1\n        except ValueError: pass\n    return jump\n"
    "def add(x, y):\n    sys.settrace(jump)\n    frame = sys._getframe().f_back\n"
    "    while frame: frame.f_trace, frame = jump, frame.f_back\n",
    "settrace rewrites": in_frames("if name in ('candidate', 'check'): place[name] = lambda *_: None"),
    "replaced modules": "import sys\nfor name in list(sys.modules):\n    if name != 'sys': sys.modules[name] = None\n"
    + WRONG,
    # answers that equal everything
    "equals everything": EQUAL + "def add(x, y): return Equal(1)",
    "a string that equals everything": "class Text(str):\n    __eq__ = __sub__ = lambda *_: True\n"
    "def add(x, y): return Text('5')",
    "NaN": "def add(x, y): return float('nan')",
    "infinite generator": "def add(x, y):\n    while True: yield x",
    "recursive list": "def add(x, y):\n    a = []\n    a.append(a)\n    return a",
    "unpickled": "import os\nclass Left:\n    def __reduce__(self): return os._exit, (0,)\n"
    "def add(x, y): return Left()",
    "replaced encoder": "import json, sys\n" + EQUAL + "for module in (json, sys.modules['__main__']):\n"
    "    module.dumps = module.encoded = lambda *_: Equal(1)\ndef add(x, y): return Equal(1)",
    # success told by the program itself
    "to all descriptors while asked": "import os\nmessage = b'[]\\ntrue\\n'\n"
    "def add(x, y):\n    "
    + EVERYWHERE.replace("\n", "\n    ") + "\n    os._exit(0)",
    "answers in advance": "import os\nmessage = b'null\\n' + b'{\"value\": true}\\n' * 99\n" + EVERYWHERE + WRONG,
    "ill-formed answers": "import os\nmessage = b'null\\n{\"value\": [\"Program\", 0]}\\n[[[\\n\\xff\\n'\n"
    + EVERYWHERE + WRONG,
    "descriptors of others": "import os\nmessage = b'true\\n'\n"
    "for pid in [int(p) for p in range(1, 70000)]:\n    for fd in range(3, 16):\n"
    "        try: f = os.open(f'/proc/{pid}/fd/{fd}', os.O_WRONLY)\n        except OSError: break\n"
    "        os.write(f, message)\n" + WRONG,
    "token in frames": in_frames("if isinstance(value, (bytes, str)):\n    import os\n    for fd in range(3, 64):\n"
    "        try: os.write(fd, value if isinstance(value, bytes) else value.encode())\n        except OSError: pass"),
    "functions of the judge": "import sys\nmain = sys.modules['__main__']\nfor name in list(vars(main)):\n"
    "    if not name.startswith('__'): setattr(main, name, lambda *_, **__: True)\n" + WRONG,
    # the judge itself
    "trace the judge": "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
    "for pid in range(os.getpid() - 50, os.getpid() + 50):\n"
    f"    libc.syscall({PTRACE}, 16, pid, 0, 0)\n" + WRONG,
    "write the judge's memory": "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
    f"for pid in range(os.getpid() - 50, os.getpid() + 50):\n    libc.syscall({WRITE_MEMORY}, pid, 0, 0, 0, 0, 0)\n"
    "    try: open(f'/proc/{pid}/mem', 'r+b')\n    except OSError: pass\n" + WRONG,
    "kill the judge": "import os\nfor pid in range(os.getpid() - 50, os.getpid() + 50):\n"
    "    if pid != os.getpid():\n        try: os.kill(pid, 9)\n        except OSError: pass\n" + WRONG,
    "a successor": "import os\ndef add(x, y):\n    if os.fork(): os._exit(0)",
    "flood the judge": "import os\ndef add(x, y):\n    while True:\n        for fd in range(3, 16):\n"
    "            try: os.write(fd, b'[' * 60000)\n            except OSError: pass",
    "stop a test's iteration": "def add(x, y): raise StopIteration",
    "own memory": "import ctypes\ndef add(x, y): ctypes.memset(id(5), 255, 64)",
}  # fmt: skip

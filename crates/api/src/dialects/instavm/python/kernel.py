"""The Python kernel of an InstaVM session: what `/execute` runs in the guest for Python.

Three roles in one text, because it reaches the guest as an argument of the interpreter:

client      `python3 -I -S -c TEXT client DIR LANGUAGE SECONDS LEFT_MS`, one for each call. Its three
            standard streams are the call's: the code comes in on the first. It hands them to the kernel
            over a Unix socket, starting one if there is none, and ends with the code's exit code.
supervisor  Outlives the calls. Takes one after the other, watches its time, and replaces the worker when
            that dies or does not stop. Runs nothing of the tenant's, so that it always answers.
worker      Runs the code, in one namespace for all calls.

What client and supervisor say to each other is frozen for each generation, the last part of DIR: a
snapshot may hold a supervisor that is older than the server which talks to it.
"""

import collections
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time

TIMED_OUT = 124
MESSAGE_BYTES = 4096
CALLS_WAITING = 64
CELLS_REMEMBERED = 200
DISCARD = -3  # subprocess.DEVNULL


# The client.

def client(directory, language, seconds, left_ms):
    began_before = time.clock_gettime(time.CLOCK_BOOTTIME) - started_at()
    left = max(int(left_ms) / 1000 - began_before, 0.0)
    call = {"language": language, "seconds": int(seconds), "left": left}
    link = reach(directory)
    try:
        socket.send_fds(link, [json.dumps(call).encode()], [0, 1, 2])
        # The other side has them now; ours would keep the pipes open.
        answer = link.recv(MESSAGE_BYTES)
    except OSError:
        answer = b""
    if not answer:
        fail("the Python kernel ended before it answered; its variables are lost")
    answer = json.loads(answer)
    if answer["note"]:
        os.write(2, (answer["note"] + "\n").encode())
    os._exit(answer["code"])


def fail(why):
    os.write(2, (why + "\n").encode())
    os._exit(1)


def started_at():
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as stat:
        ticks = int(stat.read().rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")


def reach(directory):
    """A connection to the supervisor, which is started by the first who finds none."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with open(os.path.join(directory, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.path.join(directory, "socket")
        try:
            link.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            start(path)
            link.connect(path)
        return link


def start(path):
    """Starts a supervisor. Its socket listens before it runs: nobody has to wait for it."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(CALLS_WAITING)
    # The text goes in by a pipe, which holds all of it, so that lists of processes stay readable.
    text_out, text_in = os.pipe()
    with open("/proc/self/cmdline", "rb") as command:
        text = command.read().split(b"\0")[4]
    fcntl.fcntl(text_in, 1031, 1 << 17)  # F_SETPIPE_SZ
    os.write(text_in, text)
    if os.fork() == 0:
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(text_out, 0)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            os.set_inheritable(listener.fileno(), True)
            os.execvp("python3", ["python3", "-", "supervisor", str(listener.fileno())])
        finally:
            os._exit(1)
    os.close(text_in)
    os.close(text_out)
    listener.close()


# The supervisor.

class Call:
    """One call, waiting or running."""

    def __init__(self, link, call, streams):
        self.link = link
        self.seconds = call["seconds"]
        self.language = call["language"]
        self.streams = streams
        self.timed_out = False
        self.left = False
        self.stop_within(time.monotonic(), call["left"])

    def stop_within(self, now, left):
        """Plans its end: asked to stop, then its children too, then killed, and then told."""
        margin = min(left / 4, 2.0)
        self.steps = collections.deque(
            (now + left - margin * share, step)
            for share, step in ((1, "interrupt"), (2 / 3, "interrupt_all"), (1 / 3, "kill"))
        )

    def close_streams(self):
        while self.streams:
            os.close(self.streams.pop())

    def answer(self, code, note=""):
        """Tells the caller, who may be gone."""
        try:
            self.link.send(json.dumps({"code": code, "note": note}).encode())
        except OSError:
            pass
        self.close()

    def close(self):
        self.close_streams()
        self.link.close()


class Supervisor:
    def __init__(self, listener):
        self.listener = listener
        self.greeting = {}
        self.waiting = collections.deque()
        self.running = None
        self.poll = select.poll()
        self.woken, wake = os.pipe()
        for end in (self.woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for stop in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(stop, signal.SIG_IGN)
        for end in (self.listener.fileno(), self.woken):
            self.poll.register(end, select.POLLIN)
        self.fork()

    def fork(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker = os.fork()
        if self.worker == 0:
            signal.set_wakeup_fd(-1)
            # Everything that is the supervisor's: the tenant's code gets none of it.
            ours.close()
            self.listener.close()
            for link in [*self.greeting.values(), *(call.link for call in self.waiting)]:
                link.close()
            for call in self.waiting:
                call.close_streams()
            os.close(self.woken)
            raise BecomeWorker(theirs)
        theirs.close()
        self.tasks = ours
        self.poll.register(ours.fileno(), select.POLLIN)

    def serve(self):
        while True:
            self.next_call()
            # One at a time: what it brings about may give its number, or another's, to something new.
            for end, _ in self.poll.poll(self.patience())[:1]:
                self.act(end)
            self.keep_time()

    def patience(self):
        """Milliseconds until something has to be done, whoever says something or not."""
        calls = [*self.waiting, *([self.running] if self.running else [])]
        times = [call.steps[0][0] for call in calls if call.steps]
        return max(min(times) - time.monotonic(), 0) * 1000 + 1 if times else None

    def act(self, end):
        if end == self.listener.fileno():
            link, _ = self.listener.accept()
            self.greeting[link.fileno()] = link
            self.poll.register(link.fileno(), select.POLLIN)
        elif end == self.woken:
            os.read(self.woken, 4096)
            self.see_whether_the_worker_lives()
        elif end == self.tasks.fileno():
            self.hear_the_worker()
        elif end in self.greeting:
            self.take(self.greeting.pop(end))
        else:
            self.caller_left(end)

    def take(self, link):
        message, streams, _, _ = socket.recv_fds(link, MESSAGE_BYTES, 3)
        if len(streams) != 3:
            self.poll.unregister(link.fileno())
            for stream in streams:
                os.close(stream)
            link.close()
            return
        self.waiting.append(Call(link, json.loads(message), streams))

    def caller_left(self, end):
        """A caller says nothing more, so this is its end: nobody waits for the output any longer."""
        self.poll.unregister(end)
        if self.running and self.running.link.fileno() == end:
            self.running.left = True
            self.running.stop_within(time.monotonic(), 0.0)
            self.running.steps = collections.deque(
                (time.monotonic() + after, step)
                for after, step in ((0, "interrupt"), (1, "interrupt_all"), (3, "kill"))
            )
        for call in [call for call in self.waiting if call.link.fileno() == end]:
            self.waiting.remove(call)
            call.close()

    def next_call(self):
        if self.running or not self.waiting:
            return
        call = self.running = self.waiting.popleft()
        task = json.dumps({"language": call.language}).encode()
        try:
            socket.send_fds(self.tasks, [task], call.streams)
        except OSError:
            pass  # The worker is dead; it will be seen, and the caller told.
        # Ours would keep the pipes open after the worker has closed its own.
        call.close_streams()

    def done(self, code, note=""):
        call, self.running = self.running, None
        if not call.left:
            self.poll.unregister(call.link.fileno())
        if call.timed_out:
            said = "Execution timed out after %d seconds" % call.seconds
            code, note = TIMED_OUT, said + ("; " + note if note else "")
        call.answer(code, note)

    def hear_the_worker(self):
        try:
            message = self.tasks.recv(MESSAGE_BYTES)
        except OSError:
            message = b""
        if message:
            if self.running:
                self.done(json.loads(message)["code"])
            return
        # It gave up its line: it is dead, or the tenant's code made another program of it.
        self.poll.unregister(self.tasks.fileno())
        self.signal(os.kill, signal.SIGKILL)

    def see_whether_the_worker_lives(self):
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            if process == self.worker:
                self.worker_ended(status)

    def worker_ended(self, status):
        # What it said last counts, whichever was heard first.
        try:
            self.tasks.setblocking(False)
            while message := self.tasks.recv(MESSAGE_BYTES):
                if self.running:
                    self.done(json.loads(message)["code"])
        except OSError:
            pass
        try:
            self.poll.unregister(self.tasks.fileno())
        except KeyError:
            pass
        self.tasks.close()
        if self.running:
            if os.WIFSIGNALED(status):
                code = 128 + os.WTERMSIG(status)
                end = "was killed by signal %d" % os.WTERMSIG(status)
            else:
                code = os.WEXITSTATUS(status)
                end = "ended"
            self.done(code, "the Python kernel %s and was started again: its variables are lost" % end)
        self.fork()

    def keep_time(self):
        now = time.monotonic()
        for call in [call for call in self.waiting if call.steps[0][0] <= now]:
            self.waiting.remove(call)
            self.poll.unregister(call.link.fileno())
            said = "Execution timed out after %d seconds" % call.seconds
            call.answer(TIMED_OUT, said + ": another one of this session was still running")
        call = self.running
        while call and call.steps and call.steps[0][0] <= now:
            _, step = call.steps.popleft()
            call.timed_out = True
            if step == "interrupt":
                self.signal(os.kill, signal.SIGINT)
            elif step == "interrupt_all":
                self.signal(os.killpg, signal.SIGINT)
            else:
                self.signal(os.kill, signal.SIGKILL)

    def signal(self, send, number):
        try:
            send(self.worker, number)
        except ProcessLookupError:
            pass


class BecomeWorker(Exception):
    """Leaves the supervisor's stack in the child."""


# The worker.

class Worker:
    def __init__(self, tasks):
        self.tasks = tasks
        self.process = os.getpid()
        self.interruptible = False
        self.cells = 0
        self.flags = 0
        self.event_loop = None
        os.setsid()
        os.register_at_fork(after_in_child=tasks.close)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        sys.argv = [""]
        sys.path[:] = [""] + [entry for entry in sys.path if entry]
        self.nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(self.nothing, 0)
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        # By lines, so that the order is right when programs write to the same pipes.
        self.texts = [
            open(stream, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
            for stream in (1, 2)
        ]
        sys.stdout, sys.stderr = self.texts
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        import builtins
        import types
        main = types.ModuleType("__main__")
        main.__builtins__ = builtins
        sys.modules["__main__"] = main
        self.names = main.__dict__
        builtins.__shell__ = self.shell
        builtins.__cd__ = lambda path: os.chdir(os.path.expanduser(path.strip() or "~"))

    def serve(self):
        while True:
            message, streams, _, _ = socket.recv_fds(self.tasks, MESSAGE_BYTES, 3)
            if not message:
                os._exit(0)
            code = self.one(json.loads(message)["language"], streams)
            self.tasks.send(json.dumps({"code": code}).encode())

    def one(self, language, streams):
        for stream, number in zip(streams[1:], (1, 2)):
            os.dup2(stream, number)
            os.close(stream)
        # Whatever the last call left behind: ours works.
        signal.signal(signal.SIGINT, self.interrupted)
        code = 1
        try:
            self.interruptible = True
            with os.fdopen(streams[0], "rb") as text:
                text = text.read().decode()
            code = self.run(text, language)
        except KeyboardInterrupt as error:
            code = 130
            self.show(error)
        except SystemExit as exit:
            code = self.exit_code(exit.code)
        except BaseException as error:
            self.show(error)
        finally:
            self.interruptible = False
        if os.getpid() != self.process:
            # A child of the tenant's code came out of it.
            self.flush()
            os._exit(code)
        self.flush()
        for number in (1, 2):
            os.dup2(self.nothing, number)
        return code & 0xFF

    def interrupted(self, *_):
        if self.interruptible and os.getpid() == self.process:
            self.interruptible = False
            raise KeyboardInterrupt

    def flush(self):
        for stream in {id(one): one for one in (sys.stdout, sys.stderr, *self.texts)}.values():
            try:
                stream.flush()
            except Exception:
                pass

    def exit_code(self, code):
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF
        print(code, file=sys.stderr)
        return 1

    def show(self, error):
        """The traceback, without our own frames."""
        try:
            if sys.excepthook is not sys.__excepthook__:
                sys.excepthook(type(error), error, error.__traceback__)
                return
            import traceback  # The built-in hook knows only lines of files.
            report = traceback.TracebackException.from_exception(error)
            ours = __file_name__
            report.stack = report.stack.from_list(f for f in report.stack if f.filename != ours)
            if not report.stack:
                report.stack = None
            for line in report.format():
                sys.stderr.write(line)
        except BaseException as another:
            self.texts[1].write("%s: %s\n" % (type(another).__name__, another))

    def run(self, text, language):
        import ast
        if text.startswith("%%bash\n") or text.startswith("%%sh\n"):
            return self.shell(text.partition("\n")[2])
        if language == "auto" and self.begins_with_a_command(text):
            return self.shell(text)
        self.cells += 1
        name = "<cell %d>" % self.cells
        try:
            text, tree = self.parse(text, name)
        except SyntaxError as error:
            if language == "auto" and self.is_a_script(text, first_word(text)):
                return self.shell(text)
            self.remember(name, text)
            self.show(error.with_traceback(None))
            return 1
        self.remember(name, text)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not text.rstrip().endswith(";"):
            last = ast.Interactive([tree.body.pop()])
        for part, mode in ((tree, "exec"), (last, "single")):
            if part is not None and part.body:
                self.evaluate(part, name, mode)
        return 0

    def parse(self, text, name):
        """The tree, with notebook lines (`!command`, `%pip`, `%cd`) made Python where Python stumbles over them."""
        import ast
        flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | self.flags
        seen = 0
        while True:
            try:
                return text, compile(text, name, "exec", flags, True)
            except SyntaxError as error:
                lines = text.split("\n")
                at = (error.lineno or 0) - 1
                if not seen <= at < len(lines):
                    raise
                line = notebook_line(lines[at])
                if line is None:
                    raise
                lines[at] = line
                text = "\n".join(lines)
                seen = at + 1

    def evaluate(self, tree, name, mode):
        import ast
        import __future__
        code = compile(tree, name, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | self.flags, True)
        for feature in __future__.all_feature_names:
            self.flags |= code.co_flags & getattr(__future__, feature).compiler_flag
        result = eval(code, self.names)
        if code.co_flags & 0x80:  # inspect.CO_COROUTINE
            import asyncio
            if self.event_loop is None or self.event_loop.is_closed():
                self.event_loop = asyncio.new_event_loop()
                asyncio.set_event_loop(self.event_loop)
            self.event_loop.run_until_complete(result)

    def remember(self, name, text):
        """Tracebacks show the lines of a cell; those of cells long ago are forgotten."""
        import linecache
        lines = [line + "\n" for line in text.split("\n")]
        linecache.cache[name] = (len(text), None, lines, name)
        linecache.cache.pop("<cell %d>" % (self.cells - CELLS_REMEMBERED), None)

    def begins_with_a_command(self, text):
        """As notebooks have it, `ls` and `git status` are commands as long as no name of theirs is bound."""
        import builtins
        import keyword
        word = first_word(text)
        if not word.isidentifier() or keyword.iskeyword(word):
            return False
        if word in self.names or hasattr(builtins, word):
            return False
        after = text.partition(word)[2].split("\n")[0]
        if after.strip() and (not after[0].isspace() or after.lstrip()[0] in "=:.,([+-*/%@&|^<>" and after.lstrip()[1:2] in "= "):
            return False
        return self.is_a_script(text, word)

    def is_a_script(self, text, word):
        """Begins with a command that is there and is fit for bash."""
        checks = [["-c", 'type -t -- "$1"', "bash", word], ["-n", "-c", text]] if word else []
        return bool(checks) and all(self.bash(check, DISCARD) == 0 for check in checks)

    def shell(self, script):
        self.flush()
        return self.bash(["-c", script])

    def bash(self, arguments, output=None):
        import subprocess
        process = subprocess.Popen(
            ["/bin/bash", *arguments], stdin=DISCARD, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait()
        except BaseException:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
            raise
        return code if code >= 0 else 128 - code


def first_word(text):
    """Of the first line that is no comment."""
    lines = (line.strip() for line in text.splitlines())
    return next((line.split()[0] for line in lines if line and line[0] != "#"), "")


def notebook_line(line):
    """What stands for a line of a notebook that is no Python."""
    rest = line.lstrip()
    indent = line[: len(line) - len(rest)]
    if rest.startswith("!"):
        return "%s__shell__(%r);" % (indent, rest[1:])
    if rest.startswith("%pip "):
        return "%s__shell__(%r);" % (indent, "python3 -m " + rest[1:])
    if rest == "%cd" or rest.startswith("%cd "):
        return "%s__cd__(%r);" % (indent, rest[3:])
    return None


__file_name__ = notebook_line.__code__.co_filename


def supervisor(listener):
    try:
        Supervisor(socket.socket(fileno=int(listener))).serve()
    except BecomeWorker as become:
        tasks = become.args[0]
    Worker(tasks).serve()


{"client": client, "supervisor": supervisor}[sys.argv[1]](*sys.argv[2:])

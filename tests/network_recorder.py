"""Runs programs that can reach no network, with every attempt recorded.

A library that is loaded before the C library stands in for the functions that look names up and for those that give a
socket an address, in the program and in all that it starts. Native code calls them too: ONNX Runtime uploads from a
thread of its own. A socket that never gets an address is no attempt: libuuid asks one for the network card's name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define record(function, what) record_for(__builtin_return_address(0), function, what)

static void record_for(void *caller, const char *function, const char *what) {
    Dl_info library;
    const char *from = dladdr(caller, &library) && library.dli_fname ? library.dli_fname : "?";
    int file = open(getenv("NETWORK_RECORD"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0) abort();
    dprintf(file, "%s(%s) by %s\n", function, what ? what : "", from);
    close(file);
}

/* Other processes and the kernel's own tables are no network. */
static int is_network(const struct sockaddr *address) {
    if (!address || address->sa_family == AF_UNSPEC) return 0;
    return address->sa_family != AF_UNIX && address->sa_family != AF_NETLINK;
}

#define REFUSE_IF_NETWORK(function, address)         \
    if (is_network(address)) {                       \
        char what[32];                               \
        snprintf(what, sizeof what, "family %d", (address)->sa_family); \
        record(function, what);                      \
        errno = ENETUNREACH;                         \
        return -1;                                   \
    }

int connect(int file, __CONST_SOCKADDR_ARG address, socklen_t length) {
    REFUSE_IF_NETWORK("connect", address.__sockaddr__)
    int (*next)(int, __CONST_SOCKADDR_ARG, socklen_t) = dlsym(RTLD_NEXT, "connect");
    return next(file, address, length);
}

int bind(int file, __CONST_SOCKADDR_ARG address, socklen_t length) {
    REFUSE_IF_NETWORK("bind", address.__sockaddr__)
    int (*next)(int, __CONST_SOCKADDR_ARG, socklen_t) = dlsym(RTLD_NEXT, "bind");
    return next(file, address, length);
}

ssize_t sendto(int file, const void *data, size_t size, int flags, __CONST_SOCKADDR_ARG address, socklen_t length) {
    REFUSE_IF_NETWORK("sendto", address.__sockaddr__)
    ssize_t (*next)(int, const void *, size_t, int, __CONST_SOCKADDR_ARG, socklen_t) = dlsym(RTLD_NEXT, "sendto");
    return next(file, data, size, flags, address, length);
}

ssize_t sendmsg(int file, const struct msghdr *message, int flags) {
    REFUSE_IF_NETWORK("sendmsg", (const struct sockaddr *)message->msg_name)
    ssize_t (*next)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
    return next(file, message, flags);
}

int sendmmsg(int file, struct mmsghdr *messages, unsigned count, int flags) {
    if (count) REFUSE_IF_NETWORK("sendmmsg", (const struct sockaddr *)messages[0].msg_hdr.msg_name)
    int (*next)(int, struct mmsghdr *, unsigned, int) = dlsym(RTLD_NEXT, "sendmmsg");
    return next(file, messages, count, flags);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    record("getaddrinfo", node);
    return EAI_AGAIN;
}

int getnameinfo(const struct sockaddr *address, socklen_t length, char *host, socklen_t host_length, char *service,
                socklen_t service_length, int flags) {
    record("getnameinfo", "");
    return EAI_AGAIN;
}

struct hostent *gethostbyname(const char *name) {
    record("gethostbyname", name);
    h_errno = TRY_AGAIN;
    return NULL;
}

int gethostbyname_r(const char *name, struct hostent *entry, char *buffer, size_t length, struct hostent **result,
                    int *error) {
    record("gethostbyname_r", name);
    *result = NULL;
    *error = TRY_AGAIN;
    return EAGAIN;
}

int gethostbyaddr_r(const void *address, socklen_t address_length, int type, struct hostent *entry, char *buffer,
                    size_t length, struct hostent **result, int *error) {
    record("gethostbyaddr_r", "");
    *result = NULL;
    *error = TRY_AGAIN;
    return EAGAIN;
}
"""

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "SYSTEMROOT")
"""All that a program finds of this process's environment. ONNX Runtime, NNCF and OpenVINO report nothing where they
find a CI's variables, so a test that left those there would see nothing and prove nothing."""

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Recorder:
    """Starts programs in a folder of their own, with a fresh home folder, and knows what they did."""

    folder: Path
    library: Path
    started: list[Recorded] = field(default_factory=list)

    @classmethod
    def build(cls, folder: Path) -> Recorder:
        """Compile the library; a test that cannot have it is skipped with the reason."""
        if sys.platform != "linux":
            pytest.skip("the network is recorded by a library for Linux")
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("the network is recorded by a library that a C compiler, cc, has to make; there is none")
        source, library = folder / "recorder.c", folder / "recorder.so"
        source.write_text(_SOURCE, encoding="utf-8")
        subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, source, "-ldl"], check=True)
        return cls(folder, library)

    def start(self, name: str, *command: str, variables: Mapping[str, str] | None = None) -> Recorded:
        """Start this Python with arguments; what it prints goes to a file."""
        recorded = Recorded(self.folder / name)
        for folder in (recorded.home, recorded.working_folder, recorded.folder / "tmp"):
            folder.mkdir(parents=True)
        environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
        environment |= {"HOME": str(recorded.home), "TMPDIR": str(recorded.folder / "tmp"), "PYTHONPATH": str(_ROOT)}
        environment |= {"LD_PRELOAD": str(self.library), "NETWORK_RECORD": str(recorded.folder / "record")}
        with (recorded.folder / "output").open("w", encoding="utf-8") as output:
            recorded.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=recorded.working_folder,
                env=environment | dict(variables or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(recorded)
        return recorded

    def stop(self) -> None:
        """End what still runs."""
        for recorded in self.started:
            recorded.stop()


class Recorded:
    """One program that was started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.working_folder = folder / "cwd"
        self.process: subprocess.Popen[bytes]

    def attempts(self) -> list[str]:
        """Return the calls so far that wanted the network, with the library that made each."""
        record = self.folder / "record"
        return record.read_text(encoding="utf-8").splitlines() if record.is_file() else []

    def files_in_home(self) -> list[str]:
        """Return the files in its home folder, but for what this package keeps in the user's cache."""
        kept = self.home / ".cache" / "vae-edge"
        found = (path for path in self.home.rglob("*") if not path.is_dir() and not path.is_relative_to(kept))
        return sorted(path.relative_to(self.home).as_posix() for path in found)

    def stop(self) -> None:
        """End it, if it still runs."""
        self.process.kill()
        self.process.wait()

    def finish(self, timeout_s: float) -> str:
        """Wait for its end and return what it printed; it must have succeeded."""
        try:
            code = self.process.wait(timeout_s)
        finally:
            self.stop()
        output = (self.folder / "output").read_text(encoding="utf-8", errors="replace")
        assert code == 0, f"{self.folder.name} ended with {code}:\n{output[-3000:]}"
        return output

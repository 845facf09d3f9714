"""One-line descriptions of errors of the environment: missing permissions, a full disk, an unreachable hub."""

from __future__ import annotations

import errno

_NETWORK_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub", "requests", "urllib3"}
_ADVICE = {
    errno.EACCES: "Choose another location, or change its permissions.",
    errno.EPERM: "Choose another location, or change its permissions.",
    errno.EROFS: "Choose a location on a writable disk.",
    errno.ENOSPC: "Free some space, or choose a location on another disk.",
    errno.EDQUOT: "Free some space, or choose a location on another disk.",
    errno.ENOTDIR: "A file exists where a folder is expected; choose another location, or move the file.",
    errno.EEXIST: "A file exists where a folder is expected; choose another location, or move the file.",
    errno.EISDIR: "This is a folder; choose a file.",
    errno.ENOENT: "Check the spelling.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`).",
}


def describe_environment_error(error: BaseException) -> str | None:
    """Describe an OS or network error in one line: where, what, and what to do. Return None for other errors."""
    network = any(kind.__module__.partition(".")[0] in _NETWORK_LIBRARIES for kind in type(error).__mro__)
    if not (isinstance(error, OSError) or network):
        return None
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return " ".join(part for part in (f"{where}:" if where else "", f"{error.strerror}.", _ADVICE.get(error.errno, "")) if part)
    message = " ".join(str(error).split()) or type(error).__name__
    return f"{message} Check the network and the name." if network else message

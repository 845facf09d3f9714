"""What the world does to a program, in one line: no permission, a file where a folder belongs, a full disk, a hub out of reach."""

from __future__ import annotations

import errno

_NETWORK = {"httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub", "requests", "urllib3"}
_TODO = {
    errno.EACCES: "Choose a place that you may use, or change its permissions.",
    errno.EPERM: "Choose a place that you may use, or change its permissions.",
    errno.EROFS: "Choose a place on a disk that can be written to.",
    errno.ENOSPC: "Free some space, or choose a place on another disk.",
    errno.EDQUOT: "Free some space, or choose a place on another disk.",
    errno.ENOTDIR: "A file stands where a folder is expected; choose another place, or move it.",
    errno.EEXIST: "A file stands where a folder is expected; choose another place, or move it.",
    errno.EISDIR: "This is a folder; name a file.",
    errno.ENOENT: "Check the spelling.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`).",
}


def describe_environment_error(error: BaseException) -> str | None:
    """One line that says what happened, where, and what to do; None for an error of another kind."""
    network = any(kind.__module__.partition(".")[0] in _NETWORK for kind in type(error).__mro__)
    if not (isinstance(error, OSError) or network):
        return None
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return " ".join(part for part in (f"{where}:" if where else "", f"{error.strerror}.", _TODO.get(error.errno, "")) if part)
    told = " ".join(str(error).split()) or type(error).__name__
    return f"{told} Check the network and the name." if network else told

"""Train generative reward models, and use them.

    from rlsys import GRM

    with GRM.connect("http://127.0.0.1:8000") as judge:  # a service; GRM("runs/quickstart") starts engines in this process's Ray
        verdict = judge.score("What is 2 + 2?", ["4", "5"])
        print(verdict.best, verdict.scores)

`import rlsys` is light: names are imported when they are first used, and none of them needs torch, transformers or Ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlsys.client import GRM, Verdict
    from rlsys.serving.contract import ScoreRequest, ServingError

__all__ = ["GRM", "ScoreRequest", "ServingError", "Verdict", "__version__"]

_MODULES = {
    "GRM": "rlsys.client",
    "Verdict": "rlsys.client",
    "ScoreRequest": "rlsys.serving.contract",
    "ServingError": "rlsys.serving.contract",
}

__version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("rlsys")
    elif name in _MODULES:
        from importlib import import_module

        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'rlsys' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

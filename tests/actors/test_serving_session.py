"""The start and the end of the service on a cluster that others use, with Serve in memory."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from actors.serving import session
from actors.serving.session import ServiceError, running_service
from rlsys.config.files import load_config
from rlsys.serving.service import ServiceArguments
from rlsys.system.placement import PlacementError


class Serve:
    """Ray Serve's calls; `run` and `delete` fail with the errors given."""

    def __init__(self, *applications: str, host: str = "127.0.0.1"):
        self.applications = set(applications)
        self.http_config = SimpleNamespace(host=host, port=8000)
        self.run_fails: BaseException | None = None
        self.delete_fails: Exception | None = None
        self.shut_down = False

    def start(self, **options: object) -> None:
        pass

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(applications=dict.fromkeys(self.applications))

    def run(self, application: object, name: str, route_prefix: str) -> None:
        self.applications.add(name)
        if self.run_fails:
            raise self.run_fails

    def delete(self, name: str) -> None:
        if self.delete_fails:
            raise self.delete_fails
        self.applications.remove(name)

    def shutdown(self) -> None:
        self.shut_down = True


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr(session, "_cluster", lambda *_: nullcontext())
    monkeypatch.setattr(session, "application", lambda *_: None)

    def start(serve: Serve):
        monkeypatch.setattr(session, "serve", serve)
        monkeypatch.setattr(session, "_get_global_client", lambda: serve)
        return running_service(ServiceArguments(model="m"), load_config(None, []), None, None, "127.0.0.1", 8000, "auto")

    return start


def test_the_application_and_an_unused_serve_are_removed_at_the_end(start):
    alone, shared = Serve(), Serve("other")
    for serve in (alone, shared):
        with start(serve) as service:
            assert service.url == "http://127.0.0.1:8000" and "rlsys" in serve.applications
    assert (alone.applications, alone.shut_down) == (set(), True)
    assert (shared.applications, shared.shut_down) == ({"other"}, False)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PlacementError("too few GPUs"), RuntimeError("no model")])
def test_nothing_stays_after_a_start_that_fails_or_is_interrupted(start, error):
    serve = Serve("other")
    serve.run_fails = error
    with pytest.raises(ServiceError if type(error) is RuntimeError else type(error)), start(serve):
        pass
    assert serve.applications == {"other"}


def test_somebody_elses_service_is_left_alone(start):
    serve = Serve("rlsys")
    with pytest.raises(ServiceError, match="already"), start(serve):
        pass
    assert serve.applications == {"rlsys"} and not serve.shut_down


def test_a_serve_that_others_can_reach_is_not_used_as_if_it_were_loopback(start):
    serve = Serve(host="0.0.0.0")
    with pytest.raises(ServiceError, match="0.0.0.0:8000"), start(serve):
        pass
    assert not serve.applications


def test_a_failure_to_stop_is_logged_and_hides_nothing(start, caplog):
    serve = Serve()
    serve.delete_fails = RuntimeError("no controller")
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match="the first"), start(serve):
        raise ValueError("the first")
    assert "no controller" in caplog.text and "serve shutdown" in caplog.text

"""One stack for all tests on a cluster: created once, always deleted, and dumped where a test fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e import overlay
from tests.e2e.kubectl import Cluster, Object, log
from tests.e2e.settings import Settings, read, why_not
from tests.e2e.stack import Stack
from tests.e2e.tracking import ENVIRONMENT, tracking

CALL_REPORT = pytest.StashKey[pytest.TestReport]()
# Before any fixture removes variables.
WHY_NOT = why_not()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if WHY_NOT and item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip(reason=WHY_NOT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Adds the current state of the cluster to the report of a failure."""
    report = yield
    if report.when == "call":
        item.stash[CALL_REPORT] = report
    if report.failed and item.get_closest_marker("cluster") and not WHY_NOT:
        settings = read()
        try:
            text = Cluster(settings.namespace, settings.patience).dump()
        except AssertionError as error:
            text = f"the cluster could not be inspected: {error}"
        report.sections.append(("the cluster", text))
    return report


@pytest.fixture(scope="module")
def settings() -> Settings:
    return read()


@pytest.fixture(autouse=True)
def _client_environment(monkeypatch: pytest.MonkeyPatch, _own_environment: None) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def stack(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack with MLflow ready, in a namespace that does not exist before and after."""
    folder = tmp_path_factory.mktemp("e2e")
    cluster = Cluster(settings.namespace, settings.patience)
    check_namespace(cluster)
    made = Stack(cluster, settings, overlay.write(folder, settings), folder)
    try:
        made.up()
        with tracking(cluster, folder) as made.tracking:
            yield made
    except BaseException:
        log(cluster.dump())
        raise
    finally:
        made.down()


def check_namespace(cluster: Cluster) -> None:
    """The namespace will be deleted: an existing one must be left over from a killed run of this suite."""
    found: Object | None = cluster.find("namespace", cluster.namespace)
    if found is None:
        return
    if found["metadata"].get("labels", {}).get(overlay.LABEL) != "true":
        pytest.exit(
            f"namespace {cluster.namespace} exists and is not from this suite: choose another with E2E_NAMESPACE", 2
        )
    log(f"namespace {cluster.namespace} is left over from an earlier run")
    cluster.run("delete", "namespace", cluster.namespace, "--wait=false")
    cluster.wait("its deletion", lambda: cluster.find("namespace", cluster.namespace) is None, 300)

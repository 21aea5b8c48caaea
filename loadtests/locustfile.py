"""Load on a running service: `locust -f loadtests/locustfile.py`, see `README.md`."""

from __future__ import annotations

import logging
from typing import Any, cast

from locust import FastHttpUser, between, events

from loadtests.scenarios import Scenario, scenarios

_HEAD_BYTES = 8192  # enough of an answer to see what it is

log = logging.getLogger("loadtests")


def _ask(scenario: Scenario) -> Any:
    def ask(user: FastHttpUser) -> None:
        headers = {"Content-Type": scenario.content_type}
        with user.client.post(
            "/v1/evaluate",
            data=cast("Any", scenario.body),  # bytes are sent as they are, whatever the stubs say
            headers=headers,
            name=scenario.name,
            catch_response=True,
        ) as response:
            head = (response.content or b"")[:_HEAD_BYTES].decode("utf-8", "replace")
            if response.status_code != 200:  # noqa: PLR2004 - what HTTP calls right
                response.failure(f"{response.status_code}: {head[:200]}")
            elif scenario.answers_with not in head:
                response.failure(f"the answer holds no {scenario.answers_with}")

    ask.__name__ = scenario.name
    return ask


class Caller(FastHttpUser):
    """Sends requests of every scenario, by its share, with hardly a pause."""

    wait_time = between(0.0, 0.05)
    network_timeout = connection_timeout = 60.0
    tasks = [_ask(one) for one in scenarios() for _ in range(one.share)]  # noqa: RUF012 - locust's


@events.quitting.add_listener  # type: ignore[untyped-decorator]  # of locust's
def fail_on_failures(environment: Any, **_: Any) -> None:
    """Exit status 1 if a request failed or none was made."""
    total = environment.stats.total
    if total.num_failures or not total.num_requests:
        log.error("%d of %d requests failed", total.num_failures, total.num_requests)
        environment.process_exit_code = 1

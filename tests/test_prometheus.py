"""The real Prometheus: it scrapes the server, and loads our rules; promtool checks both."""

import json
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.processes import free_port
from tests.support import CHECKOUT, Tunnel, echo, serving, wait_for

RULES = CHECKOUT / "contrib" / "prometheus" / "shadow-alerts.yaml"


def promtool(*words: str | Path, text: str = "") -> str:
    done = subprocess.run(
        ["promtool", *words], input=text, capture_output=True, text=True, check=False, cwd=RULES.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def target(tunnel: Tunnel) -> Iterator[str]:
    """Where a server with a robot and a visitor can be scraped."""
    with socket.create_server(("127.0.0.1", 0)) as listening, serving(echo) as service:
        server = tunnel.daemon(tunnel.server_arguments(), passed=("shadow-metrics", listening))
        server.wait_for_log("accepting robots")
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        with tunnel.visit() as visitor:
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"
            yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_the_figures_follow_its_conventions(target: str) -> None:
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert promtool("check", "metrics", text=text) == ""


def test_the_rules_are_rules() -> None:
    assert "14 rules found" in promtool("check", "rules", RULES)


def series(name: str, values: str) -> str:
    return f"      - series: '{name}'\n        values: '{values}'\n"


def alerts(tmp_path: Path, given: str, at: str, alert: str, *labels: str) -> None:
    """Have promtool find out that an alert fires (with ``labels``) or does not (without)."""
    expected = "".join(f"          - exp_labels: {{{one}}}\n" for one in labels) or "          []\n"
    path = tmp_path / "test.yaml"
    # Texts of alerts are not compared: they hold numbers that have to be read by a person.
    rules = "\n".join(
        line for line in RULES.read_text().splitlines()
        if not line.strip().startswith(("annotations:", "summary:", "description:"))
    )  # fmt: skip
    (tmp_path / "rules.yaml").write_text(rules)
    path.write_text(
        "rule_files: [rules.yaml]\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n"
        f"{given}    alert_rule_test:\n      - eval_time: {at}\n        alertname: {alert}\n"
        f"        exp_alerts:\n{expected}"
    )
    promtool("test", "rules", path)


DAY = 86400


@pytest.mark.parametrize(
    ("alert", "given", "at", "labels"),
    [
        ("ShadowServerDown", series('up{job="shadow"}', "1x5 0x20"), "4m", []),
        (
            "ShadowServerDown", series('up{job="shadow"}', "1x5 0x20"), "9m",
            ["severity: critical, job: shadow"],
        ),
        ("ShadowManyRobotsGone", series("shadow_robots_connected", "100x30 81x30"), "50m", []),
        (
            "ShadowManyRobotsGone", series("shadow_robots_connected", "100x30 79x30"), "40m",
            ["severity: critical"],
        ),
        (
            "ShadowExpiresSoon", series('shadow_expiry_timestamp_seconds{what="a"}', f"{31 * DAY}x90"), "80m",
            [],
        ),
        (
            "ShadowExpiresSoon", series('shadow_expiry_timestamp_seconds{what="a"}', f"{29 * DAY}x90"), "80m",
            ["severity: warning, what: a"],
        ),
        ("ShadowExpiresNow", series('shadow_expiry_timestamp_seconds{what="a"}', f"{8 * DAY}x5"), "1m", []),
        (
            "ShadowExpiresNow", series('shadow_expiry_timestamp_seconds{what="a"}', f"{-8 * DAY}x5"), "1m",
            ["severity: critical, what: a"],
        ),
        (
            "ShadowRobotExpiresSoon",
            series('shadow_robot_expiry_timestamp_seconds{robot="a"}', f"{15 * DAY}x90"), "80m", [],
        ),
        (
            "ShadowRobotExpiresSoon",
            series('shadow_robot_expiry_timestamp_seconds{robot="a"}', f"{13 * DAY}x90"), "80m",
            ["severity: warning, robot: a"],
        ),
        ("ShadowRobotsExpired", series("shadow_robots_expired", "0x9 3x2 0x9"), "20m", []),
        ("ShadowRobotsExpired", series("shadow_robots_expired", "0x9 3x9"), "18m", ["severity: critical"]),
        ("ShadowRenewalsFail", series('shadow_renewals_total{code="ok"}', "0+9x90"), "80m", []),
        (
            "ShadowRenewalsFail", series('shadow_renewals_total{code="limit"}', "0+9x90"), "80m",
            ["severity: warning, code: limit"],
        ),
        (
            "ShadowHandshakesFail", series('shadow_handshakes_failed_total{cause="lost"}', "0+600x60"), "50m",
            [],
        ),
        (
            "ShadowHandshakesFail", series('shadow_handshakes_failed_total{cause="tls"}', "0+60x60"), "50m",
            ["severity: warning, cause: tls"],
        ),
        (
            "ShadowTwoDevicesWithOneName",
            series('shadow_sessions_ended_total{cause="superseded"}', "0+1x30"), "20m", [],
        ),
        (
            "ShadowTwoDevicesWithOneName",
            series('shadow_sessions_ended_total{cause="superseded"}', "0+10x30"), "20m",
            ["severity: warning, cause: superseded"],
        ),
        (
            "ShadowVisitorsTurnedAway",
            series('shadow_visitors_turned_away_total{by="robot"}', "0+5x30"), "20m",
            ["severity: warning, by: robot"],
        ),
        (
            "ShadowNotProtected",
            series('shadow_streams{tls="userspace"}', "1x90")
            + series('shadow_streams{tls="kernel"}', "1x90"),
            "80m", ["severity: info, tls: userspace"],
        ),
        ("ShadowFleetViewOld", series("shadow_fleet_view_age_seconds", "0x5 15 30 0x9"), "8m", []),
        (
            "ShadowFleetViewOld", series("shadow_fleet_view_age_seconds", "0x5 15+60x9"), "9m",
            ["severity: warning"],
        ),
        ("ShadowFleetUnclaimed", series("shadow_fleet_unclaimed_sessions", "0x5 9x3 0x9"), "12m", []),
        (
            "ShadowFleetUnclaimed", series("shadow_fleet_unclaimed_sessions", "0x5 9x9"), "12m",
            ["severity: warning"],
        ),
        (
            "ShadowFleetServerMissing",  # one that is drained is no less there
            series('shadow_fleet_servers{state="live"}', "3x9 2x20")
            + series('shadow_fleet_servers{state="draining"}', "0x9 1x20"),
            "20m", [],
        ),
        (
            "ShadowFleetServerMissing",
            series('shadow_fleet_servers{state="live"}', "3x9 2x20")
            + series('shadow_fleet_servers{state="draining"}', "0x30"),
            "20m", ["severity: critical"],
        ),
    ],
)  # fmt: skip
def test_when_an_alert_fires(tmp_path: Path, alert: str, given: str, at: str, labels: list[str]) -> None:
    alerts(tmp_path, given, at, alert, *labels)


@pytest.mark.long
def test_it_scrapes_and_evaluates(target: str, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: ['{RULES}']\n"
        "scrape_configs:\n"
        f"  - {{job_name: shadow, static_configs: [{{targets: ['{target}']}}]}}\n"
    )
    promtool("check", "config", config)

    def get(path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def value(query: str) -> float | None:
        try:
            found = get("query", query=query)["result"]
        except OSError:
            return None
        return float(found[0]["value"][1]) if found else None

    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            wait_for(lambda: value("shadow_robots_connected") == 1, "a scrape")
            assert value("sum(shadow_streams)") == 1
            assert value('up{job="shadow"}') == 1
            groups = get("rules")["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            assert len(rules) == 14

            def healthy() -> bool:
                return all(
                    rule["health"] == "ok" for group in get("rules")["groups"] for rule in group["rules"]
                )

            wait_for(healthy, "every rule to be evaluated")
        finally:
            process.terminate()
            process.wait()

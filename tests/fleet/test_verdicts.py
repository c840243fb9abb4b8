"""What etcd's errors mean; the texts are those of 3.4.23 and 3.5.16."""

import json
from typing import Any

import pytest

from shadow.errors import Compacted, EngineFull, EngineRefused, LeaseLost
from shadow.fleet.verdicts import AuthOff, Elsewhere, StaleToken, check_watch, judge_status, parse, result


@pytest.mark.parametrize("of_3_4", [True, False])
@pytest.mark.parametrize(
    ("status", "code", "text", "kind"),
    [
        (400, 11, "etcdserver: mvcc: required revision has been compacted", Compacted),
        (400, 11, "etcdserver: mvcc: required revision is a future revision", Elsewhere),
        (404, 5, "etcdserver: requested lease not found", LeaseLost),
        (401, 16, "etcdserver: invalid auth token", StaleToken),
        (403, 7, "etcdserver: permission denied", EngineRefused),
        (400, 3, "etcdserver: authentication failed, invalid user ID or password", EngineRefused),
        (400, 3, "etcdserver: revision of auth store is old", StaleToken),
        (400, 3, "etcdserver: user name is empty", StaleToken),
        (400, 3, "etcdserver: too many operations in txn request", EngineRefused),
        (400, 9, "etcdserver: authentication is not enabled", AuthOff),
        (503, 14, "etcdserver: no leader", Elsewhere),
        (503, 8, "etcdserver: mvcc: database space exceeded", EngineFull),
        (503, 8, "etcdserver: too many requests", Elsewhere),
        (504, 4, "context deadline exceeded", Elsewhere),
        (500, 2, "", Elsewhere),
    ],
)
def test_errors(status: int, code: int, text: str, kind: type[Exception], *, of_3_4: bool) -> None:
    said: dict[str, Any] = {"code": code, "message": text}
    if of_3_4:
        said["error"] = text
    with pytest.raises(kind):
        judge_status(status, json.dumps(said).encode())
    with pytest.raises(kind):
        result({"error": {"grpc_code": code, "http_code": status, "message": text} if of_3_4 else said})


def test_the_engines_words_are_passed_on_harmless_and_short() -> None:
    with pytest.raises(Elsewhere, match=r"^etcdserver: no\? leader") as caught:
        judge_status(503, json.dumps({"code": 14, "message": "etcdserver: no\n leader" + "!" * 500}).encode())
    assert len(str(caught.value)) == 160
    with pytest.raises(Elsewhere, match="an error without words"):
        judge_status(500, b'{"code": 2, "message": ""}')


def test_who_has_not_logged_in_does_so_when_something_is_not_permitted() -> None:
    """Without a token the engine takes the gateway's own certificate for ours."""
    denied = b'{"code":7, "message":"etcdserver: permission denied"}'
    with pytest.raises(StaleToken):
        judge_status(403, denied, anonymous=True)


def test_a_certificate_with_a_name_and_an_engine_with_users() -> None:
    text = (
        b"CommonName of client sending a request against gateway will be ignored and not used as expected\n"
    )
    with pytest.raises(EngineRefused, match="no certificate with a common name"):
        judge_status(400, text)


def test_a_server_that_is_no_etcd() -> None:
    with pytest.raises(Elsewhere, match="404") as caught:
        judge_status(404, b"<html>\x1b[2J" + b"x" * 1000)
    assert caught.value.refused
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300
    with pytest.raises(Elsewhere, match="302") as caught:
        judge_status(302, b"")
    assert not caught.value.refused


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"[]", b"7", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object(raw: bytes) -> None:
    with pytest.raises(Elsewhere):
        parse(raw)


@pytest.mark.parametrize(
    "said", [{"error": 7}, {"error": "x"}, {"error": {}}, {"result": 7}, {"result": None}]
)
def test_lines_that_make_no_sense(said: dict[str, Any]) -> None:
    with pytest.raises(Elsewhere):
        result(said)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"compact_revision": "3"}, Compacted),
        (
            {"cancel_reason": "rpc error: code = PermissionDenied desc = etcdserver: permission denied"},
            EngineRefused,
        ),
        (
            {"cancel_reason": "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"},
            StaleToken,
        ),
        ({"cancel_reason": "rpc error: code = Unavailable desc = etcdserver: no leader"}, Elsewhere),
        ({"cancel_reason": "whatever"}, Elsewhere),
        ({"cancel_reason": 7}, Elsewhere),
        ({}, Elsewhere),
    ],
)
def test_watches_that_were_cancelled(said: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        check_watch({**said, "canceled": True})
    check_watch({**said, "canceled": False})

"""What etcd means when it does not give a result: its errors, by gRPC's codes and its own words; no I/O.

The gateways of 3.4 and 3.5 differ in the fields around them. Codes:
https://grpc.io/docs/guides/status-codes/; etcd's words: ``api/v3rpc/rpctypes/error.go``.
"""

import json
import re
from typing import Any, NoReturn

from ..errors import Compacted, EngineFull, EngineRefused, LeaseLost
from ..text import printable

Json = dict[str, Any]

_TEXT_MAX = 160  # characters of what a member says
_INVALID, _NOT_FOUND, _PERMISSION_DENIED, _PRECONDITION, _OUT_OF_RANGE, _UNAUTHENTICATED = 3, 5, 7, 9, 11, 16
_EXHAUSTED = 8
_GONE = {4, 14}  # DEADLINE_EXCEEDED, UNAVAILABLE
_NAMES = {  # as they appear in the reason for which a watch was cancelled
    "InvalidArgument": _INVALID,
    "PermissionDenied": _PERMISSION_DENIED,
    "Unauthenticated": _UNAUTHENTICATED,
    "Unavailable": 14,
}
_REASON = re.compile(r"rpc error: code = (\w+) desc = (.*)", re.DOTALL)
_COMMON_NAME = "CommonName of client"


class Elsewhere(Exception):
    """This member cannot do it, another one perhaps can.

    Attributes:
        refused: it will not until somebody changes a setting.
        gone: it is not there, or has lost its leader: what else is under way there will come to nothing.
    """

    def __init__(self, text: str, *, refused: bool = False, gone: bool = False) -> None:
        super().__init__(text)
        self.refused = refused
        self.gone = gone


class StaleToken(Exception):
    """We have to log in again."""


class AuthOff(Exception):
    """The engine has no users: nobody has to log in."""


def parse(raw: bytes) -> Json:
    """A member's answer.

    Raises:
        Elsewhere: it is no JSON object.
    """
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Elsewhere("what it says is no JSON") from error
    if not isinstance(said, dict):
        raise Elsewhere("what it says is no JSON object")
    return said


def result(said: Json) -> Json:
    """What a line of a stream brings.

    Raises:
        Elsewhere, StaleToken, Compacted, EngineFull, LeaseLost, EngineRefused: an error, though the HTTP
            status said that all is well.
    """
    if "error" in said:
        error = said["error"]
        judge(error if isinstance(error, dict) else said)
    found = said.get("result", said)
    if not isinstance(found, dict):
        raise Elsewhere("its answer makes no sense")
    return found


def judge_status(status: int, raw: bytes, *, anonymous: bool = False) -> NoReturn:
    """Say what an HTTP status other than 200 means; ``anonymous``: we could log in, and have not.

    Raises:
        Elsewhere, StaleToken, AuthOff, Compacted, EngineFull, LeaseLost, EngineRefused: that.
    """
    text = raw[: 2 * _TEXT_MAX].decode(errors="replace").strip()
    if text.startswith(_COMMON_NAME):
        raise EngineRefused(
            "the engine has users (auth), and its gateway then takes no certificate with a common name: "
            "take one without"
        )
    if text.startswith("{"):
        judge(parse(raw), anonymous=anonymous)
    said = printable(text[:_TEXT_MAX]) or "nothing"
    raise Elsewhere(f"HTTP status {status} ({said})", refused=status == 404)


def check_watch(said: Json) -> None:
    """Check that a watch goes on.

    Raises:
        Compacted: the engine no longer has the changes from the revision asked for.
        Elsewhere, StaleToken, EngineRefused: it was cancelled for another reason.
    """
    if not said.get("canceled"):
        return
    if said.get("compact_revision"):
        raise Compacted("the fleet's engine no longer has the changes since then")
    reason = said.get("cancel_reason")
    words = _REASON.fullmatch(reason) if isinstance(reason, str) else None
    judge({"code": _NAMES.get(words[1], 0), "message": words[2]} if words else {"message": reason})


def judge(said: Json, *, anonymous: bool = False) -> NoReturn:
    """Say what an error means; see ``judge_status``."""
    code = said.get("code", said.get("grpc_code"))
    message = said.get("message", said.get("error"))
    words = message if isinstance(message, str) and message else "an error without words"
    text = printable(words[:_TEXT_MAX])
    if code == _UNAUTHENTICATED or (code == _PERMISSION_DENIED and anonymous):
        raise StaleToken(text)
    if code == _PERMISSION_DENIED:
        raise EngineRefused(f"the engine does not permit us to use this fleet's keys: {text}")
    if code == _INVALID:
        _judge_invalid(text)
    if code == _NOT_FOUND and "lease" in text:
        raise LeaseLost(text)
    if code == _EXHAUSTED and "space exceeded" in text:
        raise EngineFull(f"the fleet's engine is full: {text}")
    if code == _OUT_OF_RANGE and "compacted" in text:
        raise Compacted(text)
    if code == _PRECONDITION and "authentication is not enabled" in text:
        raise AuthOff(text)
    raise Elsewhere(text, gone=code in _GONE)


def _judge_invalid(text: str) -> NoReturn:
    if "auth store is old" in text or "user name is empty" in text:
        raise StaleToken(text)
    if "authentication failed" in text:
        raise EngineRefused("the engine does not take our login: wrong user or password")
    raise EngineRefused(f"the engine does not take our request: {text}")

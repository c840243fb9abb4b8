"""The command ``shadow-ca``: a private CA in one folder, without the usual pile of openssl commands."""

import argparse
import datetime as dt
import json
import os
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cryptography import x509

from .. import ca_folder, pki, revoking, usage
from ..certificates import Purpose, common_name, has_purpose, load_certificates, moment, serial_of, validity
from ..errors import ConfigError, ShadowError
from ..files import NewFile, made_folder, write_files
from ..locking import locked
from ..names import check_robot_name
from . import door

AUTHORITY_DAYS = 3650  # ten years: replacing a CA means visiting every robot
LEAF_DAYS = 730
LIST_DAYS = 365  # an old list still counts; that a newer one is due is only a warning

_DIR_VARIABLE = "SHADOW_CA_DIR"
_EPILOG = f"""\
DIR is the CA's folder: --dir, else {_DIR_VARIABLE} in the environment, else the current folder.
Whoever has DIR/ca.key can make robots and servers: keep it off the server, and back it up.
Nothing is overwritten without --force. Exit status: 2 usage, 78 a file or the CA is at fault,
75 the clock, 71 the machine (disk full).

examples:
  shadow-ca --dir ca init
  shadow-ca --dir ca server tunnel.example.com 192.0.2.7 2001:db8::7
  shadow-ca --dir ca robot 011
  shadow-ca --dir ca revoke 011
  shadow-ca quickstart demo        everything at once, for trying things out
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the CA; return the exit status."""
    return door.run("shadow-ca", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    options.run(options, dt.datetime.now(dt.UTC))


def _init(options: argparse.Namespace, now: dt.datetime) -> None:
    authority = pki.create_authority(options.name, options.days, now)
    files = ca_folder.authority_files(options.dir, authority)
    with made_folder(options.dir), locked(options.dir):
        ca_folder.check_unused(options.dir)
        write_files(files, force=options.force)
    _report(files)
    _describe("CA", authority)
    print("next: shadow-ca server HOST..., shadow-ca robot NAME; guard ca.key, and back it up")


def _server(options: argparse.Namespace, now: dt.datetime) -> None:
    with locked(options.dir):
        authority = ca_folder.load_authority(options.dir, now)
        leaf = pki.issue_server(authority, options.hosts, options.days, now)
        base = _write_leaf(options, leaf, options.basename or "server")
    print(f"next, on the server: shadow-server {_flags(options.dir, base)} ...")


def _robot(options: argparse.Namespace, now: dt.datetime) -> None:
    with locked(options.dir):
        authority = ca_folder.load_authority(options.dir, now)
        leaf = pki.issue_robot(authority, options.robot, options.days, now)
        base = _write_leaf(options, leaf, options.basename or options.robot)
    print(f"next, on the robot: shadow-client --robot={options.robot} {_flags(options.dir, base)} ...")


def _write_leaf(options: argparse.Namespace, leaf: pki.Pair, basename: str) -> Path:
    """Write a leaf and tell about it; return the path of its files without their suffix."""
    folder: Path = options.dir if options.out is None else options.out
    files = ca_folder.leaf_files(options.dir, folder, basename, leaf)
    write_files(files, force=options.force)
    _report(files)
    _describe(_purpose(leaf.certificate), leaf)
    return folder / basename


def _quickstart(options: argparse.Namespace, now: dt.datetime) -> None:
    folder: Path = options.folder
    authority = pki.create_authority(options.name, AUTHORITY_DAYS, now)
    hosts = ["localhost", "127.0.0.1", "::1", *_own_name(), *options.hosts]
    server = pki.issue_server(authority, hosts, LEAF_DAYS, now)
    robot = pki.issue_robot(authority, options.robot, LEAF_DAYS, now)
    files = [
        *ca_folder.authority_files(folder, authority),
        *ca_folder.leaf_files(folder, folder, "server", server),
        *ca_folder.leaf_files(folder, folder, "client", robot),
    ]
    with made_folder(folder), locked(folder):
        ca_folder.check_unused(folder)
        write_files(files, force=options.force)
    _report(files)
    for kind, pair in (("CA", authority), ("server", server), ("robot", robot)):
        _describe(kind, pair)
    print(
        "next:",
        f"  shadow-server --lport=2222 --ldir=. {_flags(folder, folder / 'server')}",
        f"  shadow-client --rhost=::1 --rport=2222 --robot={options.robot} --lhost=::1 --lport=22 "
        f"{_flags(folder, folder / 'client')}",
        sep="\n",
    )


def _own_name() -> list[str]:
    """This machine's name, if a certificate can hold it (there are machines called ``(none)``)."""
    try:
        pki.parse_host(socket.gethostname())
    except ConfigError:
        return []
    return [socket.gethostname()]


def _revoke(options: argparse.Namespace, now: dt.datetime) -> None:
    known = ca_folder.load_issued(
        options.dir
    )  # there may be many: the signer should not have to wait for that
    with locked(options.dir):
        authority = ca_folder.load_authority(options.dir, now)
        issued = ca_folder.load_issued(options.dir, known)
        found = [
            certificate
            for name in dict.fromkeys(options.names)
            for certificate in revoking.find_certificates(issued, authority.certificate, name, options.serial)
        ]
        new = revoking.make_list(options.dir, authority, issued, found, (now, options.days))
        if new.added:
            write_files([new.file], force=True)
    if not new.added:
        print("nothing to do: all of them have been revoked or have expired")
        return
    for certificate in new.added:
        print(f"revoked {_purpose(certificate)} {common_name(certificate)}, {serial_of(certificate)}")
    named = [certificate for certificate in issued if common_name(certificate) in options.names]
    for certificate in revoking.alive(named, new.revoked, now):
        end = moment(validity(certificate)[1])
        print(f"still good: {common_name(certificate)}, {serial_of(certificate)}, valid until {end}")
    _describe_list(new)


def _crl(options: argparse.Namespace, now: dt.datetime) -> None:
    known = ca_folder.load_issued(options.dir)
    with locked(options.dir):
        authority = ca_folder.load_authority(options.dir, now)
        issued = ca_folder.load_issued(options.dir, known)
        new = revoking.make_list(options.dir, authority, issued, [], (now, options.days))
        write_files([new.file], force=True)
    _describe_list(new)


def _describe_list(new: revoking.NewList) -> None:
    _report([new.file])
    revoked = f"{len(new.revoked)} revoked, the next list is due on {moment(new.until)}"
    print(f"list {new.number}: {revoked}")
    print(f"next: copy {new.file.path} to the server (--crl), then: systemctl reload shadow-server")


def _list(options: argparse.Namespace, now: dt.datetime) -> None:
    authority = load_certificates(options.dir / ca_folder.CA_CRT, "CA certificate")[0]
    known = revoking.load_list(options.dir, authority)
    revoked = known.revoked if known else {}
    entries = [_entry(certificate, revoked, now) for certificate in ca_folder.load_issued(options.dir)]
    if options.json:
        print(json.dumps(entries, indent=2))
        return
    for entry in entries:
        remark = "  REVOKED" if entry["revoked"] else "  EXPIRED" if entry["expired"] else ""
        until = dt.datetime.fromisoformat(str(entry["not_after"]))
        print(f"{entry['purpose']:6}  {moment(until)}  {entry['serial']}  {entry['name']}{remark}")


def _entry(
    certificate: x509.Certificate, revoked: Mapping[int, dt.datetime], now: dt.datetime
) -> dict[str, object]:
    """One issued certificate, as ``list --json`` shows it."""
    start, end = validity(certificate)
    when = revoked.get(certificate.serial_number)
    return {
        "name": common_name(certificate),
        "purpose": _purpose(certificate),
        "hosts": pki.alternative_names(certificate),
        "serial": serial_of(certificate),
        "fingerprint": pki.fingerprint(certificate),
        "not_before": start.isoformat(),
        "not_after": end.isoformat(),
        "expired": now > end,
        "revoked": when and when.isoformat(),
    }


def _report(files: Sequence[NewFile]) -> None:
    """Name the files that somebody will use; the CA's own copies are not among them."""
    print("wrote", ", ".join(str(file.path) for file in files if file.path.suffix != ".pem"))


def _purpose(certificate: x509.Certificate) -> str:
    purpose = Purpose.SERVER if has_purpose(certificate, Purpose.SERVER) else Purpose.ROBOT
    return str(purpose.value)


def _describe(kind: str, pair: pki.Pair) -> None:
    hosts = pki.alternative_names(pair.certificate)
    names = ", ".join(hosts) or common_name(pair.certificate)
    print(f"{kind} {names}, valid until {moment(validity(pair.certificate)[1])}")
    print(f"  SHA-256 {pki.fingerprint(pair.certificate)}")


def _flags(folder: Path, base: Path) -> str:
    """The options that name the three files, ready to be pasted into a shell."""
    return shlex.join([f"--ca={folder / ca_folder.CA_CRT}", f"--crt={base}.crt", f"--key={base}.key"])


def _parser() -> argparse.ArgumentParser:
    parser = usage.main_parser(
        "shadow-ca", "Make the certificates by which robots and servers recognise each other.", _EPILOG
    )
    # From the environment only if it holds something: an empty variable is as good as none.
    _add_global(parser, Path(os.environ.get(_DIR_VARIABLE) or "."), force=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = _command(commands, "init", _init, "make a new CA in DIR: ca.crt and ca.key")
    _add_name(init)
    _add_days(init, AUTHORITY_DAYS)

    server = _command(commands, "server", _server, "make a server's certificate: server.crt and server.key")
    server.add_argument("hosts", nargs="+", type=_host, metavar="NAME-OR-IP", help="how robots dial it")
    _add_leaf(server)

    robot = _command(commands, "robot", _robot, "make a robot's certificate: NAME.crt and NAME.key")
    robot.add_argument("robot", type=_checked(check_robot_name), metavar="NAME", help="the robot's name")
    _add_leaf(robot)

    revoke = _command(commands, "revoke", _revoke, "revoke all certificates of a name, and write DIR/ca.crl")
    revoke.add_argument("names", nargs="+", metavar="NAME", help="as `shadow-ca list` shows it")
    revoke.add_argument(
        "--serial", type=_serial, metavar="SERIAL", help="only the certificate with this number"
    )
    _add_days(revoke, LIST_DAYS, "until the next list is due")

    crl = _command(commands, "crl", _crl, "sign the list of revoked certificates again, before it is due")
    _add_days(crl, LIST_DAYS, "until the next list is due")

    listing = _command(commands, "list", _list, "list what the CA has issued: purpose, end, serial, name")
    listing.add_argument("--json", action="store_true", help="for programs, with all there is to know")

    quick = _command(commands, "quickstart", _quickstart, "CA, server and one robot at once, to try it out")
    quick.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="where all files go (a CA of its own: --dir does not count)",
    )
    quick.add_argument(
        "--robot", type=_checked(check_robot_name), default="011", metavar="NAME", help="(default: 011)"
    )
    quick.add_argument(
        "--host",
        dest="hosts",
        action="append",
        type=_host,
        default=[],
        metavar="NAME-OR-IP",
        help="one more name of the server, beside localhost and this machine's (repeatable)",
    )
    _add_name(quick)
    return parser


def _command(
    commands: "usage.Commands[usage.Parser]",
    name: str,
    run: Callable[[argparse.Namespace, dt.datetime], None],
    text: str,
) -> argparse.ArgumentParser:
    parser = usage.add_command(commands, name, run, text)
    # Once more, for those who write them behind the command; SUPPRESS: do not undo the ones before it.
    _add_global(parser, argparse.SUPPRESS, force=argparse.SUPPRESS)
    return parser


def _add_global(parser: argparse.ArgumentParser, folder: Path | str, *, force: bool | str) -> None:
    parser.add_argument("--dir", type=Path, default=folder, metavar="DIR", help="the CA's folder")
    parser.add_argument("--force", action="store_true", default=force, help="overwrite existing files")


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name",
        type=_checked(pki.check_authority_name),
        default="Shadow CA",
        metavar="COMMON-NAME",
        help="the CA's name (default: %(default)s)",
    )


def _add_leaf(parser: argparse.ArgumentParser) -> None:
    _add_days(parser, LEAF_DAYS)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go (default: DIR)")
    parser.add_argument("--basename", type=_basename, metavar="BASE", help="BASE.crt and BASE.key instead")


def _add_days(parser: argparse.ArgumentParser, default: int, what: str = "of validity") -> None:
    parser.add_argument(
        "--days", type=_days, default=default, metavar="N", help=f"days {what} (default: %(default)s)"
    )


def _checked(check: Callable[[str], object]) -> Callable[[str], str]:
    """Make a check of names an ``argparse`` type: on the command line a bad name is bad usage."""

    def convert(text: str) -> str:
        try:
            check(text)
        except ShadowError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return convert


_host = _checked(pki.parse_host)


def _days(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= pki.DAYS_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {pki.DAYS_MAX}")
    return int(text)


def _serial(text: str) -> int:
    try:
        return int(text.replace(":", ""), 16)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a serial number in hexadecimal") from None


def _basename(text: str) -> str:
    if not text or Path(text).name != text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain file name")
    return text


if __name__ == "__main__":
    raise SystemExit(main())

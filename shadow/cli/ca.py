"""The command ``shadow-ca``: a private CA in one folder, without the usual pile of openssl commands."""

import argparse
import datetime as dt
import json
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography import x509

from ..ca import authority as authorities
from ..ca import folder as folders
from ..ca import issuing, revocation
from ..ca.issuing import Leaf
from ..ca.locking import locked
from ..ctl import tables
from ..errors import ConfigError, UsageError
from ..pki.certificates import (
    Purpose,
    common_name,
    host_names,
    load_certificates,
    moment,
    serial_of,
    validity,
)
from ..pki.files import NewFile, is_there, made_folder, write_files
from ..text import many
from . import ca_words, process
from .ca_words import AUTHORITY_DAYS, LEAF_DAYS

_PLACE = "/etc/shadow-tunnel"  # where the units look

_HELP = "(see shadow-ca robot --help)"

Facts = dict[str, object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the CA; return the exit status."""
    return process.run("shadow-ca", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    options.run(options, dt.datetime.now(dt.UTC))


def _parser() -> argparse.ArgumentParser:
    return ca_words.parser(
        {
            "init": _init,
            "server": _server,
            "robot": _robot,
            "peer": _peer,
            "revoke": _revoke,
            "crl": _crl,
            "list": _list,
            "quickstart": _quickstart,
        }
    )


# A CA, and what it issues


def _init(options: argparse.Namespace, now: dt.datetime) -> None:
    authority = authorities.create_authority(options.name, options.days, now)
    files = folders.authority_files(options.dir, authority)
    with made_folder(options.dir), locked(options.dir):
        folders.check_unused(options.dir)
        write_files(files, force=options.force)
    _report(files)
    _describe("CA", authority)
    here = shlex.join(["shadow-ca", "--dir", str(options.dir)])
    print(f"next, here: {here} server NAME-OR-IP..., and {here} robot NAME...")
    print(
        f"guard {options.dir / folders.CA_KEY}: anyone who has it can impersonate any robot or server; "
        "back it up"
    )


def _server(options: argparse.Namespace, now: dt.datetime) -> None:
    with locked(options.dir):
        authority = folders.load_authority(options.dir, now)
        pair = authorities.issue_server(authority, options.hosts, options.days, now)
        leaf = Leaf(pair, _base(options, "server"))
        lost = _names_lost(leaf) if options.renew else []
        files = issuing.hand_out(options.dir, [leaf], renew=options.renew, force=options.force)
    _report(files)
    _describe("server", pair)
    for name in lost:
        print(f"the one before was also for {name}: robots that dial it will refuse this one")
    then = "restart shadow-server" if options.renew else "enable --now shadow-server.socket"
    _bring(options.dir, leaf, "server", "the server", then)


def _names_lost(leaf: Leaf) -> list[str]:
    """Names in the previous certificate that the new one lacks."""
    if not is_there(leaf.crt, "certificate"):
        return []
    before = host_names(load_certificates(leaf.crt, "certificate")[0])
    present = host_names(leaf.pair.certificate)
    return [name for name in before if name not in present]


def _robot(options: argparse.Namespace, now: dt.datetime) -> None:
    names = _names(options)
    with locked(options.dir):
        authority = folders.load_authority(options.dir, now)
        leaves = {
            name: Leaf(authorities.issue_robot(authority, name, options.days, now), _base(options, name))
            for name in names
        }
        files = issuing.hand_out(options.dir, list(leaves.values()), renew=options.renew, force=options.force)
    first, leaf = next(iter(leaves.items()))
    then = "restart" if options.renew else "enable --now"
    if len(names) == 1:
        _report(files)
        _describe("robot", leaf.pair)
        _bring(options.dir, leaf, first, "the robot", f"{then} shadow-client@{first}")
        return
    end = moment(validity(leaf.pair.certificate)[1])
    print(
        f"wrote NAME.key and NAME.crt of {len(names)} robots, {first} to {names[-1]}, to {leaf.base.parent}"
    )
    print(f"valid until {end}; `shadow-ca list` shows them")
    every = Leaf(leaf.pair, leaf.base.with_name("NAME"))
    _bring(options.dir, every, "NAME", "robot NAME", f"{then} shadow-client@NAME")


def _peer(options: argparse.Namespace, now: dt.datetime) -> None:
    with locked(options.dir):
        authority = folders.load_authority(options.dir, now)
        pair = authorities.issue_peer(authority, options.server, options.days, now)
        leaf = Leaf(pair, _base(options, "peer"))
        files = issuing.hand_out(options.dir, [leaf], renew=options.renew, force=options.force)
    _report(files)
    _describe("server", pair)
    _bring(options.dir, leaf, "peer", f"server {options.server}", "restart shadow-server")


def _names(options: argparse.Namespace) -> list[str]:
    """The robots to make certificates for."""
    names: list[str] = issuing.read_names(options.source) if options.source else options.robots
    twice = next((name for name in names if names.count(name) > 1), None) if options.robots else None
    if twice is not None:
        raise UsageError(f"{twice} twice: two devices with one name take it from each other {_HELP}")
    if options.basename and len(names) > 1:
        raise UsageError(f"--basename is for one robot, and there are several {_HELP}")
    return names


def _base(options: argparse.Namespace, basename: str) -> Path:
    folder: Path = options.dir if options.out is None else options.out
    return folder / (options.basename or basename)


def _bring(folder: Path, leaf: Leaf, name: str, machine: str, then: str) -> None:
    """Say what to do next, where, and with which files; the units know them by ``name``."""
    files = [str(folder / folders.CA_CRT)]
    for path in (leaf.crt, leaf.key):
        renamed = "" if leaf.base.name == name else f" (as {name}{path.suffix})"
        files.append(f"{path}{renamed}")
    print(f"next: bring {files[0]}, {files[1]} and {files[2]} to {machine}, into {_PLACE};")
    print(f"then there, as root: systemctl {then}")


def _quickstart(options: argparse.Namespace, now: dt.datetime) -> None:
    folder: Path = options.folder
    authority = authorities.create_authority(options.name, AUTHORITY_DAYS, now)
    hosts = ["localhost", "127.0.0.1", "::1", *_own_name(), *options.hosts]
    server = authorities.issue_server(authority, hosts, LEAF_DAYS, now)
    robot = authorities.issue_robot(authority, options.robot, LEAF_DAYS, now)
    files = [
        *folders.authority_files(folder, authority),
        *folders.leaf_files(folder, folder, "server", server),
        *folders.leaf_files(folder, folder, "client", robot),
    ]
    with made_folder(folder), locked(folder):
        folders.check_unused(folder)
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
        authorities.parse_host(socket.gethostname())
    except ConfigError:
        return []
    return [socket.gethostname()]


# Revoking


def _revoke(options: argparse.Namespace, now: dt.datetime) -> None:
    known = folders.load_issued(options.dir)  # before the lock: there may be many, and signers wait
    with locked(options.dir):
        authority = folders.load_authority(options.dir, now)
        issued = folders.load_issued(options.dir, known)
        found = [
            certificate
            for name in dict.fromkeys(options.names)
            for certificate in revocation.find_certificates(
                issued, authority.certificate, name, options.serial
            )
        ]
        new = revocation.make_list(options.dir, authority, issued, found, now, options.days)
        if new.added:
            write_files([new.file], force=True)
    for certificate in new.added:
        print(f"revoked {_kind(certificate)} {common_name(certificate)}, {serial_of(certificate)}")
    if not new.added:
        print("nothing to do: all of them have been revoked or have expired")
    named = [certificate for certificate in issued if common_name(certificate) in options.names]
    for certificate in revocation.alive(named, new.revoked, now):
        end = moment(validity(certificate)[1])
        print(f"not revoked: {common_name(certificate)}, {serial_of(certificate)}, valid until {end}")
    if new.added:
        _describe_list(new)
    if new.revoked:
        _bring_list(new)


def _crl(options: argparse.Namespace, now: dt.datetime) -> None:
    known = folders.load_issued(options.dir)
    with locked(options.dir):
        authority = folders.load_authority(options.dir, now)
        issued = folders.load_issued(options.dir, known)
        new = revocation.make_list(options.dir, authority, issued, [], now, options.days)
        write_files([new.file], force=True)
    _describe_list(new)
    _bring_list(new)


def _describe_list(new: revocation.NewList) -> None:
    _report([new.file])
    revoked = f"{len(new.revoked)} revoked, the next list is due on {moment(new.until)}"
    print(f"list {new.number}: {revoked}")


def _bring_list(new: revocation.NewList) -> None:
    name = new.file.path.name
    print(f"next: bring {new.file.path} to the server; then there, as root:")
    print(f"  install -m 644 {name} {_PLACE}/ && systemctl reload shadow-server")
    print("(while one CA follows another, that file has the lists of both: CA ROLL-OVER in shadow-ca(1))")
    count = many(len(new.revoked), "certificate")
    print(f'to see that it works: `shadowctl status` says there "Revoked: {count}"')


# Looking


def _list(options: argparse.Namespace, now: dt.datetime) -> None:
    authority = load_certificates(options.dir / folders.CA_CRT, "CA certificate")[0]
    known = revocation.load_list(options.dir, authority)
    revoked = known.revoked if known else {}
    issued = [
        certificate
        for certificate in folders.load_issued(options.dir)
        if not options.names or common_name(certificate) in options.names
    ]
    if options.ending:
        issued = revocation.ending(issued, revoked, now, dt.timedelta(days=options.ending))
    entries = [_entry(certificate, revoked, now) for certificate in issued]
    shown = [entry for entry in entries if _is_wanted(options, entry)]
    print(json.dumps(shown, indent=2) if options.json else tables.certificates(shown))


def _is_wanted(options: argparse.Namespace, entry: Facts) -> bool:
    if options.good:
        return not (entry["expired"] or entry["revoked"])
    return bool((entry["expired"] or not options.expired) and (entry["revoked"] or not options.revoked))


def _entry(certificate: x509.Certificate, revoked: Mapping[int, dt.datetime], now: dt.datetime) -> Facts:
    """One issued certificate, as ``list --json`` shows it; with the API's field names where it has them."""
    start, end = validity(certificate)
    when = revoked.get(certificate.serial_number)
    return {
        "name": common_name(certificate),
        "purpose": issuing.purpose_of(certificate).value,
        "hosts": host_names(certificate),
        "serial": serial_of(certificate),
        "fingerprint": authorities.fingerprint(certificate),
        "certificateBegins": start.isoformat(),
        "certificateEnds": end.isoformat(),
        "expired": now > end,
        "revoked": when and when.isoformat(),
    }


# What all of them say


def _report(files: Sequence[NewFile]) -> None:
    """Print the files that somebody will use; the CA's own copies are not among them."""
    print("wrote", ", ".join(str(file.path) for file in files if file.path.suffix != ".pem"))


def _kind(certificate: x509.Certificate) -> str:
    """What goes in front of the name: a peer's says itself what kind it is of."""
    purpose = issuing.purpose_of(certificate)
    return str((Purpose.SERVER if purpose is Purpose.PEER else purpose).value)


def _describe(kind: str, pair: authorities.Pair) -> None:
    hosts = host_names(pair.certificate)
    names = ", ".join(hosts) or common_name(pair.certificate)
    print(f"{kind} {names}, valid until {moment(validity(pair.certificate)[1])}")
    print(f"  SHA-256 {authorities.fingerprint(pair.certificate)}")


def _flags(folder: Path, base: Path) -> str:
    """The options that name the three files, ready to paste into a shell."""
    return shlex.join([f"--ca={folder / folders.CA_CRT}", f"--crt={base}.crt", f"--key={base}.key"])


if __name__ == "__main__":
    raise SystemExit(main())

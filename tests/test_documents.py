"""The manual pages: what they say about options, variables, statuses and units is what there is.

And all documents: in the index, with links that lead somewhere, and one sentence a line.
"""

import ast
import email.utils
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadow import __version__, errors
from shadow.cli.process import EX_SIGINT
from tests.support import CHECKOUT, commands, facts, parsers
from tests.support.parsers import Option

MAN = CHECKOUT / "man"
UNITS = CHECKOUT / "units"
PAGES = (
    "shadow-ca.1", "shadowctl.1", "shadow-server.8", "shadow-client.8", "shadow-tunnel.5",
    "shadow-server.service.8", "shadow-client@.service.8", "shadow-ca-signer.socket.8",
)  # fmt: skip
LINKS = (  # made by the package
    *(f"shadow-server{one}.socket.8" for one in ("", "-api", "-metrics", "-health", "-peer", "-gate")),
    "shadow-ca-signer@.service.8", "shadow-ca-signer.8",
)  # fmt: skip
PAGE_OF = {
    "shadow-ca": "shadow-ca.1", "shadowctl": "shadowctl.1", "shadow-server": "shadow-server.8",
    "shadow-client": "shadow-client.8",
}  # fmt: skip
SECTIONS = (
    "NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "COMMANDS", "ENVIRONMENT", "FILES", "SETTINGS",
    "REPLACING CERTIFICATES AND KEYS", "ENCRYPTED KEYS", "EXIT STATUS", "SIGNALS", "JOURNAL", "API",
    "EXAMPLES", "CA ROLL-OVER", "NOTES", "SEE ALSO",
)  # fmt: skip
SETTINGS = {"shadow-server": "server.env", "shadow-client": "client.env and client@_NAME_.env"}
UNIT_OF = {"shadow-server": "shadow-server.service", "shadow-client": "shadow-client@.service"}
JOURNAL_OF = {
    **{command: f"{unit}.8" for command, unit in UNIT_OF.items()},
    "shadow-ca-signer": "shadow-ca-signer.socket.8",
}
MODULES = {
    "shadow-server": {
        "server.server",
        "server.admission",
        "server.candidates",
        "fleet.registrar",
        "fleet.revoking",
        "fleet.peers",
        "fleet.callers",
        "fleet.gate",
        "server.trust",
        "server.handshakes",
        "server.newcomer",
        "server.visitors",
        "server.session",
        "server.signer",
        "server.sockets",
        "server.streams",
        "server.handover",
        "relay.ending",
        "relay.durable",
        "pki.expiry",
    },
    "shadow-client": {
        "client.client",
        "client.session",
        "client.approach",
        "client.standbys",
        "client.renewal",
        "client.certificate_store",
        "client.handover",
        "client.services",
        "client.streams",
        "relay.ending",
        "relay.durable",
        "pki.expiry",
    },
    "shadow-ca-signer": {"ca.signer", "cli.signer"},
}
# Options of other commands in examples, and two words that stand for any of ours.
FOREIGN = {
    "--now", "--create", "--with-key", "--tpm2-pcrs", "--since", "--output-fields", "--output",
    "--unix-socket", "--arg", "--some-thing",
}  # fmt: skip
OTHER_VARIABLES = {"SHADOW_CA_DIR", "SHADOW_SOME_THING"}


def read(page: str) -> str:
    return (MAN / f"{page}.scd").read_text()


def prose(page: str) -> str:
    """A page without its line ends: a sentence may go on in the next line."""
    return " ".join(read(page).split())


def sections(text: str, mark: str = "#") -> dict[str, str]:
    """The parts of a page under their titles; none of them begins inside of an example."""
    parts = re.split(rf"^{mark} (.+)\n", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def definitions(text: str) -> dict[str, str]:
    """Terms with what is said about them."""
    return dict(re.findall(r"^([*/_]\S.*)\n((?:\t.*\n)+)", text, re.M))


def bold(text: str) -> list[str]:
    return re.findall(r"\*([^*]+)\*", text)


def documented(text: str) -> list[Option]:
    """The options that a part of a page defines."""
    found = []
    for term, said in definitions(text).items():
        if term.startswith("*-"):
            metavar = re.search(r" _([A-Za-z][A-Za-z=:|-]*)_$", term)
            found.append(Option(tuple(bold(term)), metavar[1] if metavar else "", default_in(said)))
    return found


def default_in(said: str) -> str:
    """The last bold word behind ``Default:``."""
    found = re.search("Default: (.*)$", said.strip())
    return bold(found[1])[-1] if found else ""


def special_last(options: list[Option]) -> list[Option]:
    return sorted(options, key=lambda option: (option.special, option.flags))


def test_all_pages_are_there() -> None:
    assert {path.name for path in MAN.iterdir()} == {f"{page}.scd" for page in PAGES}


@pytest.mark.parametrize("command", parsers.DAEMONS)
def test_options_of_the_daemons(command: str) -> None:
    found = documented(sections(read(PAGE_OF[command]))["OPTIONS"])
    assert special_last(found) == special_last(parsers.options(parsers.parser(command)))


@pytest.mark.parametrize("tool", parsers.TOOLS)
def test_options_of_the_tools(tool: str) -> None:
    page = sections(read(PAGE_OF[tool]))
    everywhere = parsers.options(parsers.parser(tool))
    assert special_last(documented(page["OPTIONS"])) == special_last(everywhere)
    commands = sections(page["COMMANDS"], "##")
    assert list(commands) == list(parsers.subparsers(tool))
    known = {option.flags for option in everywhere}
    for name, parser in parsers.subparsers(tool).items():
        own = [option for option in parsers.options(parser) if option.flags not in known]
        assert special_last(documented(commands[name])) == special_last(own), name
        synopsis = re.search(rf"^\*{tool} {name}\*(.*?)(\+\+)?$", page["SYNOPSIS"], re.M)
        assert synopsis is not None
        assert set(re.findall(r"\*(--\w+)\*", synopsis[1])) == {option.flags[-1] for option in own}


@pytest.mark.parametrize("page", PAGES)
def test_no_option_that_does_not_exist(page: str) -> None:
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", read(page)))
    assert mentioned - parsers.all_flags() - FOREIGN == set()


def test_foreign_options_are_not_ours_and_in_use() -> None:
    assert parsers.all_flags() & FOREIGN == set()
    everything = "\n".join(map(read, PAGES))
    assert [option for option in FOREIGN if not re.search(rf"{option}(?![\w-])", everything)] == []


def all_variables() -> set[str]:
    return OTHER_VARIABLES.union(*map(parsers.variables, parsers.DAEMONS))


@pytest.mark.parametrize("page", PAGES)
def test_no_variable_that_does_not_exist(page: str) -> None:
    assert set(re.findall(r"SHADOW_[A-Z0-9_]+", read(page))) - all_variables() == set()


@pytest.mark.parametrize("command", parsers.DAEMONS)
def test_variables_of_the_daemons(command: str) -> None:
    terms = definitions(sections(read(PAGE_OF[command]))["ENVIRONMENT"])
    found = [name for term in terms for name in bold(term) if name.startswith("SHADOW_")]
    assert sorted(found) == sorted(parsers.variables(command))


def test_the_variables_of_the_tools() -> None:
    assert list(definitions(sections(read("shadow-ca.1"))["ENVIRONMENT"])) == ["*SHADOW_CA_DIR*"]
    assert list(definitions(sections(read("shadowctl.1"))["ENVIRONMENT"])) == ["*SHADOW_LDIR*", "*NO_COLOR*"]


def set_by(unit: str) -> dict[str, str]:
    """The variables that a unit sets."""
    return dict(re.findall("^Environment=([A-Z_]+)=(.*)$", (UNITS / unit).read_text(), re.M))


@pytest.mark.parametrize("command", parsers.DAEMONS)
def test_settings_in_files(command: str) -> None:
    """Each variable once, with the default that counts: the unit's, else the program's."""
    terms = definitions(sections(sections(read("shadow-tunnel.5"))["SETTINGS"], "##")[SETTINGS[command]])
    said = {name: text for term, text in terms.items() for name in bold(term)}
    assert sorted(said) == sorted(parsers.variables(command))
    values = set_by(UNIT_OF[command])
    for name, option in parsers.variables(command).items():
        assert ("Set by the unit" in said[name]) is (name in values), name
        stated = re.search(r"Set by the unit: \*([^*]+)\*", said[name])
        if stated is not None:
            assert stated[1] == values[name].replace("%t", "/run")
        elif option.default and name not in values and "Mean nothing" not in said[name]:
            assert default_in(said[name]) == option.default, name
        else:
            assert default_in(said[name]) == "", name


@pytest.mark.parametrize("command", parsers.DAEMONS)
def test_variables_in_units(command: str) -> None:
    terms = definitions(sections(read(f"{UNIT_OF[command]}.8"))["ENVIRONMENT"])
    said = dict(re.findall(r"^\*(SHADOW_\w+|FDSTORE_MAX)\*=(\S+)$", "\n".join(terms), re.M))
    assert said == set_by(UNIT_OF[command])


@pytest.mark.parametrize("command", parsers.DAEMONS)
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("WatchdogSec", "says nothing for {} seconds"),
        ("TimeoutStopSec", "does not stop within {} seconds"),
        ("LimitNOFILE", "may have {} descriptors"),
    ],
)
def test_numbers_in_units(command: str, setting: str, words: str) -> None:
    found = re.search(f"^{setting}=(.*)$", (UNITS / UNIT_OF[command]).read_text(), re.M)
    assert found is not None
    assert words.format(*found[1].split()) in prose(f"{UNIT_OF[command]}.8")


@pytest.mark.parametrize("command", parsers.DAEMONS)
def test_how_long_a_failure_takes(command: str) -> None:
    assert "\nRestartSec=500ms\n" in (UNITS / UNIT_OF[command]).read_text()
    assert "after half a second (*RestartSec=*)" in prose(f"{UNIT_OF[command]}.8")


def test_what_is_not_tried_again() -> None:
    unit = UNIT_OF["shadow-client"]
    found = re.search("^RestartPreventExitStatus=(.*)$", (UNITS / unit).read_text(), re.M)
    assert found is not None
    words = "exit status {}, a wrong setting, {}, a wrong file, and {}, a key that cannot be decrypted"
    assert words.format(*found[1].split()) in prose(f"{unit}.8")


def test_the_port() -> None:
    found = re.search(r"^ListenStream=(\d+)$", (UNITS / "shadow-server.socket").read_text(), re.M)
    assert found is not None
    assert f"the TCP port that robots dial, {found[1]}." in prose("shadow-server.service.8")
    peers = re.search(r"^ListenStream=(\d+)$", (UNITS / "shadow-server-peer.socket").read_text(), re.M)
    assert peers is not None
    assert f"a port for the other servers, {peers[1]}." in prose("shadow-server.service.8")
    for page in ("shadow-tunnel.5", "shadow-client@.service.8"):
        assert re.search(rf"{found[1]} if nobody has changed", prose(page)), page


def statuses(kind: type[errors.ShadowError]) -> Iterator[int]:
    yield kind.exit_status
    for below in kind.__subclasses__():
        yield from statuses(below)


@pytest.mark.parametrize("command", parsers.COMMANDS)
def test_exit_statuses(command: str) -> None:
    wanted = {0, *statuses(errors.ShadowError)}
    if command not in {"shadow-client", "shadowctl"}:  # nobody else ends because of a peer
        wanted -= {*statuses(errors.PeerError), errors.NotPermitted.exit_status}
    if command == "shadowctl":  # it looks at no certificates
        wanted.remove(errors.ClockError.exit_status)
    if command in parsers.TOOLS:  # the daemons are asked to stop by this signal
        wanted.add(EX_SIGINT)
    terms = definitions(sections(read(PAGE_OF[command]))["EXIT STATUS"])
    assert [int(bold(term)[0]) for term in terms] == sorted(wanted)


def test_the_codes_of_the_protocol() -> None:
    """Every code that one side says to the other is in the document."""
    said = {
        node.args[0].value
        for path in (CHECKOUT / "shadow").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"Refused", "Refusal", "Failed", "Unsigned"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert {"disconnected", "superseded"} <= said
    assert said - set(re.findall("`([a-z-]+)`", (CHECKOUT / "docs" / "PROTOCOL.md").read_text())) == set()


@pytest.mark.parametrize("command", parsers.DAEMONS)
def test_the_synopsis_is_that_of_the_help(command: str) -> None:
    shown = parsers.parser(command).format_usage().removeprefix("usage: ")
    synopsis = re.sub(r"[*_\\]", "", sections(read(PAGE_OF[command]))["SYNOPSIS"])
    assert " ".join(shown.replace("=", " ").split()) == " ".join(synopsis.replace("=", " ").split())


@pytest.mark.parametrize("command", MODULES)
def test_journal_fields(command: str) -> None:
    rows = re.findall(r"^\|  ([A-Z_]+)$", sections(read(JOURNAL_OF[command]))["JOURNAL"], re.M)
    logged = [call.fields for call in facts.calls() if call.module in MODULES[command]]
    found = set().union(*logged)
    if command == "shadow-client":  # a robot knows no visitors
        found = {name for name in found if not name.startswith("VISITOR_")}
    assert sorted(rows) == sorted(found)
    others = [call for call in facts.calls() if call.module not in set().union(*MODULES.values())]
    assert [call for call in others if call.fields] == []


@pytest.mark.parametrize("page", PAGES)
def test_sections_in_their_usual_order(page: str) -> None:
    found = list(sections(read(page)))
    assert found == [name for name in SECTIONS if name in found]
    assert {"NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"} <= set(found)


@pytest.mark.parametrize("page", PAGES)
def test_other_pages_of_ours_exist(page: str) -> None:
    references = re.findall(r"\*(shadow-[\w@.-]+)\*\((\d)\)", read(page))
    assert references
    assert {f"{name}.{number}" for name, number in references} <= {*PAGES, *LINKS}


@pytest.mark.parametrize("unit", [path.name for path in sorted(UNITS.iterdir())])
def test_pages_that_units_name_exist(unit: str) -> None:
    named = re.findall(r"man:(\S+)\((\d)\)", (UNITS / unit).read_text())
    assert named
    assert {f"{name}.{number}" for name, number in named} <= {*PAGES, *LINKS}


@pytest.mark.parametrize("page", PAGES)
def test_pages_render_without_warnings(page: str, tmp_path: Path) -> None:
    made = subprocess.run(["scdoc"], input=read(page), capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    path = tmp_path / page
    path.write_text(made.stdout)
    shown = subprocess.run(
        ["man", "--warnings", "--encoding=UTF-8", "-l", "-Tutf8", "-Z", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0
    assert shown.stderr == ""
    # What apropos(1) and whatis(1) will find.
    found = subprocess.run(["lexgrog", path], capture_output=True, text=True, check=False)
    assert f'"{page.rpartition(".")[0]} - ' in found.stdout, found.stdout


# All documents.

WIDTH, README_LINES = 120, 175
INDEX = CHECKOUT / "README.md"
EXAMPLE = re.compile("^```.*?^```$", re.M | re.S)
MARK = re.compile(r"^\s*(\d*\.|[-*]) |`[^`]*`")  # of a list; or code
# A sentence ends, and another begins behind it.
NEXT_SENTENCE = re.compile(r"(?<!\be\.g)(?<!\bi\.e)[.!?][\"”)*_`]* +[\"“(*_`\[]*[A-Z](?=[\w' ])")
MARKDOWN = [document for document in commands.documents() if document.suffix == ".md"]


def lines_of_prose(document: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without examples, tables, headings, what a list defines, and synopses."""
    lines = EXAMPLE.sub(lambda found: "\n" * found[0].count("\n"), document.read_text()).splitlines()
    synopsis = False
    for number, line in enumerate(lines, 1):
        if document.suffix == ".scd" and line.startswith("# "):
            synopsis = line == "# SYNOPSIS"
        defined = number < len(lines) and lines[number].startswith("\t") and not line.startswith("\t")
        other = re.match(r"\s*\||[:\]|#]", line) is not None
        if not (synopsis or defined or other):
            yield number, line


@pytest.mark.parametrize("document", commands.documents(), ids=lambda one: one.name)
def test_one_sentence_a_line_and_no_long_ones(document: Path) -> None:
    prose = list(lines_of_prose(document))
    assert prose
    assert [(number, line) for number, line in prose if len(line.expandtabs(8)) > WIDTH] == []
    assert [(number, line) for number, line in prose if NEXT_SENTENCE.search(MARK.sub("", line))] == []


def test_the_readme_stays_short() -> None:
    assert len(INDEX.read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("document", ["README.md", "docs/OPERATING.md"])
def test_steps_say_on_which_machine_they_are_typed(document: str) -> None:
    """Each block that has a mark: in the heading above it, or between the block before and itself."""
    parts = re.split(
        r"^(?=##)|^(<!-- [^\n]+ -->)\n```\n.*?^```$", (CHECKOUT / document).read_text(), flags=re.M | re.S
    )
    texts, marks = parts[::2], parts[1::2]
    steps = [(mark, text) for mark, text in zip(marks, texts, strict=False) if mark]
    assert len(steps) > 3
    where = re.compile("on (the|each) (laptop|server|robot|operator)", re.I)
    assert [mark for mark, text in steps if not where.search(text)] == []


def targets(document: Path) -> list[str]:
    """Where a document's links lead, but for those out of here."""
    return re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text())


def test_every_document_is_in_the_index() -> None:
    there = {str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("docs/*.md")}
    assert len(there) > 5
    assert there - set(targets(INDEX)) == set()
    pages = {page.rpartition(".")[0] for page in PAGES}
    assert pages - set(re.findall("`man ([^`]+)`", INDEX.read_text())) == set()


def anchor(heading: str) -> str:
    """What a heading is linked by, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", MARKDOWN, ids=lambda one: one.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in targets(document):
        name, _, part = target.partition("#")
        other = document.parent / name if name else document
        assert other.exists(), target
        if part:
            headings = re.findall("^#+ (.+)$", EXAMPLE.sub("", other.read_text()), re.M)
            assert part in map(anchor, headings), target


@pytest.mark.parametrize("document", [INDEX, *CHECKOUT.glob("docs/*.md")], ids=lambda one: one.name)
def test_links_lead_to_what_the_package_has(document: Path) -> None:
    """Those who read it in /usr/share/doc have no more."""
    there = {*(CHECKOUT / "debian/shadow-tunnel.docs").read_text().split(), "LICENSE"}
    for target in targets(document):
        name = target.partition("#")[0]
        path = (document.parent / name).resolve() if name else document
        assert path.relative_to(CHECKOUT).parts[0] in there, target


# What varies in a quoted message: what is left out, a quoted name, a number, an errno's words.
VARIES = re.compile(
    r"[:;,()…]|b?'[^']*'|\b\d+\b|" + "|".join(re.escape(os.strerror(number)) for number in range(1, 134))
)


def strings_of_the_code() -> str:
    """All strings in the code, those with values in them without the values."""
    found = []
    for path in (CHECKOUT / "shadow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else "\0"
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_that_are_explained_are_those_of_the_code() -> None:
    """Each part of a message in the tables of TROUBLESHOOTING.md that has at least two words."""
    part = sections((CHECKOUT / "docs" / "TROUBLESHOOTING.md").read_text(), "##")["What the log says"]
    quoted = [
        message
        for cell in re.findall(r"^\| (.+?) \|", part, re.M)
        for message in re.findall("`([^`]+)`", cell)
    ]
    assert len(quoted) > 30
    code = strings_of_the_code()
    parts = [(piece.strip(), message) for message in quoted for piece in VARIES.split(message)]
    assert [(piece, message) for piece, message in parts if " " in piece and piece not in code] == []


def test_news_has_versions_with_dates() -> None:
    """The newest is the program's and the package's, of the day on which the package was made."""
    releases = re.findall(r"^Shadow (\S+), (\d{4}-\d\d-\d\d)$", (CHECKOUT / "NEWS").read_text(), re.M)
    assert [version for version, _ in releases][:1] == [__version__]
    assert [date for _, date in releases] == sorted((date for _, date in releases), reverse=True)
    changelog = (CHECKOUT / "debian" / "changelog").read_text()
    packaged = re.match(r"shadow-tunnel \((\S+)\)", changelog)
    when = re.search(r"^ -- .*>  (.+)$", changelog, re.M)
    assert packaged is not None
    assert when is not None
    made = email.utils.parsedate_to_datetime(when[1]).date().isoformat()
    assert (packaged[1], made) == releases[0]

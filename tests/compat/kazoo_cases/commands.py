"""Four-letter words, as kazoo and monitoring agents read them (spec section 11.1)."""

from __future__ import annotations

import re

from kazoo.client import KazooClient

import lab

from .bench import ONE_SERVER, TICK_MS, Bench, Events, at_least, case, contains, equal, steady

WORDS = "a word is asked on a connection of its own, which is not made again"

# What monitoring agents rely on, of those that a single server has.
MNTR_NUMBERS = (
    "zk_avg_latency",
    "zk_max_latency",
    "zk_min_latency",
    "zk_packets_received",
    "zk_packets_sent",
    "zk_num_alive_connections",
    "zk_outstanding_requests",
    "zk_znode_count",
    "zk_watch_count",
    "zk_ephemerals_count",
    "zk_approximate_data_size",
    "zk_open_file_descriptor_count",
    "zk_max_file_descriptor_count",
)


@case
@steady(WORDS)
def ruok_and_isro_answer_one_word(bench: Bench) -> None:
    client = bench.client()
    equal(client.command(b"ruok"), "imok", "ruok")
    equal(client.command(b"isro"), "rw", "isro")


@case
@steady(WORDS)
def server_version_is_read_from_envi(bench: Bench) -> None:
    client = bench.client()
    version = client.server_version()
    equal(len(version), 3, f"parts of {version}")
    at_least(version, (3, 5, 0), "version")
    text = _ask(client, "envi")
    equal(text.splitlines()[0], "Environment:", "first line")
    keys = [line.partition("=")[0] for line in text.splitlines()[1:]]
    equal(keys[0], "zookeeper.version", "first key")
    for key in ("host.name", "os.name", "os.arch", "user.dir"):
        contains(keys, key, "keys")


@case
@steady(WORDS)
def srvr_has_the_lines_that_tools_parse(bench: Bench) -> None:
    client = bench.client()
    client.create(bench.root)
    text = client.command(b"srvr")
    for pattern in (
        r"^Zookeeper version: \d+\.\d+\.\d+.*, built on .+$",
        r"^Latency min/avg/max: \d+/\d+(\.\d+)?/\d+$",
        r"^Received: \d+$",
        r"^Sent: \d+$",
        r"^Connections: [1-9]\d*$",
        r"^Outstanding: \d+$",
        r"^Zxid: 0x[0-9a-f]+$",
        r"^Mode: (standalone|leader|follower)$",
        r"^Node count: [1-9]\d*$",
    ):
        _matches(text, pattern)
    zxid = int(re.search(r"Zxid: 0x([0-9a-f]+)", text)[1], 16)
    equal(client.exists(bench.root).czxid <= zxid, True, "the zxid covers the last write")


@case
@steady(WORDS)
def node_count_follows_creates_and_deletes(bench: Bench) -> None:
    client = bench.client()
    root = bench.folder(client)
    before = _node_count(client)
    for name in ("a", "b", "c"):
        client.create(f"{root}/{name}")
    equal(_node_count(client), before + 3, "count after three creates")
    client.delete(f"{root}/a")
    equal(_node_count(client), before + 2, "count after a delete")


@case
@steady(ONE_SERVER)
def stat_lists_the_clients(bench: Bench) -> None:
    client = bench.client()
    client.exists("/")
    text = _ask(client, "stat")
    _matches(text, r"^Clients:$")
    _matches(text, r"^ /127\.0\.0\.1:\d+\[\d+\]\(queued=\d+,recved=\d+,sent=\d+\)$")
    _matches(text, r"^Mode: ")


@case
@steady(ONE_SERVER)
def mntr_has_the_numbers_that_agents_read(bench: Bench) -> None:
    client = bench.client()
    path = bench.folder(client)
    client.create(f"{path}/ephemeral", ephemeral=True)
    client.get(path, watch=Events())
    values = dict(line.split("\t", 1) for line in _ask(client, "mntr").splitlines())
    _matches(values["zk_version"], r"^\d+\.\d+\.\d+.*, built on .+$")
    contains(("standalone", "leader", "follower"), values["zk_server_state"], "state")
    numbers = {key: float(values[key]) for key in MNTR_NUMBERS}
    for key in ("zk_num_alive_connections", "zk_watch_count", "zk_ephemerals_count"):
        at_least(numbers[key], 1, key)
    at_least(numbers["zk_znode_count"], 5, "zk_znode_count")
    at_least(numbers["zk_approximate_data_size"], 1, "zk_approximate_data_size")


@case
@steady(WORDS)
def conf_shows_the_configuration(bench: Bench) -> None:
    client = bench.client()
    values = dict(line.split("=", 1) for line in _ask(client, "conf").splitlines() if "=" in line)
    host, port = _place(client)
    equal(values["clientPort"], str(port), "clientPort")
    equal(values["tickTime"], str(TICK_MS), "tickTime")
    equal(values["minSessionTimeout"], str(2 * TICK_MS), "minSessionTimeout")
    equal(values["maxSessionTimeout"], str(20 * TICK_MS), "maxSessionTimeout")
    equal(values["maxClientCnxns"], "0", "maxClientCnxns")
    contains(values["dataDir"], str(bench.server.data_dir_at((host, port))), "dataDir")


@case
@steady(ONE_SERVER)
def cons_shows_each_connection_with_its_session(bench: Bench) -> None:
    client = bench.client(timeout=8)
    client.exists("/")
    line = _line_with(_ask(client, "cons"), f"sid={_hex(client)}")
    _matches(line, r"^ /127\.0\.0\.1:\d+\[\d+\]\(queued=\d+,recved=\d+,sent=\d+,sid=0x")
    fields = dict(field.split("=") for field in line.partition("(")[2].rstrip(")").split(","))
    equal(fields["to"], "8000", "negotiated timeout")
    equal(fields["lop"], "EXIS", "last operation")
    for key in ("est", "lcxid", "lzxid", "lresp", "llat", "minlat", "avglat", "maxlat"):
        contains(fields, key, "fields")


@case
@steady(WORDS)
def dump_lists_sessions_and_their_ephemerals(bench: Bench) -> None:
    client = bench.client()
    path = f"{bench.folder(client)}/ephemeral"
    client.create(path, ephemeral=True)
    lines = _ask(client, "dump").splitlines()
    equal(lines[0], "SessionTracker dump:", "first line")
    at = lines.index("ephemeral nodes dump:")
    _matches(lines[at + 1], r"^Sessions with Ephemerals \([1-9]\d*\):$")
    owner = lines.index(f"{_hex(client)}:")
    equal(lines[owner + 1], f"\t{path}", "the ephemeral below its owner")


@case
@steady(ONE_SERVER)
def the_watch_words_list_data_watches(bench: Bench) -> None:
    client = bench.client()
    path = bench.folder(client)
    client.get(path, watch=Events())
    summary = client.command(b"wchs")
    _matches(summary, r"^[1-9]\d* connections watching [1-9]\d* paths$")
    _matches(summary, r"^Total watches:[1-9]\d*$")
    by_session = _ask(client, "wchc").splitlines()
    at = by_session.index(_hex(client))
    equal(by_session[at + 1], f"\t{path}", "the path below its session")
    by_path = _ask(client, "wchp").splitlines()
    equal(by_path[by_path.index(path) + 1], f"\t{_hex(client)}", "the session below its path")


@case
@steady(ONE_SERVER)
def statistics_can_be_reset(bench: Bench) -> None:
    client = bench.client()
    for _ in range(20):
        client.exists("/")
    equal(_ask(client, "srst").strip(), "Server stats reset.", "srst")
    equal(_ask(client, "crst").strip(), "Connection stats reset.", "crst")
    received = int(re.search(r"Received: (\d+)", _ask(client, "srvr"))[1])
    equal(received < 20, True, "packets received since the reset")


@case
@steady(WORDS)
def dirs_gives_two_sizes(bench: Bench) -> None:
    client = bench.client()
    text = _ask(client, "dirs")
    _matches(text, r"^datadir_size: \d+$")
    _matches(text, r"^logdir_size: \d+$")


@case
@steady(WORDS)
def words_outside_the_whitelist_are_refused_and_unknown_ones_dropped(bench: Bench) -> None:
    with lab.Server(bench.server.kind, {"4lw.commands.whitelist": "ruok, isro"}) as server:
        equal(lab.four_letter(server.port, "ruok"), "imok", "an enabled word")
        contains(lab.four_letter(server.port, "srvr"), "Zookeeper version", "srvr is always on")
        refused = lab.four_letter(server.port, "mntr")
        expected = "mntr is not executed because it is not in the whitelist.\n"
        equal(refused, expected, "a disabled word")
        equal(lab.four_letter(server.port, "abcd"), "", "an unknown word")


def _ask(client: KazooClient, word: str) -> str:
    """The whole answer of its server; kazoo's own `command` reads at most one segment of it."""
    host, port = _place(client)
    return lab.four_letter(port, word, host=host)


def _place(client: KazooClient) -> tuple[str, int]:
    """Where the client is connected to."""
    return client._connection._socket.getpeername()[:2]


def _hex(client) -> str:
    return f"0x{client.client_id[0]:x}"


def _matches(text: str, pattern: str) -> None:
    if not re.search(pattern, text, re.MULTILINE):
        raise AssertionError(f"no line like {pattern} in {text!r}")


def _line_with(text: str, part: str) -> str:
    for line in text.splitlines():
        if part in line:
            return line
    raise AssertionError(f"no line with {part} in {text!r}")


def _node_count(client: KazooClient) -> int:
    return int(re.search(r"Node count: (\d+)", _ask(client, "srvr"))[1])

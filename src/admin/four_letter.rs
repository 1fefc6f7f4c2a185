//! Four-letter words: questions of operators on the client port, answered in plain text (§11.1).
//!
//! Pure rendering over a [`View`]. Monitoring agents parse these texts by line and by column, so
//! the forms are ZooKeeper's to the letter; where a test names an agent, it parses as that does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use super::process;
use super::{ConnectionView, Mode, SessionView, VERSION, View};
use crate::config::Config;
use crate::machine::FEATURE_LEVEL;
use crate::metrics::{MetricValue, Totals};
use crate::wire::{SessionId, Text, op};

/// A known word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Word {
    Conf,
    Cons,
    Crst,
    Dirs,
    Dump,
    Envi,
    Gtmk,
    Hash,
    Isro,
    Mntr,
    Ruok,
    Srst,
    Srvr,
    Stat,
    Stmk,
    Wchc,
    Wchp,
    Wchs,
    /// What telnet sends for Ctrl-C. The connection is closed.
    TelnetClose,
}

const WORDS: [(&[u8; 4], Word); 19] = [
    (b"conf", Word::Conf),
    (b"cons", Word::Cons),
    (b"crst", Word::Crst),
    (b"dirs", Word::Dirs),
    (b"dump", Word::Dump),
    (b"envi", Word::Envi),
    (b"gtmk", Word::Gtmk),
    (b"hash", Word::Hash),
    (b"isro", Word::Isro),
    (b"mntr", Word::Mntr),
    (b"ruok", Word::Ruok),
    (b"srst", Word::Srst),
    (b"srvr", Word::Srvr),
    (b"stat", Word::Stat),
    (b"stmk", Word::Stmk),
    (b"wchc", Word::Wchc),
    (b"wchp", Word::Wchp),
    (b"wchs", Word::Wchs),
    (b"\xff\xf4\xff\xfd", Word::TelnetClose),
];

/// Bytes that follow `stmk`: the mask, a big-endian number.
pub const STMK_ARGUMENT_BYTES: usize = 8;

impl Word {
    /// The word that a connection's first four bytes are, if any. Others are a frame's length.
    pub fn from_bytes(bytes: [u8; 4]) -> Option<Self> {
        WORDS
            .iter()
            .find(|(known, _)| **known == bytes)
            .map(|(_, word)| *word)
    }

    /// As it is sent and as the whitelist names it; empty for what has no name.
    pub fn name(self) -> &'static str {
        let found = WORDS.iter().find(|(_, word)| *word == self);
        found
            .and_then(|(bytes, _)| std::str::from_utf8(*bytes).ok())
            .unwrap_or_default()
    }

    /// Whether it tells something of a server that does not serve.
    fn is_answered_always(self) -> bool {
        matches!(
            self,
            Self::Ruok | Self::Envi | Self::Gtmk | Self::Stmk | Self::Isro | Self::TelnetClose
        )
    }
}

/// Whether the answer to a word takes a look at the disk, which may hang.
pub fn reads_disk(word: [u8; 4]) -> bool {
    matches!(Word::from_bytes(word), Some(Word::Conf | Word::Dirs))
}

/// The answer to a connection that begins with `word`, after which it is closed. `None` if that is
/// no word. `argument` is what was received after it; only `stmk` has one.
pub fn answer(word: [u8; 4], argument: &[u8], view: &dyn View) -> Option<String> {
    let word = Word::from_bytes(word)?;
    Some(if word == Word::TelnetClose {
        String::new()
    } else if !is_allowed(word, view.config()) {
        format!(
            "{} is not executed because it is not in the whitelist.\n",
            word.name()
        )
    } else if !view.is_serving() && !word.is_answered_always() {
        "This ZooKeeper instance is not currently serving requests\n".to_owned()
    } else {
        render(word, argument, view)
    })
}

/// Clients look for a server that takes writes by `isro`, so it goes with read-only mode.
fn is_allowed(word: Word, config: &Config) -> bool {
    let is_needed = word == Word::Isro && config.read_only_mode;
    is_needed || config.four_letter_words.allows(word.name())
}

/// Renders the answer of an allowed word.
fn render(word: Word, argument: &[u8], view: &dyn View) -> String {
    match word {
        Word::Conf => conf(view),
        Word::Cons => cons(view),
        Word::Crst => {
            view.reset_connections();
            "Connection stats reset.\n".to_owned()
        }
        Word::Dirs => {
            let (data, log) = view.directory_bytes();
            format!("datadir_size: {data}\nlogdir_size: {log}\n")
        }
        Word::Dump => dump(view),
        Word::Envi => envi(),
        Word::Gtmk => view.trace_mask().load(Ordering::Relaxed).to_string(),
        Word::Hash => hash(view),
        Word::Isro => match (view.is_serving(), view.mode()) {
            (false, _) => "null",
            (true, Mode::ReadOnly) => "ro",
            (true, _) => "rw",
        }
        .to_owned(),
        Word::Mntr => mntr(view),
        Word::Ruok => "imok".to_owned(),
        Word::Srst => {
            view.metrics().reset();
            "Server stats reset.\n".to_owned()
        }
        Word::Srvr => heading(view) + &statistics(view),
        Word::Stat => heading(view) + &clients(view) + &statistics(view),
        Word::Stmk => stmk(argument, view),
        Word::Wchc => wchc(view),
        Word::Wchp => wchp(view),
        Word::Wchs => wchs(view),
        Word::TelnetClose => String::new(),
    }
}

fn heading(view: &dyn View) -> String {
    let mut text = format!("Zookeeper version: {VERSION}\n");
    if view.mode() == Mode::ReadOnly {
        text += "READ-ONLY mode; serving only read-only clients\n";
    }
    text
}

fn statistics(view: &dyn View) -> String {
    let metrics = view.metrics();
    let latency = metrics.request_latency.totals();
    format!(
        "Latency min/avg/max: {}/{}/{}\nReceived: {}\nSent: {}\nConnections: {}\nOutstanding: {}\n\
         Zxid: {}\nMode: {}\nNode count: {}\n",
        latency.min,
        decimal(latency.average()),
        latency.max,
        metrics.packets_received.value(),
        metrics.packets_sent.value(),
        view.connection_count(),
        view.outstanding(),
        view.zxid(),
        view.mode().name(),
        view.znode_count(),
    )
}

fn clients(view: &dyn View) -> String {
    let mut text = "Clients:\n".to_owned();
    for connection in view.connections() {
        text += &format!("{})\n", connection_start(&connection));
    }
    text + "\n"
}

fn cons(view: &dyn View) -> String {
    let mut text = String::new();
    for connection in view.connections() {
        text += &connection_start(&connection);
        if let Some(session) = &connection.session {
            text += &session_fields(session);
        }
        text += ")\n";
    }
    text + "\n"
}

/// Address and counts of a connection, up to the bracket that is still open.
fn connection_start(connection: &ConnectionView) -> String {
    let ConnectionView {
        peer,
        reading,
        queued,
        received,
        sent,
        ..
    } = connection;
    format!(
        " {}[{}](queued={queued},recved={received},sent={sent}",
        java_address(*peer),
        u8::from(*reading)
    )
}

fn session_fields(session: &SessionView) -> String {
    let mut text = format!(
        ",sid={},lop={},est={},to={}",
        session.id,
        operation_name(session.last_opcode),
        session.established_ms,
        session.timeout_ms
    );
    if session.last_xid >= 0 {
        text += &format!(",lcxid=0x{:x}", session.last_xid);
    }
    text + &format!(
        ",lzxid={},lresp={},llat={},minlat={},avglat={},maxlat={}",
        session.last_zxid,
        session.last_response_ms,
        session.last_latency_ms,
        session.min_latency_ms,
        session.average_latency_ms,
        session.max_latency_ms
    )
}

/// The abbreviations of `cons`.
fn operation_name(opcode: i32) -> &'static str {
    match opcode {
        op::CREATE_SESSION => "SESS",
        op::PING => "PING",
        op::CREATE | op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL => "CREA",
        op::DELETE | op::DELETE_CONTAINER => "DELE",
        op::SET_DATA => "SETD",
        op::SET_ACL => "SETA",
        op::GET_DATA => "GETD",
        op::GET_ACL => "GETA",
        op::GET_CHILDREN | op::GET_CHILDREN2 => "GETC",
        op::EXISTS => "EXIS",
        op::SYNC => "SYNC",
        op::MULTI => "MULT",
        op::MULTI_READ => "MLTR",
        op::RECONFIG => "RECO",
        op::CLOSE_SESSION => "CLOS",
        op::SET_WATCHES | op::SET_WATCHES2 => "SETW",
        op::ADD_WATCH => "ADDW",
        op::CHECK_WATCHES => "CHKW",
        op::REMOVE_WATCHES => "REMW",
        op::GET_EPHEMERALS => "GETE",
        op::GET_ALL_CHILDREN_NUMBER => "GETACN",
        op::WHO_AM_I => "HOMI",
        _ => "NA",
    }
}

fn conf(view: &dyn View) -> String {
    let Config {
        data_dir,
        log_dir,
        tick_ms,
        max_client_cnxns,
        min_session_timeout_ms,
        max_session_timeout_ms,
        listen_backlog,
        server_id,
        ..
    } = view.config();
    let (data_bytes, log_bytes) = view.directory_bytes();
    let backlog = listen_backlog.map_or("-1".to_owned(), |backlog| backlog.to_string());
    let ensemble = view.ensemble().map(|ensemble| {
        let config = view.config();
        let own = config.members.iter().find(|member| member.id == *server_id);
        let ports = own.and_then(|own| own.peers.first());
        let (quorum, election) = ports.map_or((0, 0), |own| (own.quorum_port, own.election_port));
        format!(
            "initLimit={}\nsyncLimit={}\nelectionAlg=3\nelectionPort={election}\n\
             quorumPort={quorum}\npeerType={}\nmembership: \n{}",
            config.init_limit_ms / u64::from(*tick_ms),
            config.sync_limit_ms / u64::from(*tick_ms),
            u8::from(own.is_some_and(|own| own.observer)),
            ensemble.config,
        )
    });
    let ensemble = ensemble.unwrap_or_default();
    format!(
        "clientPort={}\nsecureClientPort=-1\ndataDir={}\ndataDirSize={data_bytes}\n\
         dataLogDir={}\ndataLogSize={log_bytes}\ntickTime={tick_ms}\n\
         maxClientCnxns={max_client_cnxns}\nminSessionTimeout={min_session_timeout_ms}\n\
         maxSessionTimeout={max_session_timeout_ms}\nclientPortListenBacklog={backlog}\n\
         serverId={server_id}\n{ensemble}",
        view.client_address().port(),
        data_dir.display(),
        log_dir.display(),
    )
}

fn session_sets(view: &dyn View) -> String {
    let sessions = grouped(view.expiries());
    let count: usize = sessions.values().map(Vec::len).sum();
    let mut text = format!("Session Sets ({})/({count}):\n", sessions.len());
    for (expiry_ms, ids) in sessions {
        text += &format!("{} expire at {}:\n", ids.len(), java_date(expiry_ms));
        text.extend(ids.iter().map(|id| format!("\t{id}\n")));
    }
    text
}

fn dump(view: &dyn View) -> String {
    let mut text = "SessionTracker dump:\n".to_owned();
    match view.mode() {
        // Who keeps the time of sessions.
        Mode::Standalone | Mode::Leader => text += &session_sets(view),
        Mode::Follower | Mode::Observer | Mode::ReadOnly => {
            let timeouts = view.timeouts();
            text += &format!("Global Sessions({}):\n", timeouts.len());
            text.extend(timeouts.iter().map(|(id, ms)| format!("{id}\t{ms}ms\n")));
        }
    }

    let ephemerals = view.ephemerals();
    text += &format!(
        "ephemeral nodes dump:\nSessions with Ephemerals ({}):\n",
        ephemerals.len()
    );
    for (id, paths) in ephemerals {
        text += &format!("{id}:\n");
        text.extend(paths.iter().map(|path| format!("\t{path}\n")));
    }

    let connections = view.connections();
    let count = connections.len();
    let expiry = |connection: ConnectionView| (connection.expires_ms, connection);
    let connections = grouped(connections.into_iter().map(expiry));
    text += &format!(
        "Connections dump:\nConnections Sets ({})/({count}):\n",
        connections.len()
    );
    for (expiry_ms, connections) in connections {
        text += &format!(
            "{} expire at {}:\n",
            connections.len(),
            java_date(expiry_ms)
        );
        for connection in connections {
            let id = connection
                .session
                .map_or(SessionId(0), |session| session.id);
            text += &format!("\tip: {} sessionId: {id}\n", java_address(connection.peer));
        }
    }
    text
}

fn envi() -> String {
    let mut text = "Environment:\n".to_owned();
    for (key, value) in process::environment() {
        text += &format!("{key}={value}\n");
    }
    text
}

fn hash(view: &dyn View) -> String {
    let line = |(zxid, digest): (crate::wire::Zxid, u64)| format!("{:x}: {digest}\n", zxid.0);
    view.digests().into_iter().map(line).collect()
}

fn stmk(argument: &[u8], view: &dyn View) -> String {
    // A mask that has not arrived in full changes nothing.
    if let Some(bytes) = argument.first_chunk::<STMK_ARGUMENT_BYTES>() {
        view.trace_mask()
            .store(i64::from_be_bytes(*bytes), Ordering::Relaxed);
    }
    view.trace_mask().load(Ordering::Relaxed).to_string()
}

fn mntr(view: &dyn View) -> String {
    let mut text = format!(
        "zk_version\t{VERSION}\nzk_server_state\t{}\n",
        view.mode().name()
    );
    let ensemble = view.ensemble();
    let state = match view.mode() {
        _ if ensemble.is_none() => None,
        Mode::ReadOnly => None,
        Mode::Leader => Some("leading - broadcast"),
        Mode::Observer => Some("observing - broadcast"),
        Mode::Follower | Mode::Standalone => Some("following - broadcast"),
    };
    if let Some(state) = state {
        writeln!(text, "zk_peer_state\t{state}").expect("a String takes everything");
    }
    for (name, value) in metric_values(view) {
        metric_lines(name, value, &mut text);
    }
    let links = ensemble.map(|ensemble| ensemble.links).unwrap_or_default();
    for (id, linked) in links {
        let value = MetricValue::Gauge(linked.into());
        metric_lines(&format!("peer_linked_{id}"), value, &mut text);
    }
    text
}

/// What only servers with others have to tell.
fn ensemble_values(view: &dyn View) -> Vec<(&'static str, MetricValue)> {
    let Some(ensemble) = view.ensemble() else {
        return Vec::new();
    };
    let gauge = |value: u64| MetricValue::Gauge(i64::try_from(value).unwrap_or(i64::MAX));
    let mut values = vec![
        ("quorum_size", gauge(ensemble.voters)),
        ("raft_leader", gauge(ensemble.leader)),
        ("raft_term", gauge(ensemble.term)),
        ("raft_lag", gauge(ensemble.lag)),
        ("raft_joining", gauge(ensemble.joining.into())),
        ("pending_writes", gauge(ensemble.writes)),
        ("pending_syncs", gauge(ensemble.syncs)),
    ];
    if view.mode() == Mode::Leader {
        let (followers, observers) = (ensemble.followers, ensemble.observers);
        values.extend([
            ("leader_uptime", gauge(ensemble.leading_ms)),
            ("learners", gauge(followers.active + observers.active)),
            ("synced_followers", gauge(followers.synced)),
            ("synced_observers", gauge(observers.synced)),
        ]);
    }
    values
}

/// All metrics of a server: what `mntr` shows, and what a scraper would.
pub fn metric_values(view: &dyn View) -> Vec<(&'static str, MetricValue)> {
    let gauge = |value: u64| MetricValue::Gauge(i64::try_from(value).unwrap_or(i64::MAX));
    let (open_files, max_files) = process::file_descriptors();
    let mut values = view.metrics().gauges();
    let held = view.held();
    values.extend([
        ("num_alive_connections", gauge(view.connection_count())),
        ("outstanding_requests", gauge(view.outstanding())),
        ("uptime", gauge(view.uptime_ms())),
        ("znode_count", gauge(view.znode_count())),
        ("watch_count", gauge(held.watches)),
        ("watch_memory_bytes", gauge(held.watch_bytes)),
        (
            "watch_memory_max_bytes",
            MetricValue::Gauge(held.watch_max_bytes),
        ),
        ("unsent_bytes", gauge(held.unsent_bytes)),
        (
            "unsent_max_bytes",
            MetricValue::Gauge(held.unsent_max_bytes),
        ),
        (
            "unread_connections_closed",
            gauge(held.unread_connections_closed),
        ),
        ("ephemerals_count", gauge(view.ephemeral_count())),
        ("approximate_data_size", gauge(view.data_bytes())),
        ("global_sessions", gauge(view.session_count())),
        ("local_sessions", gauge(view.local_session_count())),
        ("open_file_descriptor_count", gauge(open_files)),
        ("max_file_descriptor_count", gauge(max_files)),
        ("feature_level", gauge(view.feature_level().into())),
        ("feature_level_known", gauge(FEATURE_LEVEL.into())),
        ("connection_drop_probability", MetricValue::Fraction(0.0)),
        ("outstanding_tls_handshake", MetricValue::Gauge(0)),
    ]);
    values.extend(ensemble_values(view));
    values.extend(view.metrics().values());
    values
}

/// Appends the lines of one metric.
fn metric_lines(name: &str, value: MetricValue, text: &mut String) {
    let mut line = |prefix: &str, value: &dyn std::fmt::Display| {
        writeln!(text, "zk_{prefix}{name}\t{value}").expect("a String takes everything");
    };
    let mut totals = |Totals {
                          count,
                          sum,
                          min,
                          max,
                      }: Totals,
                      average: f64| {
        line("avg_", &decimal(average));
        line("min_", &min);
        line("max_", &max);
        line("cnt_", &count);
        line("sum_", &sum);
    };
    match value {
        MetricValue::Counter(count) => line("", &count),
        MetricValue::Gauge(value) => line("", &value),
        MetricValue::Fraction(value) => line("", &decimal(value)),
        MetricValue::Summary(summary) => totals(summary, summary.average()),
        MetricValue::Distribution(summary, quantiles) => {
            totals(summary, summary.average());
            let prefixes = ["p50_", "p95_", "p99_", "p999_"];
            prefixes
                .iter()
                .zip(quantiles)
                .for_each(|(prefix, value)| line(prefix, &value));
        }
    }
}

fn wchs(view: &dyn View) -> String {
    let summary = view.watches();
    format!(
        "{} connections watching {} paths\nTotal watches:{}\n",
        summary.connections, summary.paths, summary.watches
    )
}

fn wchc(view: &dyn View) -> String {
    let mut text = String::new();
    for (id, mut paths) in grouped(view.data_watches()) {
        paths.sort_unstable();
        text += &format!("{id}\n");
        text.extend(paths.iter().map(|path| format!("\t{path}\n")));
    }
    text + "\n"
}

fn wchp(view: &dyn View) -> String {
    let by_path = |(id, path): (SessionId, Text)| (path, id);
    let mut text = String::new();
    for (path, mut ids) in grouped(view.data_watches().into_iter().map(by_path)) {
        ids.sort_unstable();
        text += &format!("{path}\n");
        text.extend(ids.iter().map(|id| format!("\t{id}\n")));
    }
    text + "\n"
}

/// Values by key, in the order of the keys.
fn grouped<K: Ord, V>(pairs: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, Vec<V>> {
    let mut groups: BTreeMap<K, Vec<V>> = BTreeMap::new();
    for (key, value) in pairs {
        groups.entry(key).or_default().push(value);
    }
    groups
}

/// A decimal fraction with at least one and at most four places.
fn decimal(value: f64) -> String {
    let rounded = format!("{value:.4}");
    let short = rounded.trim_end_matches('0');
    if short.ends_with('.') {
        format!("{short}0")
    } else {
        short.to_owned()
    }
}

/// An address as Java writes it: after a slash, IPv6 in brackets and without abbreviation.
fn java_address(address: SocketAddr) -> String {
    let port = address.port();
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => format!("/{ip}:{port}"),
        IpAddr::V6(ip) => {
            let groups = ip.segments().map(|group| format!("{group:x}"));
            format!("/[{}]:{port}", groups.join(":"))
        }
    }
}

/// A time as Java's `Date` writes it, in UTC: `Mon Nov 23 08:00:56 UTC 2026`.
pub fn java_date(unix_ms: i64) -> String {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    /// The end of the year 9999; nothing that is shown lies outside of four-digit years.
    const LAST_MS: i64 = 253_402_300_799_999;
    let seconds = unix_ms.clamp(0, LAST_MS) / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut day) = (1970, days);
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let year_days = |year: i64| if leap(year) { 366 } else { 365 };
    while day >= year_days(year) {
        day -= year_days(year);
        year += 1;
    }
    let month_days = |month: usize| match month {
        1 => 28 + i64::from(leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    };
    let mut month = 0;
    while day >= month_days(month) {
        day -= month_days(month);
        month += 1;
    }
    let weekday = WEEKDAYS[(days % 7) as usize];
    format!(
        "{weekday} {} {:02} {:02}:{:02}:{:02} UTC {year}",
        MONTHS[month],
        day + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
pub(crate) mod tests;
